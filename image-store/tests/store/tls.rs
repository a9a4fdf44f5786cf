//! HTTPS: who is trusted, and what is shown.

use crate::support::authority::Authority;
use crate::support::image::{Packing, image, layer};
use crate::support::registry::Registry;
use crate::support::{beside_hosts, hosts, open};
use image_store::PullError;

#[tokio::test(flavor = "multi_thread")]
async fn only_a_trusted_authority_is_believed_unless_told_otherwise() {
    let authority = Authority::new();
    let registry = Registry::start_tls(authority.server(None)).await;
    registry.push("a/b", "1", &image(&[layer(Packing::Gzip, &[("f", b"x")])]));
    for (setting, trusted) in [
        ("", false),
        ("ca = \"other.pem\"", false),
        ("ca = \"ca.pem\"", true),
        ("skip_verify = true", true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        beside_hosts(dir.path(), "ca.pem", &authority.issuer.pem());
        beside_hosts(dir.path(), "other.pem", &Authority::new().issuer.pem());
        let text = format!(
            "server = \"https://localhost:{}\"\n{setting}",
            registry.port()
        );
        hosts(dir.path(), "r.example", &text);
        let pulled = store.pull("r.example/a/b:1", None).await;
        match pulled {
            Ok(_) => assert!(trusted, "{setting}"),
            Err(PullError::RegistryUnavailable { .. }) => assert!(!trusted, "{setting}"),
            Err(other) => panic!("{setting}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificate_is_shown_where_configured() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let registry = Registry::start_tls(authority.server(Some(&clients))).await;
    registry.push("a/b", "1", &image(&[layer(Packing::Gzip, &[("f", b"x")])]));
    let (certificate, key) = clients.sign("node");
    for (setting, accepted) in [
        ("", false),
        ("client = [[\"node.crt\", \"node.key\"]]", true),
        ("client = \"both.pem\"", true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        beside_hosts(dir.path(), "ca.pem", &authority.issuer.pem());
        beside_hosts(dir.path(), "node.crt", &certificate.pem());
        beside_hosts(dir.path(), "node.key", &key.serialize_pem());
        beside_hosts(
            dir.path(),
            "both.pem",
            &format!("{}{}", certificate.pem(), key.serialize_pem()),
        );
        let text = format!(
            "server = \"https://localhost:{}\"\nca = \"ca.pem\"\n{setting}",
            registry.port()
        );
        hosts(dir.path(), "r.example", &text);
        assert_eq!(
            store.pull("r.example/a/b:1", None).await.is_ok(),
            accepted,
            "{setting}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_certificate_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    beside_hosts(
        dir.path(),
        "bad.pem",
        "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
    );
    for setting in [
        "ca = \"bad.pem\"",
        "ca = \"missing.pem\"",
        "client = \"bad.pem\"",
    ] {
        hosts(dir.path(), "r.example", setting);
        let error = store.pull("r.example/a/b:1", None).await.unwrap_err();
        assert!(matches!(error, PullError::Hosts { .. }), "{error:?}");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(".pem"), "{source}");
    }
}
