//! Life and death of containers.

use std::time::Duration;

use runtime::client::{ContainerState, Event, ExitRecord, Monitor, MonitorError};
use rustix::process::{Pid, Signal};

use crate::support::{Kind, Pod, TestSpec, wait_until};

/// A process that ends on SIGTERM, and says when it is ready to.
fn patient() -> TestSpec {
    TestSpec::shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done")
}

/// Both streams are in the log, the exit is an event and a record.
pub(crate) async fn output_and_exit_code_are_recorded(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = TestSpec::shell("echo out; echo err >&2; printf half; exit 3");
    let container = pod.create(&spec).await;
    let started = pod.start(&container).await;
    let record = pod.exit(&container).await;
    assert_eq!(
        (record.exit_code, record.signal, record.oom_killed),
        (3, None, false)
    );
    assert_eq!(record.started_at, started.started_at);
    assert!(record.finished_at >= record.started_at);
    let mut log = container.log();
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F out", "stdout P half"]);
    assert_eq!(ExitRecord::read_dir(&pod.exit_dir()).unwrap(), [record]);
    pod.end().await;
}

/// Nothing of the container's runs before it is started.
pub(crate) async fn created_container_waits_for_its_start(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = pod.create(&TestSpec::shell("touch /ran")).await;
    let list = pod.monitor.list().await.unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].state, ContainerState::Created);
    assert_eq!(list[0].pid, container.created.pid);
    assert!(!container.upper.join("ran").exists());
    pod.start(&container).await;
    assert_eq!(pod.exit(&container).await.exit_code, 0);
    assert!(container.upper.join("ran").exists());
    pod.end().await;
}

/// Signals reach the first process; SIGKILL is 137, SIGTERM its own choice.
pub(crate) async fn signals_reach_the_first_process(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    for (signal, code, by) in [(15, 7, None), (9, 137, Some(9))] {
        let container = pod.run(&patient()).await;
        container.logged("ready");
        pod.monitor.signal(&container.id, signal).await.unwrap();
        let record = pod.exit(&container).await;
        assert_eq!((record.exit_code, record.signal), (code, by));
        pod.monitor.signal(&container.id, signal).await.unwrap();
        pod.monitor.signal(&container.id, 0).await.unwrap();
    }
    let error = pod.monitor.signal("nobody", 9).await.unwrap_err();
    assert!(matches!(error, MonitorError::UnknownContainer(id) if id == "nobody"));
    let container = pod.run(&patient()).await;
    assert!(pod.monitor.signal(&container.id, 1000).await.is_err());
    pod.end().await;
}

/// Real time signals, systemd's way to be stopped, are sent as well.
pub(crate) async fn real_time_signals_are_sent(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let script = "trap 'exit 9' 37; echo ready; while :; do sleep 0.02; done";
    let container = pod.run(&TestSpec::shell(script)).await;
    container.logged("ready");
    pod.monitor.signal(&container.id, 37).await.unwrap();
    assert_eq!(pod.exit(&container).await.exit_code, 9);
    pod.end().await;
}

/// Deleting kills what was only created, refuses what runs, and is quiet
/// about what is unknown.
pub(crate) async fn delete_follows_the_state(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let created = pod.create(&patient()).await;
    let running = pod.run(&patient()).await;
    let pid = Pid::from_raw(created.created.pid).unwrap();
    pod.monitor.delete(&created.id).await.unwrap();
    assert!(rustix::process::test_kill_process(pid).is_err(), "it lives");
    // A launcher's helper ends a moment later.
    assert!(wait_until(|| created.cgroup.pids().is_empty()));
    let error = pod.monitor.delete(&running.id).await.unwrap_err();
    assert!(
        matches!(error, MonitorError::WrongState { .. }),
        "{error:?}"
    );
    pod.monitor.delete("nobody").await.unwrap();
    pod.monitor.signal(&running.id, 9).await.unwrap();
    let record = pod.exit(&running).await;
    pod.monitor.delete(&running.id).await.unwrap();
    pod.monitor.delete(&running.id).await.unwrap();
    assert!(pod.monitor.list().await.unwrap().is_empty());
    // One that was never started has no exit to record.
    assert_eq!(ExitRecord::read_dir(&pod.exit_dir()).unwrap(), [record]);
    pod.end().await;
}

