//! Pods with user namespaces, as a kubelet asks for them with `hostUsers: false`.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use proto::v1;
use tonic::Code;

use crate::crash::crash_at;
use crate::rig::{Rig, deadline, with_own_engine};

/// The ids of the pods of these tests.
const FIRST: u32 = 1_000_000;
const LENGTH: u32 = 65_536;

fn mapping(first: u32) -> Vec<v1::IdMapping> {
    vec![v1::IdMapping {
        host_id: first,
        container_id: 0,
        length: LENGTH,
    }]
}

fn of_pod(first: u32) -> v1::UserNamespace {
    v1::UserNamespace {
        mode: v1::NamespaceMode::Pod as i32,
        uids: mapping(first),
        gids: mapping(first),
    }
}

fn pods(sandbox: &mut v1::PodSandboxConfig) -> &mut v1::NamespaceOption {
    let linux = sandbox.linux.as_mut().expect("linux");
    let context = linux.security_context.as_mut().expect("a context");
    context.namespace_options.as_mut().expect("options")
}

fn containers(config: &mut v1::ContainerConfig) -> &mut v1::NamespaceOption {
    security(config)
        .namespace_options
        .as_mut()
        .expect("options")
}

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    let linux = config.linux.as_mut().expect("linux");
    linux.security_context.as_mut().expect("a context")
}

/// Asks for a user namespace.
fn inside(sandbox: &mut v1::PodSandboxConfig, config: &mut v1::ContainerConfig) {
    pods(sandbox).userns_options = Some(of_pod(FIRST));
    containers(config).userns_options = Some(of_pod(FIRST));
}

/// A pod with a user namespace and its sleeping container.
fn asked(rig: &Rig, name: &str) -> (v1::PodSandboxConfig, v1::ContainerConfig) {
    let mut sandbox = rig.sandbox(name);
    let mut config = rig.container("main", &["/bin/sleep", "1000"]);
    inside(&mut sandbox, &mut config);
    (sandbox, config)
}

/// A folder on the node as a volume.
fn volume(rig: &Rig, name: &str, mapped: bool) -> (PathBuf, v1::Mount) {
    let path = rig.engine.path(name);
    std::fs::create_dir_all(&path).expect("a volume");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("mode");
    let ids = if mapped { mapping(FIRST) } else { Vec::new() };
    let mount = v1::Mount {
        container_path: format!("/{name}"),
        host_path: path.to_string_lossy().into_owned(),
        uid_mappings: ids.clone(),
        gid_mappings: ids,
        ..Default::default()
    };
    (path, mount)
}

async fn says(rig: &mut Rig, id: &str, script: &str) -> String {
    let output = rig.client.exec(id, &["/bin/sh", "-c", script], 10).await;
    let output = output.expect("exec");
    assert_eq!(output.stderr, "", "{script}");
    output.stdout
}

