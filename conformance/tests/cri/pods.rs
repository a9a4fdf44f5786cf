//! Sandboxes: states, files, namespaces, repeated calls.

use proto::v1;
use tonic::Code;

use crate::rig::{with_engine, with_own_engine};

#[test]
fn stopping_and_removing_twice_is_quiet() {
    with_engine(async |rig| {
        let sandbox = rig.sandbox("twice");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        for _ in 0..2 {
            rig.client.stop_pod(&pod).await.expect("stop");
        }
        rig.assert_not_ready(&pod).await;
        for _ in 0..2 {
            rig.client.remove_pod(&pod).await.expect("remove");
        }
        let error = rig.client.pod(&pod).await.expect_err("gone");
        assert_eq!(error.code(), Code::NotFound);
    });
}

#[test]
fn what_is_unknown_is_stopped() {
    with_own_engine(async |rig| {
        let unknown = "0".repeat(64);
        rig.client.stop_pod(&unknown).await.expect("a sandbox");
        rig.client.stop(&unknown, 0).await.expect("a container");
    });
}

#[test]
fn the_same_name_is_free_again_after_removal() {
    with_own_engine(async |rig| {
        let sandbox = rig.sandbox("again");
        let first = rig.client.run_pod(&sandbox).await.expect("run");
        rig.client.stop_pod(&first).await.expect("stop");
        let error = rig
            .client
            .run_pod(&sandbox)
            .await
            .expect_err("the stopped one has the name");
        assert_eq!(error.code(), Code::AlreadyExists, "{error}");
        rig.client.remove_pod(&first).await.expect("remove");
        let second = rig.client.run_pod(&sandbox).await.expect("run again");
        assert_ne!(first, second);
    });
}

#[test]
fn a_container_sees_the_sandboxes_names_and_files() {
    with_engine(async |rig| {
        let mut sandbox = rig.sandbox("names");
        sandbox.dns_config = Some(v1::DnsConfig {
            servers: vec!["10.1.2.3".into()],
            searches: vec!["cluster.local".into()],
            options: vec!["ndots:5".into()],
        });
        let config = rig.container("main", &["/bin/sleep", "1000"]);
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let id = rig.started(&pod, &config, &sandbox).await;
        let resolv = rig
            .client
            .exec(&id, &["cat", "/etc/resolv.conf"], 5)
            .await
            .expect("exec");
        assert_eq!(
            resolv.stdout,
            "search cluster.local\nnameserver 10.1.2.3\noptions ndots:5\n"
        );
        let hostname = rig
            .client
            .exec(&id, &["cat", "/etc/hostname"], 5)
            .await
            .expect("exec");
        assert_eq!(hostname.stdout.trim(), "names");
        let links = rig
            .client
            .exec(&id, &["ls", "/sys/class/net"], 5)
            .await
            .expect("exec");
        assert!(links.stdout.contains("eth0"), "{links:?}");
    });
}

#[test]
fn containers_of_a_pod_share_memory_and_a_pid_namespace_if_asked() {
    with_own_engine(async |rig| {
        let mut sandbox = rig.sandbox("shared");
        let options = v1::NamespaceOption::default();
        let linux = sandbox.linux.as_mut().expect("linux");
        linux
            .security_context
            .as_mut()
            .expect("context")
            .namespace_options = Some(options.clone());
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut ids = Vec::new();
        for name in ["one", "two"] {
            let mut config = rig.container(name, &["/bin/sleep", "1000"]);
            let linux = config.linux.as_mut().expect("linux");
            linux
                .security_context
                .as_mut()
                .expect("context")
                .namespace_options = Some(options.clone());
            let id = rig.started(&pod, &config, &sandbox).await;
            ids.push(id);
        }
        let seen = rig
            .client
            .exec(&ids[0], &["ps"], 5)
            .await
            .expect("exec")
            .stdout;
        assert_eq!(seen.matches("sleep 1000").count(), 2, "{seen}");
        assert!(seen.contains("slipway-init"), "{seen}");
        rig.client
            .exec(&ids[0], &["touch", "/dev/shm/x"], 5)
            .await
            .expect("exec");
        let there = rig
            .client
            .exec(&ids[1], &["ls", "/dev/shm"], 5)
            .await
            .expect("exec");
        assert_eq!(there.stdout.trim(), "x");
        let root = rig
            .client
            .exec(&ids[0], &["ls", "/proc/1/root/etc"], 5)
            .await
            .expect("exec");
        assert_ne!(root.code, 0, "the node's root is reachable: {root:?}");
    });
}

