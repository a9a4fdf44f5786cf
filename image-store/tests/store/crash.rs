//! Ends that nobody planned: the process killed at any moment, the disk full.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use image_store::PullError;

use crate::support::image::{Image, Packing, image, layer};
use crate::support::registry::Registry;
use crate::support::{Tmpfs, eventually, left_over, names, open};

const DIR: &str = "SLIPWAY_TEST_CRASH_DIR";
const HOST: &str = "SLIPWAY_TEST_CRASH_HOST";

fn images() -> [Image; 2] {
    let base = layer(Packing::Gzip, &[("base", &[7; 50_000]), ("dir/x", b"1")]);
    [
        image(&[base.clone(), layer(Packing::Gzip, &[("own", b"a")])]),
        image(&[base, layer(Packing::Plain, &[("own", b"b")])]),
    ]
}

/// The process that is killed; does nothing unless started for that.
#[tokio::test(flavor = "multi_thread")]
async fn crash_child() {
    let (Ok(dir), Ok(host)) = (std::env::var(DIR), std::env::var(HOST)) else {
        return;
    };
    let store = open(Path::new(&dir)).await;
    loop {
        for (n, name) in ["a:1", "b:1", "a:1"].iter().enumerate() {
            let name = format!("{host}/{name}");
            let pulled = store.pull(&name, None).await.unwrap();
            store
                .create_snapshot(&format!("c{n}"), &pulled.id)
                .await
                .unwrap();
            if n == 1 {
                store.remove(&format!("{host}/a:1")).await.unwrap();
                store.remove_snapshot("c0").await.unwrap();
            }
        }
        for n in 0..3 {
            store.remove_snapshot(&format!("c{n}")).await.unwrap();
        }
        for name in ["a:1", "b:1"] {
            store.remove(&format!("{host}/{name}")).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_the_store_comes_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start().await;
    let images = images();
    registry.push("a", "1", &images[0]);
    registry.push("b", "1", &images[1]);
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::crash_child", "--nocapture"])
            .env(DIR, dir.path())
            .env(HOST, registry.host())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let asked = registry.asked().len();
        eventually("the child works", || registry.asked().len() > asked).await;
        // Another moment of its loop each time.
        tokio::time::sleep(Duration::from_millis(7 * round)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        check(dir.path(), &images).await;
    }
}

/// Everything that is listed can be used, and nothing else is there.
#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
async fn check(dir: &Path, known: &[Image]) {
    let store = open(dir).await;
    assert!(names(dir, "images/staging").is_empty());
    let snapshots = store.snapshots();
    let mut wanted = BTreeSet::new();
    for owner in &snapshots {
        let snapshot = store.find_snapshot(owner).unwrap();
        let image = known.iter().find(|i| i.id() == snapshot.image()).unwrap();
        let mount = snapshot.mount(false).unwrap();
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        assert_eq!(std::fs::read(root.join("base")).unwrap(), [7; 50_000]);
        assert!(root.join("own").exists());
        wanted.extend(
            image
                .layers
                .iter()
                .map(|l| image_store::Digest::of(&l.plain).hex()),
        );
    }
    for listed in store.list() {
        let image = known.iter().find(|i| i.id() == listed.id).unwrap();
        assert!(!listed.tags.is_empty());
        store
            .create_snapshot("check", &listed.id)
            .await
            .unwrap()
            .mount(false)
            .unwrap();
        store.remove_snapshot("check").await.unwrap();
        wanted.extend(
            image
                .layers
                .iter()
                .map(|l| image_store::Digest::of(&l.plain).hex()),
        );
    }
    let wanted: Vec<String> = wanted.into_iter().collect();
    assert_eq!(names(dir, "images/layers"), wanted);
    for owner in snapshots {
        store.remove_snapshot(&owner).await.unwrap();
    }
}

fn incompressible(len: u32) -> Vec<u8> {
    (0..len)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ (i >> 9) as u8)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_is_told_and_what_was_written_is_freed() {
    let dir = tempfile::tempdir().unwrap();
    let _disk = Tmpfs::mount(&dir.path().join("store"), "6m");
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let big = image(&[layer(
        Packing::Plain,
        &[("big", &incompressible(6_000_000))],
    )]);
    let [small, _] = images();
    registry.push("a/b", "big", &big);
    registry.push("a/b", "small", &small);
    let error = store
        .pull(&registry.reference("a/b:big"), None)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::DiskFull { .. }), "{error:?}");
    eventually("staging is freed", || left_over(dir.path()).is_empty()).await;
    eventually("the trash is emptied", || {
        names(dir.path(), "images/trash").is_empty()
    })
    .await;
    store
        .pull(&registry.reference("a/b:small"), None)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn images_can_be_removed_from_a_disk_without_a_free_byte() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let _disk = Tmpfs::mount(&root, "8m");
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let [small, other] = images();
    registry.push("a/b", "1", &small);
    registry.push("a/b", "2", &other);
    store
        .pull(&registry.reference("a/b:1"), None)
        .await
        .unwrap();
    fill(&root);
    let error = store
        .pull(&registry.reference("a/b:2"), None)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::DiskFull { .. }), "{error:?}");
    eventually("staging is freed", || {
        names(dir.path(), "images/staging").is_empty()
    })
    .await;
    fill(&root);
    drop(store);
    let store = open(dir.path()).await;
    assert_eq!(store.list().len(), 1);
    store.remove(&registry.reference("a/b:1")).await.unwrap();
    assert!(store.list().is_empty());
    eventually("nothing is left", || left_over(dir.path()).is_empty()).await;
    std::fs::remove_file(root.join("filler")).unwrap();
    store
        .pull(&registry.reference("a/b:2"), None)
        .await
        .unwrap();
    assert!(
        root.join("images/reserve").exists(),
        "space is set aside again"
    );
}

/// Leaves no free byte.
#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
fn fill(root: &Path) {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(root.join("filler"))
        .unwrap();
    for size in [1 << 16, 4096, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}
