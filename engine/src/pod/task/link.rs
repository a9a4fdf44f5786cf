//! The connection of a pod's task to the pod's monitor.
//!
//! A monitor outlives the engine, and may not answer for a while without being dead: one
//! that is being looked for is neither there nor gone.

use runtime::client::{Event, Monitor};
use tokio::sync::{mpsc, oneshot};

/// Whether the pod's monitor can be asked.
pub(super) enum Link {
    /// There is no monitor: none yet, or it has ended.
    Down,
    /// That of an earlier engine is being looked for. The sender is dropped when it was
    /// found or is known to be dead.
    Sought(oneshot::Sender<()>),
    /// It answers, and tells what happens in the pod.
    Up {
        monitor: Monitor,
        events: mpsc::UnboundedReceiver<Event>,
    },
}

impl Link {
    /// The monitor, if it can be asked.
    pub(super) const fn monitor(&self) -> Option<&Monitor> {
        match self {
            Self::Up { monitor, .. } => Some(monitor),
            Self::Down | Self::Sought(_) => None,
        }
    }

    /// Whether it is not known yet if there is a monitor.
    pub(super) const fn is_sought(&self) -> bool {
        matches!(self, Self::Sought(_))
    }

    /// The monitor has ended. One that is being looked for is still looked for.
    pub(super) fn lose(&mut self) {
        if matches!(self, Self::Up { .. }) {
            *self = Self::Down;
        }
    }

    /// The search has ended; answers whom to tell by dropping it, if there was one.
    pub(super) fn found(&mut self) -> Option<oneshot::Sender<()>> {
        match std::mem::replace(self, Self::Down) {
            Self::Sought(whoever_waits) => Some(whoever_waits),
            before => {
                *self = before;
                None
            }
        }
    }

    /// The next event; waits for ever where there is none to come. A caller that gives up
    /// waiting loses none.
    pub(super) async fn event(&mut self) -> Option<Event> {
        let event = match self {
            Self::Up { events, .. } => events.recv().await,
            Self::Down | Self::Sought(_) => None,
        };
        match event {
            Some(event) => Some(event),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_that_is_looked_for_is_not_gone_with_the_sandbox() {
        let (sender, mut receiver) = oneshot::channel();
        let mut link = Link::Sought(sender);
        link.lose();
        assert!(link.is_sought() && link.monitor().is_none());
        let told = link.found();
        assert!(!link.is_sought());
        assert_eq!(
            receiver.try_recv(),
            Err(oneshot::error::TryRecvError::Empty)
        );
        drop(told);
        assert_eq!(
            receiver.try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        );
        assert!(link.found().is_none());
        link.lose();
        assert!(link.monitor().is_none() && !link.is_sought());
    }
}
