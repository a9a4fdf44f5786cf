//! Where registries and images may send the node, and where not.

use image_store::{Digest, PullError, Tuning};
use serde_json::json;

use crate::support::authority::Authority;
use crate::support::image::{Image, Packing, image, layer};
use crate::support::registry::{Access, Fault, Registry};
use crate::support::{
    ELSEWHERE, TRUSTED, eventually, hosts, in_own_network, left_over, open, open_with, tuning,
};

const FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";

fn small() -> Image {
    image(&[layer(Packing::Gzip, &[("f", b"x")])])
}

/// The same image, whose first layer is to come from elsewhere.
#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
fn foreign(image: &Image, url: &str) -> Image {
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["layers"][0]["mediaType"] = json!(FOREIGN);
    manifest["layers"][0]["urls"] = json!([url]);
    Image {
        manifest: serde_json::to_vec(&manifest).unwrap(),
        ..image.clone()
    }
}

/// Pulls `a/b:1` from a registry that is not on the node's own address.
#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
async fn pull_from(registry: &Registry) -> Result<(), PullError> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let text = format!("server = \"http://{}\"", registry.host());
    hosts(dir.path(), "r.example", &text);
    let pulled = store.pull("r.example/a/b:1", None).await;
    if pulled.is_err() {
        eventually("nothing is left", || left_over(dir.path()).is_empty()).await;
    }
    pulled.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_elsewhere_cannot_send_the_node_to_itself() {
    if !in_own_network("places::a_registry_elsewhere_cannot_send_the_node_to_itself") {
        return;
    }
    let registry = Registry::start_at(ELSEWHERE, None).await;
    let (victim, store) = (
        Registry::start().await,
        Registry::start_at(ELSEWHERE, None).await,
    );
    let image = small();
    registry.push("a/b", "1", &image);
    let digest = Digest::of(&image.layers[0].blob).to_string();
    for place in [&victim, &store] {
        place.put("/blob", "x/y", &image.layers[0].blob);
        place.access(Access::AnonymousToken);
    }
    let port = victim.port();
    for host in [
        "127.0.0.1",
        "127.1",
        "localhost",
        "inner.test",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
    ] {
        let there = |path: &str| format!("http://{host}:{port}{path}");
        registry.fault(
            format!("blobs/{digest}"),
            1,
            Fault::Redirect(there("/blob")),
        );
        let error = pull_from(&registry).await.expect_err(host);
        assert!(
            matches!(error, PullError::RegistryUnavailable { .. }),
            "{error:?}"
        );
        registry.fault("manifests/1", 1, Fault::Redirect(there("/blob")));
        pull_from(&registry).await.expect_err(host);
        registry.access(Access::AnonymousToken);
        registry.realm(there("/token"));
        pull_from(&registry).await.expect_err(host);
        // By way of a token service that is where it may be.
        registry.realm(format!("http://{}/token", store.host()));
        store.fault("/token", 1, Fault::Redirect(there("/token")));
        pull_from(&registry).await.expect_err(host);
        registry.access(Access::Open);
    }
    assert!(victim.asked().is_empty(), "{:?}", victim.asked());
    // Elsewhere it may send to, by name too.
    let blobs = Registry::start_at(ELSEWHERE, None).await;
    blobs.put("/blob", "x/y", &image.layers[0].blob);
    let (port, blob) = (store.port(), blobs.port());
    let blob = format!("http://registry.test:{blob}/blob");
    registry.fault(format!("blobs/{digest}"), 1, Fault::Redirect(blob));
    registry.access(Access::AnonymousToken);
    registry.realm(format!("http://registry.test:{port}/token"));
    pull_from(&registry).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_layers_are_refused_by_name_unless_their_host_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, elsewhere) = (Registry::start().await, Registry::start().await);
    let plain = small();
    elsewhere.put("/layer", "x/y", &plain.layers[0].blob);
    let url = format!("http://{}/layer", elsewhere.host());
    registry.push("a/b", "1", &foreign(&plain, &url));
    let reference = registry.reference("a/b:1");
    // Never from the node itself, also when somebody allows it.
    for allowed in [vec![], vec![elsewhere.host()]] {
        let tuning = Tuning {
            foreign_layer_hosts: allowed,
            ..tuning()
        };
        let store = open_with(dir.path(), tuning).await;
        match store.pull(&reference, None).await.unwrap_err() {
            PullError::ForeignLayer { layer, url: named } => {
                assert_eq!(layer, Digest::of(&plain.layers[0].blob));
                assert_eq!(named, url);
            }
            other => panic!("{other:?}"),
        }
        eventually("nothing is left", || left_over(dir.path()).is_empty()).await;
    }
    assert!(elsewhere.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_layer_comes_from_its_host_and_never_from_the_node() {
    if !in_own_network("places::a_foreign_layer_comes_from_its_host_and_never_from_the_node") {
        return;
    }
    let authority = Authority::new();
    std::fs::write(std::env::var(TRUSTED).unwrap(), authority.issuer.pem()).unwrap();
    let layers =
        Registry::start_at(ELSEWHERE, Some(authority.server_named("layers.test", None))).await;
    let victim = Registry::start_tls(authority.server_named("inner.test", None)).await;
    let registry = Registry::start_at(ELSEWHERE, None).await;
    let plain = small();
    let blob = &plain.layers[0].blob;
    for place in [&layers, &victim] {
        place.put("/layer", "x/y", blob);
    }
    let own = format!("layers.test:{}", layers.port());
    let inner = format!("inner.test:{}", victim.port());
    let pull = async |url: String| {
        // The registry itself has all but the layer.
        let mut image = foreign(&plain, &url);
        image.layers.clear();
        registry.push("a/b", "1", &image);
        let dir = tempfile::tempdir().unwrap();
        let tuning = Tuning {
            foreign_layer_hosts: vec![own.clone(), inner.clone()],
            ..tuning()
        };
        let store = open_with(dir.path(), tuning).await;
        let text = format!("server = \"http://{}\"", registry.host());
        hosts(dir.path(), "r.example", &text);
        store.pull("r.example/a/b:1", None).await
    };
    pull(format!("https://{own}/layer")).await.unwrap();
    assert_eq!(layers.count("/layer"), 1);
    layers.fault(
        "/sent",
        9,
        Fault::Redirect(format!("https://{inner}/layer")),
    );
    for hostile in [
        format!("https://{own}/sent"),
        format!("https://{inner}/layer"),
    ] {
        pull(hostile).await.unwrap_err();
    }
    assert!(victim.asked().is_empty(), "{:?}", victim.asked());
}
