//! Network namespaces that no pod has yet.
//!
//! Owns descriptors only: nothing of an idle namespace is in the file system, so
//! a crash leaves none. Making one takes 0.4-3 ms, pinning one that is ready some
//! microseconds.

use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{NetNs, NetNsError, create, parent, prepare_dir};
use crate::pool::{Maker, Pool};

/// A pool of namespaces with their loopback up, as many as were needed at once
/// lately.
#[derive(Debug)]
pub struct NetNsPool {
    pool: Pool<Namespaces>,
    /// The directory that was prepared last.
    prepared: Mutex<PathBuf>,
}

#[derive(Debug)]
struct Namespaces;

impl Maker for Namespaces {
    type Item = OwnedFd;
    type Error = NetNsError;
    const WHAT: &'static str = "a network namespace";

    async fn make(&self) -> Result<OwnedFd, NetNsError> {
        blocking(create).await
    }

    fn is_good(_: &OwnedFd) -> bool {
        true
    }
}

impl NetNsPool {
    /// A pool that keeps between so many and so many namespaces ready, from the
    /// first [`NetNsPool::refill`] or [`NetNsPool::pin`] on.
    #[must_use]
    pub fn new(kept: RangeInclusive<usize>) -> Self {
        Self {
            pool: Pool::new(Namespaces, kept),
            prepared: Mutex::default(),
        }
    }

    /// Makes what is missing, in the background.
    pub fn refill(&self) {
        self.pool.refill();
    }

    /// Pins a namespace with its loopback up at `path`, which outlives this
    /// process. See [`NetNs::create_pinned`].
    ///
    /// # Errors
    /// Something is there already, or the kernel's answer.
    pub async fn pin(&self, path: &Path) -> Result<(), NetNsError> {
        let namespace = self.pool.take().await?;
        let dir = parent(path).to_owned();
        let known = {
            let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *prepared, dir.clone()) == dir
        };
        let path = path.to_owned();
        blocking(move || {
            // Somebody may have removed the directory meanwhile.
            if !known || !dir.is_dir() {
                prepare_dir(&dir)?;
            }
            NetNs::pin(&namespace, &path)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetNsError> + Send + 'static,
) -> Result<T, NetNsError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| {
            Err(NetNsError::Create {
                step: "run the work",
                source: std::io::Error::other(panic),
            })
        })
}

#[cfg(test)]
mod tests {
    use super::super::tests::Pins;
    use super::*;

    #[tokio::test]
    async fn a_pooled_namespace_is_pinned_and_each_is_given_once() {
        use std::os::unix::fs::MetadataExt;
        let pins = Pins::new();
        let pool = NetNsPool::new(2..=2);
        pool.refill();
        let mut inodes = Vec::new();
        for name in ["one", "two", "three"] {
            pool.pin(&pins.path(name)).await.unwrap();
            assert!(NetNs::is_pinned(&pins.path(name)));
            inodes.push(std::fs::metadata(pins.path(name)).unwrap().ino());
        }
        inodes.dedup();
        assert_eq!(inodes.len(), 3);
        let twice = pool.pin(&pins.path("one")).await.unwrap_err();
        assert!(matches!(twice, NetNsError::Exists { .. }), "{twice}");
    }

    #[tokio::test]
    async fn a_directory_that_vanished_is_made_again() {
        let pins = Pins::new();
        let pool = NetNsPool::new(0..=0);
        pool.pin(&pins.path("one")).await.unwrap();
        NetNs::unpin(&pins.path("one")).unwrap();
        NetNs::release_dir(&pins.dir()).unwrap();
        std::fs::remove_dir(pins.dir()).unwrap();
        pool.pin(&pins.path("two")).await.unwrap();
        assert!(NetNs::is_pinned(&pins.path("two")));
    }
}