/// What was killed before its start is an exit of a container that never ran.
pub(crate) async fn killed_before_its_start_is_an_exit(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = pod.create(&patient()).await;
    pod.monitor.signal(&container.id, 9).await.unwrap();
    let record = pod.exit(&container).await;
    assert_eq!((record.exit_code, record.started_at), (137, 0));
    assert!(matches!(
        pod.monitor.start(&container.id).await,
        Err(MonitorError::WrongState { .. })
    ));
    pod.end().await;
}

/// A second container of an id, a second start and an unknown one are errors.
pub(crate) async fn requests_out_of_order_are_refused(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = pod.create(&patient()).await;
    let id = container.id.clone();
    let again = pod.create_with(&patient(), |request| request.id = id).await;
    assert!(matches!(again, Err(MonitorError::Exists(_))));
    assert!(matches!(
        pod.exec(&container, &TestSpec::new(&["true"])).await,
        Err(MonitorError::NotRunning(_))
    ));
    pod.start(&container).await;
    assert!(matches!(
        pod.monitor.start(&container.id).await,
        Err(MonitorError::WrongState { .. })
    ));
    assert!(matches!(
        pod.monitor.start("nobody").await,
        Err(MonitorError::UnknownContainer(_))
    ));
    pod.end().await;
}

/// An engine that comes back finds containers, exits and their times.
pub(crate) async fn engine_that_returns_finds_everything(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let running = pod.run(&patient()).await;
    let short = pod.create(&TestSpec::shell("exit 5")).await;
    let pid = pod.monitor.pid();
    // A second engine while the first is there, then instead of it.
    let (second, events) = Monitor::connect(&pod.state_dir()).await.unwrap();
    assert_eq!(second.pid(), pid);
    pod.monitor = second;
    pod.events = events;
    pod.start(&short).await;
    let record = pod.exit(&short).await;
    assert_eq!(
        ExitRecord::read_dir(&pod.exit_dir()).unwrap(),
        std::slice::from_ref(&record)
    );
    let (third, events) = Monitor::connect(&pod.state_dir()).await.unwrap();
    pod.monitor = third;
    pod.events = events;
    let list = pod.monitor.list().await.unwrap();
    assert!(matches!(list[0].state, ContainerState::Running { started_at } if started_at > 0));
    assert_eq!(list[1].state, ContainerState::Exited(record));
    pod.monitor.signal(&running.id, 15).await.unwrap();
    assert_eq!(pod.exit(&running).await.exit_code, 7);
    pod.end().await;
}

/// A start that is under way when its engine dies is reported as such to the next
/// one, which is told its end.
pub(crate) async fn start_whose_engine_died_is_told(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let good = pod.create(&patient()).await;
    let bad = pod.create(&TestSpec::new(&["/nothing"])).await;
    let pid =
        |container: &crate::support::TestContainer| Pid::from_raw(container.created.pid).unwrap();
    for container in [&good, &bad] {
        rustix::process::kill_process(pid(container), Signal::STOP).unwrap();
        let (engine, _) = Monitor::connect(&pod.state_dir()).await.unwrap();
        let start = engine.start(&container.id);
        let soon = Duration::from_millis(200);
        assert!(tokio::time::timeout(soon, start).await.is_err());
    }
    let (next, events) = Monitor::connect(&pod.state_dir()).await.unwrap();
    for report in next.list().await.unwrap() {
        assert_eq!(report.state, ContainerState::Starting);
        assert!(report.pid > 0);
    }
    pod.events = events;
    for container in [&good, &bad] {
        rustix::process::kill_process(pid(container), Signal::CONT).unwrap();
    }
    let mut told = [false; 3];
    while told != [true; 3] {
        match pod.event().await {
            Event::StartEnded {
                container,
                outcome: Ok(at),
            } => told[0] |= container == good.id && at > 0,
            Event::StartEnded {
                container,
                outcome: Err(message),
            } => told[1] |= container == bad.id && message.contains("/nothing"),
            Event::Exited(record) => told[2] |= record.container == bad.id,
            other => panic!("{other:?}"),
        }
    }
    let state = &next.list().await.unwrap()[0].state;
    assert!(matches!(state, ContainerState::Running { .. }), "{state:?}");
    good.logged("ready");
    pod.monitor.signal(&good.id, 15).await.unwrap();
    pod.exit(&good).await;
    pod.end().await;
}

