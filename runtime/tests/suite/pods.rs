//! What containers of a pod share.

use std::os::fd::AsRawFd;
use std::time::Duration;

use runtime::client::{MonitorError, Pids};
use rustix::pipe::SpliceFlags;
use serde_json::json;

use super::{launch_error, stdout};
use crate::support::{Kind, Pod, PodOptions, TestContainer, TestSpec, wait_until};

/// The monitor is in the pod's cgroups and namespaces, which its entries in
/// /proc name; containers share ipc, uts and net.
pub(crate) async fn containers_share_the_pods_namespaces(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    assert_eq!(pod.ready.pid, pod.monitor.pid());
    assert_eq!(pod.ready.init_pid, None);
    assert_eq!(pod.cgroup.pids(), [pod.ready.pid]);
    let link =
        |pid: &str, name: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    let monitor = pod.ready.pid.to_string();
    for (name, own) in [
        ("ipc", true),
        ("uts", true),
        ("net", launcher == Kind::Inside),
        ("mnt", false),
        ("pid", false),
    ] {
        assert_eq!(
            link(&monitor, name) != link("self", name),
            own,
            "{name} of the monitor"
        );
    }
    let container = pod.create(&TestSpec::shell("hostname")).await;
    let first = container.created.pid.to_string();
    for name in ["ipc", "uts", "net"] {
        assert_eq!(link(&first, name), link(&monitor, name), "{name}");
    }
    for name in ["mnt", "pid", "cgroup"] {
        assert_ne!(link(&first, name), link(&monitor, name), "{name}");
    }
    pod.start(&container).await;
    pod.exit(&container).await;
    assert_eq!(container.log(), ["stdout F slipway-test"]);
    pod.end().await;
}