#[test]
fn a_pod_with_a_user_namespace_lives_like_any_other() {
    with_own_engine(async |rig| {
        let (mut sandbox, mut config) = asked(rig, "inside");
        let linux = sandbox.linux.as_mut().expect("linux");
        for (name, value) in [
            ("net.ipv4.ip_unprivileged_port_start", "80"),
            ("kernel.shm_rmid_forced", "1"),
        ] {
            linux.sysctls.insert(name.to_owned(), value.to_owned());
        }
        let (own, mapped) = volume(rig, "own", true);
        let (foreign, plain) = volume(rig, "foreign", false);
        config.mounts = vec![mapped, plain];
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let id = rig.started(&pod, &config, &sandbox).await;
        let map = says(rig, &id, "cat /proc/self/uid_map /proc/self/gid_map").await;
        let words: Vec<_> = map.split_whitespace().collect();
        assert_eq!(words, ["0", "1000000", "65536", "0", "1000000", "65536"]);
        let script = "id -u; hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start \
                      /proc/sys/kernel/shm_rmid_forced; \
                      ip link show lo | grep -c LOWER_UP; \
                      stat -c %u:%g / /etc /bin/busybox /dev/null /etc/hosts /dev/shm";
        let expected = "0\ninside\n80\n1\n1\n".to_owned() + &"0:0\n".repeat(6);
        assert_eq!(says(rig, &id, script).await, expected);
        let script = "echo 10.0.0.1 x >>/etc/hosts; echo y >/dev/shm/y; touch /own/made; \
                      touch /foreign/made 2>/dev/null || stat -c %u /foreign; cat /dev/shm/y; \
                      echo out >/dev/stdout";
        assert_eq!(says(rig, &id, script).await, "65534\ny\nout\n");
        let owner = |path: PathBuf| std::fs::metadata(path).expect("made").uid();
        assert_eq!(owner(own.join("made")), 0);
        assert!(!foreign.join("made").exists());
        let status = rig
            .client
            .pod(&pod)
            .await
            .expect("status")
            .status
            .expect("there");
        let options = status.linux.and_then(|linux| linux.namespaces?.options);
        assert_eq!(options.expect("there").userns_options, Some(of_pod(FIRST)));
        assert!(status.network.is_some_and(|network| !network.ip.is_empty()));
        let status = rig.client.container(&id).await.expect("status");
        assert_eq!(status.mounts[0].uid_mappings, mapping(FIRST));
        assert_eq!(status.mounts[1].uid_mappings, Vec::new());
        let user = status.user.and_then(|user| user.linux).expect("a user");
        assert_eq!((user.uid, user.gid), (0, 0));
        rig.client.stop_pod(&pod).await.expect("stop");
        rig.client.remove_pod(&pod).await.expect("remove");
        let pins = std::fs::read_dir(rig.engine.path("netns")).expect("a folder");
        assert_eq!(pins.count(), 0);
    });
}

#[test]
fn a_user_namespace_outlives_the_engine() {
    with_own_engine(async |rig| {
        let (sandbox, config) = asked(rig, "survivor");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let id = rig.started(&pod, &config, &sandbox).await;
        let before = rig.client.pod(&pod).await.expect("status").status;
        rig.crash_and_restart().await;
        assert_eq!(rig.client.pod(&pod).await.expect("status").status, before);
        let map = "cat /proc/self/uid_map; stat -c %u /bin";
        let first = says(rig, &id, map).await;
        assert!(
            first.contains("1000000") && first.ends_with("\n0\n"),
            "{first}"
        );
        // Another engine finds the namespace for what is made now.
        let mut config = config;
        config.metadata.as_mut().expect("metadata").name = "later".to_owned();
        let (own, mapped) = volume(rig, "own", true);
        config.mounts = vec![mapped];
        let later = rig.started(&pod, &config, &sandbox).await;
        let script = format!("{map}; touch /own/made");
        assert_eq!(says(rig, &later, &script).await, first);
        assert_eq!(std::fs::metadata(own.join("made")).expect("made").uid(), 0);
    });
}

#[test]
fn a_crash_while_a_user_namespace_is_made_leaves_nothing() {
    for point in [
        "run-netns-reserved",
        "run-netns",
        "run-setup",
        "create-snapshot",
        "create-launched",
        "stop-netns-unmounted",
    ] {
        with_own_engine(async |rig| crash_at(rig, point, inside).await);
    }
}

#[test]
fn containers_share_processes_and_are_looked_into() {
    with_own_engine(async |rig| {
        let (mut sandbox, mut config) = asked(rig, "shared");
        pods(&mut sandbox).pid = v1::NamespaceMode::Pod as i32;
        containers(&mut config).pid = v1::NamespaceMode::Pod as i32;
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let id = rig.started(&pod, &config, &sandbox).await;
        // The init ignores it; AppArmor, where it is, refuses it already.
        let script = "cat /proc/1/comm; kill -9 1 2>/dev/null; ps | grep -c '[s]leep 1000'";
        assert_eq!(says(rig, &id, script).await, "slipway-init\n1\n");
        let own = {
            let mut own = config.clone();
            own.metadata.as_mut().expect("metadata").name = "own".to_owned();
            own.log_path = "own/0.log".to_owned();
            containers(&mut own).pid = v1::NamespaceMode::Container as i32;
            rig.started(&pod, &own, &sandbox).await
        };
        let mut debugger = config;
        debugger.metadata.as_mut().expect("metadata").name = "debugger".to_owned();
        debugger.log_path = "debugger/0.log".to_owned();
        debugger.command = vec!["/bin/sleep".to_owned(), "2000".to_owned()];
        containers(&mut debugger).pid = v1::NamespaceMode::Target as i32;
        containers(&mut debugger).target_id = own;
        let debugger = rig.started(&pod, &debugger, &sandbox).await;
        let script = "cat /proc/1/cmdline | tr '\\0' ' '; cut -c1-50 /proc/self/uid_map";
        let text = says(rig, &debugger, script).await;
        assert!(
            text.starts_with("/bin/sleep 1000 ") && text.contains("1000000"),
            "{text}"
        );
    });
}

