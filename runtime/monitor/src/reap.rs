//! Children that ended, and deadlines.
//!
//! Every child is reaped here and nowhere else: first processes, processes
//! that were run, the pod's init, launcher helpers and what they leave, and
//! orphans, whose reaper the monitor is.

use runtime::protocol::{Failure, FailureKind, monotonic_now};
use runtime::sys::heap;
use rustix::process::{Pid, WaitOptions, WaitStatus};

use crate::container::Container;
use crate::monitor::Monitor;
use crate::process::{exit_code, raw};
use crate::start::Start;

/// How long somebody who has made a process may take to end, nanoseconds.
const MAKER_TIME: u64 = 50_000_000;
/// How many ends of children that nobody knows are remembered.
const MOST_UNKNOWN: usize = 256;

impl Monitor {
    /// Reaps all that ended.
    pub(crate) fn reap(&mut self) {
        while let Ok(Some(_)) = self.descriptors.signals.read_signal() {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if status.exited() || status.signaled() {
                self.ended(pid, status);
            }
        }
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus) {
        let (code, signal) = (exit_code(status), status.terminating_signal());
        if self.execs.contains_key(&raw(pid)) {
            return self.exec_ended(pid, status);
        }
        let found = self
            .containers
            .iter()
            .find(|(_, container)| container.pid() == Some(pid));
        if let Some((key, _)) = found {
            return self.container_exited(*key, code, signal);
        }
        if let Some(pod) = &mut self.pod
            && pod.init == Some(pid)
        {
            pod.init = None;
            return;
        }
        if self
            .containers
            .values_mut()
            .any(|container| container.helper_ended(pid))
        {
            return;
        }
        if self.relay_ended(pid)
            || self.writer_ended(pid)
            || self.recorder_ended(pid, status.exit_status() == Some(0))
        {
            return;
        }
        if let Some(index) = self.dying.iter().position(|known| *known == pid) {
            self.dying.swap_remove(index);
            return;
        }
        if self.newborn_ended(pid, status) {
            return;
        }
        // It may be a process that its launcher has not named yet. Processes of containers
        // may have children that are the monitor's, as many as they like.
        if self.expects_births() {
            if self.unknown_exits.len() >= MOST_UNKNOWN {
                self.unknown_exits.remove(0);
            }
            self.unknown_exits.push((pid, status));
        }
    }

    /// The next moment at which something is overdue, monotonic nanoseconds.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let launches = self.containers.values().filter_map(Container::deadline);
        let execs = self.execs.values().filter_map(crate::execs::Exec::deadline);
        let shutdown = self.shutdown.as_ref().map(|shutdown| shutdown.deadline);
        let makers = self.has_makers();
        let makers = makers.then(|| monotonic_now().saturating_add(MAKER_TIME));
        let starts = self.containers.values().filter_map(Container::start);
        let starts = starts.filter_map(Start::next_look);
        let rests = self.containers.values().filter_map(|one| one.lingering);
        let rests = rests.map(|rest| rest.look);
        let writes = self.containers.values().filter_map(Container::next_write);
        let all = launches.chain(starts).chain(rests).chain(execs);
        let all = all
            .chain(shutdown)
            .chain(makers)
            .chain(writes)
            .chain(self.next_tap_deadline());
        all.chain(self.trim_at)
            .chain(self.next_log_deadline())
            .min()
    }

    /// Ends what is overdue.
    pub(crate) fn meet_deadlines(&mut self) {
        let now = monotonic_now();
        if self.trim_at.take_if(|at| *at <= now).is_some() {
            heap::trim();
        }
        self.end_makers();
        self.look_after_starts(now);
        self.look_for_all_rests(now);
        self.end_overdue_execs(now);
        self.look_after_taps(now);
        self.look_after_logs(now);
        self.write_records_again(now);
        let overdue: Vec<_> = self
            .containers
            .iter()
            .filter(|(_, container)| container.deadline().is_some_and(|deadline| deadline <= now))
            .map(|(key, container)| (*key, container.id.clone()))
            .collect();
        for (key, id) in overdue {
            let failure = Failure::new(FailureKind::Timeout, &id, "the launcher took too long");
            self.launch_failed(key, failure);
        }
    }
}
