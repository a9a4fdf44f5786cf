//! The pods' network: built in, by executed plugins, and both in one list.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use conformance::eventually;
use nix::sys::signal::{Signal, kill};
use proto::v1;
use serde_json::{Value, json};

use crate::rig::{Rig, deadline, monitor_pid, with_own_engine};

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
    // The engine may read it at any moment.
    let whole = path.with_extension("whole");
    std::fs::write(&whole, list.to_string()).expect("write");
    std::fs::rename(&whole, &path).expect("rename");
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
    let refused = TcpStream::connect_timeout(&there, deadline()).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    network.ip
}

/// The veths that the node has.
fn veths() -> BTreeSet<String> {
    let mut ip = std::process::Command::new("ip");
    let list = ip.args(["-o", "link", "show", "type", "veth"]).output();
    let list = String::from_utf8_lossy(&list.expect("ip").stdout).into_owned();
    let names = list
        .lines()
        .filter_map(|line| line.split(['@', ' ']).nth(1));
    names.map(str::to_owned).collect()
}

/// A container without any right can hand its network namespace to one of another pod,
/// which then outlives it: neither its address nor its interface do.
#[test]
fn a_namespace_that_somebody_holds_keeps_neither_address_nor_interface() {
    with_own_engine(async |rig| {
        for crash in [false, true] {
            let before = veths();
            let name = format!("held-{crash}");
            let (pod, container) = rig.running(&name, &["/bin/sleep", "1000"]).await;
            let ip = address(rig, &pod, &container).await;
            let status = rig.client.pod(&pod).await.expect("PodSandboxStatus");
            let monitor = monitor_pid(&status);
            let held = std::fs::File::open(format!("/proc/{monitor}/ns/net")).expect("namespace");
            let own: BTreeSet<_> = veths().difference(&before).cloned().collect();
            assert!(!own.is_empty());
            rig.client.stop_pod(&pod).await.expect("StopPodSandbox");
            let there = SocketAddr::new(ip.parse().expect("an address"), 7);
            let silent = TcpStream::connect_timeout(&there, Duration::from_secs(1));
            let silent = silent.expect_err("nobody has the address");
            assert_ne!(silent.kind(), ErrorKind::ConnectionRefused, "{silent}");
            rig.client.remove_pod(&pod).await.expect("RemovePodSandbox");
            if crash {
                rig.crash_and_restart().await;
            }
            let are_gone = async || veths().is_disjoint(&own).then_some(());
            let gone = eventually(deadline(), are_gone);
            gone.await.expect("its interface is deleted");
            drop(held);
        }
    });
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
        // Interfaces that other plugins made are theirs to delete: the next pod may have
        // one of the same name.
        let aside = std::fs::read_dir(rig.engine.path("root/cni/given-back"));
        let aside = aside.into_iter().flatten().flatten();
        let names = aside.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let names: Vec<_> = names.collect();
        let executed = &pods[1].0;
        assert!(
            !names.iter().any(|name| name.contains(executed)),
            "{names:?}"
        );
    });
}

/// What a crash leaves between the two steps that remove a pin.
#[test]
fn a_pod_whose_pin_lost_its_mount_is_stopped_and_its_address_is_free() {
    with_own_engine(async |rig| {
        for (name, external) in [("built-in", &[][..]), ("executed", &["*"][..])] {
            restart_with(rig, external).await;
            let (pod, container) = rig.running(name, &["/bin/sleep", "1000"]).await;
            let ip = address(rig, &pod, &container).await;
            rig.engine.kill().expect("kill");
            let netns = rig.engine.path("netns").join(format!("slipway-{pod}"));
            nix::mount::umount(&netns).expect("unmount the pin");
            assert_eq!(std::fs::metadata(&netns).expect("a file").len(), 0);
            rig.client = rig.engine.start().await.expect("an engine");
            rig.client.stop_pod(&pod).await.expect("stop");
            rig.client.remove_pod(&pod).await.expect("remove");
            assert!(!given_out(rig).contains(&ip), "{name}: {ip}");
            assert!(!netns.exists());
            let again = rig.client.run_pod(&rig.sandbox(name)).await;
            let again = again.expect("its identity is free");
            rig.client.stop_pod(&again).await.expect("stop");
            rig.client.remove_pod(&again).await.expect("remove");
        }
    });
}

