//! What honest archives become; `hostile` has what others are refused for.

mod hostile;

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use super::*;

/// An archive in the making; headers are written as they are given.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
}

impl Archive {
    fn raw(mut self, name: &[u8], flag: u8, change: impl FnOnce(&mut ::tar::Header)) -> Self {
        let mut h = ::tar::Header::new_gnu();
        if name.len() > 100 {
            let mut long = ::tar::Header::new_gnu();
            long.set_entry_type(::tar::EntryType::GNULongName);
            long.set_size(name.len() as u64);
            long.set_cksum();
            self.bytes.extend_from_slice(long.as_bytes());
            self.body(name);
        } else {
            h.as_mut_bytes()[..name.len()].copy_from_slice(name);
        }
        h.set_entry_type(::tar::EntryType::new(flag));
        h.set_mode(0o644);
        h.set_uid(0);
        h.set_gid(0);
        h.set_mtime(1_600_000_000);
        h.set_size(0);
        change(&mut h);
        h.set_cksum();
        self.bytes.extend_from_slice(h.as_bytes());
        self
    }

    fn body(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.body(bytes);
        self
    }

    fn file(self, name: &str, body: &str) -> Self {
        let mut out = self.raw(name.as_bytes(), b'0', |h| h.set_size(body.len() as u64));
        out.body(body.as_bytes());
        out
    }

    fn dir(self, name: &str, mode: u32) -> Self {
        self.raw(name.as_bytes(), b'5', |h| h.set_mode(mode))
    }

    fn link(self, name: &str, flag: u8, target: &str) -> Self {
        self.raw(name.as_bytes(), flag, |h| {
            h.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        })
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.link(name, b'2', target)
    }

    fn hard(self, name: &str, target: &str) -> Self {
        self.link(name, b'1', target)
    }

