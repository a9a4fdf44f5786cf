//! CheckpointContainer: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::CheckpointContainerRequest) -> Status {
    let v1::CheckpointContainerRequest {
        container_id: _,
        location: _,
        timeout: _,
    } = request;
    crate::status::unimplemented("CheckpointContainer", "checkpoints")
}
