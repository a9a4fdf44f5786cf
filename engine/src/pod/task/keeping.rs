//! How a pod's task writes its records, and writes them again where the disk did not
//! take them.
//!
//! What begins something is on disk or has not happened. What ends something goes on
//! without: its record is stale then, and written again with growing pauses, before the
//! monitor is let go that knows it as well, and when the engine ends. How a container
//! ended goes meanwhile where room was made for it with the container. A crash leaves
//! the older record and that.

use std::sync::Arc;
use std::time::Duration;

use super::super::error::PodError;
use super::super::machine::{Phase, State};
use super::removal::Retry;
use super::slot::Slot;
use super::{Command, Done, Reply, Task};
use crate::causes::with_causes;
use crate::context::Engine;
use crate::ids::ContainerId;
use crate::threads::on_disk;

/// Of the two seconds that SIGTERM allows, what a disk gets that did not take a record.
const LAST_TRY: Duration = Duration::from_millis(400);

impl Slot {
    /// Whether its record is to be written again. One that is being made is undone by a
    /// restart, and one that is being removed must not come back.
    fn wants_rewrite(&self) -> bool {
        self.stale && !self.removal.runs() && self.record.state != State::Creating
    }
}

impl Task {
    /// Writes the sandbox's record with the number of this transition.
    pub(super) fn write_pod(&mut self) -> Result<(), PodError> {
        let _step = self.mark("record");
        self.record.transition = self.engine.index.next_transition();
        on_disk(|| self.dir.write_pod(&self.record))?;
        self.stale = false;
        Ok(())
    }

    /// The same where no answer depends on it: a restart finds out what the sandbox has
    /// become without it.
    pub(super) fn keep_pod(&mut self) {
        if let Err(error) = self.write_pod() {
            tracing::error!(pod = %self.record.id, %error, "the sandbox's record is stale");
            self.stale = true;
            self.rewrite_later();
        }
    }

    /// Writes a container's record and renews its view.
    pub(super) fn keep(&mut self, id: &ContainerId) -> Result<(), PodError> {
        let _step = self.mark("record");
        let transition = self.engine.index.next_transition();
        let written = match self.slots.get_mut(id) {
            Some(slot) => {
                slot.record.transition = transition;
                let written = on_disk(|| self.dir.write_container(&slot.record));
                slot.stale &= written.is_err();
                written
            }
            None => Ok(()),
        };
        self.refresh(id);
        Ok(written?)
    }

    /// The same where no answer depends on it, as with the sandbox's.
    pub(super) fn keep_if_possible(&mut self, id: &ContainerId) {
        if let Err(error) = self.keep(id) {
            let reason = with_causes(&error);
            tracing::error!(container = %id, reason, "the container's record is stale");
            self.note_stale(id);
        }
    }

    /// Notes that the disk has an older record of a container. Its end goes where room
    /// was made for it.
    pub(super) fn note_stale(&mut self, id: &ContainerId) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        slot.stale = true;
        if slot.wants_rewrite()
            && !self.removal.runs()
            && let Err(error) = on_disk(|| self.dir.write_exit(&slot.record))
        {
            let reason = with_causes(&error);
            tracing::error!(container = %id, reason, "how the container ended is not on disk");
        }
        self.rewrite_later();
    }

    /// Has stale records written again after a pause, unless that is to happen anyway.
    pub(super) fn rewrite_later(&mut self) {
        if !self.rewrite.is_armed() {
            let pause = self.rewrite.backoff.pause();
            let timer = self.timer(pause, Done::Rewrite);
            self.rewrite.arm(timer);
        }
    }

    /// The pause is over.
    pub(super) fn rewrite_due(&mut self) {
        self.rewrite.disarm();
        self.rewrite_stale();
    }

    /// Writes stale records again.
    pub(super) fn rewrite_stale(&mut self) {
        // What is being undone or removed must not come back.
        if self.record.phase != Phase::Starting && !self.removal.runs() && !self.finished {
            if self.stale {
                self.rewrite_pod();
            }
            for id in self.ids() {
                self.rewrite_container(&id);
            }
        }
        if self.stale || self.slots.values().any(|slot| slot.stale) {
            self.rewrite_later();
        } else {
            self.rewrite.disarm();
            self.rewrite = Retry::default();
        }
    }

    fn rewrite_pod(&mut self) {
        let pod = &self.record.id;
        match on_disk(|| self.dir.write_pod(&self.record)) {
            Ok(()) => {
                self.stale = false;
                tracing::info!(%pod, "the sandbox's record is up to date again");
            }
            Err(error) => tracing::warn!(%pod, %error, "the sandbox's record stays stale"),
        }
    }

    fn rewrite_container(&mut self, id: &ContainerId) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        if !slot.wants_rewrite() {
            return;
        }
        let record = &slot.record;
        match on_disk(|| self.dir.write_container(record)) {
            Ok(()) => {
                slot.stale = false;
                tracing::info!(container = %id, "the container's record is up to date again");
            }
            Err(error) => {
                tracing::warn!(container = %id, %error, "the container's record stays stale");
                if let Err(error) = on_disk(|| self.dir.write_exit(record)) {
                    tracing::debug!(container = %id, %error, "nor is its end on disk");
                }
            }
        }
    }

    /// The engine ends.
    pub(super) fn keep_at_the_end(&mut self, reply: Reply<()>) {
        self.rewrite_stale();
        self.answers.one(reply, Ok(()));
    }
}

/// Has every pod's task write what its disk did not take before, at the end of the
/// engine. A disk that stands still is not waited for.
pub(crate) async fn keep_all(engine: &Arc<Engine>) {
    let asked = engine.index.inboxes().into_iter().filter_map(|inbox| {
        let (reply, answer) = Reply::channel();
        inbox.send(Command::Keep(reply)).ok().map(|()| answer)
    });
    let all = futures::future::join_all(asked);
    if tokio::time::timeout(LAST_TRY, all).await.is_err() {
        tracing::warn!("not every pod's records could be looked after in time");
    }
}
