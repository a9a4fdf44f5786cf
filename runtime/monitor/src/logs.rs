//! The monitor's part in its containers' logs: reading, waiting, telling.
//!
//! An exit is reported when what the container wrote before it is in its log and the
//! exit itself is written down, or could not be, or after [`PATIENCE`]: no disk delays an exit for longer. What a
//! forgotten container left is kept until its log has taken it, for the last
//! [`MOST_LEAVING`] of them.

use runtime::log::Stream;
use runtime::protocol::{self, Body, Exited, LogState, monotonic_now};
use rustix::process::Pid;

use crate::container::{Container, State};
use crate::execs::Exec;
use crate::log::Log;
use crate::monitor::Monitor;
use crate::output::{Number, Output, Read, Scratch};
use crate::reactor::Key;
use crate::tap::Tap;

/// How long an exit, and the end of a pod, wait for a log: nanoseconds.
pub(crate) const PATIENCE: u64 = 1_000_000_000;
/// Reads of one stream in a row.
const TURN: usize = 4;
/// Forgotten containers whose output still waits for a log.
const MOST_LEAVING: usize = 16;

impl Monitor {
    /// Reads what a container wrote.
    pub(crate) fn read_output(&mut self, key: Key, stream: Stream) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let init_lives = container.pid().is_some();
        let (scratch, reactor) = (&mut self.scratch, &mut self.reactor);
        for _ in 0..TURN {
            let read = container
                .output
                .read_once(stream, init_lives, scratch, reactor);
            match read {
                Read::Full => {}
                Read::Some | Read::Nothing => break,
                Read::End => {
                    self.shrink_scratch();
                    break;
                }
            }
        }
    }

    /// A log has room again.
    pub(crate) fn log_has_room(&mut self, key: Key) {
        if let Some(container) = self.containers.get_mut(&key) {
            container
                .output
                .proceed(&mut self.scratch, &mut self.reactor);
            self.tell_settled(key);
            self.tell_when_written(key);
        } else {
            self.let_leave();
        }
    }

    /// Answers who waits for a log to come to rest.
    pub(crate) fn tell_settled(&mut self, key: Key) {
        let container = self.containers.get_mut(&key);
        let log = container.and_then(|container| container.output.log_mut());
        for reply in log.map(Log::take_settled).unwrap_or_default() {
            self.reply(reply, Ok(Body::Done(protocol::Empty {})));
        }
    }

    /// A stream of a container or of a process in one has something, or has ended.
    pub(crate) fn look_at_tap(&mut self, key: Key) {
        let reactor = &mut self.reactor;
        let outputs = self.containers.values_mut().map(|one| &mut one.output);
        let mut outputs = outputs.chain(&mut self.leaving);
        if outputs.any(|output| output.look(key, reactor)) {
            return;
        }
        let mut execs = self.execs.values_mut().flat_map(Exec::taps_mut);
        if let Some(tap) = execs.find(|tap| tap.key() == key) {
            tap.look(reactor);
        }
    }

    /// A client that is attached to a container may have gone.
    pub(crate) fn look_at_client(&mut self, number: Number) {
        if let Some(container) = self.containers.get_mut(&number.0) {
            container.output.look_at_client(number, &mut self.reactor);
        }
    }

    /// A process was reaped: whether it was a relay.
    pub(crate) fn relay_ended(&mut self, pid: Pid) -> bool {
        let reactor = &mut self.reactor;
        for (key, container) in &mut self.containers {
            if container.output.relay_ended(pid, reactor) {
                let key = *key;
                self.tell_when_written(key);
                return true;
            }
        }
        let mut execs = self.execs.values_mut();
        if execs.any(|exec| exec.taps_mut().any(|tap| tap.relay_ended(pid, reactor))) {
            return true;
        }
        let mut delivered = self.delivered.iter_mut();
        if delivered.any(|one| one.tap.relay_ended(pid, reactor)) {
            self.deliver_all(monotonic_now());
            return true;
        }
        let mut leaving = self.leaving.iter_mut();
        if leaving.any(|output| output.relay_ended(pid, reactor)) {
            self.let_leave();
            return true;
        }
        false
    }

    /// The next moment at which a tap has to be looked at or an answer waits no longer.
    pub(crate) fn next_tap_deadline(&self) -> Option<u64> {
        let outputs = self.containers.values().map(|one| &one.output);
        let outputs = outputs.chain(&self.leaving).flat_map(Output::taps);
        let execs = self.execs.values().flat_map(Exec::taps);
        let taps = outputs.chain(execs).filter_map(Tap::deadline);
        let delivered = self.delivered.iter().map(|one| one.deadline);
        taps.chain(delivered).min()
    }

    /// Looks at taps without a relay, and answers what has waited long enough.
    pub(crate) fn look_after_taps(&mut self, now: u64) {
        let outputs = self.containers.values_mut().map(|one| &mut one.output);
        for output in outputs.chain(&mut self.leaving) {
            output.look_at_due(now, &mut self.reactor);
        }
        for tap in self.execs.values_mut().flat_map(Exec::taps_mut) {
            if tap.deadline().is_some_and(|deadline| deadline <= now) {
                tap.look(&mut self.reactor);
            }
        }
        if self.delivered.iter().any(|one| one.deadline <= now) {
            self.deliver_all(now);
        }
    }

    /// A process was reaped: whether it was a log's writer.
    pub(crate) fn writer_ended(&mut self, pid: Pid) -> bool {
        let is_its = |output: &Output| output.log().is_some_and(|log| log.is_writer(pid));
        let mut containers = self.containers.iter();
        let found = containers.find(|(_, container)| is_its(&container.output));
        if let Some((key, _)) = found {
            let key = *key;
            self.change_log(key, Log::writer_ended);
            self.log_has_room(key);
            return true;
        }
        let mut leaving = self.leaving.iter_mut();
        let Some(output) = leaving.find(|output| is_its(output)) else {
            return false;
        };
        if let Some(log) = output.log_mut() {
            log.writer_ended(&mut self.reactor);
        }
        self.let_leave();
        true
    }

    /// Reports all exits that wait for something: nothing is waited for any more.
    pub(crate) fn tell_all_exits(&mut self) {
        let keys: Vec<Key> = self.containers.keys().copied().collect();
        for key in keys {
            self.tell_exit(key);
        }
    }

    /// Looks after writers whose time has come, and exits that waited long enough.
    pub(crate) fn look_after_logs(&mut self, now: u64) {
        let due = |log: Option<&Log>| {
            log.and_then(Log::deadline)
                .is_some_and(|deadline| deadline <= now)
        };
        let looked: Vec<Key> = self
            .containers
            .iter()
            .filter(|(_, container)| due(container.output.log()))
            .map(|(key, _)| *key)
            .collect();
        for key in looked {
            self.change_log(key, |log, reactor| log.look(now, reactor));
            self.log_has_room(key);
        }
        for output in &mut self.leaving {
            if due(output.log())
                && let Some(log) = output.log_mut()
            {
                log.look(now, &mut self.reactor);
            }
        }
        self.let_leave();
        let overdue: Vec<Key> = self
            .containers
            .iter()
            .filter(|(_, container)| container.untold.is_some_and(|deadline| deadline <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in overdue {
            self.tell_exit(key);
        }
    }

    /// Tells an engine which logs stall.
    pub(crate) fn tell_stalled_logs(&mut self, connection: u64) {
        let stalled: Vec<String> = self
            .containers
            .values()
            .filter(|container| container.output.log().is_some_and(Log::is_stalled))
            .map(|container| container.id.clone())
            .collect();
        for id in stalled {
            let state = LogState { id, stalled: true };
            self.tell(connection, Body::LogState(state));
        }
    }

    /// The next moment at which a log, or an exit that waits for one, is due.
    pub(crate) fn next_log_deadline(&self) -> Option<u64> {
        let of = |output: &Output| output.log().and_then(Log::deadline);
        let logs = self.containers.values().map(|c| &c.output);
        let logs = logs.chain(&self.leaving).filter_map(of);
        let exits = self.containers.values().filter_map(|c| c.untold);
        logs.chain(exits).min()
    }

    /// Reports an exit as soon as the log has what was written before.
    pub(crate) fn begin_telling(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let stalled = container.output.log().is_some_and(Log::is_stalled);
        let wait = if stalled { 0 } else { PATIENCE };
        container.untold = Some(monotonic_now().saturating_add(wait));
        self.tell_when_written(key);
    }

    pub(crate) fn tell_when_written(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        if container.untold.is_none() {
            return;
        }
        let (scratch, reactor) = (&mut self.scratch, &mut self.reactor);
        if !container.output.collect(reactor) || container.recorder.is_some() {
            return;
        }
        container.output.drain(scratch, reactor);
        if container.output.is_full() {
            return;
        }
        if let Some(log) = container.output.log_mut() {
            log.finish(reactor);
            if !log.is_written() {
                return;
            }
        }
        self.tell_exit(key);
    }

    /// Reports an exit, if it was not yet.
    pub(crate) fn tell_exit(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        if container.untold.take().is_none() {
            return;
        }
        container.output.go_on(&mut self.reactor);
        let deletes = std::mem::take(&mut container.deletes);
        let State::Exited(record) = &container.state else {
            return;
        };
        if deletes.is_empty() {
            let exited = Exited::from(record);
            return self.broadcast(&Body::Exited(exited));
        }
        self.remove(key);
        for reply in deletes {
            self.reply(reply, Ok(Body::Done(protocol::Empty {})));
        }
    }

    /// Lets a forgotten container's output into its log.
    pub(crate) fn leave(&mut self, mut output: Output) {
        if output.wind_up(&mut self.scratch, &mut self.reactor) {
            return;
        }
        self.leaving.push_back(output);
        if self.leaving.len() > MOST_LEAVING
            && let Some(mut oldest) = self.leaving.pop_front()
        {
            // Its writer goes on with what is in the pipe.
            oldest.close(&mut self.reactor);
        }
    }

    /// Whether all logs have what was written; lets the writers end.
    pub(crate) fn wind_up_logs(&mut self) -> bool {
        let (scratch, reactor) = (&mut self.scratch, &mut self.reactor);
        let mut written = true;
        for container in self.containers.values_mut() {
            written &= container.output.wind_up(scratch, reactor);
            written &= container.recorder.is_none();
        }
        self.let_leave();
        written && self.leaving.is_empty()
    }

    fn let_leave(&mut self) {
        let (scratch, reactor) = (&mut self.scratch, &mut self.reactor);
        self.leaving
            .retain_mut(|output| !output.wind_up(scratch, reactor));
    }

    /// Changes a log and tells when that shows that it stalls or goes on.
    fn change_log(
        &mut self,
        key: Key,
        change: impl FnOnce(&mut Log, &mut crate::reactor::Reactor),
    ) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let id = container.id.clone();
        let Some(log) = container.output.log_mut() else {
            return;
        };
        let before = log.is_stalled();
        change(log, &mut self.reactor);
        let stalled = log.is_stalled();
        if stalled != before {
            self.broadcast(&Body::LogState(LogState { id, stalled }));
        }
    }

    /// Gives memory back when nobody writes any more.
    fn shrink_scratch(&mut self) {
        let closed = |container: &Container| container.output.is_closed();
        if self.containers.values().all(closed) {
            self.scratch = Scratch::default();
        }
    }
}
