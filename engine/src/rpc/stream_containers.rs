//! StreamContainers: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::StreamContainersRequest) -> Status {
    let v1::StreamContainersRequest { filter: _ } = request;
    crate::status::unimplemented("StreamContainers", "lists as streams")
}
