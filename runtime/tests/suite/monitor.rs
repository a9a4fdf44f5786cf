//! What a monitor must do whoever launches: the protocol, seen from below the
//! client.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use runtime::client::MonitorPool;
use runtime::launcher::{open_directory, socket_path};
use runtime::protocol::{
    self, Body, ContainerName, Create, Empty, Envelope, Exec, Failure, FailureKind, Hello, Process,
    Received, Setup, Signal, Start, StreamSlots, VERSION, monotonic_now,
};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::support::{Kind, Pod, TestSpec, monitor_binaries, monitor_dir, wait_until};

/// A connection without a client behind it.
struct Raw(OwnedFd);

impl Raw {
    fn pair() -> (Self, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .unwrap();
        (Self(ours), theirs)
    }

    fn connect(state_dir: &Path) -> Self {
        let directory = open_directory(state_dir).unwrap();
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .unwrap();
        let address = SocketAddrUnix::new(socket_path(directory.as_fd())).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        Self(socket)
    }

    fn send(&self, envelope: &Envelope, fds: &[BorrowedFd<'_>]) {
        assert!(protocol::send(self.0.as_fd(), envelope, fds).unwrap());
    }

    fn receive(&self) -> Option<Envelope> {
        let mut wanted = [PollFd::new(&self.0, PollFlags::IN)];
        let limit = rustix::time::Timespec {
            tv_sec: 30,
            tv_nsec: 0,
        };
        assert_eq!(
            rustix::event::poll(&mut wanted, Some(&limit)),
            Ok(1),
            "no answer"
        );
        match protocol::receive(self.0.as_fd()).unwrap() {
            Received::Packet(incoming) => Some(incoming.envelope),
            Received::Closed => None,
            Received::Nothing => panic!("nothing after poll"),
        }
    }

    fn ask_with(&self, body: Body, fds: &[BorrowedFd<'_>]) -> Body {
        self.send(&envelope(VERSION, Some(body)), fds);
        self.receive().unwrap().body.unwrap()
    }

    fn ask(&self, body: Body) -> Body {
        self.ask_with(body, &[])
    }

    fn refused(&self, body: Body) -> Failure {
        match self.ask(body) {
            Body::Failure(failure) => *failure,
            other => panic!("{other:?}"),
        }
    }
}

fn envelope(version: u32, body: Option<Body>) -> Envelope {
    Envelope {
        version,
        request: 7,
        sent_at: monotonic_now(),
        body,
        ..Envelope::default()
    }
}

fn name(id: &str) -> ContainerName {
    ContainerName { id: id.to_owned() }
}

/// An idle monitor that nobody set up, and its process.
fn idle() -> (Raw, Child) {
    let (ours, theirs) = Raw::pair();
    let child = Command::new(monitor_dir().join("slipway-monitor"))
        .stdin(Stdio::from(theirs))
        .spawn()
        .unwrap();
    (ours, child)
}

/// An idle monitor ends with its engine.
#[test]
fn idle_monitor_ends_when_its_socket_closes() {
    let (raw, mut child) = idle();
    assert!(matches!(
        raw.ask(Body::Hello(Hello::default())),
        Body::Welcome(_)
    ));
    assert!(child.try_wait().unwrap().is_none());
    drop(raw);
    assert!(wait_until(|| child.try_wait().unwrap().is_some()));
    assert!(child.wait().unwrap().success());
}

/// Neighbours in version are understood, others are told both versions.
#[test]
fn version_is_checked_in_every_message() {
    let (raw, mut child) = idle();
    for (version, understood) in [
        (VERSION, true),
        (VERSION + 1, true),
        (VERSION + 2, false),
        (0, false),
    ] {
        raw.send(&envelope(version, Some(Body::Hello(Hello::default()))), &[]);
        let answer = raw.receive().unwrap();
        assert_eq!((answer.version, answer.request), (VERSION, 7));
        match answer.body.unwrap() {
            Body::Welcome(_) => assert!(understood),
            Body::Failure(failure) => {
                assert!(!understood);
                assert_eq!(failure.kind(), FailureKind::Protocol);
                assert!(
                    failure.message.contains(&VERSION.to_string()),
                    "{}",
                    failure.message
                );
                assert!(
                    failure.message.contains(&version.to_string()),
                    "{}",
                    failure.message
                );
            }
            other => panic!("{other:?}"),
        }
    }
    drop(raw);
    child.wait().unwrap();
}

/// Without a pod there are no containers; with one there is no second setup.
#[test]
fn requests_at_the_wrong_time_are_refused() {
    let (raw, mut child) = idle();
    raw.send(&envelope(VERSION, None), &[]);
    assert!(matches!(
        raw.receive().unwrap().body,
        Some(Body::Failure(_))
    ));
    let start = Start {
        id: "a".into(),
        timeout: 0,
    };
    let kinds = [
        (
            Body::Create(Box::new(Create {
                id: "a".into(),
                launcher: 1,
                ..Create::default()
            })),
            FailureKind::Protocol,
        ),
        (Body::Create(Box::default()), FailureKind::Exists),
        (Body::Start(start), FailureKind::UnknownContainer),
        (
            Body::Exec(Box::new(Exec {
                id: "a".into(),
                ..Exec::default()
            })),
            FailureKind::UnknownContainer,
        ),
        (
            Body::Signal(Signal {
                id: "a".into(),
                signal: 9,
            }),
            FailureKind::UnknownContainer,
        ),
        (
            Body::Welcome(protocol::Welcome::default()),
            FailureKind::Protocol,
        ),
        (
            Body::Setup(Box::new(Setup {
                state_dir: b"/nothing".to_vec(),
                ..Setup::default()
            })),
            FailureKind::Setup,
        ),
        (Body::Setup(Box::default()), FailureKind::Exists),
    ];
    for (body, kind) in kinds {
        let what = format!("{body:?}");
        assert_eq!(raw.refused(body).kind(), kind, "{what}");
    }
    assert!(matches!(raw.ask(Body::Delete(name("a"))), Body::Done(_)));
    assert!(
        matches!(raw.ask(Body::List(Empty {})), Body::Containers(list) if list.containers.is_empty())
    );
    assert!(matches!(raw.ask(Body::Shutdown(Empty {})), Body::Done(_)));
    assert!(raw.receive().is_none());
    assert!(child.wait().unwrap().success());
}

/// What cannot be read ends its connection, and no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_its_own_connection_only() {
    let pod = Pod::new(Kind::Libcontainer).await;
    for garbage in [vec![0xff; 100], vec![0; 40_000]] {
        let raw = Raw::connect(&pod.state_dir());
        rustix::net::send(&raw.0, &garbage, rustix::net::SendFlags::empty()).unwrap();
        assert!(raw.receive().is_none());
    }
    let lie = Envelope {
        spilled: 1 << 40,
        ..envelope(VERSION, None)
    };
    let raw = Raw::connect(&pod.state_dir());
    let memfd = protocol::sealed_memfd("lie", b"x").unwrap();
    raw.send(&lie, &[memfd.as_fd()]);
    assert!(raw.receive().is_none());
    assert!(pod.monitor.list().await.unwrap().is_empty());
    pod.end().await;
}

/// Slots that point nowhere, or twice at the same, are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_lie_are_answered() {
    let mut pod = Pod::new(Kind::Libcontainer).await;
    let container = pod.run(&TestSpec::new(&["sleep", "1000"])).await;
    let raw = Raw::connect(&pod.state_dir());
    let fd = protocol::sealed_memfd("x", b"x").unwrap();
    for (stdin, stdout, stderr) in [
        (None, None, None),
        (None, Some(0), Some(0)),
        (Some(u32::MAX), Some(0), Some(1)),
        (None, Some(0), Some(1 << 31)),
    ] {
        let exec = Exec {
            id: container.id.clone(),
            process: Some(Process {
                args: vec![b"true".to_vec()],
                ..Process::default()
            }),
            streams: Some(StreamSlots {
                stdin,
                stdout,
                stderr,
                tty: None,
            }),
            ..Exec::default()
        };
        let answer = raw.ask_with(Body::Exec(Box::new(exec)), &[fd.as_fd()]);
        assert!(
            matches!(answer, Body::Failure(failure) if failure.kind() == FailureKind::Protocol)
        );
    }
    let create = Create {
        id: "b".into(),
        launcher: 1,
        spec_fd: Some(9),
        ..Create::default()
    };
    let failure = raw.refused(Body::Create(Box::new(create)));
    assert_eq!(failure.kind(), FailureKind::Launch);
    let create = Create {
        id: "c".into(),
        launcher: 99,
        ..Create::default()
    };
    let failure = raw.refused(Body::Create(Box::new(create)));
    assert_eq!(failure.kind(), FailureKind::Unsupported);
    assert_eq!(pod.monitor.list().await.unwrap().len(), 1);
    pod.end().await;
}

