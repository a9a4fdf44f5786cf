//! One connection to an engine.
//!
//! Owns the socket and what could not be sent yet. An engine that does not
//! read its answers loses the connection, never the monitor's memory.

mod handover;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use runtime::protocol::{self, Body, Envelope, Failure, Step, VERSION, monotonic_now};

use crate::reactor::Token;

/// Most messages that wait for an engine to read.
const MAX_QUEUED: usize = 1024;

/// Where an answer belongs.
#[derive(Debug)]
pub(crate) struct ReplyTo {
    /// The connection that asked.
    pub(crate) connection: u64,
    request: u64,
    received_at: u64,
    steps: Vec<Step>,
}

impl ReplyTo {
    /// The place for the answer to a request.
    pub(crate) fn new(connection: u64, request: u64, received_at: u64) -> Self {
        Self {
            connection,
            request,
            received_at,
            steps: Vec::new(),
        }
    }

    /// Whether this is the place for the answer to a request.
    pub(crate) fn is(&self, connection: u64, request: u64) -> bool {
        (self.connection, self.request) == (connection, request)
    }

    /// Notes that a step of the work is done.
    pub(crate) fn step(&mut self, name: &str) {
        self.steps.push(Step::now(name));
    }

    /// Notes steps that somebody else did.
    pub(crate) fn steps(&mut self, steps: Vec<Step>) {
        self.steps.extend(steps);
    }

    /// The answer's envelope.
    pub(crate) fn answer(self, result: Result<Body, Failure>) -> Envelope {
        Envelope {
            version: VERSION,
            request: self.request,
            sent_at: monotonic_now(),
            received_at: self.received_at,
            steps: self.steps,
            body: Some(result.unwrap_or_else(|failure| Body::Failure(Box::new(failure)))),
            ..Envelope::default()
        }
    }
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It and all before it are on their way.
    All,
    /// The socket is full: go on when there is room.
    Waiting,
    /// The connection is of no use any more.
    Broken,
}

/// A connected engine.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    /// Its watch.
    pub(crate) token: Token,
    queue: VecDeque<Envelope>,
}

impl Connection {
    /// A connection whose socket is watched.
    pub(crate) fn new(socket: OwnedFd, token: Token) -> Self {
        Self {
            socket,
            token,
            queue: VecDeque::new(),
        }
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a message, behind those that wait.
    pub(crate) fn send(&mut self, envelope: Envelope) -> Sent {
        if self.queue.len() >= MAX_QUEUED {
            return Sent::Broken;
        }
        self.queue.push_back(envelope);
        self.flush()
    }

    /// Sends what waits, as far as there is room.
    pub(crate) fn flush(&mut self) -> Sent {
        while let Some(envelope) = self.queue.front() {
            match protocol::send(self.socket.as_fd(), envelope, &[]) {
                Ok(true) => drop(self.queue.pop_front()),
                Ok(false) => return Sent::Waiting,
                Err(_) => return Sent::Broken,
            }
        }
        Sent::All
    }
}
