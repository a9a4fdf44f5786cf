//! One connection to a monitor: requests out, answers and events in.
//!
//! Owns the socket, the requests that wait and the task that reads. Dropping a
//! request's future forgets the answer and harms nothing else. When the socket of
//! a pod's monitor closes and its process lives, all that wait fail with `Lost`,
//! and the task connects again, for ever and with growing pauses; what happened
//! meanwhile is told then. When the process has ended they fail with `Gone`, and
//! `Event::Gone` is reported unless a shutdown was asked for. An idle monitor ends
//! with its connection.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot};

use super::error::MonitorError;
use super::peer::Peer;
use super::steps;
use super::types::Event;
use crate::protocol::{
    self, Body, CancelExec, Envelope, Features, Hello, Incoming, ProtocolError, Received,
    monotonic_now,
};

/// How long the end of a process may come behind that of its connections.
const DYING: Duration = Duration::from_secs(2);
/// Pauses between tries to reach a monitor again: doubled up to the longest.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A connection. The task that reads and reconnects ends when it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    reader: tokio::task::AbortHandle,
}

/// Where a pod's monitor is found again, and its process.
#[derive(Debug)]
pub(super) struct Home {
    /// The pod's state directory.
    pub(super) state_dir: PathBuf,
    /// The monitor.
    pub(super) peer: Peer,
}

#[derive(Debug)]
struct Shared {
    socket: Mutex<Arc<AsyncFd<OwnedFd>>>,
    waiting: Mutex<Waiting>,
    next_request: AtomicU64,
    closing: AtomicBool,
    /// An idle monitor has none: it ends with its connection.
    home: OnceLock<Home>,
    /// Told when there is a home.
    settled: Notify,
    /// Told when a connection was lost and is there again.
    again: Notify,
    events: mpsc::UnboundedSender<Event>,
}

/// Requests without an answer, while there is a connection.
#[derive(Debug)]
enum Waiting {
    /// They wait.
    Open(HashMap<u64, oneshot::Sender<Incoming>>),
    /// The connection broke; the monitor lives.
    Lost,
    /// The monitor's process has ended.
    Gone,
}

impl Waiting {
    fn requests(&mut self) -> Result<&mut HashMap<u64, oneshot::Sender<Incoming>>, MonitorError> {
        match self {
            Self::Open(requests) => Ok(requests),
            Self::Lost => Err(MonitorError::Lost),
            Self::Gone => Err(MonitorError::Gone),
        }
    }
}

