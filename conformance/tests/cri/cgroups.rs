//! Pods in the v2 tree alone, be other hierarchies there or not.

use std::path::PathBuf;

use proto::v1;

use crate::rig::{Rig, deadline, with_settings};

const UNIFIED: &str = "[cgroup]\nhierarchy = \"unified\"\n";

/// The directories of a cgroup, in whichever hierarchies there are.
fn dirs(cgroup: &str) -> Vec<PathBuf> {
    let top = PathBuf::from("/sys/fs/cgroup");
    let below = std::fs::read_dir(&top).expect("cgroups");
    let below = below.map(|entry| entry.expect("an entry").path());
    let trees = below.filter(|path| !path.is_symlink()).chain([top.clone()]);
    let all = trees.map(|tree| tree.join(cgroup.trim_start_matches('/')));
    all.filter(|dir| dir.is_dir()).collect()
}

/// Whether this machine has a v2 tree at all.
fn is_there() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    mounts.contains(" - cgroup2 ")
}

#[test]
fn a_pod_in_the_v2_tree_alone_lives_and_leaves_nothing_anywhere() {
    if !is_there() {
        println!("SKIPPED: no cgroup v2 tree is mounted");
        return;
    }
    with_settings(UNIFIED, async |rig| {
        let sandbox = rig.sandbox("unified");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        let linux = config.linux.get_or_insert_default();
        // Limits whose controllers may be missing are no failure.
        linux.resources = Some(v1::LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        });
        let pod = rig.client.run_pod(&sandbox).await.expect("RunPodSandbox");
        let id = rig.started(&pod, &config, &sandbox).await;
        for cgroup in [&pod, &id].map(|id| rig.engine.cgroup_of(&pod, id)) {
            let found = dirs(&cgroup);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].join("cgroup.controllers").exists(), "{found:?}");
        }
        looks_like_v2(rig, &id).await;
        has_figures(rig, &id).await;
        rig.client.stop(&id, 0).await.expect("StopContainer");
        assert_eq!(rig.exited(&id).await.exit_code, 137);
        // It goes behind the answer, as the exit is told.
        let cgroup = rig.engine.cgroup_of(&pod, &id);
        let gone = async || dirs(&cgroup).is_empty().then_some(());
        let gone = conformance::eventually(deadline(), gone).await;
        gone.expect("the container's cgroup goes");
        rig.client.stop_pod(&pod).await.expect("StopPodSandbox");
        rig.client.remove_pod(&pod).await.expect("RemovePodSandbox");
        assert_eq!(
            dirs(&rig.engine.cgroup_of(&pod, &pod)),
            <[PathBuf; 0]>::default()
        );
    });
}

/// What systemd, k3s and docker in docker do in a privileged container: they find their
/// cgroup by /proc, move into one below it, and hand controllers down, where there are
/// any; processes can be run beside them all the same.
#[test]
fn a_privileged_container_manages_its_cgroup_in_the_v2_tree() {
    if !is_there() {
        println!("SKIPPED: no cgroup v2 tree is mounted");
        return;
    }
    with_settings(UNIFIED, async |rig| {
        let mut sandbox = rig.sandbox("manager");
        let linux = sandbox.linux.as_mut().expect("linux");
        linux.security_context.get_or_insert_default().privileged = true;
        let script = "own=/sys/fs/cgroup$(grep ^0: /proc/self/cgroup | cut -d: -f3); \
                      mkdir $own/init.scope && echo $$ >$own/init.scope/cgroup.procs && \
                      for one in $(cat $own/cgroup.controllers); do \
                        echo +$one >$own/cgroup.subtree_control; done; \
                      grep -q init.scope /proc/self/cgroup && echo moved; sleep 1000";
        let mut config = rig.container("main", &["/bin/sh", "-c", script]);
        let linux = config.linux.as_mut().expect("linux");
        linux.resources = None;
        linux.security_context.get_or_insert_default().privileged = true;
        let pod = rig.client.run_pod(&sandbox).await.expect("RunPodSandbox");
        let id = rig.started(&pod, &config, &sandbox).await;
        rig.log_with("manager", "moved").await;
        let ran = rig
            .client
            .exec(&id, &["/bin/grep", "^0:", "/proc/self/cgroup"], 30)
            .await;
        let ran = ran.expect("ExecSync");
        assert!(ran.stdout.contains(&id), "{ran:?}");
        joins_its_processes(rig, &pod, &sandbox, &id).await;
        rig.client.stop(&id, 0).await.expect("StopContainer");
        rig.client.stop_pod(&pod).await.expect("StopPodSandbox");
    });
}

/// Another container enters the PID namespace of one that moved.
async fn joins_its_processes(
    rig: &mut Rig,
    pod: &str,
    sandbox: &v1::PodSandboxConfig,
    target: &str,
) {
    let mut config = rig.container(
        "debugger",
        &["/bin/sh", "-c", "ps | grep -c 'slee[p] 1000'; sleep 1000"],
    );
    let linux = config.linux.as_mut().expect("linux");
    let context = linux.security_context.get_or_insert_default();
    context.namespace_options = Some(v1::NamespaceOption {
        pid: v1::NamespaceMode::Target as i32,
        target_id: target.to_owned(),
        ..Default::default()
    });
    let id = rig.started(pod, &config, sandbox).await;
    let ran = rig
        .client
        .exec(&id, &["/bin/ps"], 30)
        .await
        .expect("ExecSync");
    assert!(ran.stdout.contains("sleep 1000"), "{ran:?}");
}

/// What runs beside the first process is in the same cgroup, and sees that.
async fn looks_like_v2(rig: &mut Rig, id: &str) {
    let script = "grep ^0: /proc/self/cgroup; cat /sys/fs/cgroup/cgroup.procs | head -n 1";
    let ran = rig.client.exec(id, &["/bin/sh", "-c", script], 10).await;
    let ran = ran.expect("ExecSync");
    assert_eq!(ran.stdout, "0::/\n1\n", "{ran:?}");
}

async fn has_figures(rig: &mut Rig, id: &str) {
    let request = v1::ContainerStatsRequest {
        container_id: id.to_owned(),
    };
    let stats = rig.client.runtime.container_stats(request).await;
    let stats = stats.expect("ContainerStats").into_inner().stats;
    let cpu = stats.expect("stats").cpu.expect("cpu");
    assert!(cpu.usage_core_nano_seconds.expect("usage").value > 0);
}
