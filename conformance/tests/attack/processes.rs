//! Processes that look at others, or outrun their end.

use conformance::eventually;
use proto::v1;

use crate::rig::{Rig, deadline};
use crate::stage::{
    ATTACKER, NATIVE, armed, security, strict, unconfined, with_every_launcher, without_apparmor,
};

/// All that an ordinary container may have, and tracing.
const MOST: &str = "a80c25fb";

fn shared(pids: v1::NamespaceMode) -> v1::NamespaceOption {
    v1::NamespaceOption {
        pid: pids as i32,
        ..Default::default()
    }
}

/// A sandbox whose containers share their processes.
fn sharing(rig: &Rig, name: &str) -> v1::PodSandboxConfig {
    let mut sandbox = rig.sandbox(name);
    let linux = sandbox.linux.as_mut().expect("linux");
    let context = linux.security_context.as_mut().expect("a context");
    context.namespace_options = Some(shared(v1::NamespaceMode::Pod));
    sandbox
}

/// A container that shares them.
fn sharer(rig: &Rig, name: &str, command: &[&str]) -> v1::ContainerConfig {
    let mut config = rig.container(name, command);
    security(&mut config).namespace_options = Some(shared(v1::NamespaceMode::Pod));
    without_apparmor(&mut config);
    config
}

/// Namespaces that no process of a container is in: of this process, which is in the
/// first ones or in those of the engine, and of the engine.
fn of_the_node(rig: &Rig) -> Vec<String> {
    let names = ["mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let engine = rig.engine.pid().expect("the engine").to_string();
    let mut all = Vec::new();
    for process in ["self", &engine, "1"] {
        for name in names {
            let link = std::fs::read_link(format!("/proc/{process}/ns/{name}"));
            all.extend(link.map(|link| link.to_string_lossy().into_owned()));
        }
    }
    all.sort();
    all.dedup();
    all
}

/// Gives a container what `kubectl debug` grants.
fn let_trace(config: &mut v1::ContainerConfig) {
    security(config).capabilities = Some(v1::Capability {
        add_capabilities: vec!["SYS_PTRACE".to_owned()],
        ..Default::default()
    });
}

/// A tracer's container.
async fn tracer(
    rig: &mut Rig,
    pod: &str,
    sandbox: &v1::PodSandboxConfig,
    words: &[String],
) -> String {
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut config = sharer(rig, "main", &words);
    unconfined(&mut config);
    let_trace(&mut config);
    let linux = config.linux.as_mut().expect("linux");
    linux.resources = None;
    rig.started(pod, &config, sandbox).await
}

/// What looks at every process of its pid namespace for twelve seconds.
fn tracing(rig: &Rig) -> Vec<String> {
    let secret = rig.engine.path("config/10-scratch.toml");
    let mut words = vec![ATTACKER.to_owned(), "trace".to_owned(), "12".to_owned()];
    words.extend([MOST.to_owned(), secret.to_string_lossy().into_owned()]);
    words.extend(of_the_node(rig));
    words
}

#[test]
fn a_tracer_finds_nothing_of_the_node_in_execs_and_creates() {
    with_every_launcher(&armed(), async |rig, launcher| {
        let name = format!("traced-{launcher}");
        let sandbox = sharing(rig, &name);
        let pod = rig.pod_of(launcher, &sandbox).await;
        let target = sharer(rig, "target", &["/bin/sleep", "1000"]);
        let target = rig.started(&pod, &target, &sandbox).await;
        let words = tracing(rig);
        let tracer = tracer(rig, &pod, &sandbox, &words).await;
        rig.log_with(&name, "tracing").await;
        let rounds = keep_busy(rig, (&pod, &sandbox), (&target, &tracer), launcher).await;
        let log = rig.log_with(&name, "saw ").await;
        let found: Vec<_> = log.lines().filter(|line| line.contains("FOUND")).collect();
        assert!(found.is_empty(), "{launcher}, {rounds} rounds: {found:#?}");
    });
}

/// Where first processes are born in the sight of others, those others may not trace:
/// neither as containers that share their processes nor as targets of containers.
#[test]
fn no_tracer_is_let_in_where_first_processes_are_born_in_sight() {
    with_every_launcher(&armed(), async |rig, launcher| {
        let handler = strict(launcher);
        let refused = |made: Result<String, tonic::Status>| match made {
            Ok(_) => assert!(NATIVE.contains(&launcher)),
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
                assert!(status.message().contains("CAP_SYS_PTRACE"), "{status}");
                assert!(!NATIVE.contains(&launcher));
            }
        };
        let sandbox = sharing(rig, &format!("strict-{launcher}"));
        let pod = rig.pod_of(&handler, &sandbox).await;
        let mut config = sharer(rig, "main", &["/bin/sleep", "1000"]);
        let_trace(&mut config);
        refused(rig.client.create(&pod, &config, &sandbox).await);
        // With processes of its own it may.
        let sandbox = rig.sandbox(&format!("strict-target-{launcher}"));
        let pod = rig.pod_of(&handler, &sandbox).await;
        let mut config = rig.container("target", &["/bin/sleep", "1000"]);
        let_trace(&mut config);
        let target = rig.started(&pod, &config, &sandbox).await;
        let mut config = rig.container("debug", &["/bin/sleep", "1000"]);
        security(&mut config).namespace_options = Some(v1::NamespaceOption {
            target_id: target,
            ..shared(v1::NamespaceMode::Target)
        });
        refused(rig.client.create(&pod, &config, &sandbox).await);
    });
}