/// An engine that never reads loses its connection, not the others' time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_that_never_reads_is_dropped() {
    let mut pod = Pod::new(Kind::Libcontainer).await;
    let raw = Raw::connect(&pod.state_dir());
    rustix::io::ioctl_fionbio(&raw.0, true).unwrap();
    let request = envelope(VERSION, Some(Body::Hello(Hello::default())));
    let dropped = wait_until(|| protocol::send(raw.0.as_fd(), &request, &[]).is_err());
    assert!(dropped, "it still listens");
    let since = Instant::now();
    let (record, _) = pod.outcome(&TestSpec::shell("exit 3")).await;
    assert_eq!(record.exit_code, 3);
    assert!(since.elapsed().as_secs() < 20);
    pod.end().await;
}

/// Answers say when the request came and what was done when.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_carry_step_times() {
    let mut pod = Pod::new(Kind::Libcontainer).await;
    let container = pod.run(&TestSpec::new(&["sleep", "1000"])).await;
    let raw = Raw::connect(&pod.state_dir());
    let fd = protocol::sealed_memfd("x", b"x").unwrap();
    let streams = StreamSlots {
        stdout: Some(0),
        stderr: Some(1),
        ..StreamSlots::default()
    };
    let process = Process {
        args: vec![b"/bin/true".to_vec()],
        ..Process::default()
    };
    let exec = Exec {
        id: container.id.clone(),
        process: Some(process),
        streams: Some(streams),
        ..Exec::default()
    };
    let before = monotonic_now();
    raw.send(
        &envelope(VERSION, Some(Body::Exec(Box::new(exec)))),
        &[fd.as_fd(), fd.as_fd()],
    );
    let answer = raw.receive().unwrap();
    assert!(matches!(answer.body, Some(Body::ExecEnded(ended)) if ended.code == 0));
    let names: Vec<_> = answer.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["clone", "birth", "run"]);
    let mut times = vec![before, answer.received_at];
    times.extend(answer.steps.iter().map(|step| step.at));
    times.extend([answer.sent_at, monotonic_now()]);
    assert!(times.is_sorted(), "{times:?}");
    pod.end().await;
}

/// The pool keeps what it was told to, gives each monitor to one, and leaves
/// neither processes nor zombies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pool_is_filled_and_leaves_nothing() {
    let pool = MonitorPool::new(monitor_binaries(), 2..=2);
    let first = pool.take().await.unwrap();
    let second = pool.take().await.unwrap();
    assert_ne!(first.pid(), second.pid());
    let pids = [first.pid(), second.pid()];
    let alive = |pid: i32| Path::new(&format!("/proc/{pid}")).exists();
    assert!(pids.into_iter().all(alive));
    // One that died while it was idle is never given.
    let third = pool.take().await.unwrap();
    drop((first, second, third, pool));
    assert!(
        wait_until(|| !pids.into_iter().any(alive)),
        "monitors are left"
    );
}
