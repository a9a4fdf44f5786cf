//! Registries that send little at a time, more than the least speed: they hold
//! up nobody but those who want their images.

use std::time::Duration;

use image_store::{Digest, ImageStore, Tuning};
use tokio::task::JoinSet;

use crate::support::image::{Image, Packing, image, layer};
use crate::support::registry::{Fault, Registry};
use crate::support::{eventually, left_over, open_with, tuning};

/// Far more than the few seconds that a healthy pull may be delayed by.
const DEADLINE: Duration = Duration::from_secs(30);

/// More layers than have a place at the same time.
fn many() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (8 * cores).clamp(32, 160)
}

fn patient() -> Tuning {
    Tuning {
        first_byte: Duration::from_secs(20),
        stall: Duration::from_secs(20),
        ..tuning()
    }
}

/// Four layers that no other image has.
fn four(what: &str) -> Image {
    let body = vec![b'x'; 256 << 10];
    let layers: Vec<_> = (0..4)
        .map(|n| layer(Packing::Plain, &[(&*format!("{what}-{n}"), &body)]))
        .collect();
    image(&layers)
}

fn drips(registry: &Registry, repository: &str, image: &Image) {
    registry.push(repository, "1", image);
    for layer in &image.layers {
        let path = format!("{repository}/blobs/{}", Digest::of(&layer.blob));
        registry.fault(path, usize::MAX, Fault::Drip(1000));
    }
}

/// Begins pulls in the background; ends them when the result is dropped.
fn begin(store: &ImageStore, references: Vec<String>) -> JoinSet<()> {
    references
        .into_iter()
        .map(|reference| {
            let store = store.clone();
            async move {
                store.pull(&reference, None).await.ok();
            }
        })
        .collect()
}

async fn pulled_in_time(store: &ImageStore, reference: &str) {
    let pull = store.pull(reference, None);
    match tokio::time::timeout(DEADLINE, pull).await {
        Ok(pulled) => drop(pulled.unwrap_or_else(|e| panic!("{reference}: {e:?}"))),
        Err(_) => panic!("{reference} waits for layers that drip"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_drip_from_one_registry_hold_up_no_healthy_pull() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(dir.path(), patient()).await;
    let (slow, good) = (Registry::start().await, Registry::start().await);
    let pulls = many() / 4;
    for n in 0..pulls {
        let repository = format!("slow/{n}");
        drips(&slow, &repository, &four(&repository));
    }
    good.push("good/a", "1", &four("a"));
    slow.push("good/b", "1", &four("b"));
    let references = (0..pulls).map(|n| slow.reference(&format!("slow/{n}:1")));
    let dripping = begin(&store, references.collect());
    eventually("the layers are on their way", || {
        slow.count("manifests/1") == pulls && left_over(dir.path()).len() >= 12
    })
    .await;
    pulled_in_time(&store, &good.reference("good/a:1")).await;
    // From the registry that drips as well.
    pulled_in_time(&store, &slow.reference("good/b:1")).await;
    assert_eq!(dripping.len(), pulls);
    drop(dripping);
    eventually("nothing but the good ones is left", || {
        left_over(dir.path()).len() == 8
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_drip_from_many_registries_hold_up_no_healthy_pull() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(dir.path(), patient()).await;
    let (good, mut slow) = (Registry::start().await, Vec::new());
    for n in 0..many() / 4 {
        let registry = Registry::start().await;
        drips(&registry, "slow", &four(&n.to_string()));
        slow.push(registry);
    }
    // More layers than places, so that a delay for each would be seen.
    let bodies: Vec<_> = (0..40).map(|n: u32| n.to_string()).collect();
    let layers: Vec<_> = bodies
        .iter()
        .map(|body| layer(Packing::Gzip, &[("f", body.as_bytes())]))
        .collect();
    good.push("good", "1", &image(&layers));
    let references = slow.iter().map(|registry| registry.reference("slow:1"));
    let dripping = begin(&store, references.collect());
    eventually("the layers are on their way", || {
        let asked = slow.iter().filter(|r| r.count("manifests/1") == 1).count();
        asked == slow.len() && left_over(dir.path()).len() >= 16
    })
    .await;
    pulled_in_time(&store, &good.reference("good:1")).await;
    assert_eq!(dripping.len(), slow.len());
}
