//! Claims about packets.

use std::os::fd::AsFd;

use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::super::{Body, Create, Empty, Exited, Failure, FailureKind, Step, VERSION};
use super::*;

fn pair() -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .unwrap()
}

fn packet(received: Received) -> Incoming {
    match received {
        Received::Packet(incoming) => *incoming,
        other => panic!("no packet but {other:?}"),
    }
}

fn envelope(body: Body) -> Envelope {
    Envelope {
        version: VERSION,
        request: 7,
        body: Some(body),
        ..Envelope::default()
    }
}

#[test]
fn nothing_and_closed_differ() {
    let (a, b) = pair();
    assert!(matches!(receive(a.as_fd()).unwrap(), Received::Nothing));
    drop(b);
    assert!(matches!(receive(a.as_fd()).unwrap(), Received::Closed));
}

#[test]
fn all_descriptors_arrive_and_keep_their_order() {
    let (a, b) = pair();
    let files: Vec<_> = (0..MAX_FDS)
        .map(|n| sealed_memfd("test", n.to_string().as_bytes()).unwrap())
        .collect();
    let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    assert!(send(a.as_fd(), &envelope(Body::Done(Empty {})), &borrowed).unwrap());
    let mut incoming = packet(receive(b.as_fd()).unwrap());
    assert_eq!(incoming.fds.len(), MAX_FDS);
    for n in (0..MAX_FDS).rev() {
        let fd = incoming.fds.take(u32::try_from(n).ok(), "test").unwrap();
        let mut text = [0; 8];
        let read = rustix::io::pread(&fd, &mut text, 0).unwrap();
        assert_eq!(&text[..read], n.to_string().as_bytes());
    }
    assert!(incoming.fds.take(Some(0), "test").is_err(), "taken twice");
    assert!(
        incoming.fds.take(Some(u32::MAX), "test").is_err(),
        "out of range"
    );
}

#[test]
fn one_descriptor_too_many_is_refused_before_sending() {
    let (a, b) = pair();
    let file = sealed_memfd("test", b"x").unwrap();
    let many = vec![file.as_fd(); MAX_FDS + 1];
    let sent = send(a.as_fd(), &envelope(Body::Done(Empty {})), &many);
    assert!(matches!(
        sent,
        Err(ProtocolError::TooLarge {
            what: "descriptors",
            ..
        })
    ));
    assert!(matches!(receive(b.as_fd()).unwrap(), Received::Nothing));
}

#[test]
fn large_envelopes_spill_and_arrive_whole() {
    let (a, b) = pair();
    let create = Create {
        seccomp_bpf: Some(vec![9; 3 * MAX_INLINE]),
        ..Create::default()
    };
    let sent = envelope(Body::Create(Box::new(create)));
    let file = sealed_memfd("test", b"x").unwrap();
    assert!(send(a.as_fd(), &sent, &[file.as_fd()]).unwrap());
    let incoming = packet(receive(b.as_fd()).unwrap());
    assert_eq!(incoming.envelope, sent);
    assert_eq!(incoming.fds.len(), 1, "the memfd itself is not handed on");
}

#[test]
fn spill_that_lies_about_its_length_is_refused() {
    for (announced, content) in [(10, 5_usize), (5, 10), (MAX_SPILLED + 1, 5)] {
        let (a, b) = pair();
        let memfd = sealed_memfd("test", &vec![0; content]).unwrap();
        let lie = Envelope {
            version: VERSION,
            spilled: announced,
            ..Envelope::default()
        };
        assert!(send_packet(a.as_fd(), &lie.encode_to_vec(), &[memfd.as_fd()]).unwrap());
        assert!(
            receive(b.as_fd()).is_err(),
            "announced {announced}, is {content}"
        );
    }
}

