//! A monitor that goes on as another build, in place: whoever launches.

use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtime::client::{
    ContainerState, Event, ExecExit, ExitRecord, MonitorBinaries, MonitorError, MonitorPool,
    Upgraded,
};

use runtime::protocol::{
    self, Body, ContainerName, Envelope, Failure, FailureKind, HANDOVER_VERSION,
    HANDOVER_WITHOUT_USER_NAMESPACE, Received, Upgrade,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::clients::{attached, code, piped};
use super::pods::{in_pid_namespace, shared};
use super::stdout;
use crate::support::{
    FullDisk, IDS, Kind, Pod, PodOptions, StallingDisk, TestSpec, monitor_dir, until, wait_until,
};

/// The same executables in another build: what follows an ELF file's end means
/// nothing, but other bytes are another build.
fn another_build(dir: &Path, mark: &str) -> Arc<MonitorBinaries> {
    let dir = dir.join(mark);
    std::fs::create_dir(&dir).unwrap();
    for name in ["slipway-monitor", "slipway-libcontainer"] {
        let copy = dir.join(name);
        std::fs::copy(monitor_dir().join(name), &copy).unwrap();
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(&copy)
            .unwrap();
        file.write_all(mark.as_bytes()).unwrap();
    }
    Arc::new(MonitorBinaries::load(&dir).unwrap())
}

/// Upgrades, however often something is under way.
async fn upgrade(pod: &Pod, build: &Arc<MonitorBinaries>) {
    let pool = MonitorPool::new(Arc::clone(build), 0..=0);
    let end = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        match pool.upgrade(&pod.monitor).await {
            Ok(upgraded) => return assert_eq!(upgraded, Upgraded::Done),
            Err(MonitorError::WrongState { .. }) => {
                assert!(std::time::Instant::now() < end);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// The executable that a process runs, by the name of its memfd and its inode.
fn program(pid: i32) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata(format!("/proc/{pid}/exe")).unwrap();
    (file.dev(), file.ino())
}

/// A container runs on, and its log, exec, stop and exit code go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_on_across_an_upgrade() {
    let mut pod = Pod::new(Kind::Native).await;
    let script = "trap 'exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); \
                  [ $((i % 100)) != 0 ] || sleep 0.01; done";
    let loud = pod.run(&TestSpec::shell(script)).await;
    let created = pod.create(&TestSpec::shell("echo late; exit 4")).await;
    let ended = pod.run(&TestSpec::shell("echo done; exit 3")).await;
    assert_eq!(pod.exit(&ended).await.exit_code, 3);
    loud.logged("F 100");
    let pid = pod.monitor.pid();
    let mut programs = vec![program(pid)];
    for round in 0..5 {
        let build = another_build(pod.scratch(), &format!("round{round}"));
        upgrade(&pod, &build).await;
        programs.push(program(pid));
        let pool = MonitorPool::new(build, 0..=0);
        let again = pool.upgrade(&pod.monitor).await.unwrap();
        assert_eq!(again, Upgraded::NotNeeded);
        let echo = TestSpec::new(&["echo", "alive"]);
        assert_eq!(pod.exec(&loud, &echo).await.unwrap().stdout, "alive\n");
    }
    programs.dedup();
    assert_eq!(programs.len(), 6, "each was another program");
    let states: Vec<_> = pod.monitor.list().await.unwrap();
    assert!(matches!(states[0].state, ContainerState::Running { started_at } if started_at > 0));
    assert_eq!(states[1].state, ContainerState::Created);
    assert!(matches!(&states[2].state, ContainerState::Exited(record) if record.exit_code == 3));
    // An engine that comes later finds the socket.
    let (other, _) = runtime::client::Monitor::connect(&pod.state_dir())
        .await
        .unwrap();
    assert_eq!(other.pid(), pid);
    drop(other);
    pod.start(&created).await;
    assert_eq!(pod.exit(&created).await.exit_code, 4);
    assert_eq!(created.log(), ["stdout F late"]);
    pod.monitor.signal(&loud.id, 15).await.unwrap();
    assert_eq!(pod.exit(&loud).await.exit_code, 7);
    for (number, line) in loud.log().iter().enumerate() {
        assert_eq!(line, &format!("stdout F {number}"), "lost or doubled");
    }
    let fresh = pod.run(&TestSpec::shell("exit 9")).await;
    assert_eq!(pod.exit(&fresh).await.exit_code, 9);
    for container in [&loud, &created, &ended, &fresh] {
        pod.monitor.delete(&container.id).await.unwrap();
    }
    pod.end().await;
}

/// Containers are made among a pod's shared processes after an upgrade as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_are_shared_across_an_upgrade() {
    for kind in [Kind::Native, Kind::Inside] {
        let mut pod = shared(kind).await;
        let init = pod.ready.init_pid.unwrap();
        let spec = in_pid_namespace(init, "cat /proc/1/comm");
        let before = pod.outcome(&spec).await;
        upgrade(&pod, &another_build(pod.scratch(), "other")).await;
        assert_eq!(stdout(pod.outcome(&spec).await), stdout(before));
        pod.end().await;
    }
}

/// What is made after an upgrade is in the pod's user namespace as before, and a build that
/// knows none does not go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_namespace_goes_on_across_an_upgrade() {
    let mut pod = Pod::new(Kind::Inside).await;
    let container = pod.run(&TestSpec::shell("sleep 30")).await;
    let order = Upgrade {
        executable: Some(0),
        launcher_fd: None,
        build: "older".to_owned(),
        reads: HANDOVER_VERSION - 1,
    };
    let program = std::fs::File::open("/proc/self/exe").unwrap();
    let failure = refused(&pod, Body::Upgrade(order), 0, &[program.as_fd()]);
    assert_eq!(failure.kind(), FailureKind::Unsupported, "{failure:?}");
    let map = TestSpec::shell("cat /proc/self/uid_map");
    let before = pod.exec(&container, &map).await.unwrap().stdout;
    let first = before.split_whitespace().nth(1);
    assert_eq!(first, Some(IDS.0.to_string().as_str()));
    for build in ["one", "other"] {
        upgrade(&pod, &another_build(pod.scratch(), build)).await;
        assert_eq!(pod.exec(&container, &map).await.unwrap().stdout, before);
        assert_eq!(stdout(pod.outcome(&map).await), before.trim_end());
    }
    pod.monitor.signal(&container.id, 9).await.unwrap();
    pod.exit(&container).await;
    pod.end().await;
}

