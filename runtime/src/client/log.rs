//! Opens containers' logs for their monitors.
//!
//! A disk may keep whoever opens a file waiting, and a monitor must not wait: so
//! the engine opens logs, on threads for work that blocks. Calls that are stuck
//! are bounded in time and number; a thread that is stuck ends with its disk.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::error::MonitorError;
use crate::log::{LogError, open};

/// How long a log may take to be opened.
const PATIENCE: Duration = Duration::from_secs(10);
/// Logs that are opened at once: far more than a disk that works is asked for.
static OPENING: Semaphore = Semaphore::const_new(64);

/// Opens a log and gives a descriptor that names it. A folder that is missing is
/// made, as the kubelet makes it.
pub(super) async fn open_log(path: PathBuf) -> Result<OwnedFd, MonitorError> {
    let step = format!("open log {}", path.display());
    let failed = |message: &str| MonitorError::Launch {
        step: step.clone(),
        message: message.to_owned(),
        not_found: false,
    };
    let opening = async {
        let permit = OPENING.acquire().await;
        tokio::task::spawn_blocking(move || {
            // Held for as long as the disk holds the thread.
            let _permit = permit;
            open_in_folder(&path)
        })
        .await
    };
    match tokio::time::timeout(PATIENCE, opening).await {
        Ok(Ok(Ok(file))) => Ok(file),
        Ok(Ok(Err(LogError::Open { source, .. }))) => Err(failed(&source.to_string())),
        Ok(Ok(Err(LogError::NotRegular { .. }))) => Err(failed("not a regular file")),
        Ok(Err(_)) => Err(failed("the engine is ending")),
        Err(_elapsed) => Err(failed("its disk does not answer")),
    }
}

fn open_in_folder(path: &std::path::Path) -> Result<OwnedFd, LogError> {
    match open(path) {
        Err(LogError::Open { source, .. }) if source == rustix::io::Errno::NOENT => {
            if let Some(folder) = path.parent() {
                // What is missing is told by the second try.
                let _made = std::fs::create_dir_all(folder);
            }
            open(path)
        }
        other => other,
    }
}
