//! A monitor, as the engine holds it.
//!
//! Owns nothing but a connection: dropping the last clone leaves a pod's
//! monitor running and ends an idle one. Every call is one request; its future
//! may be dropped at any time, the monitor finishes what it began.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::sync::mpsc;

use super::binaries::MonitorBinaries;
use super::connection::{Connection, FIRST_PAUSE, Home, LONGEST_PAUSE};
use super::convert;
use super::error::{ConnectError, MonitorError};
use super::log::open_log;
use super::peer::Peer;
use super::reap::reap_copy;
use super::types::{
    Attachment, ContainerReport, ContainerState, CreateContainer, Created, Event, ExecExit,
    ExecProcess, PodReady, PodSetup, Started,
};
use crate::launcher::socket_path;
use crate::protocol::{
    Body, ContainerName, Empty, Features, HANDOVER_VERSION, Hello, Incoming, ProtocolError,
    ReopenLog, Signal, Start, Upgrade,
};

/// How long a monitor that lives may take to say hello.
pub(super) const HELLO: Duration = Duration::from_secs(3);

/// How long one may take to tell of its containers.
const LIST: Duration = Duration::from_secs(5);

/// How long one may take to go on as another build.
const UPGRADE: Duration = Duration::from_secs(10);

/// How long one may take to kill what is left.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// For whoever waits without end.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A monitor that was reached, and what it keeps.
#[derive(Debug)]
pub struct Reached {
    /// The monitor.
    pub monitor: Monitor,
    /// What it tells.
    pub events: mpsc::UnboundedReceiver<Event>,
    /// Its containers, in order of creation.
    pub containers: Vec<ContainerReport>,
}

/// A monitor is dead: its process has ended, or its socket is gone or refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the monitor is gone")]
pub struct Gone;

/// Why a monitor was not reached in one try.
#[derive(Debug)]
enum Unreached {
    Connect(ConnectError),
    List(MonitorError),
}

/// What an upgrade came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgraded {
    /// It is of that build.
    NotNeeded,
    /// It is now.
    Done,
}

/// A monitor: one pod's, or an idle one.
#[derive(Debug, Clone)]
pub struct Monitor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connection: Connection,
    pid: AtomicI32,
    features: AtomicU64,
    build: Mutex<String>,
    binaries: Option<Arc<MonitorBinaries>>,
    events: Mutex<Option<mpsc::UnboundedReceiver<Event>>>,
}

impl Monitor {
    /// Reaches a monitor that a former engine left, by its socket in the pod's
    /// state directory.
    ///
    /// # Errors
    /// Nobody lives there, or it does not answer well, or not within 3 s.
    pub async fn connect(
        pod_state_dir: &Path,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Event>), ConnectError> {
        Self::connect_within(pod_state_dir, HELLO).await
    }

    async fn connect_within(
        pod_state_dir: &Path,
        patience: Duration,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Event>), ConnectError> {
        let path = || pod_state_dir.to_owned();
        let absent = |source: std::io::Error| ConnectError::Absent {
            path: path(),
            source,
        };
        let connect = |source: std::io::Error| ConnectError::Connect {
            path: path(),
            source,
        };
        let hello = |source| ConnectError::Hello {
            path: path(),
            source,
        };
        let socket = connect_socket(pod_state_dir).map_err(|errno| match errno {
            Errno::NOENT | Errno::CONNREFUSED => absent(errno.into()),
            _ => connect(errno.into()),
        })?;
        let peer = Peer::of_socket(socket.as_fd()).map_err(connect)?;
        let peer = peer.ok_or_else(|| absent(Errno::SRCH.into()))?;
        let home = Home {
            state_dir: path(),
            peer,
        };
        let greeting = Self::greet(socket, None, Some(home));
        match within(patience, "hello", greeting).await {
            Ok(monitor) => {
                let events = monitor.take_events().ok_or(MonitorError::Gone);
                Ok((monitor, events.map_err(hello)?))
            }
            Err(MonitorError::Gone) => Err(absent(Errno::SRCH.into())),
            Err(error) => Err(hello(error)),
        }
    }