/// A terminal and a line whose end is still to come go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminal_and_half_a_line_go_on_across_an_upgrade() {
    let mut pod = Pod::new(Kind::Native).await;
    let script = "printf half; sleep 2; echo ' whole'; exec <&- >&- 2>&-; sleep 1; \
                  echo again >/dev/pts/0; exit 5";
    let terminal = pod
        .create_with(&TestSpec::shell(script), |request| {
            request.spec.process.terminal = true
        })
        .await
        .unwrap();
    let script = "printf one; printf first >&2; sleep 2; echo ' two'; exit 6";
    let plain = pod.create(&TestSpec::shell(script)).await;
    for container in [&terminal, &plain] {
        pod.start(container).await;
        let pid = container.created.pid;
        let children = move || {
            let path = format!("/proc/{pid}/task/{pid}/children");
            std::fs::read_to_string(path).is_ok_and(|text| !text.is_empty())
        };
        assert!(wait_until(children), "it wrote and sleeps");
    }
    upgrade(&pod, &another_build(pod.scratch(), "other")).await;
    assert_eq!(pod.exit(&terminal).await.exit_code, 5);
    assert_eq!(
        terminal.log(),
        ["stdout F half whole\r", "stdout F again\r"]
    );
    wait_until(|| plain.log().len() == 2);
    let mut log = plain.log();
    log.sort();
    assert_eq!(log, ["stderr P first", "stdout F one two"]);
    let states = pod.monitor.list().await.unwrap();
    assert!(matches!(&states[1].state, ContainerState::Exited(record) if record.exit_code == 6));
    pod.end().await;
}

