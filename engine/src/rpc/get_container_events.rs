//! GetContainerEvents: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::GetEventsRequest) -> Status {
    let v1::GetEventsRequest {} = request;
    crate::status::unimplemented("GetContainerEvents", "container events")
}