/// Runs commands in a container, and makes others beside it where their first processes
/// give up everything before they are born, until the tracer has ended. Tells how often.
async fn keep_busy(
    rig: &mut Rig,
    (pod, sandbox): (&str, &v1::PodSandboxConfig),
    (target, tracer): (&str, &str),
    launcher: &str,
) -> usize {
    for round in 0.. {
        let execs = (0..4).map(|_| {
            let (mut client, target) = (rig.client.clone(), target.to_owned());
            tokio::task::spawn_local(async move { client.exec(&target, &["true"], 30).await })
        });
        for exec in execs.collect::<Vec<_>>() {
            exec.await.expect("no panic").expect("ExecSync");
        }
        // The other launchers make first processes by themselves.
        if NATIVE.contains(&launcher) && round < 40 {
            let config = sharer(rig, &format!("more{round}"), &["/bin/true"]);
            rig.started(pod, &config, sandbox).await;
        }
        let status = rig.client.container(tracer).await.expect("status");
        if status.state == v1::ContainerState::ContainerExited as i32 {
            return round;
        }
    }
    unreachable!("the tracer ends");
}

fn variable(value: &str) -> Vec<v1::KeyValue> {
    vec![v1::KeyValue {
        key: "TEXT".to_owned(),
        value: value.as_bytes().to_vec(),
    }]
}

#[test]
fn a_tracer_finds_nothing_of_the_pods_other_containers_in_execs_and_creates() {
    with_every_launcher(&armed(), async |rig, launcher| {
        let name = format!("remembered-{launcher}");
        let sandbox = sharing(rig, &name);
        let pod = rig.pod_of(launcher, &sandbox).await;
        // One that the tracer cannot see: its processes are its own.
        let [secret, known] = ["secret", "known"]
            .map(|what| format!("{what}-text-of-{launcher}-{}", std::process::id()));
        let mut other = rig.container("other", &["/bin/sleep", "1000"]);
        other.envs = variable(&secret);
        let other = rig.started(&pod, &other, &sandbox).await;
        let mut target = sharer(rig, "target", &["/bin/sleep", "1000"]);
        target.envs = variable(&known);
        let target = rig.started(&pod, &target, &sandbox).await;
        let texts = [secret, known].map(|text| text.chars().rev().collect());
        let words = [ATTACKER, "remember", "12"].map(str::to_owned);
        let tracer = tracer(rig, &pod, &sandbox, &[&words[..], &texts].concat()).await;
        rig.log_with(&name, "remembering").await;
        // The monitor knows the environment of what it runs meanwhile.
        let mut client = rig.client.clone();
        let runs = tokio::task::spawn_local(async move {
            client.exec(&other, &["/bin/sleep", "14"], 30).await
        });
        keep_busy(rig, (&pod, &sandbox), (&target, &tracer), launcher).await;
        runs.await.expect("no panic").expect("ExecSync");
        let log = rig.log_with(&name, "saw ").await;
        println!("{launcher}: {}", log.lines().last().unwrap_or_default());
        assert!(!log.contains("FOUND"), "{launcher}: {log}");
        let read = log.rsplit("before their programs ").next();
        let read: usize = read.expect("a count").trim().parse().expect("a number");
        // Before its program is executed a process in a user namespace is nobody's to trace
        // who lives there.
        let in_time = launcher != "inside";
        assert_eq!(read > 0, in_time, "{launcher}: what it could read: {log}");
    });
}

