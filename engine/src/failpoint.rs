//! Places where a test may end the engine, as a crash would, or have a task panic.
//!
//! Built only with the feature `failpoints`; a release has none of them.

pub(crate) use runtime::failpoint::hit;

/// Panics the first time that it is reached, if `SLIPWAY_PANICPOINT` names this point.
#[cfg(feature = "failpoints")]
#[expect(clippy::panic, reason = "it is what a test asks for")]
pub(crate) fn panic_once(name: &str) {
    use std::sync::atomic::{AtomicBool, Ordering};
    static DONE: AtomicBool = AtomicBool::new(false);
    let wanted = std::env::var_os("SLIPWAY_PANICPOINT").is_some_and(|wanted| wanted == name);
    if wanted && !DONE.swap(true, Ordering::Relaxed) {
        panic!("panic point {name}");
    }
}

/// Nothing, in a build without failpoints.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn panic_once(_name: &str) {}
