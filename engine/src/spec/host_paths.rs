//! Visits to paths of the host, such as volumes, of which some may never answer: a volume whose
//! server is gone keeps the thread that touches it in the kernel, and nothing ends that thread.
//!
//! Owns which paths are being visited now: a path that has not answered for a while gets no
//! further thread, and the error names it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use runtime::crowd::{Bounds, Crowd, Crowded, Inside};

/// A path that has not answered for so long is not touched again meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where there are many already one waits for others to be done, unless one of those has
/// been there for so long.
const TURN: Duration = Duration::from_secs(1);
/// How often one that waits looks whether there is room.
const AGAIN: Duration = Duration::from_millis(50);
/// Threads that paths may keep; there are 512 for all that may block.
const BOUNDS: Bounds = Bounds {
    at_path: 16,
    at_device: 64,
    most: 192,
    reserve: 64,
    patience: PATIENCE,
};

/// A path does not answer.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct Stuck(Crowded);

/// The paths that are being looked at.
pub(crate) struct HostPaths(Crowd);

impl Default for HostPaths {
    fn default() -> Self {
        Self(Crowd::new(BOUNDS))
    }
}

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
    pub(crate) fn visit<T>(&self, path: &Path, work: impl FnOnce() -> T) -> Result<T, Stuck> {
        let inside = self.paths.enter(path)?;
        *self.at.lock() = Some(path.to_owned());
        let _visit = Visit {
            at: self.at,
            _inside: inside,
        };
        Ok(work())
    }
}

impl HostPaths {
    pub(super) fn enter(&self, path: &Path) -> Result<Inside<'_>, Stuck> {
        let began = Instant::now();
        loop {
            match self.0.enter(path) {
                Ok(inside) => return Ok(inside),
                Err(crowded) if crowded.lasts(TURN) || began.elapsed() >= PATIENCE => {
                    return Err(Stuck(crowded));
                }
                Err(_) => std::thread::sleep(AGAIN),
            }
        }
    }

    /// Takes every path where somebody is for one that does not answer.
    #[cfg(test)]
    pub(super) fn impatient() -> Self {
        Self(Crowd::new(Bounds {
            patience: Duration::ZERO,
            ..BOUNDS
        }))
    }
}

/// Ends with the work.
struct Visit<'a> {
    at: &'a Whereabouts,
    _inside: Inside<'a>,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        *self.at.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_does_not_answer_is_not_touched_again() {
        let (paths, at) = (HostPaths::impatient(), Whereabouts::default());
        let visitor = Visitor {
            paths: &paths,
            at: &at,
        };
        let (dead, good) = (Path::new("/dead"), Path::new("/good"));
        let never = paths.0.enter(dead).expect("room");
        assert!(visitor.visit(dead, || ()).is_err());
        let there = visitor.visit(good, || at.path()).expect("visited");
        assert_eq!(there.as_deref(), Some(good));
        assert_eq!(at.path(), None);
        drop(never);
        assert!(visitor.visit(dead, || ()).is_ok());
    }

    #[test]
    fn few_are_at_one_path_at_once_before_it_is_known_not_to_answer() {
        let (paths, at) = (HostPaths::default(), Whereabouts::default());
        let visitor = Visitor {
            paths: &paths,
            at: &at,
        };
        let busy = Path::new("/busy");
        let all = || (0..16).map(|_| paths.0.enter(busy).expect("room"));
        let mut there: Vec<_> = all().collect();
        let began = Instant::now();
        assert!(visitor.visit(busy, || ()).is_err(), "none of them ends");
        assert!(began.elapsed() < PATIENCE / 2);
        assert!(visitor.visit(Path::new("/other"), || ()).is_ok());
        // Whoever waits gets the place of one that ends.
        there.clear();
        there.extend(all());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| visitor.visit(busy, || ()).is_ok());
            std::thread::sleep(AGAIN);
            there.pop();
            assert!(waiting.join().expect("no panic"));
        });
    }

    #[test]
    fn many_paths_of_a_dead_file_system_keep_no_other_from_being_visited() {
        let (paths, at) = (HostPaths::default(), Whereabouts::default());
        let visitor = Visitor {
            paths: &paths,
            at: &at,
        };
        let of_dead = |n: usize| PathBuf::from(format!("/proc/dead/{n}"));
        let dead = (0..1000).filter_map(|n| paths.0.enter(&of_dead(n)).ok());
        let dead: Vec<_> = dead.collect();
        assert_eq!(dead.len(), BOUNDS.at_device);
        for n in 0..1000 {
            let path = PathBuf::from(format!("/sandboxes/{n}/hosts"));
            assert!(visitor.visit(&path, || ()).is_ok(), "{n}");
        }
    }
}
