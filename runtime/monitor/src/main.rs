//! slipway-monitor: the parent of one pod's containers.
//!
//! Owns the way into the lives of this executable: a monitor, one that goes on
//! where another build was, the init of a shared pid namespace, and a line that
//! tells its version. One thread,
//! always; it looks up no users and no hosts, so that a static C library is
//! enough.

mod birth;
mod connection;
mod container;
mod descent;
mod execs;
mod handover;
mod init;
mod life;
mod log;
mod log_writer;
mod logs;
mod monitor;
mod output;
mod pids;
mod process;
mod reactor;
mod reap;
mod requests;
mod setup;
mod start;
mod startup;
mod sysctl;
mod tap;
mod user_space;

use std::process::ExitCode;

use monitor::Monitor;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| name == init::NAME) {
        return init::run();
    }
    let how = arguments.next().unwrap_or_default();
    let state = arguments.next().unwrap_or_default();
    let state = state.to_str().unwrap_or_default();
    let lived = match how.to_str() {
        Some("--version") => {
            println!("{}", runtime::launcher::version_line("slipway-monitor"));
            Ok(())
        }
        Some(handover::REHEARSE) => handover::resume(state).map(drop),
        Some(handover::GO_ON) => handover::resume(state).and_then(Monitor::go_on_with),
        _ => startup::start().and_then(Monitor::run),
    };
    match lived {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody reads its stderr; the code is all that is left to say.
        Err(_) => ExitCode::FAILURE,
    }
}
