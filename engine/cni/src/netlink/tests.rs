//! Tests against the kernel, each in a network namespace of its own. They
//! need root.

use rustix::io::Errno;

use super::*;
use crate::testing::in_new_namespace;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;

fn get_link(index: i32, name: Option<&str>) -> Message {
    let mut message = Message::new("look up a link", RTM_GETLINK, 0);
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    message.raw(&fixed);
    if let Some(name) = name {
        message.text(IFLA_IFNAME, name);
    }
    message
}

fn names(replies: &[Reply]) -> Vec<String> {
    let name = |reply: &Reply| {
        let found = attributes(&reply.body[16..]).find(|attribute| attribute.kind == IFLA_IFNAME);
        found.and_then(|attribute| attribute.text().map(str::to_owned))
    };
    replies.iter().filter_map(name).collect()
}

#[test]
fn several_messages_in_one_send_have_their_own_answers() {
    in_new_namespace(|| {
        let mut socket = Socket::open(Family::Route).unwrap();
        let messages = vec![
            get_link(0, Some("lo")),
            get_link(0, Some("nothing")),
            get_link(1, None),
        ];
        let answers = socket.exchange(messages).unwrap();
        assert_eq!(names(&answers.replies), ["lo", "lo"]);
        assert_eq!(answers.refusal(1).unwrap().errno, Errno::NODEV);
        assert_eq!(answers.refusals.len(), 1);
        assert!(answers.reply(2).is_some());
        let error = answers.complete().unwrap_err();
        assert!(error.to_string().starts_with("look up a link: "), "{error}");
    });
}

#[test]
fn a_refusal_has_the_kernels_own_words() {
    in_new_namespace(|| {
        let mut socket = Socket::open(Family::Route).unwrap();
        let mut message = Message::new("add a link", RTM_NEWLINK, flag::CREATE | flag::EXCL);
        message.raw(&[0; 16]).text(IFLA_IFNAME, "x");
        message.nested(18, |info| {
            info.text(1, "nosuchkind");
        });
        let error = socket.transact(vec![message]).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::OPNOTSUPP));
        assert!(error.to_string().contains("Unknown device type"), "{error}");
    });
}

#[test]
fn a_dump_lists_all_and_what_is_missing_is_none() {
    in_new_namespace(|| {
        let mut socket = Socket::open(Family::Route).unwrap();
        let links = socket.dump(&get_link(0, None)).unwrap();
        assert!(names(&links).contains(&"lo".to_owned()));
        assert!(socket.get(get_link(0, Some("nothing"))).unwrap().is_none());
        assert!(socket.get(get_link(0, Some("lo"))).unwrap().is_some());
    });
}

#[test]
fn a_transaction_is_all_or_nothing() {
    const NEWTABLE: u16 = 10 << 8;
    const DELTABLE: u16 = (10 << 8) | 2;
    const GETTABLE: u16 = (10 << 8) | 1;
    let table = |what, kind, flags, name: &str| {
        let mut message = Message::new(what, kind, flags);
        message.raw(&[1, 0, 0, 0]).text(1, name);
        message
    };
    in_new_namespace(|| {
        let mut socket = Socket::open(Family::Netfilter).unwrap();
        let tables = |socket: &mut Socket| {
            let mut list = Message::new("list tables", GETTABLE, 0);
            list.raw(&[1, 0, 0, 0]);
            socket.dump(&list).unwrap().len()
        };
        let add = |name| table("add a table", NEWTABLE, flag::CREATE, name);
        let wrong = table("delete a table", DELTABLE, 0, "nothing");
        let error = socket.batch(vec![add("one"), wrong]).unwrap_err();
        let NetlinkError::Refused(refusal) = &error else {
            panic!("{error}");
        };
        assert_eq!((refusal.index, refusal.errno), (1, Errno::NOENT));
        assert_eq!(tables(&mut socket), 0);
        socket.batch(vec![add("one"), add("two")]).unwrap();
        assert_eq!(tables(&mut socket), 2);
    });
}

#[test]
fn broken_attributes_end_the_walk() {
    assert_eq!(attributes(&[3, 0, 1, 0, 9]).count(), 0);
    assert_eq!(attributes(&[200, 0, 1, 0]).count(), 0);
    let mut message = Message::new("x", 1, 0);
    message.nested(7, |inside| {
        inside.u8(1, 5).text(2, "abc").be16(3, 0x1234);
    });
    let bytes = message.finish(1).unwrap().to_vec();
    let outer: Vec<_> = attributes(&bytes[16..]).collect();
    assert_eq!((outer.len(), outer[0].kind), (1, 7));
    let inside: Vec<_> = outer[0].nested().collect();
    assert_eq!(inside[0].u8(), Some(5));
    assert_eq!(inside[1].text(), Some("abc"));
    assert_eq!(inside[2].value, [0x12, 0x34]);
}

#[test]
fn work_in_a_namespace_leaves_the_callers_thread_where_it_was() {
    let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = own();
    let pin = crate::testing::Pin::new();
    let namespace = Namespace::open(pin.path()).unwrap();
    let inside = namespace.run(own).unwrap();
    assert_ne!(inside, before);
    assert_eq!(own(), before);
    let missing = Namespace::open(std::path::Path::new("/nonexistent")).unwrap_err();
    assert!(
        matches!(missing, NamespaceError::Missing { .. }),
        "{missing}"
    );
    let wrong = Namespace::open(std::path::Path::new("/etc/passwd")).unwrap_err();
    assert!(
        matches!(wrong, NamespaceError::NotANamespace { .. }),
        "{wrong}"
    );
}

proptest::proptest! {
    /// Whatever the kernel, or whoever pretends to be it, sends.
    #[test]
    fn no_answer_breaks_the_readers(bytes in proptest::collection::vec(0u8..48, 0..300)) {
        for attribute in attributes(&bytes) {
            let _number = (attribute.u8(), attribute.u16(), attribute.u32(), attribute.u64());
            let _number = (attribute.be16(), attribute.be32(), attribute.be64());
            let _inside = (attribute.text(), attribute.nested().count());
        }
        socket::read_all(&bytes);
        let reply = Reply { index: 0, kind: RTM_NEWLINK, body: bytes };
        let _link = crate::rtnl::link::Link::parse(&reply);
    }
}