    fn device(self, name: &str, major: u32, minor: u32) -> Self {
        self.raw(name.as_bytes(), b'3', |h| {
            h.set_device_major(major).unwrap();
            h.set_device_minor(minor).unwrap();
        })
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest + rest.to_string().len();
            len = rest + len.to_string().len();
            body.extend_from_slice(format!("{len} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self = self.raw(b"pax", b'x', |h| h.set_size(body.len() as u64));
        self.body(&body);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

/// A root to unpack into, with a witness beside it that nothing may touch.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root")).unwrap();
        fs::create_dir_all(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/witness"), "untouched").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    fn unpack_with(&self, archive: Archive, limits: &Limits) -> Result<Occupied, UnpackError> {
        let root = fs::File::open(self.path("")).unwrap();
        let unpacked = unpack(Cursor::new(archive.finish()), root.into(), limits)?;
        Ok(unpacked.occupied)
    }

    fn unpack(&self, archive: Archive) -> Result<Occupied, UnpackError> {
        self.unpack_with(archive, &Limits::default())
    }

    /// Unpacks, expects a refusal that names the entry, and a quiet outside.
    fn refuses(&self, archive: Archive, entry: &str) -> String {
        let error = self.unpack(archive).expect_err("the archive was accepted");
        let text = match &error {
            UnpackError::Hostile { entry: got, reason } => {
                assert!(got.contains(entry), "{error}");
                reason.clone()
            }
            UnpackError::Tar(tar) => {
                assert!(tar.to_string().contains(entry), "{tar}");
                tar.to_string()
            }
            UnpackError::Io { .. } => panic!("an I/O error: {error}"),
        };
        self.outside_is_untouched();
        text
    }

    fn outside_is_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let outside = self.dir.path().join("outside");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(
            fs::read_to_string(outside.join("witness")).unwrap(),
            "untouched"
        );
        assert_eq!(fs::metadata(outside.join("witness")).unwrap().nlink(), 1);
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

fn opaque(path: &std::path::Path) -> bool {
    let mut buf = [0; 8];
    rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut buf[..])
        .is_ok_and(|n| &buf[..n] == b"y")
}

#[test]
fn ordinary_layer_arrives_with_all_attributes() {
    let place = Place::new();
    let archive = Archive::default()
        .dir("./", 0o755)
        .dir("etc/", 0o2750)
        .pax(&[
            ("SCHILY.xattr.user.note", b"hi"),
            ("mtime", b"1600000001.5"),
        ])
        .file("./etc/passwd", "root\n")
        .raw(b"/bin/su", b'0', |h| {
            h.set_mode(0o4755);
            h.set_uid(0);
            h.set_gid(12);
        })
        .symlink("etc/link", "/absolute/../target")
        .hard("etc/hard", "./etc/passwd")
        .device("dev/null", 1, 3)
        .raw(b"run/pipe", b'6', |h| h.set_mode(0o622));
    let occupied = place.unpack(archive).unwrap();
    assert_eq!(occupied.inodes, 10);
    assert_eq!(place.read("etc/passwd"), "root\n");
    let meta = fs::metadata(place.path("etc/passwd")).unwrap();
    assert_eq!(
        (meta.mtime(), meta.mtime_nsec(), meta.nlink()),
        (1_600_000_001, 500_000_000, 2)
    );
    let mut buf = [0; 8];
    let n = rustix::fs::getxattr(place.path("etc/passwd"), "user.note", &mut buf[..]).unwrap();
    assert_eq!(&buf[..n], b"hi");
    let etc = fs::metadata(place.path("etc")).unwrap();
    assert_eq!((etc.mode() & 0o7777, etc.mtime()), (0o2750, 1_600_000_000));
    let su = fs::metadata(place.path("bin/su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.gid()), (0o4755, 12));
    let link = fs::read_link(place.path("etc/link")).unwrap();
    assert_eq!(link.to_str(), Some("/absolute/../target"));
    assert_eq!(
        fs::symlink_metadata(place.path("etc/link"))
            .unwrap()
            .mtime(),
        1_600_000_000
    );
    let null = fs::metadata(place.path("dev/null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    let pipe = fs::metadata(place.path("run/pipe")).unwrap();
    assert!(pipe.file_type().is_fifo());
    assert_eq!(pipe.mode() & 0o7777, 0o622);
}

#[test]
fn file_capabilities_survive_the_change_of_owner() {
    let place = Place::new();
    // Version 2, effective, permitted CAP_NET_BIND_SERVICE.
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let archive = Archive::default()
        .pax(&[("SCHILY.xattr.security.capability", capability)])
        .raw(b"ping", b'0', |h| {
            h.set_uid(1000);
            h.set_mode(0o755);
        });
    place.unpack(archive).unwrap();
    let mut buf = [0; 64];
    let n = rustix::fs::getxattr(place.path("ping"), "security.capability", &mut buf[..]).unwrap();
    assert_eq!(&buf[..n], capability);
}

#[test]
fn attributes_that_belong_to_the_host_are_left_out() {
    let place = Place::new();
    let archive = Archive::default()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"x"),
        ])
        .dir("d/", 0o755);
    place.unpack(archive).unwrap();
    assert!(!opaque(&place.path("d")));
}

#[test]
fn whiteouts_hide_names_and_opaque_marks_hide_directories() {
    let place = Place::new();
    let archive = Archive::default()
        .file("a/.wh.gone", "")
        .file("b/.wh..wh..opq", "")
        .file("b/new", "x")
        .file(".wh..wh.plnk", "")
        .file("a/.wh.replaced", "")
        .dir("a/replaced/", 0o700)
        .dir("a/after/", 0o700)
        .file("a/after/x", "1")
        .file("a/.wh.after", "")
        .file("a/file", "kept")
        .file("a/.wh.file", "")
        .file("c/.wh.implied", "")
        .file("c/implied/x", "2");
    let occupied = place.unpack(archive).unwrap();
    assert!(!occupied.opaque);
    let gone = fs::symlink_metadata(place.path("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device());
    assert_eq!(gone.rdev(), 0);
    assert!(opaque(&place.path("b")) && place.path("b/new").exists());
    assert!(!place.path(".wh..wh.plnk").exists());
    for dir in ["a/replaced", "a/after", "c/implied"] {
        assert!(
            place.path(dir).is_dir() && opaque(&place.path(dir)),
            "{dir}"
        );
    }
    assert_eq!(place.read("a/after/x"), "1");
    assert_eq!(place.read("a/file"), "kept");
}

#[test]
fn what_aufs_left_is_not_seen_and_its_hard_links_resolve() {
    let place = Place::new();
    let archive = Archive::default()
        .dir(".wh..wh.plnk/", 0o700)
        .file(".wh..wh.plnk/10.20", "shared")
        .file(".wh..wh.aufs", "")
        .dir(".wh..wh.orph/", 0o700)
        .file(".wh..wh.orph/x/y", "")
        .file("etc/.wh..wh.orph/x", "")
        .hard("a", ".wh..wh.plnk/10.20")
        .hard("d/b", ".wh..wh.plnk/10.20");
    place.unpack(archive).unwrap();
    assert_eq!(
        (place.read("a"), place.read("d/b")),
        ("shared".into(), "shared".into())
    );
    assert_eq!(fs::metadata(place.path("a")).unwrap().nlink(), 2);
    let mut names: Vec<_> = fs::read_dir(place.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["a", "d"]);
}

/// A file of 3 bytes at 4096 and 4 at the end of 20 000, the rest holes.
fn sparse_bytes() -> Vec<u8> {
    let mut bytes = vec![0; 20_000];
    bytes[4096..4099].copy_from_slice(b"one");
    bytes[19_996..].copy_from_slice(b"last");
    bytes
}

fn set_octal(field: &mut [u8], value: u64) {
    field.copy_from_slice(format!("{value:011o}\0").as_bytes());
}

#[test]
fn sparse_files_of_every_format_come_out_whole() {
    let stored = b"onelast";
    let gnu = Archive::default()
        .raw(b"holes", b'S', |h| {
            h.set_size(7);
            let bytes = h.as_mut_bytes();
            for (at, value) in [
                (386, 4096),
                (398, 3),
                (410, 19_996),
                (422, 4),
                (483, 20_000),
            ] {
                set_octal(&mut bytes[at..at + 12], value);
            }
        })
        .bytes(stored);
    // The map goes on in a block of its own.
    let mut more = [0; 512];
    set_octal(&mut more[..12], 19_996);
    set_octal(&mut more[12..24], 4);
    let longer = Archive::default()
        .raw(b"holes", b'S', |h| {
            h.set_size(7);
            let bytes = h.as_mut_bytes();
            for (at, value) in [(386, 4096), (398, 3), (483, 20_000)] {
                set_octal(&mut bytes[at..at + 12], value);
            }
            bytes[482] = 1;
        })
        .bytes(&more)
        .bytes(stored);
    let pax_0_0 = Archive::default()
        .pax(&[
            ("GNU.sparse.size", b"20000"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"4096"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", b"19996"),
            ("GNU.sparse.numbytes", b"4"),
        ])
        .raw(b"holes", b'0', |h| h.set_size(7))
        .bytes(stored);
    let pax_0_1 = Archive::default()
        .pax(&[
            ("GNU.sparse.size", b"20000"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.map", b"4096,3,19996,4"),
            ("GNU.sparse.name", b"holes"),
        ])
        .raw(b"GNUSparseFile.1/holes", b'0', |h| h.set_size(7))
        .bytes(stored);
    let mut body = b"2\n4096\n3\n19996\n4\n".to_vec();
    body.resize(512, 0);
    body.extend_from_slice(stored);
    let pax_1_0 = Archive::default()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"holes"),
            ("GNU.sparse.realsize", b"20000"),
        ])
        .raw(b"GNUSparseFile.1/holes", b'0', |h| h.set_size(519))
        .bytes(&body);
    for (format, archive) in [
        ("gnu", gnu),
        ("gnu, two blocks", longer),
        ("0.0", pax_0_0),
        ("0.1", pax_0_1),
        ("1.0", pax_1_0),
    ] {
        let place = Place::new();
        let occupied = place.unpack(archive.file("after", "x")).unwrap();
        assert_eq!(
            fs::read(place.path("holes")).unwrap(),
            sparse_bytes(),
            "{format}"
        );
        assert_eq!(place.read("after"), "x", "{format}");
        assert_eq!(occupied.inodes, 3, "{format}");
    }
}

#[test]
fn directories_that_are_not_listed_are_noted_unless_they_are_listed_later() {
    let place = Place::new();
    let archive = Archive::default()
        .file("tmp/x", "1")
        .file("usr/lib/y", "2")
        .dir("usr/", 0o750)
        .file("etc/.wh.gone", "")
        .file("var/.wh..wh..opq", "")
        .symlink("lib", "usr/lib")
        .file("lib/deep/z", "3")
        .file("new/a", "")
        .file(".wh.new", "");
    let root = fs::File::open(place.path("")).unwrap();
    let unpacked = unpack(
        Cursor::new(archive.finish()),
        root.into(),
        &Limits::default(),
    )
    .unwrap();
    let noted: Vec<&[u8]> = unpacked.implied.split(|&b| b == 0).collect();
    let meant = |path: &str| {
        let mut value = [0; 8];
        let marked = rustix::fs::getxattr(place.path(path), IMPLIED, &mut value[..]).is_ok();
        assert!(!marked || noted.contains(&path.as_bytes()), "{path}");
        marked
    };
    for path in ["tmp", "usr/lib", "etc", "var", "usr/lib/deep"] {
        assert!(meant(path), "{path}");
    }
    for path in ["usr", "new"] {
        assert!(!meant(path), "{path}");
    }
    assert!(!unpacked.occupied.root);
}

#[test]
fn times_of_directories_are_right_whatever_comes_in_between() {
    let place = Place::new();
    let mut archive = Archive::default();
    // More directories than are kept open, with files in two rounds, by way of
    // links, and with removals in between.
    for i in 0..200 {
        archive = archive.raw(format!("d{i}/").as_bytes(), b'5', |h| h.set_mtime(1000 + i));
    }
    for round in 0..2 {
        for i in 0..200 {
            archive = archive
                .file(&format!("d{i}/f{round}"), "x")
                .symlink(&format!("s{i}"), &format!("d{i}"))
                .file(&format!("s{i}/g{round}"), "x")
                .dir(&format!("d{i}/sub/"), 0o755)
                .file(&format!("d{i}/sub"), "a file now");
        }
    }
    place.unpack(archive).unwrap();
    for i in 0..200 {
        let meta = fs::metadata(place.path(&format!("d{i}"))).unwrap();
        assert_eq!(meta.mtime(), 1000 + i, "{i}");
        assert_eq!(place.read(&format!("d{i}/g1")), "x");
    }
}

#[test]
fn an_opaque_root_is_reported() {
    let place = Place::new();
    assert!(
        place
            .unpack(Archive::default().file(".wh..wh..opq", ""))
            .unwrap()
            .opaque
    );
}

#[test]
fn parents_that_are_links_of_the_same_layer_are_resolved_inside() {
    let place = Place::new();
    let archive = Archive::default()
        .dir("usr/lib/", 0o755)
        .symlink("lib", "usr/lib")
        .file("lib/a", "1")
        .symlink("var/run", "/run")
        .file("var/run/pid", "2")
        .symlink("deep/x", "../usr/./lib/")
        .file("deep/x/b", "3")
        .hard("lib/c", "deep/x/b");
    place.unpack(archive).unwrap();
    assert_eq!(place.read("usr/lib/a"), "1");
    assert_eq!(place.read("run/pid"), "2");
    assert_eq!(place.read("usr/lib/b"), "3");
    assert_eq!(place.read("usr/lib/c"), "3");
    place.outside_is_untouched();
}

#[test]
fn later_entries_replace_earlier_ones() {
    let place = Place::new();
    let archive = Archive::default()
        .file("f", "old")
        .file("f", "new")
        .file("d/x", "1")
        .file("d", "now a file")
        .file("e", "file")
        .dir("e/", 0o711)
        .dir("k/", 0o700)
        .file("k/in", "stays")
        .dir("k/", 0o750)
        .symlink("s", "f")
        .file("s", "no link")
        .dir("t/", 0o755)
        .symlink("t", "k");
    place.unpack(archive).unwrap();
    assert_eq!(place.read("f"), "new");
    assert_eq!(place.read("d"), "now a file");
    assert!(place.path("e").is_dir());
    assert_eq!(place.read("k/in"), "stays");
    assert_eq!(
        fs::metadata(place.path("k")).unwrap().mode() & 0o7777,
        0o750
    );
    assert_eq!(place.read("s"), "no link");
    assert!(fs::symlink_metadata(place.path("t")).unwrap().is_symlink());
}

#[test]
fn absolute_names_land_inside() {
    let place = Place::new();
    let outside = place.dir.path().join("outside/evil");
    let name = outside.to_str().unwrap().to_owned();
    place.unpack(Archive::default().file(&name, "x")).unwrap();
    place.outside_is_untouched();
    assert_eq!(place.read(name.trim_start_matches('/')), "x");
}

#[test]
fn absolute_symlink_leads_to_the_layers_own_root() {
    let place = Place::new();
    let target = place.dir.path().join("outside");
    let archive = Archive::default()
        .symlink("evil", target.to_str().unwrap())
        .file("evil/x", "inside");
    place.unpack(archive).unwrap();
    place.outside_is_untouched();
    let inside = place.path(target.to_str().unwrap().trim_start_matches('/'));
    assert_eq!(fs::read_to_string(inside.join("x")).unwrap(), "inside");
}

#[test]
fn a_file_over_a_symlink_replaces_the_link_and_not_its_target() {
    let place = Place::new();
    let witness = place.dir.path().join("outside/witness");
    let archive = Archive::default()
        .symlink("f", witness.to_str().unwrap())
        .file("f", "overwritten")
        .symlink("d", "../outside")
        .dir("d/", 0o777);
    place.unpack(archive).unwrap();
    place.outside_is_untouched();
    assert_eq!(place.read("f"), "overwritten");
    assert!(fs::symlink_metadata(place.path("d")).unwrap().is_dir());
}

#[test]
fn directory_times_are_set_after_their_contents() {
    let place = Place::new();
    let archive = Archive::default()
        .raw(b"d/", b'5', |h| h.set_mtime(1000))
        .file("d/late", "x")
        .dir("gone/", 0o755)
        .file("gone", "a file now");
    place.unpack(archive).unwrap();
    assert_eq!(fs::metadata(place.path("d")).unwrap().mtime(), 1000);
    assert_eq!(
        fs::metadata(place.path("gone")).unwrap().mtime(),
        1_600_000_000
    );
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        File(String),
        Dir(String),
        Symlink(String, String),
        Hard(String, String),
        Whiteout(String),
    }

    fn name() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            4 => Just("a".to_owned()),
            4 => Just("b".to_owned()),
            2 => Just("..".to_owned()),
            1 => Just(".".to_owned()),
            1 => Just("outside".to_owned()),
            1 => Just("witness".to_owned()),
        ];
        (prop::bool::ANY, prop::collection::vec(part, 1..5)).prop_map(|(slash, parts)| {
            format!("{}{}", if slash { "/" } else { "" }, parts.join("/"))
        })
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            name().prop_map(Step::File),
            name().prop_map(Step::Dir),
            (name(), name()).prop_map(|(a, b)| Step::Symlink(a, b)),
            (name(), name()).prop_map(|(a, b)| Step::Hard(a, b)),
            name().prop_map(|n| Step::Whiteout(format!("{n}/.wh.a"))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
        #[test]
        fn no_order_of_entries_reaches_the_outside(steps in prop::collection::vec(step(), 1..12)) {
            let place = Place::new();
            // One entry at a time, so that a refusal does not hide what follows.
            for step in steps {
                let archive = match step {
                    Step::File(n) => Archive::default().file(&n, "x"),
                    Step::Dir(n) => Archive::default().dir(&n, 0o700),
                    Step::Symlink(n, t) => Archive::default().symlink(&n, &t),
                    Step::Hard(n, t) => Archive::default().hard(&n, &t),
                    Step::Whiteout(n) => Archive::default().file(&n, ""),
                };
                match place.unpack(archive) {
                    Ok(_) | Err(UnpackError::Hostile { .. } | UnpackError::Tar(_)) => {}
                    Err(error @ UnpackError::Io { .. }) => prop_assert!(false, "{error:?}"),
                }
                place.outside_is_untouched();
            }
        }
    }
}
