//! How a created container starts.
//!
//! ```text
//! let go ──▶ the words' pipe closes ──────────────▶ runs
//!   │  └───▶ it executes something else ──────────▶ runs
//!   ├──────▶ words ──▶ it ends, or is ended ──────▶ failed
//!   └──────▶ nothing, for too long ──▶ is ended ──▶ failed
//! ```
//! Owns what is waited for between the word and the program, and the answer. A process
//! that may trace the container's first one can stop it, hold its pipes open and write
//! words into them. So a start has an end whatever becomes of the pipes: what a process
//! executes is the kernel's to tell, and a failed start is answered when the process has
//! ended.

use std::ffi::CString;
use std::os::fd::AsFd;

use runtime::launcher::{StartGate, StartOutcome};
use runtime::protocol::{
    self, Body, Failure, FailureKind, StartEnded, Started, monotonic_now, wall_now,
};
use rustix::process::Pid;

use crate::connection::ReplyTo;
use crate::container::{Container, Init, State};
use crate::monitor::Monitor;
use crate::process::raw;
use crate::reactor::{Key, Reactor, Source, Token};

/// How long a program may take to begin, nanoseconds: less than the two minutes for
/// which a kubelet waits by default, so that it is told what happened.
const START_TIME: u64 = 100_000_000_000;
/// How long a process that has said why it failed may take to end, nanoseconds.
const PARTING_TIME: u64 = 1_000_000_000;
/// How often what a process executes is looked at, nanoseconds.
const LOOK_TIME: u64 = 250_000_000;

/// A container that was let go.
#[derive(Debug)]
pub(crate) struct Start {
    /// Its first process.
    pub(crate) init: Init,
    /// Tells what becomes of it, as long as it is watched.
    gate: StartGate,
    token: Option<Token>,
    /// Who asked, until the answer.
    reply: Option<ReplyTo>,
    /// What the first process executed when it was let go.
    former: Option<Executable>,
    /// Why it fails: its end is waited for.
    failed: Option<Failure>,
    /// When it is looked at again.
    look: u64,
    /// When it is ended; `None`: it is.
    deadline: Option<u64>,
}

/// The file that a process executes, as its name is read: whatever asks the file itself
/// would wait for a volume that does not answer.
pub(crate) type Executable = CString;

/// What a process executes; `None`: it has ended.
pub(crate) fn executable(pid: Pid) -> Option<Executable> {
    rustix::fs::readlink(format!("/proc/{}/exe", raw(pid)), Vec::new()).ok()
}

/// What this process executes.
pub(crate) fn own_executable() -> Option<Executable> {
    executable(rustix::process::getpid())
}

impl Start {
    /// When something is to be done without an event, monotonic nanoseconds.
    pub(crate) fn next_look(&self) -> Option<u64> {
        let deadline = self.deadline?;
        match self.failed {
            Some(_) => Some(deadline),
            None => Some(deadline.min(self.look)),
        }
    }

    /// Whether the process executes something else than it did.
    fn has_executed(&self) -> bool {
        let now = executable(self.init.pid);
        now.is_some() && self.former.is_some() && now != self.former
    }

    /// Ends the watch.
    pub(crate) fn unwatch(&mut self, reactor: &mut Reactor) {
        if let Some(token) = self.token.take() {
            reactor.unwatch(self.gate.as_fd(), token);
        }
    }
}

/// What is known of a start when the process is let go.
struct Begun {
    former: Option<Executable>,
    token: Token,
    deadline: u64,
}

impl Begun {
    fn of(self, state: State, reply: ReplyTo) -> State {
        match state {
            State::Created { init, gate } => State::Starting(Start {
                init,
                gate,
                token: Some(self.token),
                reply: Some(reply),
                former: self.former,
                failed: None,
                look: monotonic_now().saturating_add(LOOK_TIME),
                deadline: Some(self.deadline),
            }),
            other => other,
        }
    }
}

impl Container {
    /// Its start, while it is under way.
    pub(crate) fn start(&self) -> Option<&Start> {
        match &self.state {
            State::Starting(start) => Some(start),
            _ => None,
        }
    }
}

impl Monitor {
    /// Lets a created container go; the answer follows.
    pub(crate) fn start(&mut self, order: &protocol::Start, reply: ReplyTo) {
        match self.begin_start(order) {
            Ok((key, begun)) => {
                if let Some(container) = self.containers.get_mut(&key) {
                    container.change(|state| begun.of(state, reply));
                }
            }
            Err(failure) => self.reply(reply, Err(failure)),
        }
    }

