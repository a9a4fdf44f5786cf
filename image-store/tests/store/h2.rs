//! A registry as the public ones are: TLS and HTTP/2 in front of Debian's
//! `docker-registry`, from which an image of many layers is pulled many times.

use std::sync::atomic::Ordering;

use crate::support::authority::Authority;
use crate::support::docker::{DockerRegistry, front};
use crate::support::image::{Packing, image, layer};
use crate::support::{beside_hosts, hosts, names, open};

/// How often the image is pulled unless the environment says otherwise: `make
/// test` asks for 100, which take a minute on a small machine.
const PULLS: usize = 20;
const PULLS_VARIABLE: &str = "SLIPWAY_TEST_H2_PULLS";
const LAYERS: usize = 60;

#[tokio::test(flavor = "multi_thread")]
async fn sixty_layers_over_tls_and_http2_arrive_every_time() {
    let pulls =
        std::env::var(PULLS_VARIABLE).map_or(PULLS, |n| n.parse().expect("a number of pulls"));
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let registry = DockerRegistry::start(dir.path()).await;
    let packings = [Packing::Gzip, Packing::Zstd, Packing::Plain];
    let layers: Vec<_> = (0..LAYERS)
        .map(|n| {
            let (name, body) = (format!("dir{n}/file"), format!("layer {n}"));
            layer(packings[n % 3], &[(name.as_str(), body.as_bytes())])
        })
        .collect();
    let image = image(&layers);
    registry.push(&image).await;
    let (port, seen, front) = front(&authority, registry.client.clone()).await;
    beside_hosts(dir.path(), "ca.pem", &authority.issuer.pem());
    let text = format!("server = \"https://localhost:{port}\"\nca = \"ca.pem\"");
    hosts(dir.path(), "r.example", &text);
    let store = open(dir.path()).await;
    for pull in 0..pulls {
        let pulled = store
            .pull("r.example/a/b:1", None)
            .await
            .unwrap_or_else(|e| panic!("pull {pull}: {e:?}"));
        assert_eq!(pulled.id, image.id());
        assert_eq!(names(dir.path(), "images/layers").len(), LAYERS);
        store.remove("r.example/a/b:1").await.unwrap();
    }
    let asked = seen.requests.load(Ordering::Relaxed);
    assert!(asked >= pulls * (LAYERS + 2), "{asked}");
    assert_eq!(seen.other_versions.load(Ordering::Relaxed), 0);
    front.abort();
}
