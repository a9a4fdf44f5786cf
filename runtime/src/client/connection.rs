//! One connection to a monitor: requests out, answers and events in.
//!
//! Owns the socket, the requests that wait and the task that reads. Dropping a
//! request's future forgets the answer and harms nothing else. When the socket
//! closes, all that wait fail with `Gone`, and `Event::Gone` is reported
//! unless a shutdown was asked for.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::error::MonitorError;
use super::steps;
use super::types::Event;
use crate::protocol::{
    self, Body, Envelope, Features, Incoming, ProtocolError, Received, monotonic_now,
};

/// A connection. The reading task ends when it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    reader: tokio::task::AbortHandle,
}

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<Waiting>,
    next_request: AtomicU64,
    closing: AtomicBool,
    events: mpsc::UnboundedSender<Event>,
}

/// Requests without an answer; `None` once the connection is closed.
#[derive(Debug)]
struct Waiting(Option<HashMap<u64, oneshot::Sender<Incoming>>>);

impl Connection {
    /// Starts reading a connected socket. Must be called within a runtime.
    pub(super) fn open(socket: OwnedFd) -> std::io::Result<(Self, mpsc::UnboundedReceiver<Event>)> {
        let (events, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            socket: crate::sys::async_fd::watch(socket)?,
            waiting: Mutex::new(Waiting(Some(HashMap::new()))),
            next_request: AtomicU64::new(1),
            closing: AtomicBool::new(false),
            events,
        });
        let reader = tokio::spawn(read_all(Arc::clone(&shared))).abort_handle();
        Ok((Self { shared, reader }, receiver))
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn ask(
        &self,
        body: Body,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Incoming, MonitorError> {
        self.begin(body, fds).await?.answer().await
    }

    /// Sends a request. Its descriptors may be closed before the answer.
    pub(super) async fn begin(
        &self,
        body: Body,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Pending<'_>, MonitorError> {
        let request = self.shared.next_request.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.shared
            .waiting()
            .0
            .as_mut()
            .ok_or(MonitorError::Gone)?
            .insert(request, answer);
        let pending = Pending {
            answered,
            name: step_name(&body),
            sent_at: monotonic_now(),
            _forget: Forget {
                shared: &self.shared,
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
        self.shared.send(&envelope, fds).await?;
        Ok(pending)
    }

    /// The end of this connection is asked for: it is no reason to worry.
    pub(super) fn expect_close(&self) {
        self.shared.closing.store(true, Ordering::Release);
    }

    /// Whether the monitor's side is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.shared.waiting().0.is_none()
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

    async fn send(&self, envelope: &Envelope, fds: &[BorrowedFd<'_>]) -> Result<(), MonitorError> {
        loop {
            // The first try needs no permission: the socket is rarely full.
            match protocol::send(self.socket.as_fd(), envelope, fds) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(ProtocolError::Socket { source, .. }) if is_closed(source) => {
                    return Err(MonitorError::Gone);
                }
                Err(error) => return Err(MonitorError::Message(error)),
            }
            let mut ready = self
                .socket
                .writable()
                .await
                .map_err(|_| MonitorError::Gone)?;
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
        let waiting = self
            .waiting()
            .0
            .as_mut()
            .and_then(|all| all.remove(&incoming.envelope.request));
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
        let mut incoming = self.answered.await.map_err(|_closed| MonitorError::Gone)?;
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

/// Forgets a request whose future was dropped.
#[derive(Debug)]
struct Forget<'a> {
    shared: &'a Shared,
    request: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.shared.waiting().0.as_mut() {
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
        Body::ReopenLog(_) => "monitor: reopen log",
        Body::Shutdown(_) => "monitor: shutdown",
        _ => "monitor: request",
    }
}

fn is_closed(errno: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(errno, Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN)
}

async fn read_all(shared: Arc<Shared>) {
    loop {
        let Ok(mut ready) = shared.socket.readable().await else {
            break;
        };
        match protocol::receive(shared.socket.as_fd()) {
            Ok(Received::Packet(incoming)) => shared.dispatch(*incoming),
            Ok(Received::Nothing) => ready.clear_ready(),
            Ok(Received::Closed) => break,
            Err(error) => {
                tracing::warn!(%error, "connection to a monitor is broken");
                break;
            }
        }
    }
    // Dropping the senders wakes all that wait.
    shared.waiting().0 = None;
    if !shared.closing.load(Ordering::Acquire) {
        shared.tell(Event::Gone);
    }
}
