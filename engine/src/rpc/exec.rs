//! Exec: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::ExecRequest) -> Status {
    let v1::ExecRequest {
        container_id: _,
        cmd: _,
        tty: _,
        stdin: _,
        stdout: _,
        stderr: _,
    } = request;
    crate::status::unimplemented("Exec", "streaming")
}