impl Connection {
    /// Starts reading a connected socket. Must be called within a runtime.
    pub(super) fn open(
        socket: OwnedFd,
        home: Option<Home>,
    ) -> std::io::Result<(Self, mpsc::UnboundedReceiver<Event>)> {
        let (events, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            socket: Mutex::new(Arc::new(crate::sys::async_fd::watch(socket)?)),
            waiting: Mutex::new(Waiting::Open(HashMap::new())),
            next_request: AtomicU64::new(1),
            closing: AtomicBool::new(false),
            home: home.map(OnceLock::from).unwrap_or_default(),
            settled: Notify::new(),
            again: Notify::new(),
            events,
        });
        let reader = tokio::spawn(keep(Arc::clone(&shared))).abort_handle();
        Ok((Self { shared, reader }, receiver))
    }

    /// The monitor is a pod's now: it lives for as long as its process does.
    pub(super) fn settle(&self, home: Home) {
        // A second setup is refused by the monitor.
        let _settled = self.shared.home.set(home);
        self.shared.settled.notify_one();
    }

    /// Waits until there is a connection again; `false`: there will be none.
    pub(super) async fn is_there_again(&self) -> bool {
        loop {
            let again = self.shared.again.notified();
            match *self.shared.waiting() {
                Waiting::Open(_) => return true,
                Waiting::Gone => return false,
                Waiting::Lost => {}
            }
            again.await;
        }
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn ask(
        &self,
        body: Body,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Incoming, MonitorError> {
        self.shared.ask(body, fds).await
    }

    /// Sends a request. Its descriptors may be closed before the answer.
    pub(super) async fn begin(
        &self,
        body: Body,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Pending<'_>, MonitorError> {
        self.shared.begin(body, fds).await
    }

    /// Lets the process that a request runs end when this is dropped.
    pub(super) fn cancel_on_drop(&self, pending: &Pending<'_>) -> Cancel {
        Cancel {
            shared: Some(Arc::clone(&self.shared)),
            request: pending._forget.request,
        }
    }

    /// The end of this connection is asked for: it is no reason to worry.
    pub(super) fn expect_close(&self) {
        self.shared.closing.store(true, Ordering::Release);
    }

    /// Whether the monitor's process has ended, or an idle one's connection.
    pub(super) fn is_gone(&self) -> bool {
        matches!(*self.shared.waiting(), Waiting::Gone)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Shared {
    /// The lock is held for a moment only, never across an await.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, body: Body, fds: &[BorrowedFd<'_>]) -> Result<Incoming, MonitorError> {
        self.begin(body, fds).await?.answer().await
    }

    async fn begin(&self, body: Body, fds: &[BorrowedFd<'_>]) -> Result<Pending<'_>, MonitorError> {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.waiting().requests()?.insert(request, answer);
        let pending = Pending {
            answered,
            name: step_name(&body),
            sent_at: monotonic_now(),
            _forget: Forget {
                shared: self,
                request,
            },
        };
        let envelope = Envelope {
            version: protocol::VERSION,
            request,
            sent_at: pending.sent_at,
            requires: Features::needed_by(&body).bits(),
            body: Some(body),
            ..Envelope::default()
        };
        self.send(&envelope, fds).await?;
        Ok(pending)
    }

    fn socket(&self) -> Arc<AsyncFd<OwnedFd>> {
        let socket = self.socket.lock();
        Arc::clone(&socket.unwrap_or_else(PoisonError::into_inner))
    }

    async fn send(&self, envelope: &Envelope, fds: &[BorrowedFd<'_>]) -> Result<(), MonitorError> {
        let socket = self.socket();
        loop {
            // The first try needs no permission: the socket is rarely full.
            match protocol::send(socket.as_fd(), envelope, fds) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // The answer tells whether the monitor is gone or lost.
                Err(ProtocolError::Socket { source, .. }) if is_closed(source) => return Ok(()),
                Err(error) => return Err(MonitorError::Message(error)),
            }
            let mut ready = socket.writable().await.map_err(|_| MonitorError::Gone)?;
            ready.clear_ready();
        }
    }

    fn dispatch(&self, mut incoming: Incoming) {
        if incoming.envelope.request == 0 {
            if let Some(event) = incoming.envelope.body.take().and_then(event) {
                self.tell(event);
            }
            return;
        }
        let request = incoming.envelope.request;
        let waiting = match self.waiting().requests() {
            Ok(all) => all.remove(&request),
            Err(_) => None,
        };
        if let Some(answer) = waiting {
            // Nobody listens any more when the asking future was dropped.
            let _unheard = answer.send(incoming);
        }
    }

    fn tell(&self, event: Event) {
        // The engine may have dropped its receiver: then it does not care.
        let _unheard = self.events.send(event);
    }
}

/// A request that was sent. Dropping it forgets the answer.
#[derive(Debug)]
pub(super) struct Pending<'a> {
    answered: oneshot::Receiver<Incoming>,
    /// What the step clock calls it.
    name: &'static str,
    sent_at: u64,
    _forget: Forget<'a>,
}

impl Pending<'_> {
    /// Waits for the answer.
    pub(super) async fn answer(self) -> Result<Incoming, MonitorError> {
        let Ok(mut incoming) = self.answered.await else {
            return Err(match *self._forget.shared.waiting() {
                Waiting::Gone => MonitorError::Gone,
                Waiting::Open(_) | Waiting::Lost => MonitorError::Lost,
            });
        };
        steps::answered(self.name, self.sent_at, monotonic_now(), &incoming.envelope);
        let failure = incoming
            .envelope
            .body
            .take_if(|body| matches!(body, Body::Failure(_)));
        match failure {
            Some(Body::Failure(failure)) => Err(MonitorError::from(*failure)),
            _ => Ok(incoming),
        }
    }
}

/// A process that is to end when nobody waits for it.
#[derive(Debug)]
pub(super) struct Cancel {
    shared: Option<Arc<Shared>>,
    request: u64,
}

impl Cancel {
    /// It has ended.
    pub(super) fn is_over(&mut self) {
        self.shared = None;
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        let runtime = tokio::runtime::Handle::try_current();
        let (Some(shared), Ok(runtime)) = (self.shared.take(), runtime) else {
            return;
        };
        let order = Body::CancelExec(CancelExec {
            request: self.request,
        });
        runtime.spawn(async move {
            // Without a connection the monitor has ended it already.
            let _ended = shared.ask(order, &[]).await;
        });
    }
}

/// Forgets a request whose future was dropped.
#[derive(Debug)]
struct Forget<'a> {
    shared: &'a Shared,
    request: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Ok(waiting) = self.shared.waiting().requests() {
            waiting.remove(&self.request);
        }
    }
}