/// Containers are made as before, by the helper of the new build too, and the pod's
/// own init goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_are_made_after_an_upgrade() {
    for launcher in [Kind::Libcontainer, Kind::Native] {
        let mut pod = Pod::with(PodOptions {
            shared_pid: true,
            ..PodOptions::new(launcher)
        })
        .await;
        let init = pod.ready.init_pid.unwrap();
        upgrade(&pod, &another_build(pod.scratch(), "other")).await;
        assert!(Path::new(&format!("/proc/{init}")).exists());
        let (record, log) = pod.outcome(&TestSpec::shell("echo made; exit 3")).await;
        assert_eq!(
            (record.exit_code, log),
            (3, vec!["stdout F made".to_owned()])
        );
        pod.end().await;
        assert!(!Path::new(&format!("/proc/{init}")).exists());
    }
}

/// A process that is run goes on, with its output, its end and its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_execs_go_on_across_an_upgrade() {
    let mut pod = Pod::new(Kind::Native).await;
    let container = pod.run(&TestSpec::new(&["sleep", "1000"])).await;
    let alone = container.cgroup.pids().len();
    let build = another_build(pod.scratch(), "other");
    let waiting = TestSpec::shell("while [ ! -e /go ]; do sleep 0.05; done; echo went; exit 8");
    let endless = TestSpec::new(&["sleep", "1000"]);
    let go = TestSpec::new(&["touch", "/go"]);
    let (first, second, ()) = tokio::join!(
        pod.exec(&container, &waiting),
        pod.exec_with(&container, &endless, |request| {
            request.timeout = Some(Duration::from_secs(8));
        }),
        async {
            until(|| container.cgroup.pids().len() >= alone + 2).await;
            upgrade(&pod, &build).await;
            pod.exec(&container, &go).await.unwrap();
        },
    );
    let first = first.unwrap();
    assert_eq!(first.exit, ExecExit::Exited { code: 8 });
    assert_eq!(first.stdout, "went\n");
    assert_eq!(second.unwrap().exit, ExecExit::TimedOut);
    pod.end().await;
}

/// Clients read and write as before, of commands and of containers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_go_on_across_an_upgrade() {
    let mut pod = Pod::new(Kind::Native).await;
    let spec = TestSpec::shell("while read line; do echo got $line; done; echo end; exit 6");
    let container = pod
        .create_with(&spec, |request| {
            request.stdin = true;
            request.stdin_once = true;
        })
        .await
        .unwrap();
    pod.start(&container).await;
    let (out, mut input) = attached(&pod, &container).await;
    let (ended, mut typed, said, _err) = piped(&pod, &container, "cat; exit 5");
    input.write_all(b"one\n").unwrap();
    typed.write_all(b"before\n").unwrap();
    out.until("got one\n");
    said.until("before\n");
    upgrade(&pod, &another_build(pod.scratch(), "other")).await;
    input.write_all(b"two\n").unwrap();
    typed.write_all(b"after\n").unwrap();
    out.until("got two\n");
    said.until("after\n");
    drop(typed);
    assert_eq!(code(ended).await, 5);
    // The container ends with its input, and would take the command along.
    drop(input);
    assert_eq!(out.rest(), "end\n");
    assert_eq!(pod.exit(&container).await.exit_code, 6);
    pod.end().await;
}