/// Kernel parameters are the pod's; bad ones fail the setup by their name.
pub(crate) async fn kernel_parameters_are_set(launcher: Kind) {
    let with = |name: &str, value: &str| PodOptions {
        sysctls: vec![(name.to_owned(), value.to_owned())],
        ..PodOptions::new(launcher)
    };
    let mut pod = Pod::with(with("kernel.shm_rmid_forced", "1")).await;
    let spec = TestSpec::shell("cat /proc/sys/kernel/shm_rmid_forced");
    assert_eq!(stdout(pod.outcome(&spec).await), "1");
    assert_eq!(
        std::fs::read("/proc/sys/kernel/shm_rmid_forced").unwrap(),
        b"0\n"
    );
    pod.end().await;
    for name in ["../../etc/passwd", "kernel.nonsense", "net.ipv4.nonsense"] {
        match Pod::try_with(with(name, "1")).await.unwrap_err() {
            MonitorError::Setup { step, .. } => assert_eq!(step, format!("sysctl {name}")),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn shared(launcher: Kind) -> Pod {
    Pod::with(PodOptions {
        shared_pid: true,
        ..PodOptions::new(launcher)
    })
    .await
}

/// A spec whose pid namespace is a process's.
pub(crate) fn in_pid_namespace(pid: i32, script: &str) -> TestSpec {
    TestSpec::shell(script).set(
        "linux.namespaces",
        json!([
            { "type": "pid", "path": format!("/proc/{pid}/ns/pid") },
            { "type": "mount" }, { "type": "cgroup" },
        ]),
    )
}

/// Process 1 of a shared pid namespace is the built-in init, which has nothing
/// that anybody could take.
pub(crate) async fn shared_init_has_nothing_to_take(launcher: Kind) {
    let mut pod = shared(launcher).await;
    let init = pod.ready.init_pid.unwrap();
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{init}/{name}")).unwrap();
    assert_eq!(read("cmdline"), "slipway-init\0");
    assert_eq!(read("comm"), "slipway-init\n");
    assert_eq!(read("mountinfo").lines().count(), 1);
    assert_eq!(
        std::fs::read_dir(format!("/proc/{init}/root/"))
            .unwrap()
            .count(),
        0
    );
    let status = read("status");
    let uids = format!("Uid:{}", format!("\t{}", pod.on_node(65_535)).repeat(4));
    for line in [
        uids.as_str(),
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "NSpid:",
    ] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    let fds: Vec<_> = std::fs::read_dir(format!("/proc/{init}/fd"))
        .unwrap()
        .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap())
        .collect();
    assert_eq!(fds, ["/dev/null"; 3].map(std::path::PathBuf::from));
    let script = "for f in root/ root/.. cwd/ exe fd/0; do ls /proc/1/$f && echo open; done 2>/dev/null; \
                  touch /proc/1/root/x 2>/dev/null && echo made; \
                  echo x 2>/dev/null >/proc/1/exe && echo wrote; cat /proc/1/comm";
    assert_eq!(
        stdout(pod.outcome(&in_pid_namespace(init, script)).await),
        "slipway-init"
    );
    // Even who may look at every process finds nothing there.
    let caps = json!(["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    let sets = json!({ "bounding": caps, "effective": caps, "permitted": caps });
    let spec = in_pid_namespace(
        init,
        "ls -A /proc/1/root/ /proc/1/cwd/; touch /proc/1/root/x 2>/dev/null && echo made; \
         echo x 2>/dev/null >/proc/1/exe && echo wrote; for f in /proc/1/fd/*; do readlink $f; done",
    );
    let spec = spec.set("process.capabilities", sets);
    assert_eq!(
        stdout(pod.outcome(&spec).await),
        "/proc/1/cwd/:\n\n/proc/1/root/:\n/dev/null\n/dev/null\n/dev/null"
    );
    pod.end().await;
}

/// Containers see each other's processes; orphans are reaped by the init; a
/// container's end ends what it left behind, and nothing else.
pub(crate) async fn shared_processes_end_with_their_container(launcher: Kind) {
    let mut pod = shared(launcher).await;
    let init = pod.ready.init_pid.unwrap();
    let other = pod.run(&in_pid_namespace(init, "exec sleep 4711")).await;
    let script = "(sleep 4712 &) ; cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q '[s]leep 4711' && echo seen; exit 6";
    let container = pod.run(&in_pid_namespace(init, script)).await;
    let record = pod.exit(&container).await;
    assert_eq!(
        (record.exit_code, container.log()),
        (6, vec!["stdout F seen".to_owned()])
    );
    assert!(
        wait_until(|| container.cgroup.pids().is_empty()),
        "what it left lives on"
    );
    assert_eq!(other.cgroup.pids(), [other.created.pid]);
    let zombies = || {
        let children = format!("/proc/{init}/task/{init}/children");
        std::fs::read_to_string(children)
            .unwrap()
            .split_whitespace()
            .count()
    };
    assert!(wait_until(|| zombies() == 0), "the init does not reap");
    let ended = pod
        .exec(&other, &TestSpec::shell("cat /proc/1/comm"))
        .await
        .unwrap();
    assert_eq!(ended.stdout, "slipway-init\n");
    pod.end().await;
}

/// An exit is told when the last process of the container has ended, not the first.
pub(crate) async fn an_exit_is_told_behind_the_last_process(launcher: Kind) {
    let mut pod = shared(launcher).await;
    let init = pod.ready.init_pid.unwrap();
    let script = "for i in $(seq 40); do sleep 4715 & done; exit 6";
    for _ in 0..5 {
        let container = pod.run(&in_pid_namespace(init, script)).await;
        assert_eq!(pod.exit(&container).await.exit_code, 6);
        assert_eq!(container.cgroup.pids(), [0; 0]);
        pod.monitor.delete(&container.id).await.unwrap();
    }
    pod.end().await;
}

/// Whoever traces a process that waits for its start has its pipes, and can hold their
/// locks: the monitor waits for none of them.
pub(crate) async fn a_gate_whose_lock_is_held_keeps_up_its_own_start_only(launcher: Kind) {
    let mut pod = shared(launcher).await;
    let init = pod.ready.init_pid.unwrap();
    let other = pod.run(&in_pid_namespace(init, "exec sleep 1000")).await;
    let container = pod.create(&in_pid_namespace(init, "exec sleep 1000")).await;
    let (silent, ends) = std::os::unix::net::UnixStream::pair().unwrap();
    let silent = std::sync::Arc::new(silent);
    let (begun, threads) = std::sync::mpsc::channel();
    let mut holders = Vec::new();
    for end in super::life::gate_of(container.created.pid) {
        let path = format!("/proc/self/fd/{}", end.as_raw_fd());
        let Ok(end) = std::fs::OpenOptions::new().write(true).open(path) else {
            continue;
        };
        let (silent, begun) = (std::sync::Arc::clone(&silent), begun.clone());
        holders.push(std::thread::spawn(move || {
            begun.send(rustix::thread::gettid()).unwrap();
            let flags = SpliceFlags::empty();
            let _until_it_ends = rustix::pipe::splice(&*silent, None, &end, None, 4096, flags);
        }));
    }
    assert!(!holders.is_empty());
    for thread in threads.iter().take(holders.len()) {
        let stat = format!("/proc/self/task/{}/stat", thread.as_raw_nonzero());
        let waits = || std::fs::read_to_string(&stat).unwrap().contains(") S ");
        assert!(wait_until(waits), "it does not hold");
    }
    let limit = Duration::from_secs(2);
    let monitor = pod.monitor.clone();
    let id = container.id.clone();
    let start = tokio::spawn(async move { monitor.start_within(&id, limit).await });
    for _ in 0..3 {
        let echo = TestSpec::new(&["echo", "alive"]);
        let ended = pod.exec(&other, &echo);
        let ended = tokio::time::timeout(Duration::from_secs(10), ended).await;
        assert_eq!(ended.expect("an answer").unwrap().stdout, "alive\n");
    }
    // It waits for the lock as well, where nothing ends it.
    drop(ends);
    let start = tokio::time::timeout(Duration::from_secs(30), start).await;
    let _begun_or_ended = start.expect("an answer").unwrap();
    for holder in holders {
        holder.join().unwrap();
    }
    pod.end().await;
}

/// Processes that make others as fast as they can end with their container, where
/// no `cgroup.kill` ends them and they share the pod's pid namespace.
pub(crate) async fn a_fork_bomb_ends_with_its_container(launcher: Kind) {
    let mut pod = shared(launcher).await;
    let init = pod.ready.init_pid.unwrap();
    let other = pod.run(&in_pid_namespace(init, "exec sleep 4713")).await;
    // Each process makes another and ends: whoever lists them comes too late.
    let bomb = "b() { b & }; for i in $(seq 50); do b & done; sleep 1000";
    let spec = in_pid_namespace(init, bomb);
    let created = pod.create_with(&spec, |request| request.cgroup_kill = None);
    let container = created.await.unwrap();
    let limit = container.cgroup.file("pids.max").unwrap();
    std::fs::write(limit, "3000").unwrap();
    pod.start(&container).await;
    assert!(wait_until(|| container.cgroup.pids().len() > 20), "no bomb");
    pod.monitor.signal(&container.id, 9).await.unwrap();
    pod.exit(&container).await;
    assert!(
        wait_until(|| container.cgroup.pids().is_empty()),
        "it outran its end: {} processes",
        container.cgroup.pids().len()
    );
    assert_eq!(other.cgroup.pids(), [other.created.pid]);
    pod.end().await;
}

/// A process that is born where others can trace it has no heap for its words.
pub(crate) async fn missing_program_is_named_among_shared_processes(launcher: Kind) {
    let mut pod = shared(launcher).await;
    let init = pod.ready.init_pid.unwrap();
    for (name, message) in [
        (
            "nothing",
            "exec: \"nothing\": executable file not found in $PATH",
        ),
        ("/tmp", "exec: \"/tmp\": permission denied"),
    ] {
        let spec = in_pid_namespace(init, "").set("process.args", json!([name]));
        let container = pod.create(&spec).await;
        let (_, said, not_found) = launch_error(pod.monitor.start(&container.id).await);
        assert_eq!((said.as_str(), not_found), (message, true));
        assert_eq!(pod.exit(&container).await.exit_code, 128);
    }
    pod.end().await;
}

/// A PID namespace is entered by whose it is. The number of a process in the
/// specification may be another's by then: here it is one of the node's.
pub(crate) async fn no_number_leads_into_another_pid_namespace(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let target = pod.run(&TestSpec::new(&["sleep", "1000"])).await;
    let stranger = in_pid_namespace(std::process::id().cast_signed(), "sleep 1000");
    let wanted = Pids::Target(target.id.clone());
    let made = pod.create_with(&stranger, |request| request.pids = wanted.clone());
    let of = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    match (launcher, made.await) {
        (Kind::Native | Kind::Inside, made) => {
            assert_eq!(of(made.unwrap().created.pid), of(target.created.pid));
        }
        (_, made) => {
            let (step, message, _) = launch_error(made);
            assert_eq!(step, "container's first process");
            assert!(message.contains("another PID namespace"), "{message}");
        }
    }
    let right = in_pid_namespace(target.created.pid, "sleep 1000");
    let made = pod.create_with(&right, |request| request.pids = wanted.clone());
    let made = made.await.unwrap();
    assert_eq!(of(made.created.pid), of(target.created.pid));
    pod.monitor.signal(&target.id, 9).await.unwrap();
    pod.exit(&target).await;
    let late = pod.create_with(&right, |request| request.pids = wanted);
    let late = late.await.map(|late| late.id).unwrap_err();
    assert!(matches!(late, MonitorError::NotRunning(id) if id == target.id));
    pod.end().await;
}

/// The init ends on the node's SIGKILL, and its containers with it: on nothing that one of
/// them sends.
pub(crate) async fn shared_init_ends_on_kill_only(launcher: Kind) {
    let mut pod = shared(launcher).await;
    let init = pod.ready.init_pid.unwrap();
    // Processes of a container may send it what they like.
    let container = pod
        .run(&in_pid_namespace(
            init,
            "kill -TERM 1; kill -KILL 1; sleep 0.1; exit 3",
        ))
        .await;
    assert_eq!(pod.exit(&container).await.exit_code, 3);
    let container = pod
        .run(&in_pid_namespace(init, "trap '' TERM; sleep 1000"))
        .await;
    let pid = rustix::process::Pid::from_raw(init).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(pod.exit(&container).await.exit_code, 137);
    assert!(wait_until(|| !std::path::Path::new(&format!(
        "/proc/{init}"
    ))
    .exists()));
    pod.end().await;
}

/// In the host's pid namespace, too, a container's end ends what it left.
pub(crate) async fn host_pid_processes_end_with_their_container(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let namespaces = json!([{ "type": "mount" }, { "type": "cgroup" }]);
    let spec = TestSpec::shell("(setsid sleep 4713 &); sleep 0.1; exit 2")
        .set("linux.namespaces", namespaces.clone());
    let container = pod.run(&spec).await;
    assert_eq!(pod.exit(&container).await.exit_code, 2);
    assert!(
        wait_until(|| container.cgroup.pids().is_empty()),
        "what it left lives on"
    );
    let spec = TestSpec::shell("(setsid sleep 4714 &); sleep 0.1; exit 2")
        .set("linux.namespaces", namespaces);
    let container = pod
        .create_with(&spec, |request| request.cgroup_kill = None)
        .await
        .unwrap();
    pod.start(&container).await;
    assert_eq!(pod.exit(&container).await.exit_code, 2);
    assert!(
        wait_until(|| container.cgroup.pids().is_empty()),
        "without cgroup.kill it lives on"
    );
    pod.end().await;
}

/// Gives a container less memory than a hog wants.
fn limit_memory(container: &TestContainer) {
    let limit = container
        .cgroup
        .file("memory.max")
        .or_else(|| container.cgroup.file("memory.limit_in_bytes"))
        .unwrap();
    std::fs::write(limit, "32M").unwrap();
}

/// The kernel's kill for lack of memory is told from any other.
pub(crate) async fn lack_of_memory_is_told(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let hog = "x=a; while :; do x=$x$x; done";
    let container = pod.create(&TestSpec::shell(hog)).await;
    limit_memory(&container);
    pod.start(&container).await;
    let record = pod.exit(&container).await;
    assert_eq!((record.exit_code, record.oom_killed), (137, true));
    let container = pod.run(&TestSpec::shell("kill -9 $$; sleep 1000")).await;
    pod.monitor.signal(&container.id, 9).await.unwrap();
    let record = pod.exit(&container).await;
    assert_eq!((record.exit_code, record.oom_killed), (137, false));
    pod.end().await;
}

/// A shell or tini as first process passes on what became of its child.
pub(crate) async fn lack_of_memory_behind_a_shell_is_told(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let hog = "(x=a; while :; do x=$x$x; done); exit $?";
    let container = pod.create(&TestSpec::shell(hog)).await;
    limit_memory(&container);
    pod.start(&container).await;
    let record = pod.exit(&container).await;
    assert_eq!(
        (record.exit_code, record.signal, record.oom_killed),
        (137, None, true)
    );
    pod.end().await;
}

/// Who was killed by the engine did not end for lack of memory, whatever the
/// kernel did to a child of it before.
pub(crate) async fn a_kill_after_lack_of_memory_is_told_as_a_kill(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let hog = "(x=a; while :; do x=$x$x; done); echo child $?; sleep 1000";
    let container = pod.create(&TestSpec::shell(hog)).await;
    limit_memory(&container);
    pod.start(&container).await;
    container.logged("child 137");
    pod.monitor.signal(&container.id, 9).await.unwrap();
    let record = pod.exit(&container).await;
    assert_eq!((record.exit_code, record.oom_killed), (137, false));
    pod.end().await;
}

/// A first process that goes on after another was killed for lack of memory
/// ends as it says.
pub(crate) async fn lack_of_memory_in_a_child_keeps_the_exit_code(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let hog = "(x=a; while :; do x=$x$x; done); echo child $?; exit 0";
    let container = pod.create(&TestSpec::shell(hog)).await;
    limit_memory(&container);
    pod.start(&container).await;
    let record = pod.exit(&container).await;
    assert!(container.log().contains(&"stdout F child 137".to_owned()));
    assert_eq!(
        (record.exit_code, record.signal, record.oom_killed),
        (0, None, false)
    );
    pod.end().await;
}
