//! slipway-monitor: the parent of one pod's containers.
//!
//! Owns the way into the three lives of this executable: a monitor, the init
//! of a shared pid namespace, and a line that tells its version. One thread,
//! always; it looks up no users and no hosts, so that a static C library is
//! enough.

mod connection;
mod container;
mod descent;
mod execs;
mod init;
mod life;
mod log;
mod log_writer;
mod logs;
mod monitor;
mod output;
mod reactor;
mod reap;
mod requests;
mod setup;
mod startup;
mod sysctl;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| name == init::NAME) {
        return init::run();
    }
    if arguments
        .next()
        .is_some_and(|argument| argument == "--version")
    {
        println!("{}", runtime::launcher::version_line("slipway-monitor"));
        return ExitCode::SUCCESS;
    }
    match startup::start().and_then(|monitor| monitor.run()) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody reads its stderr; the code is all that is left to say.
        Err(_) => ExitCode::FAILURE,
    }
}
