//! StreamPodSandboxes: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::StreamPodSandboxesRequest) -> Status {
    let v1::StreamPodSandboxesRequest { filter: _ } = request;
    crate::status::unimplemented("StreamPodSandboxes", "lists as streams")
}