#[test]
fn a_pod_of_the_nodes_network_has_no_namespace_of_its_own() {
    with_engine(async |rig| {
        let mut sandbox = rig.sandbox("hostnet");
        // The kubelet leaves the name of such a pod to the engine.
        sandbox.hostname.clear();
        let linux = sandbox.linux.as_mut().expect("linux");
        let options = v1::NamespaceOption {
            network: v1::NamespaceMode::Node as i32,
            pid: v1::NamespaceMode::Container as i32,
            ..Default::default()
        };
        linux
            .security_context
            .as_mut()
            .expect("context")
            .namespace_options = Some(options.clone());
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        let linux = config.linux.as_mut().expect("linux");
        linux
            .security_context
            .as_mut()
            .expect("context")
            .namespace_options = Some(options);
        let id = rig.started(&pod, &config, &sandbox).await;
        let links = rig
            .client
            .exec(&id, &["ip", "link"], 5)
            .await
            .expect("exec")
            .stdout;
        assert!(links.contains("lo:") && !links.contains("eth0"), "{links}");
    });
}

#[test]
fn without_a_network_configuration_a_pod_is_refused_and_status_says_so() {
    with_own_engine(async |rig| {
        std::fs::remove_file(rig.engine.path("net.d/10-scratch.conflist")).expect("remove");
        let config = rig.sandbox("homeless");
        let refused = rig.client.run_pod(&config).await.expect_err("refused");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("net.d"), "{refused}");
        let mut client = rig.client.clone();
        let unready = conformance::eventually(crate::rig::deadline(), async || {
            let answer = client
                .runtime
                .status(v1::StatusRequest::default())
                .await
                .expect("status");
            let conditions = answer.into_inner().status.expect("there").conditions;
            let network = conditions
                .into_iter()
                .find(|one| one.r#type == "NetworkReady")?;
            (!network.status).then_some(network)
        });
        assert!(unready.await.expect("not ready").message.contains("net.d"));
    });
}

#[test]
fn a_pod_does_with_loopback_where_the_configuration_says_so() {
    with_own_engine(async |rig| {
        std::fs::remove_file(rig.engine.path("net.d/10-scratch.conflist")).expect("remove");
        let settings = "[cni]\nloopback_only = true\n";
        rig.engine.configure_with(settings).expect("configured");
        rig.crash_and_restart().await;
        let (pod, id) = rig.running("lonely", &["/bin/sleep", "1000"]).await;
        let links = rig
            .client
            .exec(&id, &["ip", "addr"], 5)
            .await
            .expect("exec")
            .stdout;
        assert!(
            links.contains("127.0.0.1") && !links.contains("eth0"),
            "{links}"
        );
        let status = rig
            .client
            .pod(&pod)
            .await
            .expect("status")
            .status
            .expect("there");
        assert_eq!(status.network.expect("network").ip, "");
    });
}

#[test]
fn sysctls_of_the_pods_namespaces_are_set() {
    with_engine(async |rig| {
        let mut sandbox = rig.sandbox("sysctl");
        let linux = sandbox.linux.as_mut().expect("linux");
        linux.sysctls = [
            ("net.ipv4.ip_local_port_range", "1024 2048"),
            ("kernel.shm_rmid_forced", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let config = rig.container("main", &["/bin/sleep", "1000"]);
        let id = rig.started(&pod, &config, &sandbox).await;
        let command = [
            "cat",
            "/proc/sys/net/ipv4/ip_local_port_range",
            "/proc/sys/kernel/shm_rmid_forced",
        ];
        let seen = rig
            .client
            .exec(&id, &command, 5)
            .await
            .expect("exec")
            .stdout;
        assert_eq!(
            seen.split_whitespace().collect::<Vec<_>>(),
            ["1024", "2048", "1"]
        );
    });
}
