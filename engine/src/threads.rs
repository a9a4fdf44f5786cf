//! On which thread work is done that may wait for the kernel or a disk, so that no task of
//! the asynchronous runtime is held up by it.

use std::sync::Arc;

use runtime::client::steps::Steps;

use crate::context::Engine;
use crate::pod::error::PodError;

/// Runs work that reads or writes a small file, in place: other tasks of this thread
/// go to another one at once if the disk lets it wait. Cheaper than [`blocking`] where
/// the work takes less time than to wake a thread.
pub(crate) fn on_disk<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Runs work that may wait for the kernel or the disk on a thread that may. Its steps are
/// noted with those of the call.
///
/// # Errors
/// What the work says; [`PodError::Defect`] where it panics.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PodError> + Send + 'static,
) -> Result<T, PodError> {
    let steps = Steps::current();
    let work = move || Steps::follow_sync(steps, work);
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(PodError::Defect(error.to_string())),
    }
}

/// The same with the engine at hand.
pub(crate) async fn blocking_with<T: Send + 'static>(
    engine: &Arc<Engine>,
    work: impl FnOnce(&Engine) -> Result<T, PodError> + Send + 'static,
) -> Result<T, PodError> {
    let engine = Arc::clone(engine);
    blocking(move || work(&engine)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_on_disk_needs_no_runtime() {
        assert_eq!(on_disk(|| 7), 7);
    }

    #[tokio::test]
    async fn work_that_panics_is_a_defect() {
        assert_eq!(on_disk(|| 7), 7);
        assert!(matches!(blocking(|| Ok(7)).await, Ok(7)));
        let broken = blocking(|| -> Result<(), _> { panic!("broken") }).await;
        assert!(matches!(broken, Err(PodError::Defect(_))));
    }
}
