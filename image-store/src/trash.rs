//! Removal in two steps: a rename that frees the name at once, and a thread
//! that empties the trash slowly.
//!
//! Deleting a big tree takes the file system's locks for seconds and slows
//! whatever starts meanwhile, so the thread works in small steps with pauses.
//! Owns its directory and its thread, which ends when the owner is dropped; a
//! crash leaves what was not yet deleted, and the next start goes on with it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::OpenError;
use crate::remove::remove_with;

/// Entries removed between two pauses.
const BATCH: u64 = 128;
const PAUSE: Duration = Duration::from_millis(3);

/// A directory whose contents go away by themselves.
pub(crate) struct Trash {
    path: PathBuf,
    next: AtomicU64,
    wake: Mutex<Option<mpsc::Sender<()>>>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Trash {
    /// Opens or makes the directory and starts the thread, which waits for
    /// [`Trash::wake`] or the first thing thrown.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let fail = |step| {
            move |source| OpenError::Io {
                step,
                path: path.to_owned(),
                source,
            }
        };
        std::fs::create_dir_all(path).map_err(fail("make"))?;
        let (wake, woken) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            path: path.to_owned(),
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new()
            .name("image-trash".to_owned())
            .spawn(move || worker.run(&woken))
            .map_err(fail("start the thread for"))?;
        // Names of a former process may still be there.
        let first = crate::layout::entries(path)?
            .iter()
            .filter_map(|p| p.file_name()?.to_str()?.parse::<u64>().ok())
            .max()
            .map_or(0, |last| last + 1);
        Ok(Self {
            path: path.to_owned(),
            next: AtomicU64::new(first),
            wake: Mutex::new(Some(wake)),
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Moves `path` into the trash. Nothing there: fine.
    pub(crate) fn throw(&self, path: &Path) -> io::Result<()> {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        match std::fs::rename(path, self.path.join(name)) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Lets the thread look.
    pub(crate) fn wake(&self) {
        let wake = self.wake.lock().unwrap_or_else(PoisonError::into_inner);
        if wake.as_ref().is_some_and(|wake| wake.send(()).is_err()) {
            tracing::error!("the thread that empties the trash is gone");
        }
    }
}

impl Drop for Trash {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(
            self.wake
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread that empties the trash panicked");
        }
    }
}

struct Worker {
    path: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Worker {
    fn run(&self, woken: &mpsc::Receiver<()>) {
        while woken.recv().is_ok() {
            while woken.try_recv().is_ok() {}
            if let Err(error) = self.empty() {
                tracing::warn!(error = %error, path = %self.path.display(), "empty the trash");
            }
        }
    }

    fn empty(&self) -> io::Result<()> {
        let dir = File::open(&self.path)?;
        let names: Vec<OsString> = std::fs::read_dir(&self.path)?
            .map(|e| e.map(|e| e.file_name()))
            .collect::<Result<_, _>>()?;
        for name in names {
            let mut step = |removed: u64| {
                if removed.is_multiple_of(BATCH) {
                    std::thread::sleep(PAUSE);
                }
                !self.stop.load(Ordering::Relaxed)
            };
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            // What cannot be removed now (a mount point, perhaps) must not keep the rest.
            if let Err(error) = remove_with(&dir, name.as_bytes(), &mut step) {
                let error = io::Error::from(error);
                tracing::warn!(error = %error, name = %name.display(), "remove from the trash");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn is_empty(path: &Path) -> bool {
        std::fs::read_dir(path).unwrap().next().is_none()
    }

    fn wait_for(mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < deadline, "not within 10 s");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn thrown_trees_vanish_at_once_and_are_deleted_later() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("trash");
        let trash = Trash::open(&bin).unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        trash.throw(&tree).unwrap();
        assert!(!tree.exists());
        wait_for(|| is_empty(&bin));
        trash.throw(&tree).unwrap();
    }

    #[test]
    fn what_a_former_process_left_goes_when_woken() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("trash");
        std::fs::create_dir_all(bin.join("7/x/y")).unwrap();
        std::fs::write(bin.join("odd"), "x").unwrap();
        let trash = Trash::open(&bin).unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(&tree).unwrap();
        trash.throw(&tree).unwrap();
        trash.wake();
        wait_for(|| is_empty(&bin));
    }
}
