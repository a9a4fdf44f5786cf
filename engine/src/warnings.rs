//! Warnings about the node, such as a limit that its kernel cannot set: each is logged as a
//! warning once, not for every pod.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// What was warned of already, since the engine was started.
#[derive(Default)]
pub(crate) struct Warnings(Mutex<HashSet<String>>);

impl Warnings {
    /// Logs a warning the first time, and at debug level from then on.
    pub(crate) fn once(&self, warning: &str) {
        if self.is_new(warning) {
            tracing::warn!(warning, "degraded; said once");
        } else {
            tracing::debug!(warning, "degraded");
        }
    }

    /// Ids, which are 64 digits long, do not make two warnings different.
    fn is_new(&self, warning: &str) -> bool {
        let kind: String = warning
            .split(['/', ' '])
            .map(|word| if word.len() >= 64 { "ID" } else { word })
            .collect::<Vec<_>>()
            .join(" ");
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_of_another_container_is_not_new() {
        let warnings = Warnings::default();
        let of = |id: char, file: &str| {
            let id = String::from(id).repeat(64);
            warnings.is_new(&format!("/slipway/{id}/{file} is missing"))
        };
        assert!(of('a', "memory.swap.max"));
        assert!(!of('a', "memory.swap.max"));
        assert!(!of('b', "memory.swap.max"));
        assert!(of('b', "cpu.max"));
        assert!(warnings.is_new("") && !warnings.is_new(""));
    }
}
