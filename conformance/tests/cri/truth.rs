//! What a request says and an image cannot change, and what a status says of it.

use conformance::image::Extras;
use proto::v1;
use serde_json::json;
use tonic::Code;

use crate::rig::{Rig, with_engine, with_image, with_own_engine};

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    let linux = config.linux.as_mut().expect("linux");
    linux.security_context.as_mut().expect("a security context")
}

async fn says(rig: &mut Rig, id: &str, words: &[&str]) -> String {
    let output = rig.client.exec(id, words, 5).await.expect("exec");
    output.stdout.trim().to_owned()
}

/// A file of users in which the name of root is a number.
fn hostile(user: &str) -> Extras {
    let passwd = b"1000:x:0:0::/root:/bin/sh\nu:x:1000:77::/home/u:/bin/sh\n";
    let group = b"77:x:0:\nmine:x:77:u\n";
    Extras {
        files: vec![
            ("etc/passwd".into(), passwd.to_vec(), 0o644),
            ("etc/group".into(), group.to_vec(), 0o644),
        ],
        config: json!({ "User": user }),
        ..Extras::default()
    }
}

#[test]
fn a_user_that_is_a_number_is_that_number_whatever_the_image_calls_it() {
    with_image(&hostile("1000"), async |rig| {
        let sandbox = rig.sandbox("number");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let of_image = rig.container("main", &["/bin/sleep", "1000"]);
        let mut asked = rig.container("asked", &["/bin/sleep", "1000"]);
        security(&mut asked).run_as_user = Some(v1::Int64Value { value: 1000 });
        for config in [of_image, asked] {
            let id = rig.started(&pod, &config, &sandbox).await;
            let words = [
                "sh",
                "-c",
                "id -u; id -g; echo $HOME; grep Uid /proc/1/status",
            ];
            let said = says(rig, &id, &words).await;
            let said: Vec<&str> = said.split_whitespace().collect();
            assert_eq!(said[..4], ["1000", "77", "/home/u", "Uid:"], "{said:?}");
            assert_eq!(said[4..], ["1000"; 4]);
            let status = rig.client.container(&id).await.expect("status");
            let user = status.user.and_then(|user| user.linux).expect("a user");
            assert_eq!((user.uid, user.gid), (1000, 77));
        }
        let request = v1::ImageStatusRequest {
            image: Some(conformance::client::image(&rig.image)),
            verbose: false,
        };
        let answer = rig.client.images.image_status(request).await;
        let image = answer.expect("status").into_inner().image.expect("there");
        assert_eq!(image.uid.map(|id| id.value), Some(1000));
        assert_eq!(image.username, "");
    });
}

#[test]
fn ids_beyond_two_to_the_31_are_refused() {
    with_image(&hostile("2147483648"), async |rig| {
        let sandbox = rig.sandbox("beyond");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let of_image = rig.container("main", &["/bin/true"]);
        let mut asked = rig.container("asked", &["/bin/true"]);
        security(&mut asked).run_as_user = Some(v1::Int64Value { value: 1 << 31 });
        for config in [of_image, asked] {
            let refused = rig.client.create(&pod, &config, &sandbox).await;
            let refused = refused.expect_err("refused");
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
            assert!(refused.message().contains("2147483648"), "{refused}");
        }
    });
}

#[test]
fn users_are_looked_up_in_the_file_that_the_container_sees() {
    with_engine(async |rig| {
        let passwd = rig.engine.path("passwd");
        let line = "mounted:x:1234:65534::/home/mounted:/bin/sh\n";
        std::fs::write(&passwd, line).expect("written");
        let sandbox = rig.sandbox("mounted");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        security(&mut config).run_as_username = "mounted".into();
        config.mounts.push(v1::Mount {
            container_path: "/etc/passwd".into(),
            host_path: passwd.to_string_lossy().into_owned(),
            readonly: true,
            ..Default::default()
        });
        let id = rig.started(&pod, &config, &sandbox).await;
        let said = says(rig, &id, &["sh", "-c", "echo $(id -u) $(id -g) $HOME"]).await;
        assert_eq!(said, "1234 65534 /home/mounted");
    });
}

#[test]
fn an_image_that_is_named_by_its_id_is_shown_by_its_names() {
    with_engine(async |rig| {
        let request = v1::ImageStatusRequest {
            image: Some(conformance::client::image(&rig.image)),
            verbose: false,
        };
        let answer = rig.client.images.image_status(request).await;
        let image = answer.expect("status").into_inner().image.expect("there");
        let sandbox = rig.sandbox("names");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        // As the kubelet does.
        config.image = Some(v1::ImageSpec {
            user_specified_image: rig.image.clone(),
            ..conformance::client::image(&image.id)
        });
        let id = rig.started(&pod, &config, &sandbox).await;
        let status = rig.client.container(&id).await.expect("status");
        let all = rig.client.containers().await.expect("list");
        let line = all.into_iter().find(|one| one.id == id).expect("listed");
        let shown = status.image.expect("an image").image;
        assert!(image.repo_tags.contains(&shown), "{shown}");
        assert_eq!(line.image.expect("an image").image, shown);
        for (id, reference) in [
            (&status.image_id, &status.image_ref),
            (&line.image_id, &line.image_ref),
        ] {
            assert_eq!(*id, image.id);
            let digest = image.repo_digests.first().unwrap_or(&image.id);
            assert_eq!(reference, digest);
        }
    });
}

