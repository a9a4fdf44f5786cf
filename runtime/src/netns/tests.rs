//! Tests that make and pin namespaces, each in a directory of its own. They
//! need root.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use rustix::mount::mount_change;
use tempfile::TempDir;

use super::*;

/// A directory for pins; what is left in it goes with it.
pub(super) struct Pins(TempDir);

impl Pins {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.0.path().join("pins")
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let Ok(entries) = fs::read_dir(self.dir()) else {
            return;
        };
        for entry in entries {
            let _foreign = NetNs::unpin(&entry.unwrap().path());
        }
        let released = NetNs::release_dir(&self.dir());
        assert!(std::thread::panicking() || released.is_ok(), "{released:?}");
    }
}

/// Runs `work` inside the pinned namespace.
fn inside<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    let netns = File::open(path).unwrap();
    on_thread("test", || {
        setns(&netns, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
    .unwrap()
}

fn talk_over_loopback() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(&[7; 1000]).unwrap();
    drop(client);
    assert_eq!(server.read_to_end(&mut Vec::new()).unwrap(), 1000);
}

#[test]
fn a_pin_outlives_its_maker_and_has_its_loopback_up() {
    let pins = Pins::new();
    let path = pins.path("one");
    NetNs::create_pinned(&path).unwrap();
    assert!(NetNs::is_pinned(&path));
    let own = fs::metadata(OWN_NETNS).unwrap();
    let pinned = fs::metadata(&path).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_ne!(own.ino(), pinned.ino());
    inside(&path, talk_over_loopback);
}

#[test]
fn counters_count_what_went_over_the_interface() {
    let pins = Pins::new();
    let path = pins.path("one");
    NetNs::create_pinned(&path).unwrap();
    inside(&path, talk_over_loopback);
    let both = [pins.path("missing"), path];
    let mut all = interface_stats(&both).unwrap().into_iter();
    let missing = all.next().unwrap().unwrap_err();
    let stats = all.next().unwrap().unwrap();
    let names: Vec<_> = stats.iter().map(|link| link.name.as_str()).collect();
    assert!(names.contains(&"lo"), "{names:?}");
    let lo = stats.iter().find(|link| link.name == "lo").unwrap();
    assert!(lo.rx_bytes > 1000 && lo.rx_bytes == lo.tx_bytes, "{lo:?}");
    assert_eq!((lo.rx_errors, lo.tx_errors), (0, 0));
    assert!(
        matches!(missing, NetNsError::Interfaces { step: "open", .. }),
        "{missing}"
    );
}

#[test]
fn unpin_is_quiet_the_second_time() {
    let pins = Pins::new();
    let path = pins.path("one");
    NetNs::create_pinned(&path).unwrap();
    let used = File::open(&path).unwrap();
    NetNs::unpin(&path).unwrap();
    NetNs::unpin(&path).unwrap();
    assert!(!path.exists() && !NetNs::is_pinned(&path));
    drop(used);
    NetNs::create_pinned(&path).unwrap();
}

#[test]
fn an_existing_pin_is_not_replaced() {
    let pins = Pins::new();
    let path = pins.path("one");
    NetNs::create_pinned(&path).unwrap();
    let error = NetNs::create_pinned(&path).unwrap_err();
    assert!(matches!(error, NetNsError::Exists { .. }), "{error}");
    assert!(NetNs::is_pinned(&path));
}

#[test]
fn an_empty_file_of_a_crash_is_taken_over_and_another_file_is_not() {
    let pins = Pins::new();
    fs::create_dir(pins.dir()).unwrap();
    let (empty, other) = (pins.path("empty"), pins.path("other"));
    fs::write(&empty, "").unwrap();
    fs::write(&other, "mine").unwrap();
    NetNs::create_pinned(&empty).unwrap();
    let error = NetNs::create_pinned(&other).unwrap_err();
    assert!(matches!(error, NetNsError::NotAPin { .. }), "{error}");
    let error = NetNs::unpin(&other).unwrap_err();
    assert!(matches!(error, NetNsError::NotAPin { .. }), "{error}");
    assert_eq!(fs::read(&other).unwrap(), b"mine");
    NetNs::unpin(&empty).unwrap();
    fs::write(&empty, "").unwrap();
    NetNs::unpin(&empty).unwrap();
    assert!(!empty.exists());
}

#[test]
fn concurrent_pins_in_a_new_directory_hide_nothing() {
    let pins = Pins::new();
    std::thread::scope(|scope| {
        for number in 0..16 {
            let path = pins.path(&number.to_string());
            scope.spawn(move || NetNs::create_pinned(&path).unwrap());
        }
    });
    for number in 0..16 {
        assert!(
            NetNs::is_pinned(&pins.path(&number.to_string())),
            "{number}"
        );
    }
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let dir = fs::canonicalize(pins.dir()).unwrap();
    let on_dir = table
        .lines()
        .filter_map(crate::mount::table::Entry::parse)
        .filter(|entry| entry.point == dir)
        .count();
    assert!(on_dir <= 1, "{on_dir} mounts on the directory");
}

#[test]
fn one_of_two_makers_of_the_same_pin_wins() {
    let pins = Pins::new();
    let path = pins.path("one");
    let made: Vec<_> = std::thread::scope(|scope| {
        let makers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| NetNs::create_pinned(&path)))
            .collect();
        makers
            .into_iter()
            .map(|maker| maker.join().unwrap())
            .collect()
    });
    assert_eq!(
        made.iter().filter(|result| result.is_ok()).count(),
        1,
        "{made:?}"
    );
    assert!(NetNs::is_pinned(&path));
    NetNs::unpin(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn pins_come_and_go_in_mount_namespaces_made_before() {
    let pins = Pins::new();
    NetNs::create_pinned(&pins.path("first")).unwrap();
    let second = pins.path("second");
    let (to_copy, from_main) = mpsc::channel::<()>();
    let (to_main, from_copy) = mpsc::channel::<bool>();
    std::thread::scope(|scope| {
        let path = &second;
        scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
            mount_change("/", slave).unwrap();
            to_main.send(true).unwrap();
            for () in from_main {
                to_main.send(NetNs::is_pinned(path)).unwrap();
            }
        });
        let seen = || from_copy.recv().unwrap();
        let ask = || to_copy.send(()).unwrap();
        assert!(seen());
        NetNs::create_pinned(path).unwrap();
        ask();
        assert!(seen(), "the pin did not travel");
        NetNs::unpin(path).unwrap();
        ask();
        assert!(!seen(), "the pin lives on in the copy");
        drop(to_copy);
    });
}

