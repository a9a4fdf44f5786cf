//! slipway-libcontainer: makes one container with youki's libcontainer, or with an
//! OCI command line runtime, then ends.
//!
//! Owns nothing for longer than that. libcontainer changes the process that
//! calls it (working directory, OOM score, dumpability, signals), which is why
//! that is this throw-away process and not the monitor. What it cannot do is
//! refused by name before anything is made. Everything it needs on disk is in
//! a tmpfs of its own mount namespace: a crash leaves nothing.

mod bundle;
mod cgroups;
mod check;
mod console;
mod create;
mod devices;
mod executor;
mod oci;
mod order;
mod propagation;
mod spec;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == "--version")
    {
        println!(
            "{}",
            runtime::launcher::version_line("slipway-libcontainer")
        );
        return ExitCode::SUCCESS;
    }
    match order::take().and_then(order::Channel::serve) {
        Ok(()) => ExitCode::SUCCESS,
        // The monitor sees the socket close.
        Err(_) => ExitCode::FAILURE,
    }
}
