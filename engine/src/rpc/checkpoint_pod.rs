//! CheckpointPod: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::CheckpointPodRequest) -> Status {
    let v1::CheckpointPodRequest {
        pod_sandbox_id: _,
        output_path: _,
        container_ids: _,
        options: _,
    } = request;
    crate::status::unimplemented("CheckpointPod", "checkpoints")
}
