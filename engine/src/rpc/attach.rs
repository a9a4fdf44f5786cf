//! Attach: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::AttachRequest) -> Status {
    let v1::AttachRequest {
        container_id: _,
        stdin: _,
        tty: _,
        stdout: _,
        stderr: _,
    } = request;
    crate::status::unimplemented("Attach", "streaming")
}