#[test]
fn a_tracer_reaches_no_process_of_the_node_by_signals() {
    with_every_launcher(&armed(), async |rig, launcher| {
        let name = format!("signalled-{launcher}");
        let sandbox = sharing(rig, &name);
        let pod = rig.pod_of(launcher, &sandbox).await;
        let target = sharer(rig, "target", &["/bin/sleep", "1000"]);
        let target = rig.started(&pod, &target, &sandbox).await;
        let words = [ATTACKER, "signal", "8"].map(str::to_owned);
        let tracer = tracer(rig, &pod, &sandbox, &words).await;
        rig.log_with(&name, "signalling").await;
        keep_busy(rig, (&pod, &sandbox), (&target, &tracer), launcher).await;
        let log = rig.log_with(&name, "saw ").await;
        println!("{launcher}: {}", log.lines().last().unwrap_or_default());
        let signalled = log.rsplit("signalled ").next();
        let signalled: usize = signalled
            .expect("a count")
            .trim()
            .parse()
            .expect("a number");
        let in_vain = launcher == "inside" || cfg!(not(target_arch = "x86_64"));
        assert!(signalled > 0 || in_vain, "{log}");
        // The monitor and the writers of its logs go on.
        let said = rig.client.exec(&target, &["echo", "alive"], 5).await;
        assert_eq!(said.expect("ExecSync").stdout, "alive\n");
        rig.client.stop_pod(&pod).await.expect("stop");
    });
}

#[test]
fn a_fork_bomb_ends_with_its_container() {
    with_every_launcher(&armed(), async |rig, launcher| {
        let name = format!("bomb-{launcher}");
        let sandbox = sharing(rig, &name);
        let pod = rig.pod_of(launcher, &sandbox).await;
        let quiet = sharer(rig, "quiet", &["/bin/sleep", "1000"]);
        let quiet = rig.started(&pod, &quiet, &sandbox).await;
        // Each process makes another and ends: whoever lists them comes too late.
        let script = "b() { b & }; for i in $(seq 50); do b & done; sleep 1000";
        let bomb = sharer(rig, "bomb", &["/bin/sh", "-c", script]);
        let bomb = rig.started(&pod, &bomb, &sandbox).await;
        limit(rig, &bomb);
        let burning = eventually(deadline(), async || {
            (members(rig, &bomb) > 20).then_some(())
        });
        burning.await.expect("a bomb");
        let stopped = tokio::time::timeout(deadline(), rig.client.stop(&bomb, 0));
        stopped.await.expect("in time").expect("StopContainer");
        let gone = eventually(deadline(), async || {
            (members(rig, &bomb) == 0).then_some(())
        });
        gone.await.expect("nothing is left of it");
        let status = rig.client.container(&quiet).await.expect("status");
        assert_eq!(status.state, v1::ContainerState::ContainerRunning as i32);
    });
}

/// The directories of a container's cgroups.
/// A writer can hold its pipe's lock for as long as it likes, and a reader waits for that
/// in the kernel where no signal reaches it.
#[test]
fn whoever_holds_the_lock_of_its_output_holds_up_nobody_else() {
    with_every_launcher(&armed(), async |rig, launcher| {
        let name = format!("held-{launcher}");
        let sandbox = rig.sandbox(&name);
        let pod = rig.pod_of(launcher, &sandbox).await;
        let target = rig.container("target", &["/bin/sleep", "1000"]);
        let target = rig.started(&pod, &target, &sandbox).await;
        let config = rig.container("main", &[ATTACKER, "hold"]);
        let holder = rig.started(&pod, &config, &sandbox).await;
        let commands = (0..4).map(|_| {
            let (mut client, target) = (rig.client.clone(), target.clone());
            let words = [ATTACKER, "hold"];
            tokio::task::spawn_local(async move { client.exec(&target, &words, 4).await })
        });
        let commands: Vec<_> = commands.collect();
        // Who closes the pipe last waits for its lock as well.
        let behind = rig.client.exec(&target, &[ATTACKER, "hold", "behind"], 10);
        let behind = tokio::time::timeout(deadline(), behind).await;
        let behind = behind.expect("an answer").expect("ExecSync");
        assert_eq!(behind.code, 0, "{launcher}");
        while !commands.iter().all(tokio::task::JoinHandle::is_finished) {
            let said = rig.client.exec(&target, &["echo", "alive"], 3).await;
            assert_eq!(said.expect("ExecSync").stdout, "alive\n", "{launcher}");
            let version = tokio::time::timeout(conformance::patient(3), rig.client.version());
            version.await.expect("an answer").expect("Version");
        }
        for command in commands {
            let late = command.await.expect("no panic").expect_err("no time");
            assert_eq!(late.code(), tonic::Code::DeadlineExceeded, "{launcher}");
        }
        rig.client.stop(&holder, 0).await.expect("StopContainer");
        let status = rig.client.container(&holder).await.expect("status");
        assert_eq!(status.state, v1::ContainerState::ContainerExited as i32);
        rig.client.stop_pod(&pod).await.expect("StopPodSandbox");
    });
}

