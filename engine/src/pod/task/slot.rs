//! A container as its pod's task holds it: its record, what lists say of it, who waits for
//! what, and the timers that run for it. Lost in a crash but for the record.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::super::machine::State;
use super::super::record::ContainerRecord;
use super::super::view::ContainerView;
use super::removal::{Removal, Retry};
use super::reply::Reply;
use crate::ids::ContainerId;
use crate::model::Resources;

/// A container of this pod.
pub(super) struct Slot {
    pub(super) record: ContainerRecord,
    /// Whether the disk has an older record than this.
    pub(super) stale: bool,
    pub(super) pid: Option<i32>,
    pub(super) view: Option<Arc<ContainerView>>,
    pub(super) creating: Vec<Reply<ContainerId>>,
    pub(super) starting: Vec<Reply<()>>,
    pub(super) stopping: Vec<Reply<()>>,
    pub(super) removal: Removal,
    /// Updates wait for each other: each starts from what the last one left.
    pub(super) updates: VecDeque<(Resources, Reply<()>)>,
    /// While an update runs: its record says already what they will be.
    pub(super) limits_in_force: Option<Resources>,
    /// Whether its log takes nothing for the time being.
    pub(super) log_stalled: bool,
    /// Dropped when the creation is to end early. None of a container whose creation an
    /// earlier engine began.
    pub(super) creation: Option<oneshot::Sender<()>>,
    /// Of a container that could not be made and not be given back: it is removed
    /// as soon as that works.
    pub(super) unmade: Option<Retry>,
    /// The grace periods that run.
    pub(super) graces: Vec<AbortHandle>,
    /// Waits for what SIGKILL leads to.
    pub(super) kill_watch: Option<AbortHandle>,
}

impl Slot {
    pub(super) fn new(record: ContainerRecord, pid: Option<i32>) -> Self {
        Self {
            record,
            stale: false,
            pid,
            view: None,
            creating: Vec::new(),
            starting: Vec::new(),
            stopping: Vec::new(),
            removal: Removal::default(),
            updates: VecDeque::new(),
            limits_in_force: None,
            log_stalled: false,
            creation: None,
            unmade: None,
            graces: Vec::new(),
            kill_watch: None,
        }
    }

    /// Ends the timers of a container that has ended.
    pub(super) fn end_timers(&mut self) {
        for timer in self.graces.drain(..).chain(self.kill_watch.take()) {
            timer.abort();
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.record.state, State::Exited(_))
    }

    /// No command runs in a container that has ended: its process, whose environment may
    /// be megabytes, is not needed any more. The kubelet keeps ended containers for long.
    pub(super) fn forget_what_ran(&mut self) {
        if self.has_ended() {
            self.record.process = None;
        }
    }
}
