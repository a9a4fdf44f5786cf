//! The pods' network: built in, by executed plugins, and both in one list.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;

use conformance::eventually;
use proto::v1;
use serde_json::{Value, json};

use crate::rig::{DEADLINE, Rig, with_own_engine};

/// Starts the engine again with plugins that are executed.
async fn restart_with(rig: &mut Rig, external: &[&str]) {
    rig.engine.kill().expect("kill");
    let config = format!("[cni]\nexternal_plugins = {external:?}\n");
    std::fs::write(rig.engine.path("config/30-network.toml"), config).expect("write");
    rig.client = rig.engine.start().await.expect("an engine");
}

/// Changes the network's configuration.
fn edit(rig: &Rig, change: impl FnOnce(&mut Value)) {
    let path = rig.engine.path("net.d/10-scratch.conflist");
    let text = std::fs::read(&path).expect("a list");
    let mut list = serde_json::from_slice(&text).expect("JSON");
    change(&mut list);
    std::fs::write(&path, list.to_string()).expect("write");
}

fn leases(rig: &Rig) -> PathBuf {
    rig.engine.path("ipam/host-local/scratch")
}

/// The addresses that are given out.
fn given_out(rig: &Rig) -> BTreeSet<String> {
    let names = std::fs::read_dir(leases(rig)).into_iter().flatten();
    let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter(|name| name.parse::<IpAddr>().is_ok())
        .collect()
}

/// The address of a pod, after a look at its interface and at the way to it.
async fn address(rig: &mut Rig, pod: &str, container: &str) -> String {
    let status = rig.client.pod(pod).await.expect("PodSandboxStatus");
    let network = status.status.expect("there").network.expect("a network");
    let links = rig.client.exec(container, &["ip", "addr"], 5).await;
    let links = links.expect("exec").stdout;
    assert!(
        links.contains(&format!("inet {}/16", network.ip)) && links.contains("eth0"),
        "{links}"
    );
    // Nobody listens: to be refused takes a way there and back.
    let there = SocketAddr::new(network.ip.parse().expect("an address"), 7);
    let refused = TcpStream::connect_timeout(&there, DEADLINE).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    network.ip
}

#[test]
fn plugins_run_built_in_or_as_processes_and_whoever_attached_a_pod_detaches_it() {
    with_own_engine(async |rig| {
        let mut pods = Vec::new();
        for (name, external) in [
            ("all-built-in", &[][..]),
            ("all-executed", &["*"][..]),
            ("one-of-both", &["portmap"][..]),
        ] {
            restart_with(rig, external).await;
            let (pod, container) = rig.running(name, &["/bin/sleep", "1000"]).await;
            let ip = address(rig, &pod, &container).await;
            assert!(given_out(rig).contains(&ip), "{ip}");
            pods.push((pod, ip));
        }
        for (external, (pod, ip)) in [&["*"][..], &["portmap"][..], &[][..]].iter().zip(&pods) {
            restart_with(rig, external).await;
            rig.client.stop_pod(pod).await.expect("stop");
            assert!(!given_out(rig).contains(ip), "{ip}");
        }
    });
}

#[test]
fn what_belongs_to_no_pod_is_collected_at_start_unless_that_is_off() {
    with_own_engine(async |rig| {
        edit(rig, |list| {
            list["cniVersion"] = json!("1.1.0");
            list["disableGC"] = json!(true);
        });
        let (pod, container) = rig.running("mine", &["/bin/sleep", "1000"]).await;
        let mine = address(rig, &pod, &container).await;
        let lost = "10.88.7.7";
        std::fs::write(leases(rig).join(lost), "somebody\r\neth0").expect("write");
        restart_with(rig, &[]).await;
        edit(rig, |list| list["disableGC"] = json!(false));
        assert!(given_out(rig).contains(lost));
        restart_with(rig, &[]).await;
        let left = eventually(DEADLINE, async || {
            let left = given_out(rig);
            (!left.contains(lost)).then_some(left)
        });
        assert_eq!(left.await.expect("collected"), [mine].into());
        address(rig, &pod, &container).await;
    });
}

#[test]
fn a_network_whose_plugin_is_missing_is_not_ready_and_names_it() {
    with_own_engine(async |rig| {
        edit(rig, |list| {
            let plugins = list["plugins"].as_array_mut().expect("plugins");
            plugins.push(json!({"type": "nobody-has-this"}));
        });
        let mut client = rig.client.clone();
        let unready = eventually(DEADLINE, async || {
            let answer = client.runtime.status(v1::StatusRequest::default()).await;
            let conditions = answer.expect("status").into_inner().status?.conditions;
            let mut conditions = conditions.into_iter();
            let network = conditions.find(|one| one.r#type == "NetworkReady")?;
            (!network.status).then_some(network.message)
        });
        let message = unready.await.expect("not ready");
        assert!(message.contains("nobody-has-this"), "{message}");
    });
}