#[test]
fn spill_in_a_spill_is_refused() {
    let (a, b) = pair();
    let inner = Envelope {
        version: VERSION,
        spilled: 3,
        ..Envelope::default()
    }
    .encode_to_vec();
    let memfd = sealed_memfd("test", &inner).unwrap();
    let outer = Envelope {
        version: VERSION,
        spilled: inner.len() as u64,
        ..Envelope::default()
    };
    assert!(send_packet(a.as_fd(), &outer.encode_to_vec(), &[memfd.as_fd()]).unwrap());
    assert!(matches!(
        receive(b.as_fd()),
        Err(ProtocolError::BadSpill(_))
    ));
}

#[test]
fn spill_without_descriptor_is_refused() {
    let (a, b) = pair();
    let lie = Envelope {
        version: VERSION,
        spilled: 5,
        ..Envelope::default()
    };
    assert!(send_packet(a.as_fd(), &lie.encode_to_vec(), &[]).unwrap());
    assert!(matches!(
        receive(b.as_fd()),
        Err(ProtocolError::NoDescriptor(_))
    ));
}

#[test]
fn packet_beyond_the_limit_is_refused() {
    let (a, b) = pair();
    assert!(send_packet(a.as_fd(), &vec![0; MAX_INLINE + 1], &[]).unwrap());
    assert!(matches!(
        receive(b.as_fd()),
        Err(ProtocolError::TooLarge { what: "bytes", .. })
    ));
}

#[test]
fn full_socket_sends_nothing() {
    let (a, b) = pair();
    let message = envelope(Body::Failure(Box::new(Failure::new(
        FailureKind::Launch,
        "step",
        "x".repeat(16 * 1024),
    ))));
    let mut sent = 0;
    while send(a.as_fd(), &message, &[]).unwrap() {
        sent += 1;
        assert!(sent < 10_000);
    }
    for _ in 0..sent {
        assert_eq!(packet(receive(b.as_fd()).unwrap()).envelope, message);
    }
    assert!(matches!(receive(b.as_fd()).unwrap(), Received::Nothing));
}

#[test]
fn fields_of_a_newer_version_are_skipped() {
    let mut bytes = envelope(Body::Done(Empty {})).encode_to_vec();
    // Field 1000, length-delimited, three bytes.
    bytes.extend_from_slice(&[0xc2, 0x3e, 3, 1, 2, 3]);
    assert_eq!(
        Envelope::decode(bytes.as_slice()).unwrap(),
        envelope(Body::Done(Empty {}))
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_envelope_survives_the_socket(
        request: u64,
        sent_at: u64,
        id in "[0-9a-f]{0,64}",
        code: i32,
        signal: Option<i32>,
        names in proptest::collection::vec(".{0,20}", 0..5),
        padding in 0_usize..70_000,
    ) {
        let (a, b) = pair();
        let exited = Exited { id, exit_code: code, signal, ..Exited::default() };
        let mut steps: Vec<_> = names.iter().map(|name| Step::now(name)).collect();
        steps.push(Step { name: "p".repeat(padding), at: 1 });
        let sent = Envelope {
            requires: 0,
            version: VERSION, request, sent_at, steps, received_at: 3, spilled: 0,
            body: Some(Body::Exited(exited)),
        };
        prop_assert!(send(a.as_fd(), &sent, &[]).unwrap());
        prop_assert_eq!(packet(receive(b.as_fd()).unwrap()).envelope, sent);
    }

    #[test]
    fn any_bytes_are_answered_without_panic(bytes in proptest::collection::vec(any::<u8>(), 1..300)) {
        let (a, b) = pair();
        prop_assert!(send_packet(a.as_fd(), &bytes, &[]).unwrap());
        // Whatever it is, the next packet can still be read.
        let _outcome = receive(b.as_fd());
        let sent = send(a.as_fd(), &envelope(Body::Done(Empty {})), &[]).unwrap();
        prop_assert!(sent);
        let received = receive(b.as_fd()).unwrap();
        prop_assert!(matches!(received, Received::Packet(_)));
    }
}
