//! Pulls from one registry: what arrives, and what is refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use image_store::{Digest, PullError, Tuning};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::support::image::{
    Image, Layer, Packing, arch, descriptor, image, image_for, layer, layer_of, tar_of,
};
use crate::support::registry::{Fault, Registry};
use crate::support::{eventually, hosts, left_over, names, open, open_with, tuning};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state & 0xff) as u8
        })
        .collect()
}

fn three() -> Image {
    image(&[
        layer(Packing::Gzip, &[("a", b"1")]),
        layer(Packing::Zstd, &[("b", b"2")]),
        layer(Packing::Plain, &[("c", b"3")]),
    ])
}

fn big() -> Image {
    image(&[layer(Packing::Plain, &[("big", &noise(2 << 20))])])
}

fn blob(image: &Image, n: usize) -> String {
    format!("blobs/{}", Digest::of(&image.layers[n].blob))
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_by_tag_names_the_image_by_tag_and_digest() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let image = three();
    registry.push("a/b", "latest", &image);
    let reference = registry.reference("a/b");
    let pulled = store.pull(&reference, None).await.unwrap();
    assert_eq!(pulled.id, image.id());
    let found = store.find(&reference).unwrap();
    assert_eq!(found.tags, [format!("{reference}:latest")]);
    assert_eq!(found.digests, [format!("{reference}@{}", image.digest())]);
    assert_eq!(names(dir.path(), "images/layers").len(), 3);
    assert!(names(dir.path(), "images/staging").is_empty());
    drop(store);
    let store = open(dir.path()).await;
    assert_eq!(store.list().len(), 1);
    assert_eq!(store.find(&reference).unwrap().digests, found.digests);
    let agents: Vec<_> = registry
        .asked()
        .iter()
        .filter_map(|a| a.headers.get("user-agent").cloned())
        .collect();
    assert!(agents.iter().all(|a| a == "slipway-test") && !agents.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_by_digest_has_exactly_that_digest_and_no_tag() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let image = three();
    registry.push("a/b", "1", &image);
    for rest in [
        format!("a/b@{}", image.digest()),
        format!("a/b:1@{}", image.digest()),
    ] {
        let reference = registry.reference(&rest);
        store.pull(&reference, None).await.unwrap();
        let found = store.find(&reference).unwrap();
        assert!(found.tags.is_empty());
        assert_eq!(
            found.digests,
            [registry.reference(&format!("a/b@{}", image.digest()))]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_image_in_two_repositories_is_one_image_and_removed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let image = three();
    registry.push("x/pause", "3", &image);
    registry.push("y/pause", "3", &image);
    for repository in ["x", "y"] {
        store
            .pull(&registry.reference(&format!("{repository}/pause:3")), None)
            .await
            .unwrap();
    }
    let found = store.find(&registry.reference("x/pause:3")).unwrap();
    assert_eq!((found.tags.len(), found.digests.len()), (2, 2));
    assert_eq!(
        registry.count(&blob(&image, 0)),
        1,
        "layers that are there are not fetched"
    );
    let reference = registry.reference("y/pause:3");
    let removals = (0..5).map(|_| store.remove(&reference));
    for removed in futures::future::join_all(removals).await {
        removed.unwrap();
    }
    assert!(store.list().is_empty());
    eventually("nothing is left", || left_over(dir.path()).is_empty()).await;
    assert_eq!(store.fs_info().inodes_used, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn retagging_moves_the_tag_and_leaves_the_old_image_by_digest() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let (old, new) = (three(), big());
    let reference = registry.reference("a/b:1");
    registry.push("a/b", "1", &old);
    store.pull(&reference, None).await.unwrap();
    registry.push("a/b", "1", &new);
    store.pull(&reference, None).await.unwrap();
    assert_eq!(store.find(&reference).unwrap().id, new.id());
    let left = store.find(&old.id().to_string()).unwrap();
    assert!(left.tags.is_empty());
    assert_eq!(
        left.digests,
        [registry.reference(&format!("a/b@{}", old.digest()))]
    );
    assert_eq!(store.list().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn index_leads_to_the_image_of_this_machine() {
    for media_type in [
        INDEX,
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (store, registry) = (open(dir.path()).await, Registry::start().await);
        let (own, other) = (three(), image_for("linux", "s390x", &[]));
        registry.push("a/b", "own", &own);
        registry.push("a/b", "other", &other);
        let entry = |image: &Image, arch: &str| {
            let mut entry = descriptor(MANIFEST, &image.manifest);
            entry["platform"] = json!({"os": "linux", "architecture": arch});
            entry
        };
        let index = json!({"schemaVersion": 2, "mediaType": media_type,
            "manifests": [entry(&other, "s390x"), entry(&own, arch())]});
        let index = serde_json::to_vec(&index).unwrap();
        registry.put_manifest("a/b", "1", media_type, &index);
        let reference = registry.reference("a/b:1");
        assert_eq!(store.pull(&reference, None).await.unwrap().id, own.id());
        // The digest is the index's, which is what a pull by digest would ask for.
        let digests = store.find(&reference).unwrap().digests.clone();
        assert_eq!(
            digests,
            [registry.reference(&format!("a/b@{}", Digest::of(&index)))]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn index_without_platforms_is_searched_by_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let (own, other) = (three(), image_for("linux", "s390x", &[]));
    registry.push("a/b", "own", &own);
    registry.push("a/b", "other", &other);
    let index = json!({"schemaVersion": 2, "manifests":
        [descriptor(MANIFEST, &other.manifest), descriptor(MANIFEST, &own.manifest)]});
    registry.put_manifest("a/b", "1", INDEX, &serde_json::to_vec(&index).unwrap());
    let pulled = store
        .pull(&registry.reference("a/b:1"), None)
        .await
        .unwrap();
    assert_eq!(pulled.id, own.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_sloppy_builders_run_and_an_index_gives_the_best() {
    // What the kernel, Debian and others call this machine, and what it runs
    // besides.
    let (kernel, besides) = match arch() {
        "amd64" => ("x86_64", "386"),
        "arm64" => ("aarch64", "arm"),
        other => (other, other),
    };
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let one = |n: usize| {
        [layer(
            Packing::Gzip,
            &[(format!("f{n}").as_str(), &b"x"[..])],
        )]
    };
    let platforms = [
        ("Linux", kernel),
        ("", ""),
        ("linux", ""),
        ("", arch()),
        ("linux", besides),
    ];
    for (n, (os, architecture)) in platforms.into_iter().enumerate() {
        let image = image_for(os, architecture, &one(n));
        registry.push("a/b", &n.to_string(), &image);
        let reference = registry.reference(&format!("a/b:{n}"));
        let pulled = store.pull(&reference, None).await;
        assert_eq!(pulled.unwrap().id, image.id(), "{os}/{architecture}");
    }
    let mut entries = Vec::new();
    for (os, architecture) in [
        ("linux", besides),
        ("", arch()),
        ("Linux", kernel),
        ("linux", ""),
    ] {
        let image = image_for(os, architecture, &one(entries.len()));
        registry.push("a/b", "part", &image);
        let mut entry = descriptor(MANIFEST, &image.manifest);
        entry["platform"] = json!({"os": os, "architecture": architecture});
        entries.push((entry, image));
    }
    let listed: Vec<_> = entries.iter().map(|(entry, _)| entry).collect();
    let index = serde_json::to_vec(&json!({"manifests": listed})).unwrap();
    registry.put_manifest("a/b", "index", INDEX, &index);
    let pulled = store.pull(&registry.reference("a/b:index"), None).await;
    assert_eq!(pulled.unwrap().id, entries[2].1.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn image_for_another_machine_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let other = image_for("linux", "s390x", &[layer(Packing::Gzip, &[("a", b"1")])]);
    registry.push("a/b", "single", &other);
    let mut entry = descriptor(MANIFEST, &other.manifest);
    entry["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let index = serde_json::to_vec(&json!({"manifests": [entry]})).unwrap();
    registry.put_manifest("a/b", "index", INDEX, &index);
    for tag in ["single", "index"] {
        let reference = registry.reference(&format!("a/b:{tag}"));
        match store.pull(&reference, None).await.unwrap_err() {
            PullError::NoMatchingPlatform { offered, .. } => assert_eq!(offered, "linux/s390x"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        registry.count(&blob(&other, 0)),
        0,
        "no layer is fetched in vain"
    );
    eventually("nothing is left", || left_over(dir.path()).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_not_found() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let reference = registry.reference("a/b:1");
    match store.pull(&reference, None).await.unwrap_err() {
        PullError::NotFound { reference: got } => assert_eq!(got, reference),
        other => panic!("{other:?}"),
    }
    let error = store.pull("Bad Name", None).await.unwrap_err();
    assert!(matches!(error, PullError::BadReference { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_that_is_away_is_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let registry = Registry::start().await;
    let (host, reference) = (registry.host(), registry.reference("a/b:1"));
    registry.push("a/b", "1", &three());
    registry.fault("manifests/1", 100, Fault::Status(503));
    match store.pull(&reference, None).await.unwrap_err() {
        PullError::RegistryUnavailable { host: got, .. } => assert_eq!(got, host),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        registry.count("manifests/1"),
        3,
        "some attempts, not one and not many"
    );
    drop(registry);
    eventually("the port is closed", || {
        std::net::TcpStream::connect(&host).is_err()
    })
    .await;
    let error = store.pull(&reference, None).await.unwrap_err();
    assert!(
        matches!(&error, PullError::RegistryUnavailable { .. }),
        "{error:?}"
    );
    // The whole chain is there for the log.
    let mut chain = vec![error.to_string()];
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        chain.push(error.to_string());
        source = error.source();
    }
    assert!(
        chain.len() >= 3 && chain.join(": ").contains("refused"),
        "{chain:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn name_that_does_not_resolve_is_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let error = store
        .pull("registry.invalid/a/b:1", None)
        .await
        .unwrap_err();
    assert!(
        matches!(error, PullError::RegistryUnavailable { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_error_that_passes_is_outlived() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let image = three();
    registry.push("a/b", "1", &image);
    registry.fault("manifests/1", 1, Fault::Status(500));
    registry.fault(blob(&image, 1), 2, Fault::Status(502));
    store
        .pull(&registry.reference("a/b:1"), None)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_digests_keep_nothing() {
    for what in ["layer", "config", "manifest"] {
        let dir = tempfile::tempdir().unwrap();
        let (store, registry) = (open(dir.path()).await, Registry::start().await);
        let image = three();
        registry.push("a/b", "1", &image);
        let mut reference = registry.reference("a/b:1");
        let path = match what {
            "layer" => blob(&image, 1),
            "config" => format!("blobs/{}", image.id()),
            _ => {
                reference = registry.reference(&format!("a/b@{}", image.digest()));
                format!("manifests/{}", image.digest())
            }
        };
        registry.fault(path, 9, Fault::Corrupt);
        let error = store.pull(&reference, None).await.unwrap_err();
        assert!(
            matches!(error, PullError::DigestMismatch { .. }),
            "{what}: {error:?}"
        );
        eventually("nothing is kept", || left_over(dir.path()).is_empty()).await;
        assert!(store.list().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_diff_id_keeps_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let mut image = three();
    // A configuration that names another plain tar than the layer's.
    let good = Digest::of(&image.layers[0].plain).to_string();
    let text = String::from_utf8(image.config.clone()).unwrap();
    let lie = Digest::of(b"something else").to_string();
    image.config = text.replace(&good, &lie).into_bytes();
    let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    let mut manifest = manifest;
    manifest["config"] = descriptor("application/vnd.oci.image.config.v1+json", &image.config);
    image.manifest = serde_json::to_vec(&manifest).unwrap();
    registry.push("a/b", "1", &image);
    let error = store
        .pull(&registry.reference("a/b:1"), None)
        .await
        .unwrap_err();
    assert!(
        matches!(error, PullError::DiffIdMismatch { .. }),
        "{error:?}"
    );
    eventually("nothing is kept", || left_over(dir.path()).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn size_that_lies_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    for change in [-3i64, 3] {
        let mut image = three();
        let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        let size = manifest["layers"][0]["size"].as_i64().unwrap();
        manifest["layers"][0]["size"] = json!(size + change);
        image.manifest = serde_json::to_vec(&manifest).unwrap();
        registry.push("a/b", "1", &image);
        let error = store
            .pull(&registry.reference("a/b:1"), None)
            .await
            .unwrap_err();
        match (change, &error) {
            (-3, PullError::SizeMismatch { .. }) => {}
            // Bytes that never come cannot be told from a broken connection.
            (3, PullError::RegistryUnavailable { .. }) => {}
            _ => panic!("{change}: {error:?}"),
        }
        eventually("nothing is kept", || left_over(dir.path()).is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_layer_is_refused_by_entry_name_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..14].copy_from_slice(b"../../escape.x");
    header.set_size(1);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append(&header, &b"x"[..]).unwrap();
    let image = image(&[
        layer(Packing::Gzip, &[("fine", b"1")]),
        layer_of(Packing::Gzip, archive.into_inner().unwrap()),
    ]);
    registry.push("a/b", "1", &image);
    match store
        .pull(&registry.reference("a/b:1"), None)
        .await
        .unwrap_err()
    {
        PullError::HostileEntry { entry, .. } => assert!(entry.contains("escape.x")),
        other => panic!("{other:?}"),
    }
    eventually("nothing is kept", || left_over(dir.path()).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_refused_by_media_type() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let schema1 = br#"{"schemaVersion":1,"name":"a/b","fsLayers":[]}"#;
    let v1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    registry.put_manifest("a/b", "1", v1, schema1);
    match store
        .pull(&registry.reference("a/b:1"), None)
        .await
        .unwrap_err()
    {
        PullError::UnsupportedMediaType { media_type, .. } => {
            assert!(media_type.contains("manifest.v1"));
        }
        other => panic!("{other:?}"),
    }
    let huge = vec![b' '; (4 << 20) + 1];
    registry.put_manifest("a/b", "huge", MANIFEST, &huge);
    let error = store
        .pull(&registry.reference("a/b:huge"), None)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::TooLarge { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_transfers_are_resumed_where_they_ended() {
    for ranges in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (store, registry) = (open(dir.path()).await, Registry::start().await);
        let image = big();
        registry.push("a/b", "1", &image);
        if !ranges {
            registry.without_ranges();
        }
        registry.fault(blob(&image, 0), 1, Fault::Cut(1 << 20));
        registry.fault(blob(&image, 0), 1, Fault::Cut(500_000));
        store
            .pull(&registry.reference("a/b:1"), None)
            .await
            .unwrap();
        let asked: Vec<_> = registry
            .asked()
            .into_iter()
            .filter(|a| a.path.ends_with(&blob(&image, 0)))
            .collect();
        assert_eq!(asked.len(), 3);
        assert!(!asked[0].headers.contains_key("range"));
        assert!(asked[1].headers["range"].starts_with("bytes="));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_cut_at_every_size_are_as_good_as_one_piece() {
    let skippable = Layer {
        blob: [
            &[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7][..],
            &layer(Packing::Zstd, &[("d", b"4")]).blob,
        ]
        .concat(),
        ..layer(Packing::Zstd, &[("d", b"4")])
    };
    let image = image(&[&three().layers[..], &[skippable]].concat());
    for size in (1..=12).chain([63, 511, 512, 513]) {
        let dir = tempfile::tempdir().unwrap();
        let (store, registry) = (open(dir.path()).await, Registry::start().await);
        registry.push("a/b", "1", &image);
        registry.cut_bodies(size);
        store
            .pull(&registry.reference("a/b:1"), None)
            .await
            .unwrap_or_else(|e| panic!("in pieces of {size}: {e:?}"));
        assert_eq!(names(dir.path(), "images/layers").len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_transfer_is_given_up_and_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let image = big();
    registry.push("a/b", "1", &image);
    registry.fault(blob(&image, 0), 1, Fault::Stall(1 << 20));
    store
        .pull(&registry.reference("a/b:1"), None)
        .await
        .unwrap();
    assert_eq!(registry.count(&blob(&image, 0)), 2);
    registry.push("a/c", "1", &big());
    registry.fault(format!("a/c/{}", "manifests/1"), 9, Fault::Stall(0));
    let began = Instant::now();
    let error = store
        .pull(&registry.reference("a/c:1"), None)
        .await
        .unwrap_err();
    assert!(
        matches!(error, PullError::RegistryUnavailable { .. }),
        "{error:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_in_order_and_the_name_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let (broken, mirror, origin) = (
        Registry::start().await,
        Registry::start().await,
        Registry::start().await,
    );
    let image = three();
    for registry in [&broken, &mirror, &origin] {
        registry.push("a/b", "1", &image);
    }
    broken.fault("", 1000, Fault::Status(500));
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n",
        origin.host(),
        broken.host(),
        mirror.host()
    );
    hosts(dir.path(), "registry.example", &text);
    store.pull("registry.example/a/b:1", None).await.unwrap();
    let found = store.find("registry.example/a/b:1").unwrap();
    assert_eq!(found.tags, ["registry.example/a/b:1"]);
    assert_eq!(
        found.digests,
        [format!("registry.example/a/b@{}", image.digest())]
    );
    assert!(broken.count("manifests/1") >= 1);
    assert_eq!(mirror.count("manifests/1"), 1);
    assert!(
        mirror
            .asked()
            .iter()
            .all(|a| a.query == "ns=registry.example")
    );
    assert_eq!(origin.asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_with_wrong_bytes_or_half_a_layer_is_replaced_by_the_next() {
    for fault in [
        Fault::Corrupt,
        Fault::Cut(100_000),
        Fault::Other(b"nonsense".to_vec()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        let (mirror, origin) = (Registry::start().await, Registry::start().await);
        let image = big();
        mirror.push("a/b", "1", &image);
        origin.push("a/b", "1", &image);
        mirror.fault(blob(&image, 0), 100, fault);
        let text = format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n",
            origin.host(),
            mirror.host()
        );
        hosts(dir.path(), "registry.example", &text);
        store.pull("registry.example/a/b:1", None).await.unwrap();
        // Twice when the mirror had given the first bytes and nobody can tell
        // whose were wrong.
        assert!((1..=2).contains(&origin.count(&blob(&image, 0))));
        assert!(names(dir.path(), "images/staging").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn host_that_may_only_resolve_is_not_asked_for_content() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let (names_only, content) = (Registry::start().await, Registry::start().await);
    let image = three();
    names_only.push("a/b", "1", &image);
    content.push("a/b", "other", &image);
    let text = format!(
        "server = \"http://{}\"\ncapabilities = [\"pull\"]\n\
         [host.\"http://{}\"]\ncapabilities = [\"resolve\"]\n",
        content.host(),
        names_only.host()
    );
    hosts(dir.path(), "registry.example", &text);
    store.pull("registry.example/a/b:1", None).await.unwrap();
    assert_eq!(names_only.asked().len(), 1);
    assert_eq!(content.count("manifests/1"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_file_is_read_at_every_pull_and_its_mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    registry.push("a/b", "1", &three());
    hosts(dir.path(), "registry.example", "skip_verfy = true");
    let error = store
        .pull("registry.example/a/b:1", None)
        .await
        .unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        source.contains("hosts.toml") && source.contains("skip_verfy"),
        "{source}"
    );
    let text = format!("server = \"http://{}/\"", registry.host());
    hosts(dir.path(), "registry.example", &text);
    store.pull("registry.example/a/b:1", None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_listed_twice_are_fetched_once_and_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    let empty = layer_of(Packing::Gzip, tar_of(&[]));
    let image = image(&[
        layer(Packing::Gzip, &[("a", b"1")]),
        empty.clone(),
        layer(Packing::Gzip, &[("b", b"2")]),
        empty,
    ]);
    registry.push("a/b", "1", &image);
    store
        .pull(&registry.reference("a/b:1"), None)
        .await
        .unwrap();
    assert_eq!(registry.count(&blob(&image, 1)), 1);
    let snapshot = store.create_snapshot("c1", &image.id()).await.unwrap();
    drop(snapshot.mount(false).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn patience_for_the_first_byte_is_a_setting_of_its_own() {
    for (first_byte, comes) in [(200, false), (60_000, true)] {
        let dir = tempfile::tempdir().unwrap();
        let tuning = Tuning {
            first_byte: Duration::from_millis(first_byte),
            stall: Duration::from_millis(1500),
            attempts: 1,
            ..tuning()
        };
        let (store, registry) = (open_with(dir.path(), tuning).await, Registry::start().await);
        registry.push("a/b", "1", &three());
        let gate = Arc::new(Semaphore::new(0));
        registry.fault("manifests/1", 1, Fault::Gate(Arc::clone(&gate)));
        let reference = registry.reference("a/b:1");
        let late = async {
            // Later than a stalled transfer is given up.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            gate.add_permits(1);
        };
        let (pulled, ()) = tokio::join!(store.pull(&reference, None), late);
        assert_eq!(pulled.is_ok(), comes, "{first_byte}: {pulled:?}");
    }
}
