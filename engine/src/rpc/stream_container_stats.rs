//! StreamContainerStats: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::StreamContainerStatsRequest) -> Status {
    let v1::StreamContainerStatsRequest { filter: _ } = request;
    crate::status::unimplemented("StreamContainerStats", "lists as streams")
}
