//! Processes that are run in a container.

use std::io::Write;
use std::time::{Duration, Instant};

use runtime::client::{ExecExit, ExecStreams, Monitor, MonitorError};
use serde_json::json;

use super::launch_error;
use crate::support::{Kind, Pod, TestContainer, TestSpec, until, wait_until};

async fn sleeper(pod: &mut Pod) -> TestContainer {
    pod.run(&TestSpec::new(&["sleep", "1000"])).await
}

/// Exit codes and signals come back, both streams too.
pub(crate) async fn exit_and_output_come_back(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    let ended = pod
        .exec(&container, &TestSpec::shell("echo a; echo b >&2; exit 3"))
        .await
        .unwrap();
    assert_eq!(ended.exit, ExecExit::Exited { code: 3 });
    assert_eq!(
        (ended.stdout.as_str(), ended.stderr.as_str()),
        ("a\n", "b\n")
    );
    let ended = pod
        .exec(&container, &TestSpec::shell("kill -9 $$"))
        .await
        .unwrap();
    assert_eq!(ended.exit, ExecExit::Exited { code: 137 });
    let ended = pod
        .exec(&container, &TestSpec::shell("yes | head -c 3000000"))
        .await
        .unwrap();
    assert_eq!(ended.stdout.len(), 3_000_000);
    pod.end().await;
}

/// The process is in every namespace of the container.
pub(crate) async fn namespaces_are_the_containers(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    // An OCI runtime's `start` ends before the program begins.
    let comm = format!("/proc/{}/comm", container.created.pid);
    let begun = || std::fs::read_to_string(&comm).unwrap() == "sleep\n";
    assert!(wait_until(begun));
    let script = "for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done; hostname; \
                  cat /proc/1/comm; ls -d /proc/[0-9]* | wc -l";
    let ended = pod
        .exec(&container, &TestSpec::shell(script))
        .await
        .unwrap();
    let mut expected: Vec<_> = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
        .iter()
        .map(|name| {
            std::fs::read_link(format!("/proc/{}/ns/{name}", container.created.pid)).unwrap()
        })
        .map(|link| link.to_str().unwrap().to_owned())
        .collect();
    expected.extend(["slipway-test".to_owned(), "sleep".to_owned()]);
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(lines[..9], expected);
    pod.end().await;
}

/// Input is read to its end; without any there is an empty one.
pub(crate) async fn input_is_given(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    let ended = pod
        .exec(&container, &TestSpec::new(&["cat"]))
        .await
        .unwrap();
    assert_eq!(
        (ended.exit, ended.stdout.as_str()),
        (ExecExit::Exited { code: 0 }, "")
    );
    let (read, write) = rustix::pipe::pipe().unwrap();
    std::fs::File::from(write).write_all(b"hello").unwrap();
    let ended = pod
        .exec_with(&container, &TestSpec::new(&["cat"]), |request| {
            let ExecStreams::Pipes { stdin, .. } = &mut request.streams else {
                unreachable!("a terminal that nobody asked for")
            };
            *stdin = Some(read);
        })
        .await
        .unwrap();
    assert_eq!(ended.stdout, "hello");
    pod.end().await;
}

/// A user that is not root can open its own output again by name.
pub(crate) async fn users_can_open_their_output(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let user = json!({ "uid": 1000, "gid": 1000 });
    let script = "echo a >/proc/self/fd/1; echo b >/dev/stderr";
    let spec = TestSpec::shell(script).set("process.user", user.clone());
    let (record, mut log) = pod.outcome(&spec).await;
    log.sort();
    assert_eq!(
        (record.exit_code, log),
        (0, vec!["stderr F b".to_owned(), "stdout F a".to_owned()])
    );
    let container = sleeper(&mut pod).await;
    let ended = pod.exec(&container, &spec).await.unwrap();
    assert_eq!(
        (ended.stdout.as_str(), ended.stderr.as_str()),
        ("a\n", "b\n")
    );
    pod.end().await;
}

/// Programs that cannot be executed are named, as at the start.
pub(crate) async fn missing_program_is_named(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    let result = pod.exec(&container, &TestSpec::new(&["nothing"])).await;
    let message = "exec: \"nothing\": executable file not found in $PATH".to_owned();
    assert_eq!(launch_error(result), ("exec".to_owned(), message, true));
    let spec = TestSpec::new(&["true"]).set("process.cwd", json!("/nothing"));
    let (step, _, not_found) = launch_error(pod.exec(&container, &spec).await);
    assert_eq!(
        (step.as_str(), not_found),
        ("enter working directory", false)
    );
    let spec = TestSpec::new(&["true"]).set("process.apparmorProfile", json!("no-such-profile"));
    let (step, _, _) = launch_error(pod.exec(&container, &spec).await);
    assert_eq!(step, "set security label");
    pod.end().await;
}

/// A working directory cannot lead out by a descriptor of the monitor.
pub(crate) async fn working_directory_never_leads_out(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    for number in 3..40 {
        let spec =
            TestSpec::new(&["ls"]).set("process.cwd", json!(format!("/proc/self/fd/{number}")));
        let (step, _, _) = launch_error(pod.exec(&container, &spec).await);
        assert_eq!(step, "enter working directory", "descriptor {number}");
    }
    pod.end().await;
}