/// Whole or a part of it, and with the mappings that a kubelet sends with every mount.
#[test]
fn an_image_as_a_volume_has_the_pods_ids() {
    with_own_engine(async |rig| {
        let (sandbox, mut config) = asked(rig, "image");
        let image = |place: &str, part: &str| v1::Mount {
            container_path: place.to_owned(),
            readonly: true,
            image: Some(conformance::client::image(&rig.image)),
            image_sub_path: part.to_owned(),
            uid_mappings: mapping(FIRST),
            gid_mappings: mapping(FIRST),
            ..Default::default()
        };
        config.mounts = vec![image("/whole", ""), image("/part", "bin")];
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let id = rig.started(&pod, &config, &sandbox).await;
        let script = "stat -c %u:%g /whole /whole/bin/busybox /part /part/busybox; \
                      touch /whole/x /part/x 2>/dev/null && echo written; true";
        assert_eq!(says(rig, &id, script).await, "0:0\n".repeat(4));
    });
}

/// Every right that a privileged container has is one over its pod.
#[test]
fn a_privileged_container_does_not_reach_the_node() {
    with_own_engine(async |rig| {
        let (mut sandbox, mut config) = asked(rig, "privileged");
        let linux = sandbox.linux.as_mut().expect("linux");
        linux
            .security_context
            .as_mut()
            .expect("a context")
            .privileged = true;
        security(&mut config).privileged = true;
        security(&mut config).seccomp = None;
        let (dev, mut mount) = volume(rig, "nodes", false);
        drop(dev);
        mount.host_path = "/dev".to_owned();
        config.mounts = vec![mount];
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let id = rig.started(&pod, &config, &sandbox).await;
        let script = "for file in sysrq-trigger kcore sys/kernel/core_pattern sys/vm/swappiness; do \
                          (exec 3<>/proc/$file) 2>/dev/null && echo $file; done; \
                      (exec 3<>/sys/kernel/mm/ksm/run) 2>/dev/null && echo sysfs; \
                      for node in /dev/* /nodes/*; do [ -b $node ] && \
                          (exec 3<$node) 2>/dev/null && echo $node; done; \
                      mknod /tmp/node b 254 0 2>/dev/null && echo mknod; \
                      for file in $(find /sys/fs/cgroup -name cgroup.procs 2>/dev/null); do \
                          (exec 3>$file) 2>/dev/null && echo $file; done; \
                      (umount /proc; umount /sys) 2>/dev/null; \
                      mount -t tmpfs none /tmp && echo own; true";
        assert_eq!(says(rig, &id, script).await, "own\n");
        // With the node's users it reaches all of that.
        let mut sandbox = rig.sandbox("over-the-node");
        let linux = sandbox.linux.as_mut().expect("linux");
        let context = linux.security_context.as_mut().expect("a context");
        context.privileged = true;
        containers(&mut config).userns_options = None;
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let id = rig.started(&pod, &config, &sandbox).await;
        let reached = says(rig, &id, script).await;
        for what in ["core_pattern", "mknod", "cgroup.procs", "own"] {
            assert!(reached.contains(what), "{what}: {reached}");
        }
    });
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    with_own_engine(async |rig| {
        let nodes = v1::NamespaceMode::Node as i32;
        let changes: [fn(&mut v1::NamespaceOption, i32); 3] = [
            |options, nodes| options.network = nodes,
            |options, nodes| options.pid = nodes,
            |options, nodes| options.ipc = nodes,
        ];
        for change in changes {
            let (mut sandbox, _) = asked(rig, "nodes");
            change(pods(&mut sandbox), nodes);
            let error = rig.client.run_pod(&sandbox).await.expect_err("refused");
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
            assert!(error.message().contains("userns_options"), "{error}");
        }
        let (sandbox, config) = asked(rig, "fits");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let (_, foreign) = volume(rig, "other", true);
        let other = v1::Mount {
            uid_mappings: mapping(FIRST + LENGTH),
            gid_mappings: mapping(FIRST + LENGTH),
            ..foreign.clone()
        };
        let travels = v1::Mount {
            propagation: v1::MountPropagation::PropagationBidirectional as i32,
            ..foreign.clone()
        };
        let proc = v1::Mount {
            host_path: "/proc".to_owned(),
            ..foreign.clone()
        };
        let with = |mount: &v1::Mount| v1::ContainerConfig {
            mounts: vec![mount.clone()],
            ..config.clone()
        };
        let mut another = config.clone();
        containers(&mut another).userns_options = Some(of_pod(FIRST + LENGTH));
        let mut of_node = config.clone();
        containers(&mut of_node).userns_options = Some(v1::UserNamespace {
            mode: nodes,
            ..Default::default()
        });
        let mut outside = config.clone();
        security(&mut outside).run_as_user = Some(v1::Int64Value { value: 70_000 });
        for (config, word) in [
            (with(&other), "uidMappings"),
            (with(&travels), "propagation"),
            (with(&proc), "idmapped"),
            (another, "userns_options"),
            (of_node, "userns_options"),
            (outside, "70000"),
        ] {
            let made = rig.client.create(&pod, &config, &sandbox).await;
            let error = made.expect_err(word);
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
            assert!(error.message().contains(word), "{error}");
        }
        let sandbox = rig.sandbox("without");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = with(&foreign);
        containers(&mut config).userns_options = None;
        let error = rig.client.create(&pod, &config, &sandbox).await;
        let error = error.expect_err("the pod has none");
        assert!(error.message().contains("uidMappings"), "{error}");
    });
}

