//! Places where a test may end the engine, as a crash would, or have a task panic.
//!
//! Built only with the feature `failpoints`; a release has none of them.

/// Ends the process without any clean-up if `SLIPWAY_FAILPOINT` names this point.
#[cfg(feature = "failpoints")]
pub(crate) fn hit(name: &str) {
    if std::env::var_os("SLIPWAY_FAILPOINT").is_some_and(|wanted| wanted == name) {
        eprintln!("failpoint {name}");
        let own = nix::unistd::getpid();
        // SIGKILL and not exit: no destructor may run.
        if nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGKILL).is_err() {
            std::process::abort();
        }
    }
}

/// Nothing, in a build without failpoints.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn hit(_name: &str) {}

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