    fn begin_start(&mut self, order: &protocol::Start) -> Result<(Key, Begun), Failure> {
        let key = self.find(&order.id)?;
        let wrong = |message: &str| Failure::new(FailureKind::WrongState, &order.id, message);
        let container = self.containers.get_mut(&key);
        let container = container.ok_or_else(|| wrong("there is no such container"))?;
        let (init, gate) = match &container.state {
            State::Created { .. } if !container.deletes.is_empty() => {
                return Err(wrong("it is being deleted"));
            }
            State::Created { init, gate } => (init, gate),
            State::Launching { .. } => return Err(wrong("it is being created")),
            State::Starting(_) | State::Running { .. } => return Err(wrong("it was started")),
            State::Exited(_) => return Err(wrong("it has exited")),
        };
        let former = executable(init.pid);
        let token = self.reactor.watch(gate.as_fd(), Source::Start(key));
        let token = token.map_err(|errno| {
            Failure::new(FailureKind::Internal, "watch the start", errno.to_string())
        })?;
        let opened = if container.own_pid_namespace {
            gate.open().map_err(|_| wrong("its first process died"))
        } else {
            // Whoever shares its processes may trace it.
            gate.open_apart().map_err(|errno| {
                let message = errno.to_string();
                Failure::new(FailureKind::Launch, "let its first process go", message)
            })
        };
        if let Err(failure) = opened {
            self.reactor.unwatch(gate.as_fd(), token);
            return Err(failure);
        }
        let time = Some(order.timeout).filter(|time| *time > 0);
        let time = time.unwrap_or(START_TIME);
        let begun = Begun {
            former,
            token,
            deadline: monotonic_now().saturating_add(time),
        };
        Ok((key, begun))
    }

    /// A container that was let go has said something.
    pub(crate) fn start_progress(&mut self, key: Key) {
        let Some(start) = self.start_of(key) else {
            return;
        };
        if start.failed.is_some() {
            return;
        }
        match start.gate.outcome() {
            None => {}
            Some(StartOutcome::Running) => self.program_runs(key),
            Some(StartOutcome::Failed { message, not_found }) => {
                let failure = Failure {
                    not_found,
                    ..Failure::new(FailureKind::Launch, "start", message)
                };
                let until = monotonic_now().saturating_add(PARTING_TIME);
                self.give_up_start(key, failure, until);
            }
        }
    }

    /// Looks at what containers execute that have said nothing, and ends those whose
    /// time is up.
    pub(crate) fn look_after_starts(&mut self, now: u64) {
        let due = |container: &Container| {
            let look = container.start().and_then(Start::next_look);
            look.is_some_and(|look| look <= now)
        };
        let due = self.containers.iter().filter(|(_, one)| due(one));
        let due: Vec<_> = due.map(|(key, _)| *key).collect();
        for key in due {
            self.look_after_start(key, now);
        }
    }

    fn look_after_start(&mut self, key: Key, now: u64) {
        let Some(start) = self.start_of(key) else {
            return;
        };
        if start.failed.is_none() && start.has_executed() {
            return self.program_runs(key);
        }
        start.look = now.saturating_add(LOOK_TIME);
        if start
            .deadline
            .take_if(|deadline| *deadline <= now)
            .is_none()
        {
            return;
        }
        if start.failed.is_none() {
            let message = "its program did not begin in time";
            let failure = Failure::new(FailureKind::Launch, "start", message);
            self.give_up_start(key, failure, now);
        }
        if let Some(start) = self.start_of(key) {
            start.deadline = None;
        }
        if let Some(container) = self.containers.get_mut(&key) {
            container.kill();
        }
    }

    fn give_up_start(&mut self, key: Key, failure: Failure, until: u64) {
        let container = self.containers.get_mut(&key);
        if let Some(State::Starting(start)) = container.map(|container| &mut container.state) {
            start.unwatch(&mut self.reactor);
            start.failed = Some(failure);
            start.deadline = Some(until);
        }
    }

    fn start_of(&mut self, key: Key) -> Option<&mut Start> {
        match &mut self.containers.get_mut(&key)?.state {
            State::Starting(start) => Some(start),
            _ => None,
        }
    }

    fn program_runs(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let id = container.id.clone();
        let started_at = wall_now();
        let mut reply = None;
        let reactor = &mut self.reactor;
        container.change(|state| match state {
            State::Starting(mut start) => {
                start.unwatch(reactor);
                reply = start.reply;
                let init = start.init;
                State::Running { init, started_at }
            }
            other => other,
        });
        if let Some(reply) = reply {
            self.start_over(reply, id, Ok(started_at));
        }
    }

    /// The first process of a container was reaped, perhaps before its start was over.
    /// What it had to say it has said: without a word its program ran, even where
    /// somebody else still holds the pipe.
    pub(crate) fn ended_in_start(&mut self, key: Key) {
        self.start_progress(key);
        match self.start_of(key).map(|start| start.failed.take()) {
            None => {}
            Some(None) => self.program_runs(key),
            Some(Some(failure)) => self.start_failed(key, failure),
        }
    }

    fn start_failed(&mut self, key: Key, failure: Failure) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let id = container.id.clone();
        if let State::Starting(start) = &mut container.state
            && let Some(reply) = start.reply.take()
        {
            self.start_over(reply, id, Err(failure));
        }
    }

    /// Tells who asked, or whoever is there: another engine may have found a container
    /// that was being started.
    fn start_over(&mut self, reply: ReplyTo, id: String, result: Result<i64, Failure>) {
        if self.is_connected(reply.connection) {
            let result = result.map(|started_at| Body::Started(Started { started_at }));
            return self.reply(reply, result);
        }
        let ended = match result {
            Ok(started_at) => StartEnded {
                id,
                started_at,
                failure: None,
            },
            Err(failure) => StartEnded {
                id,
                started_at: 0,
                failure: Some(Box::new(failure)),
            },
        };
        self.broadcast(&Body::StartEnded(ended));
    }
}
