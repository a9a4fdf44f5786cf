//! Volumes of images: what a container finds there, and what no image can do
//! with them.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_store::{Filling, ImageStore, Snapshot, SnapshotError};

use crate::support::image::{Image, Packing, image, layer, layer_of, write_dir};
use crate::support::{eventually, names, open};

/// One entry of an archive: name, type, mode, link, body.
type Entry<'a> = (&'a str, u8, u32, &'a str, &'a [u8]);

#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, flag, mode, link, body) in entries {
        builder
            .append_pax_extensions([("SCHILY.xattr.user.kept", &b"yes"[..])])
            .unwrap();
        let mut h = tar::Header::new_gnu();
        h.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        h.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        h.set_entry_type(tar::EntryType::new(*flag));
        h.set_mode(*mode);
        h.set_uid(1000);
        h.set_gid(2000);
        h.set_mtime(1_234_567);
        h.set_device_major(1).unwrap();
        h.set_device_minor(3).unwrap();
        h.set_size(body.len() as u64);
        h.set_cksum();
        builder.append(&h, *body).unwrap();
    }
    builder.into_inner().unwrap()
}

#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
async fn snapshot_of(store: &ImageStore, dir: &Path, image: &Image) -> (Snapshot, OwnedFd) {
    let path = dir.join("image");
    write_dir(&path, &image.layout(Some("r.io/x:1")));
    store.import(&path, None).await.unwrap();
    let snapshot = store.create_snapshot("c1", &image.id()).await.unwrap();
    let mount = snapshot.mount(false).unwrap();
    (snapshot, mount)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_a_copy_of_what_the_image_has_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let lower = archive(&[
        ("data/", b'5', 0o1770, "", b""),
        ("data/sub/", b'5', 0o700, "", b""),
        ("data/sub/tool", b'0', 0o4755, "", b"tool"),
        ("data/again", b'1', 0o4755, "data/sub/tool", b""),
        ("data/null", b'3', 0o666, "", b""),
        ("data/pipe", b'6', 0o622, "", b""),
        ("data/gone", b'0', 0o600, "", b"x"),
        ("data/host", b'2', 0o777, "/etc/shadow", b""),
        ("data/up", b'2', 0o777, "../../../../etc", b""),
    ]);
    let upper = layer(
        Packing::Gzip,
        &[("data/.wh.gone", b""), ("data/new", b"new")],
    );
    let image = image(&[layer_of(Packing::Gzip, lower), upper]);
    let (snapshot, mount) = snapshot_of(&store, dir.path(), &image).await;
    let volume = snapshot
        .volume(&mut filling(), &mount, 0, Path::new("/data/"))
        .unwrap();
    let meta = |name: &str| std::fs::symlink_metadata(volume.join(name)).unwrap();
    for (name, mode) in [
        ("", 0o1770),
        ("sub", 0o700),
        ("sub/tool", 0o4755),
        ("null", 0o666),
    ] {
        let meta = meta(name);
        assert_eq!(meta.mode() & 0o7777, mode, "{name}");
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mtime()),
            (1000, 2000, 1_234_567),
            "{name}"
        );
    }
    let mut value = [0; 8];
    let n = rustix::fs::getxattr(volume.join("sub/tool"), "user.kept", &mut value[..]).unwrap();
    assert_eq!(&value[..n], b"yes");
    assert_eq!(std::fs::read(volume.join("sub/tool")).unwrap(), b"tool");
    assert_eq!(meta("again").ino(), meta("sub/tool").ino());
    assert!(meta("null").file_type().is_char_device() && meta("pipe").file_type().is_fifo());
    assert_eq!(meta("null").rdev(), rustix::fs::makedev(1, 3));
    for (name, target) in [("host", "/etc/shadow"), ("up", "../../../../etc")] {
        assert_eq!(
            std::fs::read_link(volume.join(name)).unwrap(),
            Path::new(target)
        );
    }
    assert!(!volume.join("gone").exists());
    assert_eq!(std::fs::read(volume.join("new")).unwrap(), b"new");
    // It is the container's own, is found again as it is, and goes with it.
    std::fs::write(volume.join("new"), vec![1; 100_000]).unwrap();
    assert_eq!(
        snapshot
            .volume(&mut filling(), &mount, 0, Path::new("/data"))
            .unwrap(),
        volume
    );
    assert_eq!(
        std::fs::metadata(volume.join("new")).unwrap().len(),
        100_000
    );
    let seen = PathBuf::from(format!("/proc/self/fd/{}/data/new", mount.as_raw_fd()));
    assert_eq!(std::fs::read(seen).unwrap(), b"new");
    let usage = store.snapshot_usage("c1").await.unwrap();
    assert!(usage.bytes >= 100_000 && usage.inodes > 9, "{usage:?}");
    drop(mount);
    store.remove_snapshot("c1").await.unwrap();
    assert!(!volume.exists());
    eventually("the trash is emptied", || {
        names(dir.path(), "snapshots/trash").is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_image_gets_out_through_the_path_of_a_volume() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    let outside = outside.to_str().unwrap();
    let up = format!("../../../../../../../..{outside}");
    let layer = archive(&[
        ("absolute", b'2', 0o777, outside, b""),
        ("up", b'2', 0o777, &up, b""),
        ("magic", b'2', 0o777, "/proc/self/root", b""),
        ("loop", b'2', 0o777, "loop", b""),
        ("inside", b'2', 0o777, "/real/../real", b""),
        ("real/", b'5', 0o755, "", b""),
        ("real/f", b'0', 0o644, "", b"f"),
        ("file", b'0', 0o644, "", b"f"),
        ("self", b'2', 0o777, "/", b""),
        ("pipe", b'6', 0o644, "", b""),
    ]);
    let image = image(&[layer_of(Packing::Gzip, layer)]);
    let (snapshot, mount) = snapshot_of(&store, dir.path(), &image).await;
    // Where the image has nothing, as a container would see it, nothing is.
    for (index, path) in ["absolute", "/up", "../../magic", "new/deep", outside]
        .iter()
        .enumerate()
    {
        let volume = snapshot
            .volume(&mut filling(), &mount, index, Path::new(path))
            .unwrap();
        let mut entries = std::fs::read_dir(&volume).unwrap();
        assert!(entries.next().is_none(), "{path}");
        assert_eq!(std::fs::metadata(&volume).unwrap().mode() & 0o7777, 0o755);
    }
    let volume = snapshot
        .volume(&mut filling(), &mount, 10, Path::new("inside"))
        .unwrap();
    assert_eq!(std::fs::read(volume.join("f")).unwrap(), b"f");
    for path in ["file", "loop", "/", "..", "self", "pipe", "file/x"] {
        let error = snapshot
            .volume(&mut filling(), &mount, 11, Path::new(path))
            .expect_err(path);
        assert!(
            matches!(error, SnapshotError::Volume { .. }),
            "{path}: {error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_cut_short_begins_anew_and_a_hostile_tree_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let deep = format!("deep/{}f", "d/".repeat(300));
    let image = image(&[
        layer(Packing::Gzip, &[("data/f", b"x"), (&deep, b"x")]),
        layer(Packing::Gzip, &[("data/g", b"y")]),
    ]);
    let (snapshot, mount) = snapshot_of(&store, dir.path(), &image).await;
    let half = snapshot
        .upper()
        .with_file_name("volumes")
        .join("0.part/left");
    std::fs::create_dir_all(&half).unwrap();
    let volume = snapshot
        .volume(&mut filling(), &mount, 0, Path::new("data"))
        .unwrap();
    assert!(!volume.join("left").exists() && volume.join("f").exists());
    assert!(volume.join("g").exists());
    let error = snapshot
        .volume(&mut filling(), &mount, 1, Path::new("deep"))
        .unwrap_err();
    assert!(error.to_string().contains("deep"), "{error}");
}

/// No bound that a test would meet.
fn filling() -> Filling {
    Filling::new(1 << 30, Arc::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_take_no_more_together_than_they_may_and_end_when_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut entries = vec![("a/b/f".to_owned(), b'0', String::new(), [7; 1000].to_vec())];
    entries.extend((0..50).map(|n| (format!("link{n}"), b'2', "a".to_owned(), Vec::new())));
    let entries: Vec<_> = entries
        .iter()
        .map(|(name, kind, target, bytes)| {
            (
                name.as_str(),
                *kind,
                0o777,
                target.as_str(),
                bytes.as_slice(),
            )
        })
        .collect();
    let image = image(&[layer_of(Packing::Gzip, archive(&entries))]);
    let (snapshot, mount) = snapshot_of(&store, dir.path(), &image).await;
    // One directory by many names is copied once.
    let mut all = Filling::new(2500, Arc::default());
    let first = snapshot
        .volume(&mut all, &mount, 0, Path::new("/a"))
        .unwrap();
    for n in 0..50 {
        let link = format!("/link{n}");
        let volume = snapshot.volume(&mut all, &mount, 1 + n, Path::new(&link));
        assert_eq!(volume.unwrap(), first);
    }
    // Volumes in volumes are copies, and count.
    let inner = snapshot
        .volume(&mut all, &mount, 51, Path::new("/a/b"))
        .unwrap();
    assert_eq!(std::fs::read(inner.join("f")).unwrap(), [7; 1000]);
    let mut less = Filling::new(1500, Arc::default());
    snapshot
        .volume(&mut less, &mount, 52, Path::new("/a"))
        .unwrap();
    let error = snapshot
        .volume(&mut less, &mount, 53, Path::new("/a/b"))
        .unwrap_err();
    let SnapshotError::Volume { reason, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(reason.contains("1500 bytes"), "{reason}");
    let mut over = Filling::new(1 << 30, Arc::new(true.into()));
    let error = snapshot
        .volume(&mut over, &mount, 54, Path::new("/a"))
        .unwrap_err();
    assert!(matches!(error, SnapshotError::Io { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_stay_holes_in_a_volume() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([
            ("GNU.sparse.size", &b"1073741824"[..]),
            ("GNU.sparse.map", b"536870912,4"),
        ])
        .unwrap();
    let mut h = tar::Header::new_ustar();
    h.set_path("data/holes").unwrap();
    h.set_size(4);
    h.set_mode(0o644);
    h.set_cksum();
    builder.append(&h, &b"here"[..]).unwrap();
    let image = image(&[layer_of(Packing::Gzip, builder.into_inner().unwrap())]);
    let (snapshot, mount) = snapshot_of(&store, dir.path(), &image).await;
    let volume = snapshot
        .volume(&mut filling(), &mount, 0, Path::new("data"))
        .unwrap();
    let file = std::fs::File::open(volume.join("holes")).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), 1 << 30);
    assert!(meta.blocks() < 1000, "{}", meta.blocks());
    let mut bytes = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 512 << 20).unwrap();
    assert_eq!(&bytes, b"here");
}

/// A view of a directory, which belongs to somebody else.
#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
fn shown_to(owner: u32, place: &Path, dir: &Path) -> std::io::Result<OwnedFd> {
    let copy = place.join(format!("{}", std::fs::read_dir(place).unwrap().count()));
    std::fs::create_dir(&copy)?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), copy.join(entry.file_name()))?;
        }
    }
    std::os::unix::fs::chown(&copy, Some(owner), Some(owner))?;
    let flags = rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, &copy, flags)?;
    Ok(tree)
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_seen_as_they_are_shown_and_what_is_written_takes_after_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let place = dir.path().join("views");
    std::fs::create_dir(&place).unwrap();
    let image = image(&[layer(Packing::Gzip, &[("one", b"1")])]);
    let (snapshot, plain) = snapshot_of(&store, dir.path(), &image).await;
    drop(plain);
    let shown = snapshot.mount_shown(&|layer| shown_to(4242, &place, layer));
    let shown = shown.unwrap();
    let root = PathBuf::from(format!("/proc/self/fd/{}", shown.as_raw_fd()));
    assert_eq!(std::fs::read(root.join("one")).unwrap(), b"1");
    let owner = |path: &Path| std::fs::metadata(path).map(|found| found.uid()).unwrap();
    assert_eq!((owner(&root), owner(&snapshot.upper())), (4242, 4242));
    std::fs::write(root.join("new"), "x").unwrap();
    assert!(snapshot.upper().join("new").exists());
    let refused = |_: &Path| Err(std::io::Error::other("no such view"));
    let error = snapshot.mount_shown(&refused).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("show "), "{cause}");
    let store = dir.path().join("store");
    let tried = image_store::try_shown(&store, &|layer| shown_to(7, &place, layer)).unwrap();
    let root = PathBuf::from(format!("/proc/self/fd/{}", tried.as_raw_fd()));
    assert_eq!(owner(&root), 7);
}
