//! Monitors of an earlier build go on as this engine's, so that what is mended in
//! monitors reaches pods that live on.
//!
//! Owns when: after the engine serves, a few at a time, and again with growing pauses
//! where something is under way in a monitor. The monitor itself sees to it that a
//! build that does not start changes nothing; a pod is never worse off than before.
//! Nothing is recorded: the next engine asks anew.

use std::sync::Arc;

use runtime::client::{Monitor, MonitorError, Upgraded};
use tokio::sync::Semaphore;

use super::backoff::Backoff;
use crate::causes::with_causes;
use crate::context::Engine;
use crate::ids::PodId;

/// Upgrades at a time: starting programs is what an engine that just came back has
/// more urgent reasons for.
static AT_ONCE: Semaphore = Semaphore::const_new(2);
/// How often a monitor is asked in which something is under way: for half an hour.
const TRIES: usize = 32;

/// Has a monitor that was reached go on as this engine's build, in the background.
pub(crate) fn begin(engine: &Arc<Engine>, pod: &PodId, monitor: &Monitor) {
    let (engine, pod, monitor) = (Arc::clone(engine), pod.clone(), monitor.clone());
    tokio::spawn(async move {
        let mut backoff = Backoff::default();
        for _ in 0..TRIES {
            if is_settled(&engine, &pod, &monitor).await {
                return;
            }
            tokio::time::sleep(backoff.pause()).await;
        }
        tracing::warn!(%pod, "the monitor stays of an earlier build: something was under way in it whenever it was asked");
    });
}

/// Asks once; whether there is nothing more to ask.
async fn is_settled(engine: &Engine, pod: &PodId, monitor: &Monitor) -> bool {
    let Ok(_permit) = AT_ONCE.acquire().await else {
        return true;
    };
    match engine.monitors.upgrade(monitor).await {
        Ok(Upgraded::NotNeeded) => true,
        Ok(Upgraded::Done) => {
            tracing::info!(%pod, "the monitor goes on as this build");
            true
        }
        // Something is under way, or it does not answer now.
        Err(MonitorError::WrongState { .. } | MonitorError::Timeout(_) | MonitorError::Lost) => {
            false
        }
        Err(MonitorError::Gone) => true,
        Err(error) => {
            let reason = with_causes(&error);
            tracing::warn!(%pod, reason, "the monitor stays of an earlier build");
            true
        }
    }
}
