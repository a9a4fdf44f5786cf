//! Who is shown which credentials.

use image_store::{Auth, PullError};

use crate::support::image::{Packing, image, layer};
use crate::support::registry::{Access, Fault, Registry};
use crate::support::{eventually, hosts, left_over, open};

fn small() -> crate::support::image::Image {
    image(&[
        layer(Packing::Gzip, &[("f", b"x")]),
        layer(Packing::Gzip, &[("g", b"y")]),
    ])
}

fn user(name: &str, password: &str) -> Option<Auth> {
    let (username, password) = (Some(name.to_owned()), Some(password.to_owned()));
    Some(Auth {
        username,
        password,
        ..Auth::default()
    })
}

fn user_token() -> Access {
    Access::UserToken {
        user: "u".into(),
        password: "p".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_in_works_and_one_token_serves_all_layers() {
    let refresh = Some(Auth {
        identity_token: Some("r1".into()),
        ..Auth::default()
    });
    let fixed = Some(Auth {
        registry_token: Some("t1".into()),
        ..Auth::default()
    });
    let basic = Access::Basic {
        user: "u".into(),
        password: "p".into(),
    };
    for (access, auth, tokens) in [
        (Access::Open, None, 0),
        (Access::AnonymousToken, None, 1),
        (user_token(), user("u", "p"), 1),
        (basic.clone(), user("u", "p"), 0),
        (
            basic,
            Some(Auth {
                auth: Some("dTpw".into()),
                ..Auth::default()
            }),
            0,
        ),
        (
            Access::RefreshToken {
                refresh: "r1".into(),
            },
            refresh,
            1,
        ),
        (Access::FixedToken { token: "t1".into() }, fixed, 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (store, registry) = (open(dir.path()).await, Registry::start().await);
        registry.push("a/b", "1", &small());
        registry.access(access);
        store
            .pull(&registry.reference("a/b:1"), auth)
            .await
            .unwrap();
        assert_eq!(registry.count("/token"), tokens);
        let token = registry.asked().into_iter().find(|a| a.path == "/token");
        if let Some(token) = token.filter(|t| t.method == "GET") {
            assert!(
                token.query.contains("service=fake%2C+registry"),
                "{}",
                token.query
            );
            assert!(
                token.query.contains("scope=repository%3Ax%3Apull"),
                "{}",
                token.query
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_or_missing_credentials_are_unauthorized_and_name_the_host() {
    let basic = Access::Basic {
        user: "u".into(),
        password: "p".into(),
    };
    let fixed = Some(Auth {
        registry_token: Some("wrong".into()),
        ..Auth::default()
    });
    for (access, auth) in [
        (user_token(), user("u", "wrong")),
        (user_token(), None),
        (basic.clone(), user("u", "wrong")),
        (basic, None),
        (Access::FixedToken { token: "t1".into() }, fixed),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (store, registry) = (open(dir.path()).await, Registry::start().await);
        registry.push("a/b", "1", &small());
        registry.access(access);
        let error = store
            .pull(&registry.reference("a/b:1"), auth)
            .await
            .unwrap_err();
        match error {
            PullError::Unauthorized { host, .. } => assert_eq!(host, registry.host()),
            other => panic!("{other:?}"),
        }
        eventually("nothing is left", || left_over(dir.path()).is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_never_see_the_credentials_of_the_registry() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let (mirror, origin) = (Registry::start().await, Registry::start().await);
    origin.push("a/b", "1", &small());
    origin.access(user_token());
    // Asks for the same, to lure them out.
    mirror.access(user_token());
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        origin.host(),
        mirror.host()
    );
    hosts(dir.path(), "r.example", &text);
    store.pull("r.example/a/b:1", user("u", "p")).await.unwrap();
    assert!(mirror.count("/v2/") > 0 && mirror.count("/token") > 0);
    for asked in mirror.asked() {
        assert!(!asked.headers.contains_key("authorization"), "{asked:?}");
        assert!(!asked.query.contains("account"), "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_address_decides_who_gets_the_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    registry.push("a/b", "1", &small());
    registry.access(user_token());
    let with = |address: String| {
        user("u", "p").map(|auth| Auth {
            server_address: Some(address),
            ..auth
        })
    };
    let reference = registry.reference("a/b:1");
    let error = store
        .pull(&reference, with("other.example".into()))
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error:?}");
    assert!(
        registry
            .asked()
            .iter()
            .all(|a| !a.headers.contains_key("authorization"))
    );
    store
        .pull(&reference, with(format!("https://{}/v1/", registry.host())))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_carry_neither_credentials_nor_configured_headers() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let (registry, cdn) = (Registry::start().await, Registry::start().await);
    let image = small();
    registry.push("a/b", "1", &image);
    registry.access(user_token());
    for layer in &image.layers {
        let digest = image_store::Digest::of(&layer.blob).to_string();
        cdn.put(
            &format!("/store/{digest}"),
            "application/octet-stream",
            &layer.blob,
        );
        let to = format!("http://{}/store/{digest}?signature=s", cdn.host());
        registry.fault(format!("blobs/{digest}"), 9, Fault::Redirect(to));
    }
    let text = format!(
        "server = \"http://{}\"\n[header]\nX-Key = \"secret\"\n",
        registry.host()
    );
    hosts(dir.path(), "r.example", &text);
    store.pull("r.example/a/b:1", user("u", "p")).await.unwrap();
    assert_eq!(cdn.count("/store/"), 2);
    for asked in cdn.asked() {
        assert!(!asked.headers.contains_key("authorization"));
        assert!(!asked.headers.contains_key("x-key"));
    }
    assert!(
        registry
            .asked()
            .iter()
            .any(|a| a.headers.get("x-key").is_some_and(|v| v == "secret"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn image_that_is_there_still_needs_the_right_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    registry.push("a/b", "1", &small());
    registry.access(user_token());
    let reference = registry.reference("a/b:1");
    store.pull(&reference, user("u", "p")).await.unwrap();
    let error = store.pull(&reference, None).await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }));
    assert!(store.find(&reference).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn token_service_that_sends_on_is_followed_and_strangers_see_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, other) = (Registry::start().await, Registry::start().await);
    registry.push("a/b", "1", &small());
    let reference = registry.reference("a/b:1");
    // To another place at the same host, with the credentials.
    registry.access(user_token());
    registry.fault("/token", 1, Fault::Redirect("/token".into()));
    let store = open(dir.path()).await;
    store.pull(&reference, user("u", "p")).await.unwrap();
    assert_eq!(registry.count("/token"), 2);
    // To another host, without them.
    other.access(Access::AnonymousToken);
    let there = format!("http://{}/token", other.host());
    registry.fault("/token", 1, Fault::Redirect(there.clone()));
    let store = open(&dir.path().join("second")).await;
    store.pull(&reference, user("u", "p")).await.unwrap();
    assert_eq!(other.count("/token"), 1);
    for asked in other.asked() {
        assert!(!asked.headers.contains_key("authorization"), "{asked:?}");
    }
    // A refresh token is for its own service alone.
    let refresh = Access::RefreshToken {
        refresh: "r1".into(),
    };
    registry.access(refresh);
    let auth = Some(Auth {
        identity_token: Some("r1".into()),
        ..Auth::default()
    });
    registry.fault("/token", 1, Fault::Redirect(there));
    let store = open(&dir.path().join("third")).await;
    assert!(store.pull(&reference, auth.clone()).await.is_err());
    assert_eq!(other.count("/token"), 1);
    registry.fault("/token", 1, Fault::Redirect("/token".into()));
    store.pull(&reference, auth).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_of_an_object_store_is_named_and_no_matter_of_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, cdn) = (Registry::start().await, Registry::start().await);
    let image = small();
    registry.push("a/b", "1", &image);
    registry.access(user_token());
    let digest = image_store::Digest::of(&image.layers[0].blob).to_string();
    cdn.put("/blob", "x/y", &image.layers[0].blob);
    let to = format!("http://{}/blob", cdn.host());
    registry.fault(format!("blobs/{digest}"), 99, Fault::Redirect(to));
    let expired = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";
    cdn.fault("/blob", 3, Fault::Says(403, expired));
    let store = open(dir.path()).await;
    let reference = registry.reference("a/b:1");
    let error = store.pull(&reference, user("u", "p")).await.unwrap_err();
    let PullError::RegistryUnavailable { host, source } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(*host, cdn.host());
    let source = source.to_string();
    for part in [
        "403",
        "AccessDenied",
        "Request has expired",
        &registry.host(),
    ] {
        assert!(source.contains(part), "{part}: {source}");
    }
    assert_eq!(
        cdn.count("/blob"),
        3,
        "a new signature may help, so it is asked again"
    );
    store.pull(&reference, user("u", "p")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_the_servers_address_gets_the_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = (open(dir.path()).await, Registry::start().await);
    registry.push("a/b", "1", &small());
    registry.access(user_token());
    let own = registry.host();
    let text = format!("server = \"http://{own}\"\n[host.\"http://{own}\"]\n");
    hosts(dir.path(), "r.example", &text);
    store.pull("r.example/a/b:1", user("u", "p")).await.unwrap();
    assert_eq!(
        registry.count("manifests/1"),
        2,
        "once without, once with a token"
    );
}
