//! Images whose user database says something else than the request.

use conformance::image::Extras;
use proto::v1;

use crate::stage::{security, with_every_launcher};

#[test]
fn a_number_is_never_a_name() {
    let passwd = b"root:x:0:0::/:/bin/sh\n1000:x:0:0::/:/bin/sh\n".to_vec();
    let group = b"root:x:0:\n1000:x:0:\n".to_vec();
    let extras = Extras {
        files: vec![
            ("etc/passwd".to_owned(), passwd, 0o644),
            ("etc/group".to_owned(), group, 0o644),
        ],
        config: serde_json::json!({ "User": "1000:1000" }),
        ..Extras::default()
    };
    with_every_launcher(&extras, async |rig, launcher| {
        for requested in [None, Some(1000)] {
            let name = format!("number{}", requested.unwrap_or_default());
            let made = rig.try_container(launcher, &name, |config| {
                let id = |value| v1::Int64Value { value };
                security(config).run_as_user = requested.map(id);
                security(config).run_as_group = requested.map(id);
            });
            let id = made.await.expect("a container");
            let prints = rig.prints(&id, "id -u; id -g").await;
            assert_eq!(prints, "1000\n1000\n", "{launcher}, {requested:?}");
        }
    });
}
