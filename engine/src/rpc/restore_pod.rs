//! RestorePod: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::RestorePodRequest) -> Status {
    let v1::RestorePodRequest {
        checkpoint_path: _,
        config: _,
        runtime_handler: _,
        options: _,
        container_configs: _,
    } = request;
    crate::status::unimplemented("RestorePod", "checkpoints")
}