    /// Reaches such a monitor, for as long as it takes: one that does not answer is
    /// asked again with growing pauses, whatever it is that keeps it.
    ///
    /// # Errors
    /// It is dead, see [`ConnectError::is_absent`]; nothing else ends the wait.
    pub async fn reach(pod_state_dir: &Path) -> Result<Reached, Gone> {
        let mut pause = FIRST_PAUSE;
        loop {
            match Self::reach_once(pod_state_dir).await {
                Ok(reached) => return Ok(reached),
                Err(Unreached::Connect(error)) if error.is_absent() => return Err(Gone),
                Err(Unreached::List(MonitorError::Gone)) => return Err(Gone),
                Err(error) => {
                    tracing::debug!(state = %pod_state_dir.display(), ?error, "a monitor is not reached yet");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn reach_once(pod_state_dir: &Path) -> Result<Reached, Unreached> {
        let connecting = Self::connect_within(pod_state_dir, FOR_EVER);
        let (monitor, events) = connecting.await.map_err(Unreached::Connect)?;
        let containers = monitor.list().await.map_err(Unreached::List)?;
        Ok(Reached {
            monitor,
            events,
            containers,
        })
    }

    /// Says hello on a connected socket.
    pub(super) async fn greet(
        socket: OwnedFd,
        binaries: Option<Arc<MonitorBinaries>>,
        home: Option<Home>,
    ) -> Result<Self, MonitorError> {
        let (connection, events) = Connection::open(socket, home)
            .map_err(|error| MonitorError::Internal(format!("watch a socket: {error}")))?;
        let hello = Hello {
            engine: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let answer = connection.ask(Body::Hello(hello), &[]).await?;
        let Some(Body::Welcome(welcome)) = answer.envelope.body else {
            return Err(unexpected("hello"));
        };
        if !crate::protocol::understands(answer.envelope.version) {
            return Err(MonitorError::Protocol(format!(
                "monitor {} speaks version {}, this engine {}",
                welcome.monitor,
                answer.envelope.version,
                crate::protocol::VERSION
            )));
        }
        let events = Mutex::new(Some(events));
        let inner = Inner {
            connection,
            pid: AtomicI32::new(welcome.pid),
            features: AtomicU64::new(welcome.features),
            build: Mutex::new(welcome.build),
            binaries,
            events,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Its process id: once it is a pod's, for good.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.inner.pid.load(Ordering::Relaxed)
    }

    /// A copy of the monitor may go on in its place, as a child of this process.
    fn is_now(&self, pid: i32) {
        if self.inner.pid.swap(pid, Ordering::Relaxed) != pid {
            tokio::spawn(reap_copy(pid));
        }
    }

    async fn hello(&self) -> Result<Option<Body>, MonitorError> {
        let hello = Hello {
            engine: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let answer = self.inner.connection.ask(Body::Hello(hello), &[]);
        Ok(within(HELLO, "hello", answer).await?.envelope.body)
    }

    /// Whether its process has ended. One that says nothing is not gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.inner.connection.is_gone()
    }

    /// Turns an idle monitor into a pod's.
    ///
    /// # Errors
    /// `Setup` names the step, a kernel parameter by its name. The monitor is
    /// of no use afterwards: shut it down.
    pub async fn setup(
        &self,
        setup: PodSetup,
    ) -> Result<(PodReady, mpsc::UnboundedReceiver<Event>), MonitorError> {
        let mut fds = Vec::new();
        let helper = self
            .inner
            .binaries
            .as_ref()
            .map(|binaries| binaries.libcontainer());
        let slot = helper.map(|fd| convert::push(&mut fds, fd));
        let state_dir = setup.state_dir.clone();
        let request = convert::setup(&setup, slot, &mut fds)?;
        let answer = self
            .inner
            .connection
            .ask(Body::Setup(Box::new(request)), &fds)
            .await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // A copy that lives on knows best who it is.
                if let Ok(Some(Body::Welcome(welcome))) = self.hello().await {
                    self.is_now(welcome.pid);
                }
                return Err(error);
            }
        };
        let Some(Body::PodReady(ready)) = answer.envelope.body else {
            return Err(unexpected("setup"));
        };
        self.is_now(ready.pid);
        // Before anything can go wrong with its connection.
        match Peer::of_child(ready.pid) {
            Ok(peer) => self.inner.connection.settle(Home { state_dir, peer }),
            Err(error) => tracing::warn!(%error, "a monitor's end cannot be told from silence"),
        }
        let events = self
            .take_events()
            .ok_or_else(|| MonitorError::Exists("the receiver of this monitor's events".into()))?;
        Ok((convert::pod_ready(ready), events))
    }

    /// Makes a container that waits for its start.
    ///
    /// # Errors
    /// `Launch`, `Unsupported`, `Timeout`, `Exists`: nothing of it is left.
    pub async fn create(&self, c: CreateContainer) -> Result<Created, MonitorError> {
        let log = match &c.log_path {
            Some(path) => Some(open_log(path.clone()).await?),
            None => None,
        };
        let (plan, json) = convert::spec(c.launcher, &c.spec)?.parts();
        let mut fds = Vec::new();
        let log_fd = log.as_ref().map(AsFd::as_fd);
        let log_fd = log_fd.filter(|_| self.can(Features::LOG_DESCRIPTOR));
        let spec = (plan, json.as_ref().map(AsFd::as_fd));
        let request = convert::create(&c, &mut fds, spec, log_fd)?;
        let pending = self
            .inner
            .connection
            .begin(Body::Create(Box::new(request)), &fds)
            .await?;
        drop(fds);
        drop((c, json, log));
        let answer = pending.answer().await?;
        let Some(Body::Created(created)) = answer.envelope.body else {
            return Err(unexpected("create"));
        };
        Ok(Created {
            pid: created.pid,
            warnings: created.warnings,
        })
    }

    /// Lets a created container run: answers when its program has begun.
    ///
    /// # Errors
    /// `Launch` when the program cannot be executed; the container has exited
    /// then and is reported so.
    pub async fn start(&self, container: &str) -> Result<Started, MonitorError> {
        self.start_within(container, Duration::ZERO).await
    }

    /// The same; a container whose program has not begun by then is ended and has
    /// failed. Zero: the monitor's own limit.
    ///
    /// # Errors
    /// As those of [`start`](Self::start).
    pub async fn start_within(
        &self,
        container: &str,
        limit: Duration,
    ) -> Result<Started, MonitorError> {
        let order = Start {
            id: container.to_owned(),
            timeout: u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX),
        };
        let answer = match self.ask(Body::Start(order)).await {
            Err(MonitorError::Lost) => return self.started_meanwhile(container).await,
            other => other?,
        };
        let Some(Body::Started(started)) = answer.envelope.body else {
            return Err(unexpected("start"));
        };
        Ok(Started {
            started_at: started.started_at,
        })
    }

    /// What became of a start whose answer was lost: an error would make a running
    /// container a failed one.
    async fn started_meanwhile(&self, container: &str) -> Result<Started, MonitorError> {
        let mut pause = FIRST_PAUSE;
        while self.inner.connection.is_there_again().await {
            let state = match self.list().await {
                Ok(list) => {
                    let found = list.into_iter().find(|one| one.id == container);
                    let unknown = || MonitorError::UnknownContainer(container.to_owned());
                    Some(found.ok_or_else(unknown)?.state)
                }
                Err(_) => None,
            };
            match state {
                Some(ContainerState::Running { started_at }) => {
                    return Ok(Started { started_at });
                }
                Some(ContainerState::Exited(record)) if record.started_at > 0 => {
                    let started_at = record.started_at;
                    return Ok(Started { started_at });
                }
                Some(ContainerState::Exited(_) | ContainerState::Created) => {
                    return Err(MonitorError::Lost);
                }
                // It is being started, or the list was not to be had.
                Some(ContainerState::Starting) | None => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Err(MonitorError::Gone)
    }

    /// Signals a container's first process. One that ended already is fine.
    ///
    /// # Errors
    /// The container is unknown or the signal is none.
    pub async fn signal(&self, container: &str, signal: i32) -> Result<(), MonitorError> {
        self.order(
            Body::Signal(Signal {
                id: container.to_owned(),
                signal,
            }),
            "signal",
        )
        .await
    }

    /// Runs a process in a container: answers when it has ended. When the future is
    /// dropped before, the process ends with all that it started.
    ///
    /// # Errors
    /// `NotRunning`, or `Launch` when it could not be made.
    pub async fn exec(&self, e: ExecProcess) -> Result<ExecExit, MonitorError> {
        let mut fds = Vec::new();
        let request = Body::Exec(Box::new(convert::exec(&e, &mut fds)?));
        let pending = self.inner.connection.begin(request, &fds).await?;
        // The streams are the process's alone now: who reads them sees its end.
        drop(fds);
        drop(e);
        let mut cancel = self
            .can(Features::CANCEL_EXEC)
            .then(|| self.inner.connection.cancel_on_drop(&pending));
        let answer = pending.answer().await;
        if let Some(cancel) = &mut cancel {
            cancel.is_over();
        }
        match answer?.envelope.body {
            Some(Body::ExecEnded(ended)) if ended.timed_out => Ok(ExecExit::TimedOut),
            Some(Body::ExecEnded(ended)) => Ok(ExecExit::Exited { code: ended.code }),
            _ => Err(unexpected("exec")),
        }
    }

    /// Connects a client to a container's streams, which end with the container's or when
    /// the other ends are closed.
    ///
    /// # Errors
    /// `NotRunning`; `WrongState`: it has no input or no terminal.
    pub async fn attach(&self, attachment: Attachment) -> Result<(), MonitorError> {
        let mut fds = Vec::new();
        let request = Body::Attach(convert::attach(&attachment, &mut fds));
        let pending = self.inner.connection.begin(request, &fds).await?;
        // The streams are the monitor's alone now: who reads them sees their end.
        drop(fds);
        drop(attachment);
        let answer = pending.answer().await?;
        done(answer.envelope.body.as_ref(), "attach")
    }

    /// Forgets a container that exited, or kills one that was only created.
    /// An unknown one is fine.
    ///
    /// # Errors
    /// `WrongState`: it still runs.
    pub async fn delete(&self, container: &str) -> Result<(), MonitorError> {
        self.order(Body::Delete(name(container)), "delete").await
    }

    /// Opens a container's log again: its file was renamed. Its folder is made if
    /// it is gone.
    ///
    /// # Errors
    /// The container is unknown, has no log, or it cannot be opened; then the
    /// old file is written on.
    pub async fn reopen_log(&self, container: &str, path: &Path) -> Result<(), MonitorError> {
        // Whoever follows the log leaves the former file when he sees the new one, and
        // would miss what is written to the former after that.
        if self.can(Features::SETTLE_LOG) {
            let id = container.to_owned();
            let order = Body::SettleLog(ContainerName { id });
            let answer = self.inner.connection.ask(order, &[]).await?;
            done(answer.envelope.body.as_ref(), "settle the log")?;
        }
        let log = open_log(path.to_owned()).await?;
        let fds = [log.as_fd()];
        let given = self.can(Features::LOG_DESCRIPTOR);
        let order = Body::ReopenLog(ReopenLog {
            id: container.to_owned(),
            log_fd: given.then_some(0),
        });
        let fds = if given { &fds[..] } else { &[] };
        let answer = self.inner.connection.ask(order, fds).await?;
        done(answer.envelope.body.as_ref(), "reopen the log")
    }

    /// Whether the monitor can do something that its first version could not.
    fn can(&self, feature: Features) -> bool {
        Features::from_bits(self.inner.features.load(Ordering::Relaxed)).has(feature)
    }

    /// Which build it is, by the digest of its executables; empty: it cannot tell.
    fn build(&self) -> std::sync::MutexGuard<'_, String> {
        let build = self.inner.build.lock();
        build.unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the monitor go on as another build, in place: the process stays, with its
    /// containers, its connections and everything that it knows.
    ///
    /// # Errors
    /// `WrongState`: something is under way in it, which passes; `Unsupported`: it is
    /// too old to be upgraded; otherwise the new build does not start. Whatever the
    /// error, the former build goes on as if nothing had been asked.
    pub async fn upgrade(&self, binaries: &MonitorBinaries) -> Result<Upgraded, MonitorError> {
        if *self.build() == binaries.build() {
            return Ok(Upgraded::NotNeeded);
        }
        let needed = Features::UPGRADE;
        if !self.can(needed) {
            return Err(MonitorError::Unsupported {
                what: needed.missing_in(Features::default()).join(", "),
                message: "the monitor is of an earlier version".to_owned(),
            });
        }
        let fds = [binaries.monitor(), binaries.libcontainer()];
        let order = Body::Upgrade(Upgrade {
            executable: Some(0),
            launcher_fd: Some(1),
            build: binaries.build().to_owned(),
            reads: HANDOVER_VERSION,
        });
        let answer = within(UPGRADE, "upgrade", self.inner.connection.ask(order, &fds)).await?;
        let Some(Body::Welcome(welcome)) = answer.envelope.body else {
            return Err(unexpected("upgrade"));
        };
        let features = &self.inner.features;
        features.store(welcome.features, Ordering::Relaxed);
        *self.build() = welcome.build;
        Ok(Upgraded::Done)
    }

    /// All containers of the pod, in order of creation.
    ///
    /// # Errors
    /// The monitor is gone, or does not answer within 5 s.
    pub async fn list(&self) -> Result<Vec<ContainerReport>, MonitorError> {
        let answer = within(LIST, "list", self.ask(Body::List(Empty {}))).await?;
        let Some(Body::Containers(list)) = answer.envelope.body else {
            return Err(unexpected("list"));
        };
        Ok(list.containers.into_iter().map(convert::report).collect())
    }

    /// Kills what is left and ends the monitor. One that is gone is fine.
    ///
    /// # Errors
    /// The request could not be sent, or is not done within 10 s.
    pub async fn shutdown(&self) -> Result<(), MonitorError> {
        self.inner.connection.expect_close();
        let order = self.order(Body::Shutdown(Empty {}), "shut down");
        match within(SHUTDOWN, "shut down", order).await {
            Err(MonitorError::Gone | MonitorError::Lost) if self.is_gone() => Ok(()),
            other => other,
        }
    }

    async fn ask(&self, body: Body) -> Result<Incoming, MonitorError> {
        const NONE: &[BorrowedFd<'_>] = &[];
        self.inner.connection.ask(body, NONE).await
    }

    async fn order(&self, body: Body, what: &str) -> Result<(), MonitorError> {
        done(self.ask(body).await?.envelope.body.as_ref(), what)
    }

    fn take_events(&self) -> Option<mpsc::UnboundedReceiver<Event>> {
        self.inner
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// A monitor that is frozen keeps its socket open and says nothing.
pub(super) async fn within<T>(
    limit: Duration,
    what: &str,
    answer: impl Future<Output = Result<T, MonitorError>>,
) -> Result<T, MonitorError> {
    tokio::time::timeout(limit, answer)
        .await
        .unwrap_or_else(|_elapsed| Err(MonitorError::Timeout(what.to_owned())))
}

fn done(answer: Option<&Body>, what: &str) -> Result<(), MonitorError> {
    match answer {
        Some(Body::Done(_)) => Ok(()),
        _ => Err(unexpected(what)),
    }
}

fn name(container: &str) -> ContainerName {
    ContainerName {
        id: container.to_owned(),
    }
}

fn unexpected(request: &str) -> MonitorError {
    MonitorError::Protocol(format!("no proper answer to {request}"))
}

/// Connecting to a unix socket does not wait for its owner to accept; only a
/// full backlog would, and then `EAGAIN` says so.
pub(super) fn connect_socket(state_dir: &Path) -> Result<OwnedFd, Errno> {
    let directory = crate::launcher::open_directory(state_dir)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(
        &socket,
        &SocketAddrUnix::new(socket_path(directory.as_fd()))?,
    )?;
    Ok(socket)
}

impl From<ProtocolError> for MonitorError {
    fn from(error: ProtocolError) -> Self {
        Self::Message(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_missing_or_refusing_socket_is_no_monitor() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Monitor::connect(&dir.path().join("none"))
            .await
            .unwrap_err();
        assert!(missing.is_absent());
        assert!(Monitor::connect(dir.path()).await.unwrap_err().is_absent());
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let address = SocketAddrUnix::new(dir.path().join("monitor.sock")).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        assert!(Monitor::connect(dir.path()).await.unwrap_err().is_absent());
        // Somebody listens and never answers.
        rustix::net::listen(&socket, 1).unwrap();
        let begun = std::time::Instant::now();
        let silent = Monitor::connect(dir.path()).await.unwrap_err();
        assert!(!silent.is_absent());
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(matches!(
            silent,
            ConnectError::Hello {
                source: MonitorError::Timeout(_),
                ..
            }
        ));
    }
}