/// A timeout kills the whole session, and only that.
pub(crate) async fn timeout_kills_the_session(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    let started = Instant::now();
    let ended = pod
        .exec_with(
            &container,
            &TestSpec::shell("trap '' TERM; (sleep 1001; sleep 1002) & sleep 1003"),
            |request| request.timeout = Some(Duration::from_millis(300)),
        )
        .await
        .unwrap();
    assert_eq!(ended.exit, ExecExit::TimedOut);
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert!(
        wait_until(|| container.cgroup.pids() == [container.created.pid]),
        "{:?}",
        container.cgroup.pids()
    );
    let quick = pod
        .exec_with(&container, &TestSpec::shell("exit 4"), |request| {
            request.timeout = Some(Duration::from_secs(20));
        })
        .await
        .unwrap();
    assert_eq!(quick.exit, ExecExit::Exited { code: 4 });
    pod.end().await;
}

/// A container that ended takes no more processes.
pub(crate) async fn ended_container_takes_no_process(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = pod.run(&TestSpec::shell("exit 0")).await;
    pod.exit(&container).await;
    let result = pod.exec(&container, &TestSpec::new(&["true"])).await;
    assert!(matches!(result, Err(MonitorError::NotRunning(_))));
    pod.end().await;
}

/// The container's end ends what was run in it, and the caller learns it.
pub(crate) async fn end_of_the_container_ends_its_processes(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    let monitor = pod.monitor.clone();
    let id = container.id.clone();
    let procs = container.cgroup.file("cgroup.procs").unwrap();
    // A launcher's helper may be there for a moment longer.
    let before = container.cgroup.pids();
    let ending = tokio::spawn(async move {
        let both = || {
            let text = std::fs::read_to_string(&procs).unwrap_or_default();
            let mut pids = text.lines().map(|pid| pid.parse().unwrap());
            pids.any(|pid: i32| !before.contains(&pid))
        };
        assert!(wait_until(both), "the command runs");
        monitor.signal(&id, 9).await.unwrap();
    });
    let ended = pod
        .exec(&container, &TestSpec::new(&["sleep", "1000"]))
        .await;
    ending.await.unwrap();
    match ended {
        Ok(ended) => assert_eq!(ended.exit, ExecExit::Exited { code: 137 }),
        Err(MonitorError::NotRunning(_)) => {}
        Err(other) => panic!("{other:?}"),
    }
    pod.end().await;
}

/// Many at once all come back.
pub(crate) async fn many_at_once_come_back(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    let pod = std::sync::Arc::new(pod);
    let container = std::sync::Arc::new(container);
    let runs: Vec<_> = (0..20)
        .map(|number| {
            let (pod, container) = (pod.clone(), container.clone());
            tokio::spawn(async move {
                let spec = TestSpec::shell(&format!("echo {number}; exit {number}"));
                pod.exec(&container, &spec).await.unwrap()
            })
        })
        .collect();
    for (number, run) in runs.into_iter().enumerate() {
        let ended = run.await.unwrap();
        assert_eq!(
            ended.exit,
            ExecExit::Exited {
                code: i32::try_from(number).unwrap()
            }
        );
        assert_eq!(ended.stdout, format!("{number}\n"));
    }
    drop(container);
    std::sync::Arc::into_inner(pod).unwrap().end().await;
}

/// Output ends with the process, while others still run.
pub(crate) async fn output_ends_with_the_process(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    // The shell closes its output and goes on.
    let spec = TestSpec::shell("echo a; exec >/dev/null 2>&1; sleep 1000");
    let (read, write) = rustix::pipe::pipe().unwrap();
    let running = pod.exec_with(&container, &spec, |request| {
        request.streams = ExecStreams::Pipes {
            stdin: None,
            stdout: rustix::io::dup(&write).unwrap(),
            stderr: write,
        };
    });
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::fs::File::from(read), &mut text).unwrap();
        text
    });
    tokio::select! {
        ended = running => panic!("{ended:?}"),
        text = reading => assert_eq!(text.unwrap(), "a\n"),
    }
    pod.end().await;
}

/// What nobody waits for any more ends with all that it started: the client went
/// away, or the connection did.
pub(crate) async fn unwanted_process_ends(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    // What a launcher had started beside the first process may be about to end.
    let alone = 1;
    assert!(wait_until(|| container.cgroup.pids().len() == alone));
    let spec = TestSpec::shell("setsid sleep 2000 & sleep 3000");
    let running = || container.cgroup.pids().len() >= alone + 2;
    let ended = || container.cgroup.pids().len() == alone;
    {
        let exec = pod.exec(&container, &spec);
        tokio::pin!(exec);
        tokio::select! {
            ended = &mut exec => panic!("{ended:?}"),
            () = until(running) => {}
        }
    }
    assert!(wait_until(ended), "{:?}", container.cgroup.pids());
    let (other, _) = Monitor::connect(&pod.state_dir()).await.unwrap();
    let first = std::mem::replace(&mut pod.monitor, other);
    {
        let exec = pod.exec(&container, &spec);
        tokio::pin!(exec);
        tokio::select! {
            ended = &mut exec => panic!("{ended:?}"),
            () = until(running) => {}
        }
        assert_eq!(super::life::shut_connections(first.pid()), 1);
        let lost = tokio::time::timeout(Duration::from_secs(10), exec).await;
        assert!(matches!(lost, Ok(Err(MonitorError::Lost))), "{lost:?}");
    }
    assert!(wait_until(ended), "{:?}", container.cgroup.pids());
    pod.monitor = first;
    pod.end().await;
}