/// A monitor that is frozen keeps nobody waiting, and is not taken for dead.
pub(crate) async fn frozen_monitor_keeps_nobody_waiting(launcher: Kind) {
    let pod = Pod::new(launcher).await;
    let process = Pid::from_raw(pod.monitor.pid()).unwrap();
    rustix::process::kill_process(process, Signal::STOP).unwrap();
    let state_dir = pod.state_dir();
    let begun = std::time::Instant::now();
    let (connect, list, shutdown) = tokio::join!(
        async { (Monitor::connect(&state_dir).await, begun.elapsed()) },
        async {
            (
                pod.monitor.list().await.unwrap_err(),
                begun.elapsed().as_secs(),
            )
        },
        async {
            (
                pod.monitor.shutdown().await.unwrap_err(),
                begun.elapsed().as_secs(),
            )
        },
    );
    rustix::process::kill_process(process, Signal::CONT).unwrap();
    assert!(!connect.0.unwrap_err().is_absent());
    assert!(connect.1.as_secs() < 5, "{:?}", connect.1);
    assert!(matches!(list, (MonitorError::Timeout(_), 5..8)));
    assert!(matches!(shutdown, (MonitorError::Timeout(_), 10..13)));
    pod.end().await;
}

/// A monitor that is silent is asked again until it answers; only one whose process
/// has ended is gone.
pub(crate) async fn silent_monitor_is_not_gone(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = pod.run(&patient()).await;
    let process = Pid::from_raw(pod.monitor.pid()).unwrap();
    rustix::process::kill_process(process, Signal::STOP).unwrap();
    let state_dir = pod.state_dir();
    let reaching = Monitor::reach(&state_dir);
    tokio::pin!(reaching);
    let long = Duration::from_secs(6);
    assert!(tokio::time::timeout(long, &mut reaching).await.is_err());
    assert!(!pod.monitor.is_gone());
    rustix::process::kill_process(process, Signal::CONT).unwrap();
    let reached = reaching.await.unwrap();
    assert_eq!(reached.containers[0].id, container.id);
    // A frozen one that dies is gone at once, although it never closed its socket.
    rustix::process::kill_process(process, Signal::STOP).unwrap();
    let reaching = Monitor::reach(&state_dir);
    tokio::pin!(reaching);
    let moment = Duration::from_millis(300);
    assert!(tokio::time::timeout(moment, &mut reaching).await.is_err());
    rustix::process::kill_process(process, Signal::KILL).unwrap();
    let gone = tokio::time::timeout(long, reaching).await.unwrap();
    assert_eq!(gone.unwrap_err(), runtime::client::Gone);
    assert_eq!(pod.event().await, Event::Gone);
    assert!(pod.monitor.is_gone());
}

/// Somebody else may hold a dead monitor's socket open: that proves no life.
pub(crate) async fn a_socket_that_accepts_proves_no_life(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let process = Pid::from_raw(pod.monitor.pid()).unwrap();
    let pidfd = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).unwrap();
    let held: Vec<_> = (3..32)
        .filter_map(|number| {
            let flags = rustix::process::PidfdGetfdFlags::empty();
            rustix::process::pidfd_getfd(&pidfd, number, flags).ok()
        })
        .collect();
    rustix::process::kill_process(process, Signal::KILL).unwrap();
    assert_eq!(pod.event().await, Event::Gone);
    let state_dir = pod.state_dir();
    let gone = tokio::time::timeout(Duration::from_secs(5), Monitor::reach(&state_dir));
    assert_eq!(gone.await.unwrap().unwrap_err(), runtime::client::Gone);
    assert!(!held.is_empty());
}

/// A connection that breaks while the monitor lives comes back by itself, and an
/// exit that happened meanwhile is told.
pub(crate) async fn broken_connection_comes_back(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = pod.run(&patient()).await;
    container.logged("ready");
    let (second, events) = Monitor::connect(&pod.state_dir()).await.unwrap();
    assert_eq!(shut_connections(second.pid()), 1);
    let first = std::mem::replace(&mut pod.monitor, second);
    pod.events = events;
    first.signal(&container.id, 15).await.unwrap();
    assert_eq!(pod.exit(&container).await.exit_code, 7);
    assert!(!pod.monitor.is_gone());
    assert_eq!(pod.monitor.list().await.unwrap().len(), 1);
    pod.end().await;
}

