//! PortForward: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::PortForwardRequest) -> Status {
    let v1::PortForwardRequest {
        pod_sandbox_id: _,
        port: _,
    } = request;
    crate::status::unimplemented("PortForward", "streaming")
}
