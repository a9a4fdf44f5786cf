//! Import from disk, and what containers see of it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use crate::support::image::{Packing, blob_path, image, image_for, layer, pack, write_dir};
use crate::support::{eventually, left_over, names, open};
use image_store::{ImportError, PullError, SnapshotError};

/// Names and contents.
type Files = Vec<(String, Vec<u8>)>;

/// Where the files of a detached mount can be reached.
fn inside(mount: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()))
}

fn two_layers() -> crate::support::image::Image {
    image(&[
        layer(
            Packing::Gzip,
            &[
                ("etc/", b""),
                ("etc/a", b"lower"),
                ("etc/gone", b"x"),
                ("dir/old", b"x"),
            ],
        ),
        layer(
            Packing::Zstd,
            &[
                ("etc/a", b"upper"),
                ("etc/.wh.gone", b""),
                ("dir/.wh..wh..opq", b""),
                ("dir/new", b"n"),
            ],
        ),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_archive_gives_the_same_image() {
    let image = two_layers();
    let layout = image.layout(Some("r.io/a/b:1"));
    let saved = image.saved(&["r.io/a/b:1", "busybox"]);
    let mut gzipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzipped, &pack(&layout)).unwrap();
    for (form, bytes) in [
        ("layout", None),
        ("oci", Some(pack(&layout))),
        ("oci-gz", Some(gzipped.finish().unwrap())),
        ("docker", Some(pack(&saved))),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        match bytes {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => write_dir(&path, &layout),
        }
        let store = open(dir.path()).await;
        assert_eq!(
            store.import(&path, None).await.unwrap(),
            [image.id()],
            "{form}"
        );
        let found = store.find("r.io/a/b:1").unwrap();
        assert_eq!(found.id, image.id());
        let configuration = store.configuration(&found.id).await.unwrap();
        let of_process = configuration.config().as_ref().unwrap();
        assert_eq!(of_process.cmd().as_ref().unwrap(), &["/bin/true"]);
        assert!(found.size > 0);
        assert_eq!(store.fs_info().inodes_used, 12 + 3, "{form}");
        if form == "docker" {
            assert_eq!(
                found.tags,
                ["docker.io/library/busybox:latest", "r.io/a/b:1"]
            );
        } else {
            assert_eq!(found.digests, [format!("r.io/a/b@{}", image.digest())]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn container_sees_the_stacked_layers_and_writes_to_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let image = two_layers();
    write_dir(&dir.path().join("image"), &image.layout(None));
    store
        .import(&dir.path().join("image"), Some("r.io/x:1"))
        .await
        .unwrap();
    let snapshot = store.create_snapshot("c1", &image.id()).await.unwrap();
    store.create_snapshot("c1", &image.id()).await.unwrap();
    let mount = snapshot.mount(false).unwrap();
    let root = inside(&mount);
    assert_eq!(
        std::fs::read_to_string(root.join("etc/a")).unwrap(),
        "upper"
    );
    assert!(!root.join("etc/gone").exists());
    assert!(!root.join("dir/old").exists() && root.join("dir/new").exists());
    std::fs::write(root.join("etc/a"), "mine").unwrap();
    drop(mount);
    // Again, as after a failed start; and read-only, as an image volume.
    let mount = store.find_snapshot("c1").unwrap().mount(false).unwrap();
    assert_eq!(
        std::fs::read_to_string(inside(&mount).join("etc/a")).unwrap(),
        "mine"
    );
    drop(mount);
    let mount = snapshot.mount(true).unwrap();
    assert_eq!(
        std::fs::read_to_string(inside(&mount).join("etc/a")).unwrap(),
        "mine"
    );
    let error = std::fs::write(inside(&mount).join("etc/a"), "no").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    drop(mount);
    let usage = store.snapshot_usage("c1").await.unwrap();
    assert_eq!(usage.inodes, 3);
    assert_eq!(store.snapshots(), ["c1"]);
    store.remove_snapshot("c1").await.unwrap();
    store.remove_snapshot("c1").await.unwrap();
    assert!(store.snapshots().is_empty() && store.snapshot_usage("c1").await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_layer_one_layer_and_a_hundred_can_be_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for count in [0, 1, 2, 100] {
        let layers: Vec<_> = (0..count)
            .map(|i| {
                layer(
                    Packing::Plain,
                    &[(format!("f{i}").as_str(), b"x".as_slice())],
                )
            })
            .collect();
        let image = image(&layers);
        let path = dir.path().join(format!("image{count}"));
        write_dir(&path, &image.layout(None));
        store.import(&path, None).await.unwrap();
        let owner = format!("c{count}");
        let snapshot = store.create_snapshot(&owner, &image.id()).await.unwrap();
        for read_only in [false, true] {
            let mount = snapshot.mount(read_only).unwrap();
            assert_eq!(
                std::fs::read_dir(inside(&mount)).unwrap().count(),
                count,
                "{count} {read_only}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_image_under_a_snapshot_keeps_its_layers_even_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let image = two_layers();
    write_dir(&dir.path().join("image"), &image.layout(Some("r.io/x:1")));
    let store = open(dir.path()).await;
    store.import(&dir.path().join("image"), None).await.unwrap();
    store.create_snapshot("c1", &image.id()).await.unwrap();
    store.remove("r.io/x:1").await.unwrap();
    store.remove("r.io/x:1").await.unwrap();
    assert!(store.list().is_empty());
    drop(store);
    let store = open(dir.path()).await;
    assert!(store.list().is_empty());
    let mount = store.find_snapshot("c1").unwrap().mount(false).unwrap();
    assert_eq!(
        std::fs::read_to_string(inside(&mount).join("etc/a")).unwrap(),
        "upper"
    );
    drop(mount);
    store.remove_snapshot("c1").await.unwrap();
    eventually("the layers go", || left_over(dir.path()).is_empty()).await;
    eventually("the trash is emptied", || {
        names(dir.path(), "images/trash").is_empty()
            && names(dir.path(), "snapshots/trash").is_empty()
    })
    .await;
    assert_eq!(store.fs_info().used_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_keeps_a_removed_image_until_released() {
    let dir = tempfile::tempdir().unwrap();
    let image = two_layers();
    write_dir(&dir.path().join("image"), &image.layout(Some("r.io/x:1")));
    let store = open(dir.path()).await;
    store.import(&dir.path().join("image"), None).await.unwrap();
    store.lease(&image.id(), "pod").unwrap();
    store.remove(&image.id().to_string()).await.unwrap();
    assert_eq!(left_over(dir.path()).len(), 2);
    store.create_snapshot("c1", &image.id()).await.unwrap();
    store.release("pod");
    store.remove_snapshot("c1").await.unwrap();
    eventually("the layers go", || left_over(dir.path()).is_empty()).await;
    assert!(store.lease(&image.id(), "pod").is_err());
    let error = store.create_snapshot("c2", &image.id()).await.unwrap_err();
    assert!(matches!(error, SnapshotError::NoImage { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn start_throws_away_what_no_record_names() {
    let dir = tempfile::tempdir().unwrap();
    let image = two_layers();
    write_dir(&dir.path().join("image"), &image.layout(Some("r.io/x:1")));
    let store = open(dir.path()).await;
    store.import(&dir.path().join("image"), None).await.unwrap();
    drop(store);
    let root = dir.path().join("store");
    for extra in [
        "images/staging/7/half",
        &format!("images/layers/{}/f", "ab".repeat(32)),
        "images/layers/odd",
        "snapshots/00/unfinished/fs",
    ] {
        std::fs::create_dir_all(root.join(extra)).unwrap();
    }
    let store = open(dir.path()).await;
    assert_eq!(left_over(dir.path()).len(), 2);
    assert!(names(dir.path(), "snapshots/00").is_empty());
    assert_eq!(store.list().len(), 1);
    eventually("the trash is emptied", || {
        names(dir.path(), "images/trash").is_empty()
            && names(dir.path(), "snapshots/trash").is_empty()
    })
    .await;
}

/// Containers may run from it: only new ones need the configuration.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_lost_its_configuration_keeps_what_is_used_and_is_mended_by_a_pull() {
    let dir = tempfile::tempdir().unwrap();
    let image = two_layers();
    let layout = dir.path().join("image");
    write_dir(&layout, &image.layout(Some("r.io/x:1")));
    let store = open(dir.path()).await;
    store.import(&layout, None).await.unwrap();
    store.create_snapshot("c1", &image.id()).await.unwrap();
    let size = store.find("r.io/x:1").unwrap().size;
    let config = dir
        .path()
        .join("store/images/configs")
        .join(image.id().0.hex());
    for damage in ["gone", "half"] {
        match damage {
            "gone" => std::fs::remove_dir_all(&config).unwrap(),
            _ => std::fs::write(config.join("process"), "{").unwrap(),
        }
        let damaged = store.process(&image.id()).await.unwrap_err();
        let is_named = matches!(damaged, image_store::ConfigurationError::Io { .. });
        assert!(is_named, "{damaged:?}");
        store.import(&layout, None).await.unwrap();
        store.process(&image.id()).await.unwrap();
        store.configuration(&image.id()).await.unwrap();
    }
    std::fs::remove_dir_all(&config).unwrap();
    drop(store);
    let store = open(dir.path()).await;
    assert!(store.list().is_empty());
    assert_eq!(store.snapshots(), ["c1"]);
    let mount = store.find_snapshot("c1").unwrap().mount(false);
    drop(mount.unwrap());
    store.import(&layout, None).await.unwrap();
    assert_eq!(store.find("r.io/x:1").unwrap().size, size);
    drop(store);
    let store = open(dir.path()).await;
    assert_eq!(store.find("r.io/x:1").unwrap().size, size);
    store.process(&image.id()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn image_that_lost_a_layer_is_dropped_at_start_and_can_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let image = two_layers();
    write_dir(&dir.path().join("image"), &image.layout(Some("r.io/x:1")));
    let store = open(dir.path()).await;
    store.import(&dir.path().join("image"), None).await.unwrap();
    drop(store);
    let lost = &names(dir.path(), "images/layers")[0];
    std::fs::remove_dir_all(dir.path().join("store/images/layers").join(lost)).unwrap();
    let store = open(dir.path()).await;
    assert!(store.find("r.io/x:1").is_none());
    eventually("nothing is left", || left_over(dir.path()).is_empty()).await;
    store.import(&dir.path().join("image"), None).await.unwrap();
    assert!(store.find("r.io/x:1").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_archives_are_refused_and_leave_nothing() {
    let good = two_layers();
    let blob = blob_path(&good.layers[1].blob);
    let damaged = |change: &dyn Fn(&mut Files)| {
        let mut files = good.layout(Some("r.io/x:1"));
        change(&mut files);
        files
    };
    let set = |files: &mut Files, name: &str, bytes: &[u8]| {
        files.iter_mut().find(|(n, _)| n == name).unwrap().1 = bytes.to_vec();
    };
    let flipped = damaged(&|files| {
        let mut bytes = good.layers[1].blob.clone();
        let last = bytes.len() - 5;
        bytes[last] ^= 1;
        set(files, &blob, &bytes);
    });
    let short = damaged(&|files| set(files, &blob, &good.layers[1].blob[..20]));
    let missing = damaged(&|files| files.retain(|(n, _)| *n != blob));
    let config = damaged(&|files| set(files, &blob_path(&good.config), b"{}"));
    let other = image_for("linux", "s390x", &good.layers).layout(None);
    for (what, files) in [
        ("flipped", flipped),
        ("short", short),
        ("missing", missing),
        ("config", config),
        ("other", other),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        write_dir(&path, &files);
        let store = open(dir.path()).await;
        let error = store.import(&path, None).await.unwrap_err();
        match (what, &error) {
            (
                "flipped" | "config",
                ImportError::Image {
                    source: PullError::DigestMismatch { .. },
                    ..
                },
            )
            | (
                "short",
                ImportError::Image {
                    source: PullError::SizeMismatch { .. },
                    ..
                },
            )
            | ("missing", ImportError::Missing { .. })
            | ("other", ImportError::NotAnImage { .. }) => {}
            _ => panic!("{what}: {error:?}"),
        }
        eventually(&format!("nothing of {what} is left"), || {
            left_over(dir.path()).is_empty()
        })
        .await;
        assert!(store.list().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn saved_archive_with_another_layer_is_a_wrong_diff_id() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = two_layers().saved(&["a"]);
    files
        .iter_mut()
        .find(|(n, _)| n == "0/layer.tar")
        .unwrap()
        .1 = crate::support::image::tar_of(&[("evil", b"x")]);
    let path = dir.path().join("image.tar");
    std::fs::write(&path, pack(&files)).unwrap();
    let store = open(dir.path()).await;
    let error = store.import(&path, None).await.unwrap_err();
    assert!(matches!(
        error,
        ImportError::Image {
            source: PullError::DiffIdMismatch { .. },
            ..
        }
    ));
    eventually("nothing is left", || left_over(dir.path()).is_empty()).await;
}