/// Shuts this process's sockets that are connected to a process.
pub(super) fn shut_connections(peer: i32) -> usize {
    let own = rustix::process::getpid();
    let own = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
    let shut = |number: &i32| {
        let flags = rustix::process::PidfdGetfdFlags::empty();
        let Ok(fd) = rustix::process::pidfd_getfd(&own, *number, flags) else {
            return false;
        };
        let is_it = rustix::net::sockopt::socket_peercred(&fd)
            .is_ok_and(|credentials| credentials.pid.as_raw_nonzero().get() == peer);
        is_it && rustix::net::shutdown(&fd, rustix::net::Shutdown::Both).is_ok()
    };
    (3..4096).filter(shut).count()
}

/// A monitor that dies is reported, and who waits for it learns that.
pub(crate) async fn dead_monitor_is_reported(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let created = pod.create(&patient()).await;
    let running = pod.run(&patient()).await;
    let waiting = {
        let monitor = pod.monitor.clone();
        let (stdout, _) = rustix::pipe::pipe().unwrap();
        let request = runtime::client::ExecProcess {
            container: running.id.clone(),
            process: TestSpec::new(&["sleep", "1000"]).process(),
            streams: runtime::client::ExecStreams::Pipes {
                stdin: None,
                stderr: rustix::io::dup(&stdout).unwrap(),
                stdout,
            },
            streaming: false,
            timeout: None,
            cgroup_files: running.cgroup.files_to_join(),
        };
        tokio::spawn(async move { monitor.exec(request).await })
    };
    // First process, shell's child or two, and the process that was run.
    assert!(wait_until(|| running.cgroup.pids().len() >= 2));
    let monitor = Pid::from_raw(pod.monitor.pid()).unwrap();
    rustix::process::kill_process(monitor, Signal::KILL).unwrap();
    assert_eq!(pod.event().await, Event::Gone);
    assert!(matches!(waiting.await.unwrap(), Err(MonitorError::Gone)));
    assert!(matches!(pod.monitor.list().await, Err(MonitorError::Gone)));
    pod.monitor.shutdown().await.unwrap();
    // Where an OCI runtime has it wait nobody sees the monitor's end: it is the
    // engine's to end then.
    let in_sight = !matches!(launcher, Kind::Runc | Kind::Crun);
    assert!(
        !in_sight || wait_until(|| created.cgroup.pids().is_empty()),
        "it waits for ever"
    );
    assert!(
        !running.cgroup.pids().is_empty(),
        "running containers are the engine's to end"
    );
}

/// Several containers are made at the same time.
pub(crate) async fn creations_do_not_wait_for_each_other(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let mut requests = Vec::new();
    let mut cgroups = Vec::new();
    for _ in 0..4 {
        let (request, cgroup, _) = pod.request(&TestSpec::shell("exit 0"));
        requests.push(request);
        cgroups.push(cgroup);
    }
    let ids: Vec<_> = requests.iter().map(|request| request.id.clone()).collect();
    let creations: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let monitor = pod.monitor.clone();
            tokio::spawn(async move { monitor.create(request).await })
        })
        .collect();
    for creation in creations {
        creation.await.unwrap().unwrap();
    }
    for id in &ids {
        pod.monitor.start(id).await.unwrap();
    }
    let mut exited = Vec::new();
    while exited.len() < ids.len() {
        let Event::Exited(record) = pod.event().await else {
            panic!("the monitor died")
        };
        assert_eq!(record.exit_code, 0);
        exited.push(record.container);
    }
    exited.sort();
    assert_eq!(exited, ids);
    pod.end().await;
}

/// A shutdown takes everything along, whatever its state.
pub(crate) async fn shutdown_leaves_nothing(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let created = pod.create(&patient()).await;
    let running = pod
        .run(&TestSpec::shell("trap '' TERM; sleep 1000 & wait"))
        .await;
    let (request, cgroup, _) = pod.request(&patient());
    let launching = {
        let monitor = pod.monitor.clone();
        tokio::spawn(async move { monitor.create(request).await })
    };
    pod.end().await;
    assert!(launching.await.unwrap().is_err_and(|error| {
        matches!(
            error,
            MonitorError::Gone | MonitorError::Launch { .. } | MonitorError::Protocol(_)
        )
    }));
    for cgroup in [&created.cgroup, &running.cgroup, &cgroup] {
        assert!(
            wait_until(|| cgroup.pids().is_empty()),
            "processes are left"
        );
    }
}

