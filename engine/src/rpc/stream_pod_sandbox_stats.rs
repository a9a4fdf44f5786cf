//! StreamPodSandboxStats: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::StreamPodSandboxStatsRequest) -> Status {
    let v1::StreamPodSandboxStatsRequest { filter: _ } = request;
    crate::status::unimplemented("StreamPodSandboxStats", "lists as streams")
}
