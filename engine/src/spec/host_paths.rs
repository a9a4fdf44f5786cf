//! Paths of the host that are being looked at, of which some may never answer: a
//! volume on a server that is gone keeps the thread that touches it in the kernel.
//!
//! Such a thread cannot be ended. What can be done is to send no other after it, and
//! to say which path it was.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A path that has not answered for so long is not touched again meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many may be at one path at once: others wait for one of them to be done,
const MOST_AT_ONE: usize = 16;
/// unless one of those has been there for so long.
const TURN: Duration = Duration::from_secs(1);
/// So many threads may be kept by paths; there are 512 for all that may block.
const MOST: usize = 128;

/// A path does not answer.
#[derive(Debug, thiserror::Error)]
#[error("a path of the host has not answered for {} s", .0.as_secs())]
pub(crate) struct Stuck(Duration);

/// The paths that are being looked at, each with the times at which that began.
#[derive(Default)]
pub(crate) struct HostPaths {
    visits: Mutex<Visits>,
    /// A visit has ended.
    ended: Condvar,
}

type Visits = HashMap<PathBuf, Vec<Instant>>;

/// The path that the making of one container is at.
#[derive(Default)]
pub(crate) struct Whereabouts(Mutex<Option<PathBuf>>);

impl Whereabouts {
    /// The path that is being looked at.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at paths of the host for one container.
#[derive(Clone, Copy)]
pub(crate) struct Visitor<'a> {
    pub(crate) paths: &'a HostPaths,
    pub(crate) at: &'a Whereabouts,
}

impl Visitor<'_> {
    /// Does what touches a path, unless that path is known not to answer.
    pub(super) fn visit<T>(&self, path: &Path, work: impl FnOnce() -> T) -> Result<T, Stuck> {
        let began = self.paths.enter(path)?;
        *self.at.lock() = Some(path.to_owned());
        let _visit = Visit {
            visitor: *self,
            path,
            began,
        };
        Ok(work())
    }
}

impl HostPaths {
    fn enter(&self, path: &Path) -> Result<Instant, Stuck> {
        let mut visits = self.lock();
        loop {
            let there = visits.get(path).map_or(&[][..], Vec::as_slice);
            let longest = there.iter().map(Instant::elapsed).max().unwrap_or_default();
            let is_full = there.len() >= MOST_AT_ONE;
            if longest >= PATIENCE || (is_full && longest >= TURN) {
                return Err(Stuck(longest));
            }
            if !is_full {
                break;
            }
            let turn = self.ended.wait_timeout(visits, TURN - longest);
            visits = turn.unwrap_or_else(PoisonError::into_inner).0;
        }
        let stuck = |began: &&Instant| began.elapsed() >= PATIENCE;
        if visits.len() >= MOST && visits.values().flatten().filter(stuck).count() >= MOST {
            return Err(Stuck(PATIENCE));
        }
        let began = Instant::now();
        visits.entry(path.to_owned()).or_default().push(began);
        Ok(began)
    }

    /// The lock is held for a map operation only, never while a path is touched.
    fn lock(&self) -> MutexGuard<'_, Visits> {
        self.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a path be one that somebody has been at for so long.
    #[cfg(test)]
    pub(super) fn hold(&self, path: &Path, time: Duration) {
        let mut visits = self.lock();
        let times = visits.entry(path.to_owned()).or_default();
        times.extend(Instant::now().checked_sub(time));
    }
}

/// Ends with the work.
struct Visit<'a> {
    visitor: Visitor<'a>,
    path: &'a Path,
    began: Instant,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        *self.visitor.at.lock() = None;
        let paths = self.visitor.paths;
        let mut visits = paths.lock();
        if let Some(times) = visits.get_mut(self.path) {
            if let Some(at) = times.iter().position(|began| *began == self.began) {
                times.swap_remove(at);
            }
            if times.is_empty() {
                visits.remove(self.path);
            }
        }
        paths.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_does_not_answer_is_not_touched_again() {
        let (paths, at) = (HostPaths::default(), Whereabouts::default());
        let visitor = Visitor {
            paths: &paths,
            at: &at,
        };
        let (dead, good) = (Path::new("/dead"), Path::new("/good"));
        paths.hold(dead, PATIENCE);
        assert!(visitor.visit(dead, || ()).is_err());
        let there = visitor.visit(good, || at.path()).expect("visited");
        assert_eq!(there.as_deref(), Some(good));
        assert_eq!(at.path(), None);
        paths.lock().clear();
        assert!(visitor.visit(dead, || ()).is_ok());
        assert!(paths.lock().is_empty(), "every visit ends");
    }

    #[test]
    fn few_are_at_one_path_at_once_before_it_is_known_not_to_answer() {
        let (paths, at) = (HostPaths::default(), Whereabouts::default());
        let visitor = Visitor {
            paths: &paths,
            at: &at,
        };
        let busy = Path::new("/busy");
        for _ in 0..MOST_AT_ONE {
            paths.hold(busy, Duration::ZERO);
        }
        let began = Instant::now();
        assert!(visitor.visit(busy, || ()).is_err(), "none of them ends");
        assert!(began.elapsed() < PATIENCE / 2);
        assert!(visitor.visit(Path::new("/other"), || ()).is_ok());
        // Whoever waits gets the place of one that ends.
        paths.lock().clear();
        for _ in 0..MOST_AT_ONE {
            paths.hold(busy, Duration::ZERO);
        }
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| visitor.visit(busy, || ()).is_ok());
            std::thread::sleep(Duration::from_millis(50));
            paths.lock().get_mut(busy).expect("visits").pop();
            paths.ended.notify_all();
            assert!(waiting.join().expect("no panic"));
        });
    }
}
