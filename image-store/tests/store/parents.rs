//! Directories that a layer does not list: they are as the layers below say.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use image_store::ImageStore;

use crate::support::image::{Image, Layer, Packing, image, layer, layer_of, write_dir};
use crate::support::{eventually, names, open};

const OWNER: u32 = 1234;

/// Directories with mode 1777, an owner, an attribute and a time of their own.
#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
fn listed(dirs: &[&str]) -> Layer {
    let mut builder = tar::Builder::new(Vec::new());
    for dir in dirs {
        builder
            .append_pax_extensions([("SCHILY.xattr.user.kept", &b"yes"[..])])
            .unwrap();
        let mut h = tar::Header::new_gnu();
        h.set_entry_type(tar::EntryType::Directory);
        h.set_mode(0o1777);
        h.set_uid(OWNER.into());
        h.set_gid(OWNER.into());
        h.set_mtime(1_234_567);
        h.set_size(0);
        h.set_path(dir).unwrap();
        h.set_cksum();
        builder.append(&h, &b""[..]).unwrap();
    }
    layer_of(Packing::Gzip, builder.into_inner().unwrap())
}

fn of(files: &[&str]) -> Layer {
    let body = |name: &str| if name.ends_with('/') { &b""[..] } else { b"x" };
    let files: Vec<(&str, &[u8])> = files.iter().map(|name| (*name, body(name))).collect();
    layer(Packing::Gzip, &files)
}

/// A container's root and the mount that it is in.
struct Root {
    path: PathBuf,
    _mount: OwnedFd,
}

#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
impl Root {
    /// Mode, owner, time and attribute of a directory.
    fn is_kept(&self, dir: &str) -> bool {
        let path = self.path.join(dir);
        let meta = std::fs::metadata(&path).unwrap();
        let mut value = [0; 8];
        let attribute = rustix::fs::getxattr(&path, "user.kept", &mut value[..]);
        let time = dir == "." || meta.mtime() == 1_234_567;
        (meta.mode() & 0o7777, meta.uid(), meta.gid()) == (0o1777, OWNER, OWNER)
            && attribute.is_ok_and(|n| &value[..n] == b"yes")
            && time
    }

    fn is_usual(&self, dir: &str) -> bool {
        let meta = std::fs::metadata(self.path.join(dir)).unwrap();
        (meta.mode() & 0o7777, meta.uid()) == (0o755, 0)
    }
}