#[test]
fn an_ephemeral_container_may_be_privileged_in_an_ordinary_pod() {
    with_engine(async |rig| {
        let sandbox = rig.sandbox("debugged");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("debugger", &["/bin/sleep", "1000"]);
        security(&mut config).privileged = true;
        let refused = rig.client.create(&pod, &config, &sandbox).await;
        let refused = refused.expect_err("the sandbox's configuration allows none");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let mut now = sandbox.clone();
        let linux = now.linux.as_mut().expect("linux");
        let context = linux.security_context.as_mut().expect("a security context");
        context.privileged = true;
        let id = rig.started(&pod, &config, &now).await;
        let said = says(rig, &id, &["grep", "CapEff", "/proc/1/status"]).await;
        let own = std::fs::read_to_string("/proc/self/status").expect("status");
        let all = own.lines().find(|line| line.starts_with("CapBnd"));
        let all = all.and_then(|line| line.split_whitespace().nth(1));
        assert!(said.ends_with(all.expect("a set")), "{said}");
    });
}

#[test]
fn a_pod_with_the_nodes_network_has_the_nodes_name() {
    with_engine(async |rig| {
        let mut sandbox = rig.sandbox("hosted");
        sandbox.hostname.clear();
        let linux = sandbox.linux.as_mut().expect("linux");
        let context = linux.security_context.as_mut().expect("a security context");
        let namespaces = context.namespace_options.as_mut().expect("namespaces");
        namespaces.network = v1::NamespaceMode::Node as i32;
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        let options = security(&mut config).namespace_options.as_mut();
        options.expect("namespaces").network = v1::NamespaceMode::Node as i32;
        let id = rig.started(&pod, &config, &sandbox).await;
        let words = ["sh", "-c", "cat /etc/hostname; echo $HOSTNAME; hostname"];
        let said = says(rig, &id, &words).await;
        let node = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
        let node = node.trim();
        assert_eq!(said.split_whitespace().collect::<Vec<_>>(), [node; 3]);
    });
}

#[test]
fn a_volume_of_the_image_is_a_fresh_writable_copy() {
    let extras = Extras {
        files: vec![("data/seed".into(), b"seed".to_vec(), 0o640)],
        config: json!({ "Volumes": { "/data": {}, "scratch/": {} } }),
        ..Extras::default()
    };
    with_image(&extras, async |rig| {
        let sandbox = rig.sandbox("volumes");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        for name in ["first", "second"] {
            let mut config = rig.container(name, &["/bin/sleep", "1000"]);
            security(&mut config).readonly_rootfs = true;
            let id = rig.started(&pod, &config, &sandbox).await;
            let script = "cat /data/seed; stat -c :%a /data/seed; ls /data; touch /data/new /scratch/new && echo written; touch /x || echo read-only";
            let said = says(rig, &id, &["sh", "-c", script]).await;
            let said: Vec<&str> = said.split_whitespace().collect();
            assert_eq!(said, ["seed:640", "seed", "written", "read-only"], "{name}");
        }
        // A mount of the request takes the place of the image's volume.
        let volume = rig.engine.path("volume");
        std::fs::create_dir(&volume).expect("volume");
        std::fs::write(volume.join("own"), "").expect("file");
        let mut config = rig.container("third", &["/bin/sleep", "1000"]);
        config.mounts = vec![v1::Mount {
            container_path: "/data".into(),
            host_path: volume.to_string_lossy().into_owned(),
            ..Default::default()
        }];
        let id = rig.started(&pod, &config, &sandbox).await;
        assert_eq!(says(rig, &id, &["ls", "/data"]).await, "own");
    });
}

#[test]
fn a_volume_of_the_image_on_what_is_the_kernels_is_refused() {
    for place in ["/", "/proc/sys", "dev/../proc", "/sys", "/dev/shm"] {
        let extras = Extras {
            config: json!({ "Volumes": { place: {} } }),
            ..Extras::default()
        };
        with_image(&extras, async |rig| {
            let sandbox = rig.sandbox("kernels");
            let pod = rig.client.run_pod(&sandbox).await.expect("run");
            let config = rig.container("main", &["/bin/sleep", "1000"]);
            let refused = rig.client.create(&pod, &config, &sandbox).await;
            let refused = refused.expect_err("refused");
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
            assert!(refused.message().contains(place), "{refused}");
        });
    }
}