/// A build that does not start changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_upgrade_leaves_the_former_build() {
    let mut pod = Pod::new(Kind::Native).await;
    let container = pod
        .run(&TestSpec::shell(
            "trap 'exit 7' TERM; while :; do sleep 0.02; done",
        ))
        .await;
    let pid = pod.monitor.pid();
    let before = program(pid);
    let descriptors = || {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count()
    };
    let count = descriptors();
    let order = |reads| Upgrade {
        executable: Some(0),
        launcher_fd: None,
        build: "broken".to_owned(),
        reads,
    };
    let older = HANDOVER_WITHOUT_USER_NAMESPACE - 1;
    let fails = ["/bin/false", "/usr/bin/false"];
    let fails = fails.iter().find(|path| Path::new(path).exists()).unwrap();
    for (path, reads, kind) in [
        (*fails, HANDOVER_VERSION, FailureKind::Internal),
        ("/etc/passwd", HANDOVER_VERSION, FailureKind::Internal),
        (*fails, older, FailureKind::Unsupported),
    ] {
        let program = std::fs::File::open(path).unwrap();
        let failure = refused(&pod, Body::Upgrade(order(reads)), 0, &[program.as_fd()]);
        assert_eq!(failure.kind(), kind, "{failure:?}");
    }
    assert_eq!(program(pid), before);
    assert!(wait_until(|| descriptors() == count));
    let echo = TestSpec::new(&["echo", "alive"]);
    assert_eq!(pod.exec(&container, &echo).await.unwrap().stdout, "alive\n");
    pod.monitor.signal(&container.id, 15).await.unwrap();
    assert_eq!(pod.exit(&container).await.exit_code, 7);
    pod.end().await;
}

/// Sends a request as an engine would, and gives the refusal.
fn refused(pod: &Pod, body: Body, requires: u64, fds: &[BorrowedFd<'_>]) -> Failure {
    let directory = std::fs::File::open(pod.state_dir()).unwrap();
    let path = format!("/proc/self/fd/{}/monitor.sock", directory.as_raw_fd());
    let flags = SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let order = Envelope {
        version: protocol::VERSION,
        request: 5,
        requires,
        body: Some(body),
        ..Envelope::default()
    };
    assert!(protocol::send(socket.as_fd(), &order, fds).unwrap());
    let Received::Packet(answer) = protocol::receive(socket.as_fd()).unwrap() else {
        panic!("no answer");
    };
    match answer.envelope.body {
        Some(Body::Failure(failure)) => *failure,
        other => panic!("{other:?}"),
    }
}

/// What a request needs is checked: a monitor that lacks it refuses by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_features_are_refused_by_name() {
    let pod = Pod::new(Kind::Native).await;
    let order = Body::Delete(ContainerName { id: "x".into() });
    let failure = refused(&pod, order, 1 << 63, &[]);
    assert_eq!(failure.kind(), FailureKind::Unsupported);
    assert_eq!(failure.subject, "feature 63");
    pod.end().await;
}

/// A log whose disk stalls goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_log_goes_on_across_an_upgrade() {
    let Some(mut disk) = StallingDisk::new() else {
        return;
    };
    let mut pod = Pod::new(Kind::Native).await;
    let log = disk.path().join("0.log");
    let container = pod
        .create_with(
            &TestSpec::shell("seq 0 9; sleep 1; seq 10 199999"),
            |request| {
                request.log_path = Some(log.clone());
            },
        )
        .await
        .unwrap();
    pod.start(&container).await;
    container.logged("F 9");
    disk.freeze();
    let stalled = pod.event().await;
    assert!(
        matches!(stalled, Event::Log { stalled: true, .. }),
        "{stalled:?}"
    );
    let build = another_build(pod.scratch(), "other");
    upgrade(&pod, &build).await;
    disk.thaw();
    assert_eq!(pod.exit(&container).await.exit_code, 0);
    let text = std::fs::read_to_string(&log).unwrap();
    let numbers = text.lines().map(|line| line.rsplit_once(' ').unwrap().1);
    let numbers = numbers.map(|number| number.parse::<u64>().unwrap());
    assert!(numbers.eq(0..200_000));
    pod.end().await;
}

/// An exit that met a full disk is written down by the build that goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unwritten_exit_is_written_after_an_upgrade() {
    let mut pod = Pod::new(Kind::Native).await;
    let disk = FullDisk::at(pod.exit_dir());
    let container = pod.run(&TestSpec::shell("sleep 1; exit 7")).await;
    disk.fill();
    let told = pod.exit(&container).await;
    let build = another_build(pod.scratch(), "other");
    upgrade(&pod, &build).await;
    disk.empty();
    let written = || ExitRecord::read_dir(&pod.exit_dir()).unwrap() == [told.clone()];
    assert!(wait_until(written), "{:?}", disk.names());
    drop(disk);
    pod.end().await;
}
