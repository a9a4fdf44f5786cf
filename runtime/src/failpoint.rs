//! Places where a test may end the engine, as a crash would.
//!
//! Built only with the feature `failpoints`; a release has none of them.

/// Ends the process without any clean-up if `SLIPWAY_FAILPOINT` names this point.
#[cfg(feature = "failpoints")]
pub fn hit(name: &str) {
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
pub const fn hit(_name: &str) {}
