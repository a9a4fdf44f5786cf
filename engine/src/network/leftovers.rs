//! Interfaces of built-in plugins that outlive DEL, since somebody else holds the pod's network
//! namespace open. Their names are random, so that no other pod's can be the same meanwhile.
//!
//! Owns the cached result of ADD once the network was given back: some seconds later, when
//! namespace and interfaces are gone as a rule, interfaces that are still there are deleted, and
//! the result with them. Nobody waits for it. A crash leaves the result, and the next start
//! looks for its interfaces.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cache;
use crate::causes::with_causes;

/// What the kernel gets to end a namespace that nobody holds.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often it is tried to delete what is left; after that the next start does.
const TRIES: u32 = 10;

/// Looks after a result that was put aside, in the background.
pub(super) fn watch(result: PathBuf) {
    tokio::spawn(async move {
        for tries in 1..=TRIES {
            tokio::time::sleep(PATIENCE * tries).await;
            let path = result.clone();
            let done = tokio::task::spawn_blocking(move || delete(&path)).await;
            match done {
                Ok(Ok(())) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::warn!(path = %result.display(), error, "interfaces of a pod that is gone stay");
                }
            }
        }
    });
}

/// Deletes what is left, and the result; in words, why not.
fn delete(path: &Path) -> Result<(), String> {
    let result = match cache::result_aside(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        // Nobody can say any more what it was.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => serde_json::Value::Null,
        result => result.map_err(|error| error.to_string())?,
    };
    if !result.is_null() {
        let deleted = cni::delete_ends(&result).map_err(|error| with_causes(&error))?;
        if !deleted.is_empty() {
            tracing::warn!(
                ?deleted,
                "the network namespace of a pod that is gone is held by somebody, its interfaces were deleted"
            );
        }
    }
    std::fs::remove_file(path).map_err(|error| error.to_string())
}