/// A launcher that hangs keeps neither its container's deletion waiting nor
/// anything else.
pub(crate) async fn launch_that_hangs_can_be_deleted(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let (mut request, cgroup, _) = pod.request(&patient());
    // Nobody ever reads this: whoever joins waits for ever.
    let dir = pod.scratch().join("cgroup");
    std::fs::create_dir(&dir).unwrap();
    let pipe = dir.join("tasks");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    request.cgroup_files.push(pipe);
    let id = request.id.clone();
    let monitor = pod.monitor.clone();
    let creating = tokio::spawn(async move { monitor.create(request).await });
    assert!(wait_until(|| !cgroup.pids().is_empty()));
    let (record, _) = pod.outcome(&TestSpec::shell("exit 3")).await;
    assert_eq!(record.exit_code, 3);
    let list = pod.monitor.list().await.unwrap();
    assert_eq!(
        (list[0].state.clone(), list[0].pid),
        (ContainerState::Created, 0)
    );
    pod.monitor.delete(&id).await.unwrap();
    let (step, message, _) = super::launch_error(creating.await.unwrap());
    assert_eq!(
        (step.as_str(), message.as_str()),
        ("create", "it was deleted")
    );
    assert!(wait_until(|| cgroup.pids().is_empty()));
    assert!(pod.monitor.list().await.unwrap().is_empty());
    pod.end().await;
}

/// A start is answered once the container ended, even where somebody else still
/// holds copies of what its first process waited at.
pub(crate) async fn start_is_answered_whoever_holds_the_gate(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = pod.create(&TestSpec::shell("exit 4")).await;
    let copies = gate_of(container.created.pid);
    assert!(!copies.is_empty());
    let start = pod.monitor.start(&container.id);
    let started = tokio::time::timeout(Duration::from_secs(30), start).await;
    started.expect("an answer").unwrap();
    let record = pod.exit(&container).await;
    assert_eq!(record.exit_code, 4);
    // Its start was learnt by its end.
    assert!(record.finished_at >= record.started_at);
    drop(copies);
    pod.end().await;
}

/// A program that has begun runs, whoever holds what its process waited at.
pub(crate) async fn a_program_is_told_to_run_whoever_holds_the_gate(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = pod.create(&TestSpec::new(&["sleep", "1000"])).await;
    let copies = gate_of(container.created.pid);
    let start = pod.monitor.start(&container.id);
    let started = tokio::time::timeout(Duration::from_secs(30), start).await;
    started.expect("an answer").unwrap();
    let list = pod.monitor.list().await.unwrap();
    assert!(matches!(list[0].state, ContainerState::Running { .. }));
    drop(copies);
    pod.end().await;
}

/// A process that somebody stops before it becomes its program is ended, and its start
/// has failed.
pub(crate) async fn a_start_that_is_held_up_fails(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = pod.create(&TestSpec::new(&["sleep", "1000"])).await;
    let pid = Pid::from_raw(container.created.pid).unwrap();
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    let start = pod
        .monitor
        .start_within(&container.id, Duration::from_millis(400));
    let started = tokio::time::timeout(Duration::from_secs(30), start).await;
    let (step, message, _) = super::launch_error(started.expect("an answer"));
    let expected = ("start", "its program did not begin in time");
    assert_eq!((step.as_str(), message.as_str()), expected);
    let record = pod.exit(&container).await;
    assert_eq!((record.exit_code, record.started_at), (137, 0));
    pod.end().await;
}

/// Whoever traces the process may write words into its pipe: then it ends, as was said.
pub(crate) async fn a_start_that_is_said_to_have_failed_ends(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = pod.create(&TestSpec::new(&["sleep", "1000"])).await;
    let words = gate_of(container.created.pid);
    let written = words
        .iter()
        .filter(|fd| rustix::io::write(fd, b"ea lie").is_ok());
    assert!(written.count() > 0);
    let start = pod.monitor.start(&container.id);
    let started = tokio::time::timeout(Duration::from_secs(30), start).await;
    let (step, message, _) = super::launch_error(started.expect("an answer"));
    assert_eq!((step.as_str(), message.as_str()), ("start", "a lie"));
    let list = pod.monitor.list().await.unwrap();
    assert!(matches!(list[0].state, ContainerState::Exited(_)));
    pod.end().await;
}

/// Copies of all descriptors of a process but its streams.
pub(crate) fn gate_of(pid: i32) -> Vec<std::os::fd::OwnedFd> {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let number = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.unwrap().file_name();
        name.to_str().unwrap().parse::<i32>().unwrap()
    };
    let numbers = entries.map(number).filter(|number| *number > 2);
    let copy = |number| pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).unwrap();
    numbers.map(copy).collect()
}