/// Containers that have cgroups below theirs, thousands, deeper than any path or frozen
/// by themselves, end with all that is in them and can be removed.
#[test]
fn a_container_ends_and_goes_whatever_cgroups_it_has_made() {
    let has_freezer = std::path::Path::new("/sys/fs/cgroup/freezer").is_dir();
    let hierarchies: &[_] = if has_freezer {
        &["freezer", "v2"]
    } else {
        &["v2"]
    };
    with_every_launcher(&armed(), async |rig, launcher| {
        for hierarchy in hierarchies {
            for (depth, frozen, empty) in [("1", "1", "0"), ("2100", "0", "0"), ("2", "0", "3000")]
            {
                let name = format!("nested-{launcher}-{hierarchy}-{depth}");
                let sandbox = sharing(rig, &name);
                let pod = rig.pod_of(launcher, &sandbox).await;
                let other = sharer(rig, "other", &["/bin/sleep", "1000"]);
                let other = rig.started(&pod, &other, &sandbox).await;
                let words = [ATTACKER, "nest", hierarchy, depth, frozen, empty];
                let mut config = sharer(rig, "main", &words);
                unconfined(&mut config);
                config.linux.as_mut().expect("linux").resources = None;
                let id = rig.started(&pod, &config, &sandbox).await;
                if launcher == "inside" {
                    // Its cgroup is not root's of the pod: it makes none.
                    assert_eq!(rig.exited(&id).await.exit_code, 1);
                    rig.client.stop_pod(&pod).await.expect("StopPodSandbox");
                    rig.client.remove_pod(&pod).await.expect("RemovePodSandbox");
                    continue;
                }
                rig.log_with(&name, "nested").await;
                rig.client.stop(&id, 0).await.expect("StopContainer");
                let status = rig.client.container(&id).await.expect("status");
                assert_eq!(status.state, v1::ContainerState::ContainerExited as i32);
                let left = rig.prints(&other, "ps").await;
                assert!(
                    !left.contains("attacker"),
                    "{launcher}, {hierarchy}: {left}"
                );
                rig.client.remove(&id).await.expect("RemoveContainer");
                rig.client.stop_pod(&pod).await.expect("StopPodSandbox");
                rig.client.remove_pod(&pod).await.expect("RemovePodSandbox");
            }
        }
    });
}

/// What a container has frozen by itself does not keep it from its end.
#[test]
fn a_container_that_leaves_a_frozen_process_behind_has_ended() {
    let hierarchy = match std::path::Path::new("/sys/fs/cgroup/freezer").is_dir() {
        true => "freezer",
        false => "v2",
    };
    with_every_launcher(&armed(), async |rig, launcher| {
        let name = format!("behind-{launcher}");
        let sandbox = sharing(rig, &name);
        let pod = rig.pod_of(launcher, &sandbox).await;
        let mut config = sharer(
            rig,
            "main",
            &[ATTACKER, "nest", hierarchy, "1", "1", "0", "3"],
        );
        unconfined(&mut config);
        config.linux.as_mut().expect("linux").resources = None;
        let id = rig.started(&pod, &config, &sandbox).await;
        // Root of a pod with a user namespace makes no cgroups.
        let code = if launcher == "inside" { 1 } else { 3 };
        assert_eq!(rig.exited(&id).await.exit_code, code, "{launcher}");
        rig.client.stop_pod(&pod).await.expect("StopPodSandbox");
        rig.client.remove_pod(&pod).await.expect("RemovePodSandbox");
    });
}

