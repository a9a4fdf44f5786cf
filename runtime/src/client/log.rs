//! Opens containers' logs for their monitors.
//!
//! A disk may keep whoever opens a file waiting, and a monitor must not wait: so
//! the engine opens logs, on threads for work that blocks. Calls that are stuck
//! are bounded in time and number, for each disk and altogether; a thread that is stuck
//! ends with its disk.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::MonitorError;
use crate::crowd::{Bounds, Crowd, Crowded, Inside};
use crate::log::{LogError, open};

/// How long a log may take to be opened.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often one that waits looks whether there is room.
const AGAIN: Duration = Duration::from_millis(200);
/// Logs that are opened at once: far more than a disk that works is asked for.
static OPENING: Crowd = Crowd::new(Bounds {
    at_path: 4,
    at_device: 32,
    most: 96,
    reserve: 32,
    patience: PATIENCE,
});

/// Opens a log and gives a descriptor that names it. A folder that is missing is
/// made, as the kubelet makes it.
pub(super) async fn open_log(path: PathBuf) -> Result<OwnedFd, MonitorError> {
    let step = format!("open log {}", path.display());
    let failed = |message: &str| MonitorError::Launch {
        step: step.clone(),
        message: message.to_owned(),
        not_found: false,
    };
    let inside = room(&path)
        .await
        .map_err(|crowded| failed(&crowded.to_string()))?;
    let opening = tokio::task::spawn_blocking(move || {
        // Held for as long as the disk holds the thread.
        let _inside = inside;
        open_in_folder(&path)
    });
    match tokio::time::timeout(PATIENCE, opening).await {
        Ok(Ok(Ok(file))) => Ok(file),
        Ok(Ok(Err(LogError::Open { source, .. }))) => Err(failed(&source.to_string())),
        Ok(Ok(Err(LogError::NotRegular { .. }))) => Err(failed("not a regular file")),
        Ok(Err(_)) => Err(failed("the engine is ending")),
        Err(_elapsed) => Err(failed("its disk does not answer")),
    }
}

/// Waits until few others are at the same disk.
async fn room(path: &Path) -> Result<Inside<'static>, Crowded> {
    let began = Instant::now();
    loop {
        match OPENING.enter(path) {
            Ok(inside) => return Ok(inside),
            Err(crowded) if crowded.lasts(PATIENCE) || began.elapsed() >= PATIENCE => {
                return Err(crowded);
            }
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

fn open_in_folder(path: &Path) -> Result<OwnedFd, LogError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn logs_on_a_disk_that_does_not_answer_hold_up_those_on_other_disks_never() {
        let dir = tempfile::tempdir().unwrap();
        let on_dead_disk = |n: usize| PathBuf::from(format!("/proc/dead/{n}.log"));
        let dead: Vec<_> = (0..1000)
            .filter_map(|n| OPENING.enter(&on_dead_disk(n)).ok())
            .collect();
        assert_eq!(dead.len(), 32, "threads that a disk may keep");
        let began = Instant::now();
        for n in 0..100 {
            let path = dir.path().join(format!("{n}/0.log"));
            open_log(path).await.unwrap();
        }
        assert!(began.elapsed() < PATIENCE, "nobody waits for the dead disk");
        drop(dead);
        assert!(OPENING.enter(&on_dead_disk(0)).is_ok());
    }
}
