//! What a crash leaves, and what the next engine makes of it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::v1;

use crate::rig::{Rig, deadline, monitor_pid, runs, with_own_engine};

#[test]
fn pods_containers_addresses_and_logs_survive_a_crash() {
    with_own_engine(async |rig| {
        let script = "i=0; while :; do echo tick$i; i=$((i+1)); sleep 0.05; done";
        let (pod, id) = rig.running("survivor", &["/bin/sh", "-c", script]).await;
        let before = rig
            .client
            .pod(&pod)
            .await
            .expect("status")
            .status
            .expect("there");
        let container = rig.client.container(&id).await.expect("status");
        rig.crash_and_restart().await;
        let after = rig
            .client
            .pod(&pod)
            .await
            .expect("status")
            .status
            .expect("there");
        assert_eq!(before, after);
        assert_eq!(container, rig.client.container(&id).await.expect("status"));
        let log = std::fs::read_to_string(rig.engine.path("logs/survivor/main/0.log"));
        let lines = log.expect("log").lines().count();
        rig.log_with("survivor", &format!("tick{}", lines + 10))
            .await;
        let output = rig
            .client
            .exec(&id, &["echo", "alive"], 5)
            .await
            .expect("exec");
        assert_eq!(output.stdout, "alive\n");
        rig.client.stop(&id, 0).await.expect("stop");
    });
}

#[test]
fn an_exit_during_the_engines_absence_keeps_its_true_time() {
    with_own_engine(async |rig| {
        let flag = rig.engine.path("volume");
        std::fs::create_dir_all(&flag).expect("volume");
        let sandbox = rig.sandbox("absent");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let script = "while [ ! -e /v/go ]; do sleep 0.01; done; exit 5";
        let mut config = rig.container("main", &["/bin/sh", "-c", script]);
        config.mounts = vec![v1::Mount {
            container_path: "/v".into(),
            host_path: flag.to_string_lossy().into_owned(),
            ..Default::default()
        }];
        let id = rig.started(&pod, &config, &sandbox).await;
        rig.engine.kill().expect("kill");
        std::fs::write(flag.join("go"), "").expect("go");
        let exits = rig.engine.path("root/pods").join(&pod).join("exits");
        conformance::eventually(deadline(), async || {
            // Room is made for it with the container.
            let found = std::fs::metadata(exits.join(&id)).ok()?;
            (found.len() > 0).then_some(())
        })
        .await
        .expect("the monitor writes the exit down");
        let written = std::time::SystemTime::now();
        rig.client = rig.engine.start().await.expect("an engine");
        let status = rig.client.container(&id).await.expect("status");
        assert_eq!((status.exit_code, status.reason.as_str()), (5, "Error"));
        let written = written
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970");
        let finished = u128::try_from(status.finished_at).expect("a time");
        assert!(
            finished <= written.as_nanos(),
            "not the time of the restart"
        );
    });
}

#[test]
fn a_dead_monitor_leaves_no_process_and_a_pod_that_is_not_ready() {
    with_own_engine(async |rig| {
        let (pod, id) = rig.running("widow", &["/bin/sleep", "1000"]).await;
        let monitor = monitor_of(rig, &pod).await;
        kill(monitor, Signal::SIGKILL).expect("kill the monitor");
        let status = rig.exited(&id).await;
        assert_eq!(status.exit_code, 137);
        assert!(status.message.contains("monitor"), "{status:?}");
        rig.assert_not_ready(&pod).await;
        rig.client.stop_pod(&pod).await.expect("stop");
    });
}

async fn monitor_of(rig: &mut Rig, pod: &str) -> Pid {
    monitor_pid(&rig.client.pod(pod).await.expect("status"))
}

#[test]
fn a_monitor_that_dies_while_its_pod_is_stopped_holds_nobody_up() {
    with_own_engine(async |rig| {
        let (pod, id) = rig.running("twofold", &["/bin/sleep", "1000"]).await;
        let monitor = monitor_of(rig, &pod).await;
        // It cannot report the end of what it is told to kill.
        kill(monitor, Signal::SIGSTOP).expect("stop the monitor");
        let (mut client, other) = (rig.client.clone(), pod.clone());
        let stopping = tokio::spawn(async move { client.stop_pod(&other).await });
        let mut client = rig.client.clone();
        conformance::eventually(deadline(), async || {
            let pods = client.pods().await.expect("list");
            let not_ready = v1::PodSandboxState::SandboxNotready as i32;
            pods.iter().any(|one| one.state == not_ready).then_some(())
        })
        .await
        .expect("the stop has begun");
        kill(monitor, Signal::SIGKILL).expect("kill the monitor");
        stopping.await.expect("no panic").expect("stop");
        assert_eq!(rig.exited(&id).await.exit_code, 137);
    });
}

