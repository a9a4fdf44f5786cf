//! Paths of the host that are being looked at, of which some may never answer: a
//! volume on a server that is gone keeps the thread that touches it in the kernel.
//!
//! Such a thread cannot be ended. What can be done is to send no other after it, and
//! to say which path it was.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A path that has not answered for so long is not touched again meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many threads may be kept by paths; there are 512 for all that may block.
const MOST: usize = 128;

/// A path does not answer.
#[derive(Debug, thiserror::Error)]
#[error("a path of the host has not answered for {} s", .0.as_secs())]
pub(crate) struct Stuck(Duration);

/// The paths that are being looked at, each with the times at which that began.
#[derive(Default)]
pub(crate) struct HostPaths(Mutex<HashMap<PathBuf, Vec<Instant>>>);

impl HostPaths {
    /// Does what touches a path, unless that path is known not to answer.
    pub(super) fn visit<T>(&self, path: &Path, work: impl FnOnce() -> T) -> Result<T, Stuck> {
        let began = self.enter(path)?;
        let _visit = Visit {
            paths: self,
            path,
            began,
        };
        Ok(work())
    }

    /// The path that has kept its thread the longest, if any has for some time.
    pub(crate) fn slowest(&self) -> Option<PathBuf> {
        let visits = self.lock();
        let oldest = |times: &[Instant]| times.iter().min().copied();
        let all = visits.iter();
        let all = all.filter_map(|(path, times)| Some((oldest(times)?, path)));
        let (began, path) = all.min()?;
        (began.elapsed() >= PATIENCE).then(|| path.clone())
    }

    fn enter(&self, path: &Path) -> Result<Instant, Stuck> {
        let mut visits = self.lock();
        let stuck = |began: &&Instant| began.elapsed() >= PATIENCE;
        let of_path = visits.get(path).into_iter().flatten().find(stuck);
        if let Some(began) = of_path {
            return Err(Stuck(began.elapsed()));
        }
        if visits.len() >= MOST && visits.values().flatten().filter(stuck).count() >= MOST {
            return Err(Stuck(PATIENCE));
        }
        let began = Instant::now();
        visits.entry(path.to_owned()).or_default().push(began);
        Ok(began)
    }

    /// The lock is held for a map operation only, never while a path is touched.
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Vec<Instant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends with the work.
struct Visit<'a> {
    paths: &'a HostPaths,
    path: &'a Path,
    began: Instant,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let mut visits = self.paths.lock();
        if let Some(times) = visits.get_mut(self.path) {
            if let Some(at) = times.iter().position(|began| *began == self.began) {
                times.swap_remove(at);
            }
            if times.is_empty() {
                visits.remove(self.path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_does_not_answer_is_not_touched_again() {
        let paths = HostPaths::default();
        let (dead, good) = (Path::new("/dead"), Path::new("/good"));
        let long_ago = Instant::now() - PATIENCE;
        paths.lock().insert(dead.to_owned(), vec![long_ago]);
        assert!(paths.visit(dead, || ()).is_err());
        assert_eq!(paths.slowest().as_deref(), Some(dead));
        assert_eq!(paths.visit(good, || 1).expect("visited"), 1);
        paths.lock().clear();
        assert!(paths.visit(dead, || ()).is_ok());
        assert!(paths.lock().is_empty(), "every visit ends");
    }
}
