//! Ends containers without the monitor's help: where it has died, where it does not know the
//! container, and where it is alive and does not report an end after SIGKILL.
//!
//! The engine kills all processes in the container's cgroup, and only once that is empty is
//! the container EXITED: by the exit record that the monitor still wrote, if there is one.
//! What cannot be killed is tried again with growing pauses.

use std::sync::Arc;
use std::time::Duration;

use runtime::client::ExitRecord;
use runtime::procfs::{Stat, is_gone, is_in_cgroup};

use super::super::error::PodError;
use super::super::machine::{Exit, Input, Phase, PhaseInput, State};
use super::super::teardown;
use super::{Done, Task, exit_of};
use crate::causes::with_causes;
use crate::clock::now;
use crate::ids::ContainerId;
use crate::threads::on_disk;

/// How long a monitor may take to report the end of a container after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(4);
/// The same once the engine has killed the cgroup: what the monitor says is truer.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);

/// Whether a process has ended and was perhaps not reaped yet. One that cannot be looked
/// at may live.
fn is_dead(pid: i32) -> bool {
    match Stat::of(pid) {
        Ok(stat) => stat.has_ended(),
        Err(error) => is_gone(&error),
    }
}

impl Task {
    pub(super) fn monitor_gone(&mut self) {
        self.link.lose();
        match self.record.phase {
            Phase::Stopped => return,
            // The teardown tells the monitor to end, and needs it no more.
            Phase::Stopping if self.teardown.runs() => return,
            // Nobody will report the end of what is being killed.
            Phase::Stopping => {}
            Phase::Starting | Phase::Ready | Phase::Failed { .. } => {
                let reason = "the monitor of the pod died".to_owned();
                self.step_phase(PhaseInput::Lost { reason });
                self.keep_pod();
            }
        }
        tracing::error!(pod = %self.record.id, "the monitor died");
        // Those that have ended are passed over.
        self.kill_orphans(self.ids());
    }

    /// Kills what containers left without a monitor, before anything is said about it.
    pub(super) fn kill_orphans(&mut self, ids: Vec<ContainerId>) {
        let records: Vec<_> = ids
            .iter()
            .filter_map(|id| self.slots.get(id))
            .filter(|slot| !slot.has_ended())
            .map(|slot| slot.record.clone())
            .collect();
        if records.is_empty() {
            return self.tear_down_when_ended();
        }
        let engine = Arc::clone(&self.engine);
        let work = async move {
            let each = records.iter().map(async |record| {
                let killed = teardown::container_processes(&engine, record).await;
                (record.id.clone(), killed)
            });
            Ok(futures::future::join_all(each).await)
        };
        self.job(work, move |killed| {
            // Work that panicked says nothing about any of them.
            let unknown = |id| (id, Err(PodError::unknown_rest()));
            Done::Orphaned(killed.unwrap_or_else(|_| ids.into_iter().map(unknown).collect()))
        });
    }

    /// Only a container whose processes are gone may be said to have ended.
    pub(super) fn orphaned(&mut self, all: Vec<(ContainerId, Result<(), PodError>)>) {
        let mut alive = Vec::new();
        for (id, killed) in all {
            match killed {
                Ok(()) => self.ended_without_a_monitor(&id),
                Err(error) => {
                    let reason = with_causes(&error);
                    tracing::error!(container = %id, reason, "processes without a monitor");
                    alive.push(id);
                }
            }
        }
        if !alive.is_empty() {
            let pause = self.failed_kills.pause();
            self.timer(pause, Done::RetryOrphans(alive));
        }
    }