#[test]
fn only_what_this_root_attached_is_collected_at_start() {
    with_own_engine(async |rig| {
        edit(rig, |list| list["cniVersion"] = json!("1.1.0"));
        let (pod, container) = rig.running("mine", &["/bin/sleep", "1000"]).await;
        let mine = address(rig, &pod, &container).await;
        // A pod of which the records are gone, and one of an engine beside this one.
        let lost = rig.client.run_pod(&rig.sandbox("lost")).await.expect("run");
        let status = rig.client.pod(&lost).await.expect("status");
        let monitor = monitor_pid(&status);
        rig.engine.kill().expect("kill");
        kill(monitor, Signal::SIGKILL).expect("kill the monitor");
        let records = rig.engine.path("root/pods").join(&lost);
        std::fs::remove_dir_all(records).expect("removed");
        let neighbour = "10.88.7.7";
        std::fs::write(leases(rig).join(neighbour), "somebody\r\neth0").expect("write");
        rig.client = rig.engine.start().await.expect("an engine");
        let netns = rig.engine.path("netns").join(format!("slipway-{lost}"));
        let collected = eventually(deadline(), async || {
            let left = given_out(rig);
            (left.len() == 2 && !netns.exists()).then_some(left)
        });
        let left = collected.await.expect("collected");
        assert_eq!(left, [mine, neighbour.to_owned()].into());
        address(rig, &pod, &container).await;
        rig.engine.terminate().expect("terminate");
        rig.client = rig.engine.start().await.expect("an engine");
    });
}