/// What a monitor tells without being asked.
fn event(body: Body) -> Option<Event> {
    match body {
        Body::Exited(exited) => Some(Event::Exited(exited.into())),
        Body::StartEnded(protocol::StartEnded {
            id,
            started_at,
            failure,
        }) => Some(Event::StartEnded {
            container: id,
            outcome: match failure {
                Some(failure) => Err(failure.message),
                None => Ok(started_at),
            },
        }),
        Body::LogState(protocol::LogState { id, stalled }) => Some(Event::Log {
            container: id,
            stalled,
        }),
        _ => None,
    }
}

fn step_name(request: &Body) -> &'static str {
    match request {
        Body::Hello(_) => "monitor: hello",
        Body::Setup(_) => "monitor: setup",
        Body::Create(_) => "monitor: create",
        Body::Start(_) => "monitor: start",
        Body::Signal(_) => "monitor: signal",
        Body::Exec(_) => "monitor: exec",
        Body::Delete(_) => "monitor: delete",
        Body::List(_) => "monitor: list",
        Body::SettleLog(_) => "monitor: settle log",
        Body::ReopenLog(_) => "monitor: reopen log",
        Body::Shutdown(_) => "monitor: shutdown",
        _ => "monitor: request",
    }
}

fn is_closed(errno: Errno) -> bool {
    matches!(errno, Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN)
}

/// Reads for as long as the monitor lives, on one connection after another.
async fn keep(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = read_all(&shared) => {}
            () = ended(&shared) => read_rest(&shared),
        }
        if shared.closing.load(Ordering::Acquire) {
            break;
        }
        let Some(home) = shared.home.get() else { break };
        // A process that ends closes its sockets a moment before.
        if tokio::time::timeout(DYING, home.peer.ended()).await.is_ok() {
            break;
        }
        *shared.waiting() = Waiting::Lost;
        tracing::warn!(state = %home.state_dir.display(), "a monitor closed its connection and lives");
        let Some(socket) = reconnect(home).await else {
            break;
        };
        *shared.socket.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(socket);
        *shared.waiting() = Waiting::Open(HashMap::new());
        shared.again.notify_waiters();
        tokio::spawn(catch_up(Arc::clone(&shared)));
    }
    // Dropping the senders wakes all that wait.
    *shared.waiting() = Waiting::Gone;
    shared.again.notify_waiters();
    if !shared.closing.load(Ordering::Acquire) {
        shared.tell(Event::Gone);
    }
}

async fn read_all(shared: &Shared) {
    let socket = shared.socket();
    loop {
        let Ok(mut ready) = socket.readable().await else {
            return;
        };
        match protocol::receive(socket.as_fd()) {
            Ok(Received::Packet(incoming)) => shared.dispatch(*incoming),
            Ok(Received::Nothing) => ready.clear_ready(),
            Ok(Received::Closed) => return,
            Err(error) => {
                tracing::warn!(%error, "connection to a monitor is broken");
                return;
            }
        }
    }
}

/// Waits for the end of the monitor's process: somebody else may hold its end of
/// the connection open.
async fn ended(shared: &Shared) {
    loop {
        match shared.home.get() {
            Some(home) => return home.peer.ended().await,
            None => shared.settled.notified().await,
        }
    }
}

/// Reads what a process that has ended left in its connection.
fn read_rest(shared: &Shared) {
    let socket = shared.socket();
    while let Ok(Received::Packet(incoming)) = protocol::receive(socket.as_fd()) {
        shared.dispatch(*incoming);
    }
}

/// Connects again, for as long as it takes; `None`: the monitor has ended.
async fn reconnect(home: &Home) -> Option<AsyncFd<OwnedFd>> {
    let mut pause = FIRST_PAUSE;
    loop {
        match super::monitor::connect_socket(&home.state_dir) {
            Ok(socket) => {
                if let Ok(socket) = crate::sys::async_fd::watch(socket) {
                    return Some(socket);
                }
            }
            Err(Errno::NOENT | Errno::CONNREFUSED) => return None,
            Err(errno) => {
                tracing::debug!(state = %home.state_dir.display(), %errno, "a monitor is not reached");
            }
        }
        if tokio::time::timeout(pause, home.peer.ended()).await.is_ok() {
            return None;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Tells what happened while there was no connection.
async fn catch_up(shared: Arc<Shared>) {
    let hello = Hello {
        engine: env!("CARGO_PKG_VERSION").to_owned(),
    };
    // One that fails has lost its connection again, and is tried again with that.
    let Ok(_welcome) = shared.ask(Body::Hello(hello), &[]).await else {
        return;
    };
    let Ok(answer) = shared.ask(Body::List(protocol::Empty {}), &[]).await else {
        return;
    };
    let Some(Body::Containers(list)) = answer.envelope.body else {
        return;
    };
    for exited in list.containers.into_iter().filter_map(|one| one.exit) {
        shared.tell(Event::Exited(exited.into()));
    }
}
