//! Images whose user database says something else than the request.

use std::os::unix::fs::PermissionsExt;

use conformance::image::Extras;
use proto::v1;

use crate::rig::deadline;
use crate::stage::{ATTACKER, armed, security, with_every_launcher};

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

/// A container that holds a lease on a file would keep whoever opens it waiting for
/// 45 seconds: here the engine, which looks users up in it for another container.
#[test]
fn a_lease_on_a_user_database_keeps_nobody_waiting() {
    with_every_launcher(&armed(), async |rig, launcher| {
        let name = format!("leased-{launcher}");
        let sandbox = rig.sandbox(&name);
        let pod = rig.pod_of(launcher, &sandbox).await;
        let volume = rig.engine.path(&format!("volume-{launcher}"));
        std::fs::create_dir(&volume).expect("a volume");
        std::fs::set_permissions(&volume, PermissionsExt::from_mode(0o777)).expect("mode");
        let mount = |at: &str| v1::Mount {
            container_path: at.to_owned(),
            host_path: volume.to_string_lossy().into_owned(),
            ..Default::default()
        };
        let mut config = rig.container("main", &[ATTACKER, "lease", "/shared/passwd"]);
        config.mounts = vec![mount("/shared")];
        rig.started(&pod, &config, &sandbox).await;
        rig.log_with(&name, "leased").await;
        let mut config = rig.container("other", &["/bin/sleep", "1000"]);
        config.mounts = vec![mount("/etc")];
        let made = rig.client.create(&pod, &config, &sandbox);
        let made = tokio::time::timeout(deadline(), made).await;
        let refused = made.expect("an answer").expect_err("it cannot be read");
        assert!(refused.message().contains("passwd"), "{refused}");
    });
}