/// Brings an image in and mounts it.
#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
async fn root_of(store: &ImageStore, dir: &Path, owner: &str, image: &Image) -> Root {
    let path = dir.join(owner);
    write_dir(&path, &image.layout(Some(&format!("r.io/{owner}:1"))));
    store.import(&path, None).await.unwrap();
    let snapshot = store.create_snapshot(owner, &image.id()).await.unwrap();
    let mount = snapshot.mount(false).unwrap();
    Root {
        path: PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())),
        _mount: mount,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_a_layer_does_not_list_stays_as_it_was_below() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let base = listed(&["tmp/", "a/", "a/b/", "hide/", "opq/", "gone/"]);
    // The simplest case; one layer more in between; and a whiteout.
    for (name, above) in [
        ("one", vec![of(&["tmp/x", "a/b/c/d"])]),
        ("two", vec![of(&["etc/f"]), of(&["tmp/x", "a/b/c/d"])]),
        (
            "twice",
            vec![of(&["tmp/y", "a/b/e"]), of(&["tmp/x", "a/b/c/d"])],
        ),
        (
            "hiding",
            vec![of(&["tmp/y", "a/b/e"]), of(&["tmp/.wh.y", "a/b/.wh.e"])],
        ),
        (
            "opaque",
            vec![
                of(&["tmp/y"]),
                of(&["tmp/.wh..wh..opq", "a/b/.wh..wh..opq"]),
            ],
        ),
    ] {
        let layers = [vec![base.clone()], above].concat();
        let root = root_of(&store, dir.path(), name, &image(&layers)).await;
        for kept in ["tmp", "a", "a/b"] {
            assert!(root.is_kept(kept), "{name}: {kept}");
        }
        assert!(
            !root.path.join("tmp/y").exists() || name == "twice",
            "{name}"
        );
        let new = root.path.join("a/b/c");
        assert!(!new.exists() || root.is_usual("a/b/c"), "{name}");
        // What is changed stays changed: the container's own layer is above.
        std::fs::write(root.path.join("tmp/mine"), "x").unwrap();
        assert!(root.path.join("tmp/mine").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_hidden_or_new_is_not_brought_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let layers = [
        listed(&[
            "gone/", "file/", "opq/", "opq/in/", "again/", "link/", "tmp/",
        ]),
        of(&["gone/x", "file/x", "opq/in/x", "again/x", "link/x", "tmp/x"]),
        of(&[
            ".wh.gone",
            "file",
            "opq/.wh..wh..opq",
            ".wh.again",
            "again/x",
            "link",
        ]),
        of(&["opq/in/y"]),
    ];
    let root = root_of(&store, dir.path(), "c", &image(&layers)).await;
    assert!(!root.path.join("gone").exists());
    assert!(root.path.join("file").is_file() && root.path.join("link").is_file());
    assert!(root.is_kept("opq"), "its own attributes are not hidden");
    assert!(
        root.is_usual("opq/in"),
        "what was in it is hidden, so this is new"
    );
    assert!(!root.path.join("opq/in/x").exists());
    assert!(root.is_usual("again"), "removed and made anew");
    assert!(root.is_kept("tmp"));
    assert!(
        !std::fs::symlink_metadata(root.path.join("file"))
            .unwrap()
            .file_type()
            .is_char_device()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_layer_over_two_bases_takes_after_each() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let shared = of(&["tmp/x"]);
    let special = image(&[listed(&["tmp/"]), shared.clone()]);
    let plain = image(&[of(&["tmp/", "tmp/y"]), shared.clone()]);
    let alone = image(&[shared]);
    let first = root_of(&store, dir.path(), "first", &special).await;
    let second = root_of(&store, dir.path(), "second", &plain).await;
    let third = root_of(&store, dir.path(), "third", &alone).await;
    assert!(first.is_kept("tmp"));
    assert!(second.is_usual("tmp") && third.is_usual("tmp"));
    assert_eq!(
        names(dir.path(), "images/layers").len(),
        3,
        "the layer exists once"
    );
    drop((first, second, third));
    // It is the same after a restart, and goes with the image.
    drop(store);
    let store = open(dir.path()).await;
    let mount = store.find_snapshot("first").unwrap().mount(false).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    let again = Root {
        path,
        _mount: mount,
    };
    assert!(again.is_kept("tmp"));
    drop(again);
    for name in ["first", "second", "third"] {
        store.remove_snapshot(name).await.unwrap();
        store.remove(&format!("r.io/{name}:1")).await.unwrap();
    }
    for place in ["layers", "patches", "implied"] {
        eventually(place, || {
            names(dir.path(), &format!("images/{place}")).is_empty()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_directory_is_as_the_topmost_layer_that_lists_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let layers = [listed(&["./"]), of(&["etc/a"]), of(&["b"])];
    let root = root_of(&store, dir.path(), "c", &image(&layers)).await;
    assert!(root.is_kept("."));
    let root = root_of(&store, dir.path(), "d", &image(&layers[1..])).await;
    assert!(root.is_usual("."));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_throws_away_patches_that_no_image_has() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let image = image(&[listed(&["tmp/"]), of(&["tmp/x"])]);
    let root = root_of(&store, dir.path(), "c", &image).await;
    assert!(root.is_kept("tmp"));
    drop((root, store));
    let images = dir.path().join("store/images");
    let other = "ab".repeat(32);
    std::fs::create_dir_all(images.join("patches").join(&other).join("tmp")).unwrap();
    std::fs::write(images.join("implied").join(&other), "tmp\0").unwrap();
    let store = open(dir.path()).await;
    assert_eq!(names(dir.path(), "images/patches"), [image.id().hex()]);
    assert_eq!(names(dir.path(), "images/implied").len(), 1);
    // An image that lost its patch is not run without it.
    store.remove_snapshot("c").await.unwrap();
    drop(store);
    std::fs::remove_dir_all(images.join("patches").join(image.id().hex())).unwrap();
    let store = open(dir.path()).await;
    assert!(store.list().is_empty());
}
