//! HTTPS: who is trusted, and what is shown.

use crate::support::authority::{Authority, self_signed};
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

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_its_own_authority_is_believed_when_it_is_given() {
    let (given, _) = self_signed("localhost", 36_500);
    for (name, days, shown, trusted) in [
        ("localhost", 36_500, true, true),
        ("localhost", 36_500, false, false),
        ("other.example", 36_500, true, false),
        ("localhost", 1, true, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (own, config) = self_signed(name, days);
        let registry = Registry::start_tls(config).await;
        registry.push("a/b", "1", &image(&[layer(Packing::Gzip, &[("f", b"x")])]));
        let store = open(dir.path()).await;
        beside_hosts(dir.path(), "ca.pem", if shown { &own } else { &given });
        let text = format!(
            "server = \"https://localhost:{}\"\nca = \"ca.pem\"",
            registry.port()
        );
        hosts(dir.path(), "r.example", &text);
        let pulled = store.pull("r.example/a/b:1", None).await;
        assert_eq!(pulled.is_ok(), trusted, "{name} {days} {shown}: {pulled:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_is_reached_with_what_stands_below_its_own_host() {
    let authority = Authority::new();
    let registry = Registry::start_tls(authority.server(None)).await;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    beside_hosts(dir.path(), "ca.pem", &authority.issuer.pem());
    let own = format!("https://localhost:{}", registry.port());
    let text = format!(
        "server = \"{own}\"\n[host.\"{own}\"]\ncapabilities = [\"pull\"]\nca = \"ca.pem\"\n"
    );
    hosts(dir.path(), "r.example", &text);
    // The truth, and not that nobody knows who signed the certificate.
    let error = store.pull("r.example/a/b:1", None).await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error:?}");
    registry.push("a/b", "1", &image(&[layer(Packing::Gzip, &[("f", b"x")])]));
    store.pull("r.example/a/b:1", None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_certificates_without_hosts_toml_is_enough() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let registry = Registry::start_tls(authority.server(Some(&clients))).await;
    registry.push("a/b", "1", &image(&[layer(Packing::Gzip, &[("f", b"x")])]));
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let name = format!("localhost:{}", registry.port());
    let folder = dir.path().join("hosts").join(&name);
    std::fs::create_dir_all(&folder).unwrap();
    let (certificate, key) = clients.sign("node");
    for (file, text) in [
        ("ca.crt", authority.issuer.pem()),
        ("node.cert", certificate.pem()),
        ("node.key", key.serialize_pem()),
    ] {
        std::fs::write(folder.join(file), text).unwrap();
    }
    store.pull(&format!("{name}/a/b:1"), None).await.unwrap();
}