#[test]
fn after_another_boot_everything_has_ended_and_the_network_is_given_back() {
    with_own_engine(async |rig| {
        let (pod, id) = rig.running("reboot", &["/bin/sleep", "1000"]).await;
        rig.engine.kill().expect("kill");
        // The records say another boot, as they would after a real one; the processes
        // of the old one are ended by their cgroups.
        for entry in walk(&rig.engine.path("root/pods")) {
            let mut record = newest(&std::fs::read_to_string(&entry).expect("record"));
            record["boot_id"] = "another".into();
            std::fs::write(&entry, record.to_string()).expect("write");
        }
        rig.client = rig.engine.start().await.expect("an engine");
        rig.assert_not_ready(&pod).await;
        let status = rig.client.container(&id).await.expect("status");
        assert_eq!(status.state, v1::ContainerState::ContainerExited as i32);
        let leases = rig.engine.path("ipam/host-local/scratch");
        // In the background, so that a slow plugin does not hold the engine up.
        conformance::eventually(deadline(), async || {
            let mut names = std::fs::read_dir(&leases).ok()?.filter_map(Result::ok);
            let is_address = |name: std::ffi::OsString| {
                name.to_string_lossy().parse::<std::net::IpAddr>().is_ok()
            };
            (!names.any(|entry| is_address(entry.file_name()))).then_some(())
        })
        .await
        .expect("the addresses are given back");
    });
}