/// A plugin that can attach nothing, and can give nothing back until a file is there.
fn write_broken_plugin(rig: &Rig) -> (PathBuf, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let bin = rig.engine.path("bin");
    std::fs::create_dir_all(&bin).expect("folder");
    let (calls, mended) = (rig.engine.path("calls"), rig.engine.path("mended"));
    let script = format!(
        "#!/bin/sh\necho $CNI_COMMAND >> {}\n[ $CNI_COMMAND = DEL ] && [ -e {} ] && exit 0\n\
         echo '{{\"code\": 11, \"msg\": \"the daemon is away\"}}'\nexit 1\n",
        calls.display(),
        mended.display()
    );
    let path = bin.join("broken");
    std::fs::write(&path, script).expect("script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
    (calls, mended)
}

#[test]
fn an_outage_of_the_network_is_seen_and_does_not_pile_up() {
    with_own_engine(async |rig| {
        let (calls, mended) = write_broken_plugin(rig);
        rig.engine.kill().expect("kill");
        let config = format!("[cni]\nbin_dirs = [{:?}]\n", rig.engine.path("bin"));
        std::fs::write(rig.engine.path("config/30-network.toml"), config).expect("write");
        edit(rig, |list| list["plugins"] = json!([{"type": "broken"}]));
        rig.client = rig.engine.start().await.expect("an engine");
        let sandbox = rig.sandbox("outage");
        let refused = rig.client.run_pod(&sandbox).await.expect_err("no network");
        assert!(
            refused.message().contains("the daemon is away"),
            "{refused}"
        );
        // The sandbox that cannot be given back yet is listed, and says why.
        let pods = rig.client.pods().await.expect("list");
        let [pod] = &pods[..] else { panic!("{pods:?}") };
        let id = pod.id.clone();
        rig.assert_not_ready(&id).await;
        let status = rig.client.pod(&id).await.expect("status");
        assert!(
            status.info["info"].contains("the daemon is away"),
            "{status:?}"
        );
        let told = rig.engine.status().expect("slipway status");
        assert!(
            told.contains("the daemon is away") && told.contains("outage"),
            "{told}"
        );
        let again = rig.client.run_pod(&sandbox).await.expect_err("it is there");
        assert_eq!(again.code(), tonic::Code::AlreadyExists, "{again}");
        // Callers who try again make no tries but their own.
        for _ in 0..10 {
            rig.client
                .stop_pod(&id)
                .await
                .expect_err("the plugin fails");
        }
        let deletions = || {
            let text = std::fs::read_to_string(&calls).unwrap_or_default();
            text.lines().filter(|line| *line == "DEL").count()
        };
        // One at once, ten asked for, and those of one timer, whose pauses grow.
        let asked = deletions();
        assert!((11..=14).contains(&asked), "{asked}");
        rig.crash_and_restart().await;
        rig.assert_not_ready(&id).await;
        std::fs::write(&mended, "").expect("mended");
        // The first stop may join a try of the returning engine from before the mend.
        let stopped = eventually(deadline(), async || rig.client.stop_pod(&id).await.ok());
        stopped.await.expect("stop");
        rig.client.remove_pod(&id).await.expect("remove");
        for dir in ["root/pods", "netns", "state/pods"] {
            let left = std::fs::read_dir(rig.engine.path(dir)).expect("a folder");
            assert_eq!(left.count(), 0, "{dir}");
        }
        edit(rig, |list| list["plugins"] = json!([{"type": "absent"}]));
        // Nothing was run, so that there is nothing to give back.
        let refused = rig.client.run_pod(&sandbox).await.expect_err("no plugin");
        assert!(
            refused.message().contains("nothing was attached"),
            "{refused}"
        );
        assert!(rig.client.pods().await.expect("list").is_empty());
    });
}

#[test]
fn a_plugin_that_is_not_installed_has_given_nothing_back() {
    with_own_engine(async |rig| {
        let (_, mended) = write_broken_plugin(rig);
        let binary = rig.engine.path("bin/broken");
        // It attaches, and is away when the pod is stopped.
        let script = "#!/bin/sh\n[ $CNI_COMMAND = ADD ] && echo '{\"cniVersion\": \"1.0.0\", \"ips\": [{\"address\": \"10.9.9.9/24\"}]}'\nexit 0\n";
        std::fs::write(&binary, script).expect("script");
        rig.engine.kill().expect("kill");
        let config = format!("[cni]\nbin_dirs = [{:?}]\n", rig.engine.path("bin"));
        std::fs::write(rig.engine.path("config/30-network.toml"), config).expect("write");
        edit(rig, |list| list["plugins"] = json!([{"type": "broken"}]));
        rig.client = rig.engine.start().await.expect("an engine");
        let pod = rig
            .client
            .run_pod(&rig.sandbox("early"))
            .await
            .expect("run");
        std::fs::rename(&binary, &mended).expect("away");
        let refused = rig.client.stop_pod(&pod).await.expect_err("it is away");
        assert!(
            refused.message().contains("broken is in none of"),
            "{refused}"
        );
        std::fs::rename(&mended, &binary).expect("back");
        rig.client.stop_pod(&pod).await.expect("stop");
    });
}

/// A plugin whose ADD waits for a file, as does what that starts in its turn, and then
/// allocates; its DEL succeeds. Answers where the processes of ADD are noted, what they
/// wait for, what they allocate, and where DEL notes those that it runs beside.
fn write_slow_plugin(rig: &Rig) -> [PathBuf; 4] {
    write_broken_plugin(rig);
    let places = ["adding", "go", "allocation", "beside"].map(|name| rig.engine.path(name));
    let [adding, go, allocation, beside] = &places;
    let script = format!(
        "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && for pid in $(cat {adding}); do\n\
         [ -z \"$(tr -d '\\0' < /proc/$pid/cmdline)\" ] || echo $pid >> {beside}; done\n\
         [ $CNI_COMMAND = ADD ] || exit 0\n\
         work='echo $$ >> {adding}; i=0\n\
         while [ ! -e {go} ] && [ $i -lt 600 ]; do i=$((i + 1)); sleep 0.1; done\n\
         echo $$ >> {allocation}'\n\
         sh -c \"$work\" & eval \"$work\"; wait\n\
         echo '{{\"cniVersion\": \"1.0.0\", \"ips\": [{{\"address\": \"10.9.9.9/24\"}}]}}'\n",
        adding = adding.display(),
        go = go.display(),
        allocation = allocation.display(),
        beside = beside.display(),
    );
    std::fs::write(rig.engine.path("bin/broken"), script).expect("script");
    places
}

/// Whether a process can still do anything; a zombie cannot.
fn acts(pid: &str) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[test]
fn what_is_attaching_a_pod_when_the_engine_dies_ends_before_the_pod_is_detached() {
    with_own_engine(async |rig| {
        let [adding, go, allocation, beside] = write_slow_plugin(rig);
        rig.engine.kill().expect("kill");
        let config = format!("[cni]\nbin_dirs = [{:?}]\n", rig.engine.path("bin"));
        std::fs::write(rig.engine.path("config/30-network.toml"), config).expect("write");
        edit(rig, |list| list["plugins"] = json!([{"type": "broken"}]));
        rig.client = rig.engine.start().await.expect("an engine");
        let (mut client, sandbox) = (rig.client.clone(), rig.sandbox("cut-off"));
        let call = tokio::task::spawn_local(async move { client.run_pod(&sandbox).await });
        let processes = eventually(deadline(), async || {
            let text = std::fs::read_to_string(&adding).ok()?;
            let pids: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
            (pids.len() == 2).then_some(pids)
        });
        let processes = processes.await.expect("ADD runs");
        rig.crash_and_restart().await;
        call.await.expect("a task").expect_err("cut off");
        let undone = eventually(deadline(), async || {
            let left = |dir| std::fs::read_dir(rig.engine.path(dir)).map_or(0, Iterator::count);
            let left = ["root/pods", "netns", "state/pods"].map(left);
            (left == [0; 3]).then_some(())
        });
        let undone = undone.await;
        let acting: Vec<_> = processes.iter().filter(|pid| acts(pid)).collect();
        let acting = format!("{acting:?}");
        // Those that live after all end now.
        std::fs::write(&go, "").expect("go");
        undone.expect("the sandbox is undone");
        assert_eq!(acting, "[]");
        assert!(!beside.exists() && !allocation.exists());
        assert!(rig.client.pods().await.expect("list").is_empty());
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
        let unready = eventually(deadline(), async || {
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