#[test]
fn release_leaves_a_directory_with_pins_alone() {
    let pins = Pins::new();
    let path = pins.path("one");
    NetNs::create_pinned(&path).unwrap();
    NetNs::release_dir(&pins.dir()).unwrap();
    assert!(NetNs::is_pinned(&path));
    NetNs::unpin(&path).unwrap();
    NetNs::release_dir(&pins.dir()).unwrap();
    NetNs::release_dir(&pins.dir()).unwrap();
    NetNs::release_dir(&pins.path("missing")).unwrap();
    let mounts = Mounts::read(&pins.dir()).unwrap();
    assert!(!mounts.is_mount_point && !mounts.holds_mounts);
}

#[test]
fn the_mount_that_counts_is_the_deepest_and_the_last() {
    let table = "\
1 0 8:1 / / rw - ext4 /dev/a rw
2 1 8:1 / /run rw shared:3 - tmpfs t rw
3 2 8:1 / /run/netns rw shared:4 - tmpfs t rw
4 2 8:1 / /run/netns rw - tmpfs t rw
5 4 0:4 net:[1] /run/netns/a rw - nsfs nsfs rw
";
    let parse = |dir: &str| Mounts::parse(table, Path::new(dir));
    let is = |shared, is_mount_point, holds_mounts| Mounts {
        shared,
        is_mount_point,
        holds_mounts,
    };
    assert_eq!(parse("/run/netns"), is(false, true, true));
    assert_eq!(parse("/run/other"), is(true, false, false));
    assert_eq!(parse("/var"), is(false, false, false));
}