    fn ended_without_a_monitor(&mut self, id: &ContainerId) {
        let Some(slot) = self.slots.get(id) else {
            return;
        };
        if slot.record.state == State::Creating {
            // Its creation fails, and is undone then.
            return;
        }
        // What the monitor could still write down is truer than what we know.
        let written = match on_disk(|| ExitRecord::read_dir(&self.dir.exits())) {
            Ok(written) => written,
            Err(error) => {
                tracing::warn!(container = %id, %error, "exit records are read again");
                let pause = self.failed_kills.pause();
                self.timer(pause, Done::RetryOrphans(vec![id.clone()]));
                return;
            }
        };
        let known = written
            .iter()
            .find(|record| record.container == id.as_str());
        // Of one that ended before, nobody knows how any more.
        let (code, reason, message) = match self.record.phase {
            Phase::Stopped => (
                255,
                "Unknown",
                "it ended with its sandbox, how could not be written down",
            ),
            _ => (
                137,
                "Error",
                "the monitor of the pod died or did not answer, the container was killed",
            ),
        };
        let lost = || Exit {
            code,
            reason: reason.to_owned(),
            message: message.to_owned(),
            started_at: slot.record.state.started_at(),
            finished_at: now(),
        };
        let exit = known.map_or_else(lost, exit_of);
        if let Err(error) = self.step(id, Input::Exited(exit)) {
            tracing::debug!(container = %id, %error, "end without a monitor");
        }
    }

    /// Without PID 1 of its PID namespace a pod can have no process any more: it has
    /// failed, and the kubelet makes another.
    pub(super) fn fail_without_init(&mut self) {
        let Some(init) = self.record.init_pid else {
            return;
        };
        // The number may be another's by now, the cgroup of this id is not.
        let is_its_own = || match is_in_cgroup(init, self.record.id.as_str()) {
            Ok(is_in) => is_in,
            Err(error) => !is_gone(&error),
        };
        let lives = || is_its_own() && !is_dead(init);
        if self.record.phase != Phase::Ready || on_disk(lives) {
            return;
        }
        tracing::error!(pod = %self.record.id, "PID 1 of the pod's PID namespace has ended");
        let reason = "PID 1 of the pod's shared PID namespace has ended".to_owned();
        self.step_phase(PhaseInput::Lost { reason });
        self.keep_pod();
    }

    /// Sends SIGKILL and sees to it that it leads to something.
    pub(super) fn order_kill(&mut self, id: &ContainerId) {
        self.send(id, libc::SIGKILL);
        crate::failpoint::hit("stop-killed");
        let patience = match self.link.monitor() {
            Some(_) => KILL_PATIENCE,
            None => Duration::ZERO,
        };
        self.watch_kill(id, patience);
    }

    fn watch_kill(&mut self, id: &ContainerId, patience: Duration) {
        let watched = |slot: &super::Slot| {
            let watch = slot.kill_watch.as_ref();
            watch.is_some_and(|watch| !watch.is_finished())
        };
        if self.slots.get(id).is_some_and(|slot| watched(slot)) {
            return;
        }
        let watch = self.timer(patience, Done::KillOverdue(id.clone()));
        if let Some(slot) = self.slots.get_mut(id) {
            slot.kill_watch = Some(watch);
        }
    }

    /// The end of a killed container was not reported: its cgroup is killed.
    pub(super) fn kill_overdue(&mut self, id: &ContainerId) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        if !matches!(slot.record.state, State::Killing { .. }) {
            return;
        }
        let monitored = self.link.monitor().is_some();
        if monitored {
            tracing::warn!(container = %id, "the monitor does not report the end after SIGKILL, the cgroup is killed");
        }
        let (engine, record, own) = (Arc::clone(&self.engine), slot.record.clone(), id.clone());
        let work = async move {
            teardown::container_processes(&engine, &record).await?;
            if monitored {
                tokio::time::sleep(REPORT_PATIENCE).await;
            }
            Ok(())
        };
        let watch = self.job(work, move |killed| Done::CgroupKilled(own, killed));
        if let Some(slot) = self.slots.get_mut(id) {
            slot.kill_watch = Some(watch);
        }
    }

    pub(super) fn cgroup_killed(&mut self, id: &ContainerId, killed: Result<(), PodError>) {
        match killed {
            Ok(()) => self.ended_without_a_monitor(id),
            Err(error) => {
                let reason = with_causes(&error);
                tracing::error!(container = %id, reason, "a killed container does not end");
                if let Some(slot) = self.slots.get_mut(id) {
                    slot.kill_watch = None;
                }
                let pause = self.failed_kills.pause();
                self.watch_kill(id, pause);
            }
        }
    }
}