fn cgroups(rig: &Rig, id: &str) -> Vec<std::path::PathBuf> {
    let roots = std::fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten();
    let roots = roots
        .map(|entry| entry.path())
        .chain(["/sys/fs/cgroup".into()]);
    let own = rig.cgroup.trim_start_matches('/').to_owned();
    // With the systemd driver it is in its pod's scope.
    let below = |dir: std::path::PathBuf| {
        let scopes = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        let mut all: Vec<_> = scopes.map(|entry| entry.path().join(id)).collect();
        all.push(dir.join(id));
        all
    };
    let dirs = roots.flat_map(|root| below(root.join(&own)));
    dirs.filter(|dir| dir.is_dir()).collect()
}

/// Limits the number of its processes.
fn limit(rig: &Rig, id: &str) {
    let files = cgroups(rig, id).into_iter().map(|dir| dir.join("pids.max"));
    for file in files.filter(|file| file.exists()) {
        std::fs::write(file, "3000").expect("a limit");
    }
}

/// How many processes are in them.
fn members(rig: &Rig, id: &str) -> usize {
    let count = |dir: std::path::PathBuf| {
        let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().count()
    };
    cgroups(rig, id)
        .into_iter()
        .map(count)
        .max()
        .unwrap_or_default()
}

#[test]
fn a_command_out_of_time_leaves_no_process() {
    with_every_launcher(&armed(), async |rig, launcher| {
        let made = rig.try_container(launcher, "late", |_| ()).await;
        let id = made.expect("a container");
        let script = "(busybox setsid sh -c 'sleep 4801 & sleep 4802' &) ; busybox setsid sleep 4803 & sleep 4804";
        let late = rig.client.exec(&id, &["/bin/sh", "-c", script], 1).await;
        assert_eq!(
            late.expect_err("no time").code(),
            tonic::Code::DeadlineExceeded
        );
        none_left(rig, launcher, &id).await;
        // Its child is the monitor's.
        for words in [
            &[ATTACKER, "sibling", "4807"][..],
            &[ATTACKER, "sibling", "4808", "session"],
        ] {
            let late = rig.client.exec(&id, words, 1).await;
            assert_eq!(
                late.expect_err("no time").code(),
                tonic::Code::DeadlineExceeded
            );
            none_left(rig, launcher, &id).await;
        }
    });
}

/// The kernel gives a traced process that ended to its tracer first.
#[test]
fn a_command_out_of_time_is_answered_though_its_tracer_keeps_it() {
    with_every_launcher(&armed(), async |rig, launcher| {
        let name = format!("kept-{launcher}");
        let sandbox = sharing(rig, &name);
        let pod = rig.pod_of(launcher, &sandbox).await;
        let target = sharer(rig, "target", &["/bin/sleep", "1000"]);
        let target = rig.started(&pod, &target, &sandbox).await;
        let words = [ATTACKER, "keep", "15"].map(str::to_owned);
        let tracer = tracer(rig, &pod, &sandbox, &words).await;
        rig.log_with(&name, "keeping").await;
        let mut client = rig.client.clone();
        let late = client.exec(&target, &["/bin/sleep", "1000"], 1);
        let late = tokio::time::timeout(deadline(), late).await;
        let late = late.expect("an answer").expect_err("no time");
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
        for id in [&target, &tracer] {
            let status = rig.client.container(id).await.expect("status");
            assert_eq!(status.state, v1::ContainerState::ContainerRunning as i32);
        }
        rig.client.stop_pod(&pod).await.expect("stop");
    });
}

#[test]
fn a_command_whose_client_is_gone_leaves_no_process() {
    with_every_launcher(&armed(), async |rig, launcher| {
        let made = rig.try_container(launcher, "lost", |_| ()).await;
        let id = made.expect("a container");
        let script = "busybox setsid sleep 4805 & sleep 4806";
        let mut client = rig.client.clone();
        let words = ["/bin/sh", "-c", script];
        let (call, began) = (client.exec(&id, &words, 0), async {
            let both = async || (members(rig, &id) >= 3).then_some(());
            eventually(deadline(), both).await.expect("it runs");
        });
        tokio::select! {
            ended = call => panic!("it ended: {ended:?}"),
            () = began => {}
        }
        none_left(rig, launcher, &id).await;
    });
}

/// Waits until only the first process is left.
async fn none_left(rig: &mut Rig, launcher: &str, id: &str) {
    let alone = eventually(deadline(), async || (members(rig, id) == 1).then_some(()));
    let alone = alone.await;
    let left = rig.prints(id, "ps").await;
    assert!(alone.is_some(), "{launcher}: {left}");
}