/// What a file of records says last.
pub(crate) fn newest(text: &str) -> serde_json::Value {
    let line = text.lines().last().expect("a line");
    serde_json::from_str(line).expect("JSON")
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
    {
        if entry.path().is_dir() {
            found.extend(walk(&entry.path()));
        } else if entry.path().extension().is_some_and(|kind| kind == "json") {
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn a_record_that_cannot_be_read_costs_its_container_nothing() {
    with_own_engine(async |rig| {
        let (pod, id) = rig.running("newer", &["/bin/sleep", "1000"]).await;
        let made = rig.client.exec(&id, &["touch", "/tmp/mine"], 5).await;
        assert_eq!(made.expect("exec").code, 0);
        rig.engine.kill().expect("kill");
        let record = rig.engine.path("root/pods").join(&pod).join("pod.json");
        let text = std::fs::read_to_string(&record).expect("record");
        let newer = text.replace("\"version\":1", "\"version\":2");
        assert_ne!(text, newer);
        std::fs::write(&record, newer).expect("write");
        rig.client = rig.engine.start().await.expect("an engine");
        let second = rig.client.run_pod(&rig.sandbox("newer")).await;
        let error = second.expect_err("its identity is taken");
        assert!(error.message().contains("cannot be read"), "{error}");
        // What it had is there again once a version that can read it is back.
        rig.engine.kill().expect("kill");
        std::fs::write(&record, text).expect("write");
        rig.client = rig.engine.start().await.expect("an engine");
        let seen = rig
            .client
            .exec(&id, &["ls", "/tmp"], 5)
            .await
            .expect("exec");
        assert_eq!(seen.stdout.trim(), "mine");
    });
}

#[test]
fn a_silent_monitor_is_not_a_dead_one() {
    with_own_engine(async |rig| {
        let (pod, id) = rig.running("frozen", &["/bin/sleep", "1000"]).await;
        let (_, other) = rig.running("lively", &["/bin/sleep", "1000"]).await;
        let monitor = monitor_of(rig, &pod).await;
        kill(monitor, Signal::SIGSTOP).expect("freeze the monitor");
        rig.crash_and_restart().await;
        let alive = rig.client.exec(&other, &["true"], 5).await.expect("exec");
        assert_eq!(alive.code, 0, "no other pod waits for it");
        // Longer than any one try to reach it: the container runs, and is said to.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(15);
        while std::time::Instant::now() < until {
            let status = rig.client.container(&id).await.expect("status");
            assert_eq!(status.state, v1::ContainerState::ContainerRunning as i32);
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        let config = rig.container("second", &["/bin/sleep", "1000"]);
        let sandbox = rig.sandbox("frozen");
        let refused = rig.client.create(&pod, &config, &sandbox).await;
        let refused = refused.expect_err("the monitor is asked for it");
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
        kill(monitor, Signal::SIGCONT).expect("thaw the monitor");
        let mut client = rig.client.clone();
        let again = conformance::eventually(deadline(), async || {
            client.exec(&id, &["echo", "back"], 5).await.ok()
        });
        assert_eq!(again.await.expect("reached again").stdout, "back\n");
    });
}

#[test]
fn a_stop_does_not_need_the_monitor() {
    with_own_engine(async |rig| {
        let (pod, id) = rig.running("mute", &["/bin/sleep", "1000"]).await;
        let monitor = monitor_of(rig, &pod).await;
        kill(monitor, Signal::SIGSTOP).expect("freeze the monitor");
        rig.client.stop(&id, 0).await.expect("stop the container");
        let status = rig.client.container(&id).await.expect("status");
        assert_eq!(status.exit_code, 137);
        // The same after a restart that finds it silent.
        rig.crash_and_restart().await;
        rig.client.stop_pod(&pod).await.expect("stop the pod");
        rig.client.remove_pod(&pod).await.expect("remove");
    });
}

#[test]
fn a_sandbox_whose_record_is_damaged_is_listed_and_can_be_removed() {
    with_own_engine(async |rig| {
        let (pod, id) = rig.running("damaged", &["/bin/sleep", "1000"]).await;
        rig.engine.kill().expect("kill");
        let folder = rig.engine.path("root/pods").join(&pod);
        std::fs::write(folder.join("pod.json"), "\n{\"version\":1,").expect("damage");
        rig.client = rig.engine.start().await.expect("an engine");
        rig.assert_not_ready(&pod).await;
        let status = rig.client.pod(&pod).await.expect("status");
        assert!(status.info["info"].contains("cannot be read"), "{status:?}");
        let scope = format!("/{id}");
        let cgroups = || {
            let table = std::fs::read_dir("/proc").expect("proc").flatten();
            let lists =
                table.filter_map(|entry| std::fs::read_to_string(entry.path().join("cgroup")).ok());
            lists.filter(|list| list.contains(&scope)).count()
        };
        assert!(cgroups() > 0, "its container still runs");
        rig.client.stop_pod(&pod).await.expect("stop");
        assert_eq!(cgroups(), 0, "nothing of it runs any more");
        rig.client.remove_pod(&pod).await.expect("remove");
        let netns = rig.engine.path("netns").join(format!("slipway-{pod}"));
        assert!(!folder.exists() && !netns.exists());
        assert!(rig.client.pods().await.expect("list").is_empty());
    });
}

/// The order in which a kubelet gets rid of a pod: its containers come first.
#[test]
fn containers_of_a_sandbox_without_a_readable_record_are_stopped_and_removed() {
    with_own_engine(async |rig| {
        let (pod, ends) = rig.running("newer", &["/bin/sleep", "1000"]).await;
        let sandbox = rig.sandbox("newer");
        let mut ids = vec![ends.clone()];
        let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";
        for (name, command) in [
            ("polite", &["/bin/sh", "-c", script][..]),
            ("deaf", &["/bin/sleep", "1000"]),
            ("last", &["/bin/sleep", "1000"]),
        ] {
            let config = rig.container(name, command);
            ids.push(rig.started(&pod, &config, &sandbox).await);
        }
        let log = rig.engine.path("logs/newer/polite/0.log");
        let ready = conformance::eventually(deadline(), async || {
            let text = std::fs::read_to_string(&log).ok()?;
            text.contains("ready").then_some(())
        });
        ready.await.expect("it listens to signals");
        let [_, polite, deaf, last] = &ids[..] else {
            panic!("four containers");
        };
        rig.engine.kill().expect("kill");
        let record = rig.engine.path("root/pods").join(&pod).join("pod.json");
        let text = std::fs::read_to_string(&record).expect("record");
        let newer = text.replace("\"version\":1", "\"version\":2");
        std::fs::write(&record, newer).expect("write");
        rig.client = rig.engine.start().await.expect("an engine");
        let running = v1::ContainerState::ContainerRunning as i32;
        for id in &ids {
            let status = rig.client.container(id).await.expect("status");
            assert_eq!(status.state, running);
        }
        rig.client.stop(polite, 10).await.expect("stop");
        assert_eq!(rig.exited(polite).await.exit_code, 3);
        rig.client.stop(deaf, 0).await.expect("stop");
        let status = rig.exited(deaf).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
        rig.client
            .remove(&ends)
            .await
            .expect("remove a running one");
        let gone = rig.client.container(&ends).await.expect_err("removed");
        assert_eq!(gone.code(), tonic::Code::NotFound, "{gone}");
        let status = rig.client.container(last).await.expect("status");
        assert_eq!(status.state, running, "it was not asked to end");
        rig.client.stop_pod(&pod).await.expect("stop the pod");
        assert_eq!(rig.exited(last).await.exit_code, 137);
        rig.crash_and_restart().await;
        for (id, code) in [(polite, 3), (deaf, 137), (last, 137)] {
            assert_eq!(rig.exited(id).await.exit_code, code);
            rig.client.remove(id).await.expect("remove");
        }
        rig.client.remove_pod(&pod).await.expect("remove the pod");
        assert!(rig.client.pods().await.expect("list").is_empty());
    });
}

/// A return to an older engine, and back: what the newer one has written is left to it.
#[test]
fn a_container_of_a_newer_engine_is_left_to_it() {
    with_own_engine(async |rig| {
        let script = "echo own > /own; exec sleep 1000";
        let (pod, id) = rig.running("rollback", &["/bin/sh", "-c", script]).await;
        let records = rig.engine.path("root/pods").join(&pod).join("containers");
        let record = records.join(format!("{id}.json"));
        let text = std::fs::read_to_string(&record).expect("record");
        rig.engine.kill().expect("kill");
        let newer = text.replace("\"version\":1", "\"version\":2");
        std::fs::write(&record, newer).expect("write");
        rig.client = rig.engine.start().await.expect("an engine");
        rig.assert_not_ready(&pod).await;
        rig.engine.kill().expect("kill");
        assert!(record.exists());
        std::fs::write(&record, text).expect("write");
        rig.client = rig.engine.start().await.expect("an engine");
        let status = rig.client.container(&id).await.expect("status");
        assert_eq!(status.state, v1::ContainerState::ContainerRunning as i32);
        let own = rig.client.exec(&id, &["cat", "/own"], 10).await;
        assert_eq!(own.expect("exec").stdout, "own\n");
    });
}

/// Whoever takes the record of a sandbox away does not take its processes from the engine:
/// they end, and all that they have is given back.
#[test]
fn a_sandbox_whose_record_was_taken_away_is_ended_with_all_it_has() {
    with_own_engine(async |rig| {
        for while_held in [false, true] {
            let (pod, _) = rig.running("taken", &["/bin/sleep", "4816"]).await;
            assert!(runs("sleep\x004816"));
            let record = rig.engine.path("root/pods").join(&pod).join("pod.json");
            rig.engine.kill().expect("kill");
            std::fs::remove_file(&record).expect("remove");
            if while_held {
                std::os::unix::fs::symlink(&record, &record).expect("link");
            }
            rig.client = rig.engine.start().await.expect("an engine");
            if while_held {
                rig.assert_not_ready(&pod).await;
                std::fs::remove_file(&record).expect("remove");
                rig.client.remove_pod(&pod).await.expect("remove the pod");
            }
            let gone = conformance::eventually(deadline(), async || {
                let folder = record.parent().is_some_and(std::path::Path::exists);
                (!runs("sleep\x004816") && !folder).then_some(())
            });
            gone.await.expect("it is given back");
            assert!(rig.client.pods().await.expect("list").is_empty());
        }
    });
}

/// A disk, or a shortage, that does not give the record of a container now is not the end
/// of it: neither of its process nor of its files.
#[test]
fn a_record_that_is_not_given_for_a_while_costs_its_container_nothing() {
    with_own_engine(async |rig| {
        for name in ["containers/", "containers", "exits", "pod.json"] {
            let pod_name = name.replace(['/', '.'], "-");
            let script = "echo own > /own; exec sleep 1000";
            let (pod, id) = rig.running(&pod_name, &["/bin/sh", "-c", script]).await;
            let process = rig.client.container(&id).await.expect("status");
            rig.engine.kill().expect("kill");
            let name = match name {
                "containers/" => format!("containers/{id}.json"),
                other => other.to_owned(),
            };
            let record = rig.engine.path("root/pods").join(&pod).join(name);
            let aside = record.with_extension("aside");
            std::fs::rename(&record, &aside).expect("aside");
            // A link to itself cannot be looked at, as a block that is damaged.
            std::os::unix::fs::symlink(&record, &record).expect("link");
            rig.client = rig.engine.start().await.expect("an engine");
            let shown = rig.client.pod(&pod).await.expect("status").status;
            let shown = shown.expect("a status").state;
            assert_eq!(
                shown,
                v1::PodSandboxState::SandboxNotready as i32,
                "{record:?}"
            );
            std::fs::remove_file(&record).expect("the link");
            std::fs::rename(&aside, &record).expect("back");
            let back = conformance::eventually(deadline(), async || {
                let shown = rig.client.clone().container(&id).await.ok()?;
                let pods = rig.client.clone().pods().await.ok()?;
                let pod = pods.iter().find(|shown| shown.id == pod)?;
                let ready = pod.state == v1::PodSandboxState::SandboxReady as i32;
                (ready && shown.started_at == process.started_at).then_some(shown.state)
            });
            let running = v1::ContainerState::ContainerRunning as i32;
            assert_eq!(back.await.expect("it is read"), running, "{record:?}");
            // It is shown as soon as its record is read, and its monitor is reached after it.
            let own = conformance::eventually(deadline(), async || {
                rig.client
                    .clone()
                    .exec(&id, &["cat", "/own"], 10)
                    .await
                    .ok()
            });
            assert_eq!(own.await.expect("exec").stdout, "own\n");
            rig.client.stop(&id, 0).await.expect("stop");
            assert_eq!(rig.exited(&id).await.exit_code, 137);
        }
    });
}

#[test]
fn a_container_whose_record_is_damaged_is_ended_and_can_be_made_again() {
    with_own_engine(async |rig| {
        let (pod, id) = rig.running("lost", &["/bin/sleep", "1000"]).await;
        rig.engine.kill().expect("kill");
        let file = format!("root/pods/{pod}/containers/{id}.json");
        std::fs::write(rig.engine.path(&file), "\0\0\0").expect("damage");
        rig.client = rig.engine.start().await.expect("an engine");
        let scope = format!("/{id}");
        let gone = conformance::eventually(deadline(), async || {
            let table = std::fs::read_dir("/proc").ok()?.flatten();
            let mut lists =
                table.filter_map(|entry| std::fs::read_to_string(entry.path().join("cgroup")).ok());
            let runs = lists.any(|list| list.contains(&scope));
            (!runs && !rig.engine.path(&file).exists()).then_some(())
        });
        gone.await.expect("nothing of it runs unseen");
        let sandbox = rig.sandbox("lost");
        let config = rig.container("main", &["/bin/sleep", "1000"]);
        rig.started(&pod, &config, &sandbox).await;
    });
}

/// What a full disk leaves: the end of the sandbox was written down, and no longer those
/// of its containers.
#[test]
fn containers_of_a_stopped_sandbox_have_ended_whatever_their_records_say() {
    with_own_engine(async |rig| {
        let (pod, ran) = rig.running("unwritten", &["/bin/sleep", "1000"]).await;
        let sandbox = rig.sandbox("unwritten");
        let config = rig.container("waits", &["/bin/sleep", "1000"]);
        let waited = rig.client.create(&pod, &config, &sandbox).await;
        let waited = waited.expect("create");
        let record = |id: &str| format!("root/pods/{pod}/containers/{id}.json");
        let files = [&ran, &waited].map(|id| rig.engine.path(&record(id)));
        let before = files
            .each_ref()
            .map(|file| std::fs::read(file).expect("a record"));
        rig.client.stop_pod(&pod).await.expect("stop the pod");
        rig.engine.kill().expect("kill");
        for (file, text) in files.iter().zip(before) {
            std::fs::write(file, text).expect("as it was");
        }
        let exits = rig.engine.path(&format!("root/pods/{pod}/exits"));
        for exit in std::fs::read_dir(exits).expect("exits").flatten() {
            std::fs::remove_file(exit.path()).expect("remove");
        }
        rig.client = rig.engine.start().await.expect("an engine");
        for id in [&ran, &waited] {
            let ended = conformance::eventually(deadline(), async || {
                let status = rig.client.clone().container(id).await.ok()?;
                let exited = v1::ContainerState::ContainerExited as i32;
                (status.state == exited && status.exit_code == 255 && status.reason == "Unknown")
                    .then_some(())
            });
            ended.await.expect("it is shown as ended");
        }
        rig.client.remove_pod(&pod).await.expect("remove the pod");
    });
}

#[test]
fn a_pod_whose_first_process_has_ended_is_not_ready() {
    with_own_engine(async |rig| {
        let mut sandbox = rig.sandbox("headless");
        let linux = sandbox.linux.as_mut().expect("linux");
        let context = linux.security_context.as_mut().expect("a security context");
        let options = context.namespace_options.as_mut().expect("namespaces");
        options.pid = v1::NamespaceMode::Pod as i32;
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        let linux = config.linux.as_mut().expect("linux");
        let context = linux.security_context.as_mut().expect("a security context");
        let options = context.namespace_options.as_mut().expect("namespaces");
        options.pid = v1::NamespaceMode::Pod as i32;
        let id = rig.started(&pod, &config, &sandbox).await;
        // No signal of a container ends it.
        let script = "kill -TERM 1; kill -INT 1; kill -KILL 1; sleep 0.3; echo alive";
        let said = rig.client.exec(&id, &["sh", "-c", script], 5).await;
        assert!(said.expect("exec").stdout.contains("alive"));
        let state = rig.client.pod(&pod).await.expect("status").status;
        assert_eq!(
            state.expect("there").state,
            v1::PodSandboxState::SandboxReady as i32
        );
        let record = rig.engine.path("root/pods").join(&pod).join("pod.json");
        let init = newest(&std::fs::read_to_string(record).expect("record"))["init_pid"].as_i64();
        let init = i32::try_from(init.expect("a PID 1")).expect("a pid");
        kill(Pid::from_raw(init), Signal::SIGKILL).expect("end it from the node");
        assert_eq!(rig.exited(&id).await.exit_code, 137);
        rig.assert_not_ready(&pod).await;
    });
}

#[test]
fn what_another_boot_left_damaged_is_given_back_unasked() {
    with_own_engine(async |rig| {
        let (pod, _) = rig.running("lost", &["/bin/sleep", "1000"]).await;
        rig.engine.kill().expect("kill");
        let folder = rig.engine.path("root/pods").join(&pod);
        std::fs::write(folder.join("pod.json"), "").expect("damage");
        let other_boot = "00000000-0000-0000-0000-000000000000";
        std::fs::write(rig.engine.path("root/boot_id"), other_boot).expect("boot");
        rig.client = rig.engine.start().await.expect("an engine");
        let leases = rig.engine.path("ipam/host-local/scratch");
        let netns = rig.engine.path("netns").join(format!("slipway-{pod}"));
        conformance::eventually(deadline(), async || {
            let mut names = std::fs::read_dir(&leases).ok()?.filter_map(Result::ok);
            let is_address = |name: std::ffi::OsString| {
                name.to_string_lossy().parse::<std::net::IpAddr>().is_ok()
            };
            let freed = !names.any(|entry| is_address(entry.file_name()));
            (freed && !folder.exists() && !netns.exists()).then_some(())
        })
        .await
        .expect("all of it is given back");
    });
}

#[test]
fn a_stop_that_a_crash_cut_short_goes_on() {
    with_own_engine(async |rig| {
        let (pod, id) = rig.running("resumed", &["/bin/sleep", "1000"]).await;
        rig.engine.kill().expect("kill");
        let record = rig.engine.path("root/pods").join(&pod).join("pod.json");
        let text = std::fs::read_to_string(&record).expect("record");
        let mut value = newest(&text);
        value["phase"] = "Stopping".into();
        std::fs::write(&record, value.to_string()).expect("write");
        rig.client = rig.engine.start().await.expect("an engine");
        assert_eq!(rig.exited(&id).await.exit_code, 137);
        let netns = rig.engine.path("netns").join(format!("slipway-{pod}"));
        conformance::eventually(deadline(), async || (!netns.exists()).then_some(()))
            .await
            .expect("the network namespace is given back without being asked again");
    });
}

#[test]
fn a_task_that_panics_starts_again_and_its_pod_is_not_taken_for_removed() {
    with_own_engine(async |rig| {
        let (pod, id) = rig.running("panics", &["/bin/sleep", "1000"]).await;
        rig.engine.terminate().expect("terminate");
        rig.engine.set("SLIPWAY_PANICPOINT", "command");
        rig.client = rig.engine.start().await.expect("an engine");
        let lost = rig
            .client
            .stop_pod(&pod)
            .await
            .expect_err("the task failed");
        assert_eq!(lost.code(), tonic::Code::Unavailable, "{lost}");
        let listed = rig.client.pods().await.expect("list");
        assert!(listed.iter().any(|one| one.id == pod), "it is there");
        let mut client = rig.client.clone();
        let again = conformance::eventually(deadline(), async || {
            client.exec(&id, &["echo", "back"], 5).await.ok()
        });
        assert_eq!(again.await.expect("it runs on").stdout, "back\n");
        // A command needs no task, a stop waits for the next one.
        let stopped =
            conformance::eventually(deadline(), async || client.stop_pod(&pod).await.ok());
        stopped.await.expect("started again");
        rig.client.remove_pod(&pod).await.expect("remove");
    });
}

/// Every place in the code where a side effect may or may not have happened.
const POINTS: [&str; 25] = [
    "run-intent",
    "run-netns-reserved",
    "run-netns",
    "run-cgroup",
    "run-monitor",
    "run-network",
    "run-setup",
    "run-ready",
    "create-intent",
    "create-snapshot",
    "create-image-volumes",
    "create-cgroup",
    "create-launched",
    "start-ordered",
    "start-done",
    "stop-intent",
    "stop-killed",
    "stop-monitor",
    "stop-processes",
    "stop-network",
    "stop-netns-unmounted",
    "stop-done",
    "remove-monitor",
    "remove-cgroup",
    "remove-snapshot",
];

#[test]
fn a_crash_after_each_intent_is_undone_or_finished() {
    for point in POINTS {
        with_own_engine(async |rig| crash_at(rig, point, |_, _| ()).await);
    }
}

/// What differs in the pod and the container that meet a crash.
type Change = fn(&mut v1::PodSandboxConfig, &mut v1::ContainerConfig);

pub(crate) async fn crash_at(rig: &mut Rig, point: &str, change: Change) {
    rig.engine.terminate().expect("terminate");
    rig.engine.set("SLIPWAY_FAILPOINT", point);
    rig.client = rig.engine.start().await.expect("an engine");
    let mut sandbox = rig.sandbox("crash");
    let mut config = rig.container("main", &["/bin/sleep", "1000"]);
    config.mounts.push(v1::Mount {
        container_path: "/image".to_owned(),
        readonly: true,
        image: Some(conformance::client::image(&rig.image)),
        ..Default::default()
    });
    change(&mut sandbox, &mut config);
    // Some of these calls meet the crash; the kubelet would only see an error.
    if let Ok(pod) = rig.client.run_pod(&sandbox).await {
        if let Ok(id) = rig.client.create(&pod, &config, &sandbox).await {
            drop(rig.client.start(&id).await);
        }
        drop(rig.client.stop_pod(&pod).await);
        drop(rig.client.remove_pod(&pod).await);
    }
    conformance::eventually(deadline(), async || rig.engine.has_ended().then_some(()))
        .await
        .unwrap_or_else(|| panic!("{point} was never reached"));
    rig.engine.unset("SLIPWAY_FAILPOINT");
    rig.client = rig.engine.start().await.expect("an engine after the crash");
    // Whatever is listed can be stopped and removed, and the name is free again.
    for pod in rig.client.pods().await.expect("list") {
        rig.client
            .stop_pod(&pod.id)
            .await
            .unwrap_or_else(|error| panic!("{point}: {error}"));
        rig.client
            .remove_pod(&pod.id)
            .await
            .unwrap_or_else(|error| panic!("{point}: {error}"));
    }
    let (pod, id) = rig.running("crash", &["/bin/sleep", "1000"]).await;
    let output = rig
        .client
        .exec(&id, &["echo", "ok"], 5)
        .await
        .expect("exec");
    assert_eq!(output.stdout, "ok\n", "{point}");
    rig.client.stop_pod(&pod).await.expect("stop");
    rig.client.remove_pod(&pod).await.expect("remove");
    let left = || -> Vec<_> {
        ["root/pods", "state/pods", "netns"]
            .into_iter()
            .flat_map(|dir| std::fs::read_dir(rig.engine.path(dir)).expect("a folder"))
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .collect()
    };
    // A sandbox that was being started is undone in the background.
    let clean = conformance::eventually(deadline(), async || left().is_empty().then_some(()));
    assert!(clean.await.is_some(), "{point} left {:?}", left());
}