/// Only native launchers make them: it is said, and others refuse.
#[test]
fn handlers_say_whether_they_make_user_namespaces() {
    with_own_engine(async |rig| {
        rig.engine.terminate().expect("terminate");
        let names = ["native".to_owned(), "libcontainer".to_owned()];
        rig.engine.add_handlers(&names).expect("handlers");
        rig.client = rig.engine.start().await.expect("an engine");
        let request = v1::StatusRequest { verbose: false };
        let status = rig.client.runtime.status(request).await.expect("status");
        let handlers = status.into_inner().runtime_handlers;
        for (name, able) in [("", true), ("native", true), ("libcontainer", false)] {
            let handler = handlers
                .iter()
                .find(|one| one.name == name)
                .expect("listed");
            let features = handler.features.expect("features");
            assert_eq!(features.user_namespaces, able, "{name:?}");
        }
        let (sandbox, _) = asked(rig, "refused");
        let request = v1::RunPodSandboxRequest {
            config: Some(sandbox),
            runtime_handler: "libcontainer".into(),
        };
        let error = rig.client.runtime.run_pod_sandbox(request).await;
        let error = error.expect_err("refused");
        assert!(error.message().contains("libcontainer"), "{error}");
        assert!(error.message().contains("userns_options"), "{error}");
    });
}

/// The words for it take longer than a pipe.
#[test]
fn a_kernel_parameter_with_a_name_without_end_is_refused_like_any_other() {
    with_own_engine(async |rig| {
        for is_inside in [false, true] {
            let (mut sandbox, _) = asked(rig, "long");
            if !is_inside {
                pods(&mut sandbox).userns_options = None;
            }
            let linux = sandbox.linux.as_mut().expect("linux");
            let name = format!("net.{}", "x".repeat(100_000));
            linux.sysctls.insert(name, "1".to_owned());
            let ran = tokio::time::timeout(deadline(), rig.client.run_pod(&sandbox)).await;
            let error = ran.expect("an answer").expect_err("no such parameter");
            assert!(error.message().contains("net.xxx"), "{error}");
            assert!(rig.client.pods().await.expect("list").is_empty());
        }
    });
}
