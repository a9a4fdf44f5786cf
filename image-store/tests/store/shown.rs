//! Images that containers have as volumes: what is there, how long, and what no image
//! can do with the path that is asked for.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use image_store::{ImageStore, SnapshotError};

use crate::support::image::{Image, Packing, image, layer, layer_of, write_dir};
use crate::support::{eventually, left_over, open};

#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
async fn import(store: &ImageStore, dir: &Path, name: &str, image: &Image) {
    let path = dir.join(name);
    write_dir(&path, &image.layout(Some(&format!("r.io/{name}:1"))));
    store.import(&path, None).await.unwrap();
}

fn below(mount: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", mount.as_raw_fd()))
}

/// An archive with a root of its own kind, links and a FIFO.
#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
fn hostile(outside: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let up = format!("../../../../../../..{outside}");
    for (name, flag, mode, link, body) in [
        ("./", b'5', 0o1751, "", &b""[..]),
        ("real/", b'5', 0o755, "", b""),
        ("real/file", b'0', 0o644, "", b"here"),
        ("inside", b'2', 0o777, "/real", b""),
        ("absolute", b'2', 0o777, outside, b""),
        ("up", b'2', 0o777, &up, b""),
        ("magic", b'2', 0o777, "/proc/self/root", b""),
        ("loop", b'2', 0o777, "loop", b""),
        ("pipe", b'6', 0o644, "", b""),
        ("null", b'3', 0o666, "", b""),
    ] {
        let mut h = tar::Header::new_gnu();
        h.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        h.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        h.set_entry_type(tar::EntryType::new(flag));
        h.set_mode(mode);
        h.set_device_major(1).unwrap();
        h.set_device_minor(3).unwrap();
        h.set_size(body.len() as u64);
        h.set_cksum();
        builder.append(&h, body).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_mounted_read_only_with_all_of_its_layers_and_its_own_root() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let root = image(&[layer(Packing::Gzip, &[("x", b"1")])]);
    import(&store, dir.path(), "root", &root).await;
    let lower = layer_of(Packing::Gzip, hostile("/nowhere"));
    let upper = layer(
        Packing::Gzip,
        &[("real/.wh.file", b""), ("real/new", b"new")],
    );
    let volume = image(&[lower, upper]);
    import(&store, dir.path(), "volume", &volume).await;
    store.create_snapshot("c1", &root.id()).await.unwrap();
    let mount = store
        .mount_image("c1", &volume.id(), Path::new(""), None)
        .await;
    let mount = mount.unwrap();
    assert_eq!(
        std::fs::read(below(&mount, "real/new")).unwrap(),
        b"new".to_vec()
    );
    assert!(!below(&mount, "real/file").exists(), "it was removed above");
    let mode = std::fs::metadata(below(&mount, "")).unwrap().mode();
    assert_eq!(
        mode & 0o7777,
        0o1751,
        "the root is like the lower layer says"
    );
    let error = std::fs::write(below(&mount, "real/new"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    // Of one layer, and again.
    for _ in 0..2 {
        let mount = store
            .mount_image("c1", &root.id(), Path::new(""), None)
            .await;
        assert!(below(&mount.unwrap(), "x").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_in_an_image_leads_to_what_the_image_has_or_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    let outside = outside.to_str().unwrap();
    let image = image(&[layer_of(Packing::Gzip, hostile(outside))]);
    import(&store, dir.path(), "hostile", &image).await;
    store.create_snapshot("c1", &image.id()).await.unwrap();
    let mount = async |path: &str| {
        store
            .mount_image("c1", &image.id(), Path::new(path), None)
            .await
    };
    for path in ["real", "inside", "./real/.", "absolute/../real"] {
        match mount(path).await {
            Ok(mounted) => {
                let text = std::fs::read(below(&mounted, "file")).unwrap();
                assert_eq!(text, b"here", "{path}");
            }
            // What leads nowhere does so although it would come back.
            Err(error) => assert_eq!(path, "absolute/../real", "{error}"),
        }
    }
    let file = mount("inside/file").await.unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    assert_eq!(std::fs::read(&path).unwrap(), b"here");
    let error = std::fs::write(&path, "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    for (path, reason) in [
        ("missing", "does not exist"),
        ("real/file/below", "does not exist"),
        ("absolute", "does not exist"),
        ("absolute/secret", "does not exist"),
        ("up/secret", "does not exist"),
        ("../../../../../etc/passwd", "does not exist"),
        ("magic/etc", "does not exist"),
        ("loop", "loop of links"),
        ("pipe", "neither a directory nor a regular file"),
        ("null", "neither a directory nor a regular file"),
    ] {
        let error = mount(path).await.unwrap_err();
        assert!(
            matches!(error, SnapshotError::ImagePath { .. }),
            "{path}: {error:?}"
        );
        assert!(error.to_string().contains(reason), "{path}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_a_volume_stays_until_its_owner_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let root = image(&[layer(Packing::Gzip, &[("x", b"1")])]);
    let volume = image(&[layer(Packing::Gzip, &[("y", b"2")])]);
    import(&store, dir.path(), "root", &root).await;
    import(&store, dir.path(), "volume", &volume).await;
    let id = volume.id();
    let nobody = store.mount_image("c1", &id, Path::new(""), None).await;
    assert!(
        matches!(nobody, Err(SnapshotError::NoImage { .. })),
        "no owner"
    );
    store.create_snapshot("c1", &root.id()).await.unwrap();
    let mount = store
        .mount_image("c1", &id, Path::new(""), None)
        .await
        .unwrap();
    store.remove(&id.to_string()).await.unwrap();
    assert!(store.find(&id.to_string()).is_none(), "it is gone at once");
    let later = store.mount_image("c2", &id, Path::new(""), None).await;
    assert!(later.is_err(), "nobody gets it any more");
    // As after a crash: what is mounted lives on, and the next start keeps the layers.
    drop(store);
    let store = open(dir.path()).await;
    assert_eq!(left_over(dir.path()).len(), 2);
    drop(std::fs::read_dir(below(&mount, "")).unwrap());
    assert_eq!(std::fs::read(below(&mount, "y")).unwrap(), b"2");
    drop(mount);
    store.remove_snapshot("c1").await.unwrap();
    eventually("the volume's layer is thrown away", || {
        left_over(dir.path()).len() == 1
    })
    .await;
}
