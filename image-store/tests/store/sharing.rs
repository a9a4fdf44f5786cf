//! What pulls at the same time share, and what the end of one means to others.

use std::sync::Arc;
use std::time::Duration;

use image_store::{Auth, Digest};
use tokio::sync::Semaphore;

use crate::support::image::{Image, Layer, Packing, image, layer};
use crate::support::registry::{Fault, Registry};
use crate::support::{eventually, left_over, open};

fn blob(image: &Image, n: usize) -> String {
    format!("blobs/{}", Digest::of(&image.layers[n].blob))
}

fn common_base() -> (Image, Image) {
    let base = layer(Packing::Gzip, &[("base", &[7; 100_000])]);
    (
        image(&[base.clone(), layer(Packing::Gzip, &[("a", b"1")])]),
        image(&[base, layer(Packing::Gzip, &[("b", b"2")])]),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn same_pulls_are_one_and_other_credentials_are_another() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let (image, _) = common_base();
    registry.push("a/b", "latest", &image);
    let gate = Arc::new(Semaphore::new(0));
    registry.fault(blob(&image, 0), 1, Fault::Gate(Arc::clone(&gate)));
    let pull = |name: String, auth: Option<Auth>| {
        let store = store.clone();
        tokio::spawn(async move { store.pull(&name, auth).await })
    };
    let first = pull(registry.reference("a/b"), None);
    eventually("the layer is asked for", || {
        registry.count(&blob(&image, 0)) == 1
    })
    .await;
    let second = pull(registry.reference("a/b:latest"), None);
    let auth = Auth {
        username: Some("u".into()),
        ..Auth::default()
    };
    let third = pull(registry.reference("a/b"), Some(auth));
    // Whether the layer is for them too is for the registry to say.
    eventually("the other asks for itself", || {
        registry.count("manifests/latest") == 2 && registry.count(&blob(&image, 0)) == 2
    })
    .await;
    gate.add_permits(1);
    for pull in [first, second, third] {
        assert_eq!(pull.await.unwrap().unwrap().id, image.id());
    }
    assert_eq!(registry.count("manifests/latest"), 2);
    assert_eq!(registry.count(&blob(&image, 0)), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn common_base_is_fetched_once_by_two_pulls() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let (a, b) = common_base();
    registry.push("a", "1", &a);
    registry.push("b", "1", &b);
    let gate = Arc::new(Semaphore::new(0));
    registry.fault(blob(&a, 0), 1, Fault::Gate(Arc::clone(&gate)));
    let pulls = ["a:1", "b:1"].map(|name| {
        let (store, name) = (store.clone(), registry.reference(name));
        tokio::spawn(async move { store.pull(&name, None).await })
    });
    eventually("both have their own layer", || {
        registry.count(&blob(&a, 1)) == 1 && registry.count(&blob(&b, 1)) == 1
    })
    .await;
    gate.add_permits(1);
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(registry.count(&blob(&a, 0)), 1);
    store.remove(&registry.reference("a:1")).await.unwrap();
    assert_eq!(left_over(dir.path()).len(), 2);
    store.remove(&registry.reference("b:1")).await.unwrap();
    eventually("nothing is left", || left_over(dir.path()).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layer_outlives_the_pull_that_began_it_when_another_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let (a, b) = common_base();
    registry.push("a", "1", &a);
    registry.push("b", "1", &b);
    let gate = Arc::new(Semaphore::new(0));
    registry.fault(blob(&a, 0), 1, Fault::Gate(Arc::clone(&gate)));
    let pull = |name: &str| {
        let (store, name) = (store.clone(), registry.reference(name));
        tokio::spawn(async move { store.pull(&name, None).await })
    };
    let first = pull("a:1");
    eventually("the base is asked for", || {
        registry.count(&blob(&a, 0)) == 1
    })
    .await;
    let second = pull("b:1");
    eventually("the other is on its way", || {
        registry.count(&blob(&b, 1)) == 1
    })
    .await;
    first.abort();
    gate.add_permits(1);
    second.await.unwrap().unwrap();
    assert_eq!(registry.count(&blob(&a, 0)), 1);
    eventually("the first one's layer goes", || {
        left_over(dir.path()).len() == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failure_of_the_pull_that_began_a_layer_is_not_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let (a, b) = common_base();
    registry.push("a", "1", &a);
    registry.push("b", "1", &b);
    let gate = Arc::new(Semaphore::new(0));
    let of_a = format!("a/{}", blob(&a, 0));
    // What the first repository has is damaged.
    let damaged = vec![7; a.layers[0].blob.len()];
    registry.put(&format!("/v2/{of_a}"), "x/y", &damaged);
    registry.fault(&*of_a, 1, Fault::Gate(Arc::clone(&gate)));
    let pull = |name: &str| {
        let (store, name) = (store.clone(), registry.reference(name));
        tokio::spawn(async move { store.pull(&name, None).await })
    };
    let first = pull("a:1");
    eventually("the base is asked for", || registry.count(&of_a) == 1).await;
    let second = pull("b:1");
    eventually("the other is on its way", || {
        registry.count(&blob(&b, 1)) == 1
    })
    .await;
    assert_eq!(registry.count(&blob(&a, 0)), 1);
    gate.add_permits(1);
    assert!(first.await.unwrap().is_err());
    second.await.unwrap().unwrap();
    assert_eq!(registry.count(&format!("b/{}", blob(&b, 0))), 1);
}

/// An image that says to have the base of another, and the layer that comes
/// for it.
fn lies_about(base: &Image) -> Image {
    let own = layer(Packing::Plain, &[("not the base", &[9; 100_000])]);
    let lie = Layer {
        plain: base.layers[0].plain.clone(),
        ..own
    };
    image(&[lie])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_drips_a_common_layer_holds_up_none_of_another_registry() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let (hostile, good) = (Registry::start().await, Registry::start().await);
    let (image, _) = common_base();
    let lie = lies_about(&image);
    hostile.push("lie", "1", &lie);
    hostile.push("same", "1", &image);
    hostile.fault(blob(&lie, 0), 9, Fault::Drip(10_000));
    hostile.fault(blob(&image, 0), 9, Fault::Drip(10));
    good.push("good", "1", &image);
    let pull = |name: String| {
        let store = store.clone();
        tokio::spawn(async move { store.pull(&name, None).await })
    };
    let slow = [
        pull(hostile.reference("lie:1")),
        pull(hostile.reference("same:1")),
    ];
    eventually("the hostile layers are on their way", || {
        hostile.count(&blob(&lie, 0)) + hostile.count(&blob(&image, 0)) > 0
    })
    .await;
    let healthy = pull(good.reference("good:1"));
    let in_time = |pull| tokio::time::timeout(Duration::from_secs(20), pull);
    in_time(healthy).await.expect("held up").unwrap().unwrap();
    // What is there now is used by those whose registry drips, too.
    for pull in slow {
        in_time(pull).await.expect("not rescued").unwrap().unwrap();
    }
    eventually("nothing is left of their own", || {
        left_over(dir.path()).len() == image.layers.len()
    })
    .await;
    assert_eq!(store.list().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_pull_stops_and_frees_what_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let big: Vec<u8> = (0..2_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let image = image(&[
        layer(Packing::Plain, &[("big", &big)]),
        layer(Packing::Gzip, &[("small", b"x")]),
    ]);
    registry.push("a/b", "1", &image);
    registry.fault(blob(&image, 0), 1, Fault::Stall(1_000_000));
    let name = registry.reference("a/b:1");
    let pull = tokio::spawn({
        let (store, name) = (store.clone(), name.clone());
        async move { store.pull(&name, None).await }
    });
    eventually("one is done and one half", || {
        let left = left_over(dir.path());
        left.len() == 2 && left.iter().filter(|n| n.len() == 64).count() == 1
    })
    .await;
    pull.abort();
    let stopped = eventually("nothing is left", || left_over(dir.path()).is_empty());
    tokio::time::timeout(Duration::from_millis(600), stopped)
        .await
        .unwrap();
    assert!(store.list().is_empty());
    assert_eq!(store.fs_info().used_bytes, 0);
    // The next one begins anew.
    store.pull(&name, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn client_with_a_deadline_of_a_millisecond_gets_nothing_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let (image, _) = common_base();
    registry.push("a/b", "1", &image);
    registry.fault("manifests/1", 1, Fault::Stall(0));
    let name = registry.reference("a/b:1");
    let pull = store.pull(&name, None);
    assert!(
        tokio::time::timeout(Duration::from_millis(1), pull)
            .await
            .is_err()
    );
    eventually("nothing of it is left", || left_over(dir.path()).is_empty()).await;
    assert!(store.list().is_empty());
    store.pull(&name, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_during_a_pull_of_the_same_image_leaves_a_whole_image() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let (image, _) = common_base();
    registry.push("a/b", "1", &image);
    let name = registry.reference("a/b:1");
    for _ in 0..30 {
        let pulls = futures::future::join_all((0..3).map(|_| store.pull(&name, None)));
        let removals = futures::future::join_all((0..3).map(|_| store.remove(&name)));
        let (pulls, removals) = tokio::join!(pulls, removals);
        assert!(pulls.iter().all(Result::is_ok), "{pulls:?}");
        assert!(removals.iter().all(Result::is_ok));
        if store.find(&name).is_some() {
            assert_eq!(left_over(dir.path()).len(), 2);
            let snapshot = store.create_snapshot("c", &image.id()).await.unwrap();
            drop(snapshot.mount(false).unwrap());
            store.remove_snapshot("c").await.unwrap();
        }
    }
    store.remove(&name).await.unwrap();
    eventually("nothing is left", || left_over(dir.path()).is_empty()).await;
    assert_eq!(store.fs_info().inodes_used, 0);
}