#[test]
fn a_value_that_is_not_utf_8_arrives_as_it_is() {
    with_engine(async |rig| {
        let sandbox = rig.sandbox("raw");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let script = "printf %s \"$RAW\" > /tmp/raw; sleep 1000";
        let mut config = rig.container("main", &["/bin/sh", "-c", script]);
        config.envs = vec![v1::KeyValue {
            key: "RAW".into(),
            value: b"a\xff\xfeb".to_vec(),
        }];
        let created = rig.client.create(&pod, &config, &sandbox).await;
        if std::env::var_os("SLIPWAY_TEST_HANDLER").is_some_and(|name| name != "native") {
            let refused = created.expect_err("JSON cannot say it");
            assert!(refused.message().contains("envs[RAW]"), "{refused}");
            return;
        }
        let id = created.expect("CreateContainer");
        rig.client.start(&id).await.expect("start");
        let bytes = async |rig: &mut Rig, script: &str| {
            let mut client = rig.client.clone();
            let said = conformance::eventually(crate::rig::deadline(), async || {
                let output = client
                    .exec(&id, &["sh", "-c", script], 5)
                    .await
                    .expect("exec");
                (!output.stdout.trim().is_empty()).then_some(output.stdout)
            });
            said.await
                .expect("bytes")
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let expected = ["141", "377", "376", "142"];
        let of_init = bytes(rig, "od -An -b /tmp/raw").await;
        assert_eq!(of_init, expected);
        let of_exec = bytes(rig, "printf %s \"$RAW\" | od -An -b").await;
        assert_eq!(of_exec, expected);
    });
}

#[test]
fn the_nodes_processes_are_for_pods_that_have_them() {
    with_engine(async |rig| {
        let sandbox = rig.sandbox("own-pids");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        let options = security(&mut config).namespace_options.as_mut();
        options.expect("namespaces").pid = v1::NamespaceMode::Node as i32;
        let refused = rig.client.create(&pod, &config, &sandbox).await;
        let refused = refused.expect_err("the pod has no hostPID");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("pid"), "{refused}");
    });
}

#[test]
fn shared_memory_may_be_executed_from_and_no_link_of_dev_leads_nowhere() {
    with_engine(async |rig| {
        let (_, id) = rig.running("dev", &["/bin/sleep", "1000"]).await;
        let script = "cat /bin/busybox > /dev/shm/sh; chmod 755 /dev/shm/sh; /dev/shm/sh -c 'echo ran'; \
                      for link in /dev/*; do if [ -L $link ] && ! [ -e $link ]; then echo dangling $link; fi; done";
        // Those of standard streams lead to what an exec has closed or not.
        let said = says(rig, &id, &["sh", "-c", script]).await;
        let said: Vec<&str> = said.lines().filter(|line| !line.contains("std")).collect();
        assert_eq!(said, ["ran"]);
    });
}

#[test]
fn a_relative_working_directory_of_an_image_is_refused() {
    let extras = Extras {
        config: json!({ "WorkingDir": "srv" }),
        ..Extras::default()
    };
    with_image(&extras, async |rig| {
        let sandbox = rig.sandbox("relative");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        let refused = rig.client.create(&pod, &config, &sandbox).await;
        let refused = refused.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("\"srv\""), "{refused}");
        config.working_dir = "/etc".into();
        rig.started(&pod, &config, &sandbox).await;
    });
}

/// Where the engine could load its profile, and says so.
#[test]
fn a_container_has_the_default_apparmor_profile_where_there_is_one() {
    with_own_engine(async |rig| {
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        let enabled = enabled.is_ok_and(|text| text.trim() == "Y");
        let mut client = rig.client.clone();
        let told = conformance::eventually(crate::rig::deadline(), async || {
            let request = v1::StatusRequest { verbose: true };
            let status = client.runtime.status(request).await.expect("status");
            let told = &status.into_inner().info["appArmor"];
            let told: serde_json::Value = serde_json::from_str(told).expect("JSON");
            (told["defaultProfile"].is_string() == enabled).then_some(told)
        });
        let told = told
            .await
            .expect("the profile is loaded where the kernel has AppArmor");
        assert_eq!(told["enabled"], enabled);
        let sandbox = rig.sandbox("profiled");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let default = v1::security_profile::ProfileType::RuntimeDefault as i32;
        for (name, profile) in [("asks", Some(default)), ("asks-not", None)] {
            let mut config = rig.container(name, &["/bin/sleep", "1000"]);
            security(&mut config).apparmor = profile.map(|profile_type| v1::SecurityProfile {
                profile_type,
                localhost_ref: String::new(),
            });
            let id = rig.started(&pod, &config, &sandbox).await;
            if enabled {
                let script = ["cat", "/proc/1/attr/current"];
                let label = "slipway-default (enforce)";
                assert_eq!(says(rig, &id, &script).await, label, "{name}");
            }
            assert_eq!(says(rig, &id, &["echo", "up"]).await, "up");
        }
    });
}

/// On a kernel with AppArmor the profile is set, on one without there is nothing to set.
#[test]
fn a_container_may_ask_for_no_apparmor_profile() {
    with_own_engine(async |rig| {
        let sandbox = rig.sandbox("unconfined");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        security(&mut config).apparmor = Some(v1::SecurityProfile {
            profile_type: v1::security_profile::ProfileType::Unconfined as i32,
            localhost_ref: String::new(),
        });
        let id = rig.started(&pod, &config, &sandbox).await;
        assert_eq!(says(rig, &id, &["echo", "up"]).await, "up");
    });
}
