//! The claims of the launcher suite, by area.

pub(crate) mod clients;
pub(crate) mod exec;
pub(crate) mod inside;
pub(crate) mod isolation;
pub(crate) mod life;
mod monitor;
pub(crate) mod mounts;
pub(crate) mod pods;
pub(crate) mod programs;
mod stalls;
pub(crate) mod streams;
pub(crate) mod timing;
mod upgrade;

use runtime::client::{ExitRecord, MonitorError};

// What is claimed of containers with the node's users alone.
pub(crate) use isolation as nodes_isolation;
pub(crate) use mounts as nodes_mounts;
pub(crate) use pods as nodes_pods;

/// Step, message and "not found" of a launch that failed.
pub(crate) fn launch_error<T: std::fmt::Debug>(
    result: Result<T, MonitorError>,
) -> (String, String, bool) {
    match result.unwrap_err() {
        MonitorError::Launch {
            step,
            message,
            not_found,
        } => (step, message, not_found),
        other => panic!("{other:?}"),
    }
}

/// What a launcher does not support.
pub(crate) fn unsupported<T: std::fmt::Debug>(result: Result<T, MonitorError>) -> String {
    match result.unwrap_err() {
        MonitorError::Unsupported { what, .. } => what,
        other => panic!("{other:?}"),
    }
}

/// The text of a log's standard output.
pub(crate) fn stdout((record, log): (ExitRecord, Vec<String>)) -> String {
    assert_eq!(record.exit_code, 0, "{log:?}");
    log.iter()
        .map(|line| line.strip_prefix("stdout F ").unwrap_or(line))
        .collect::<Vec<_>>()
        .join("\n")
}
