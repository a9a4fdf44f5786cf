//! ListMetricDescriptors: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::ListMetricDescriptorsRequest) -> Status {
    let v1::ListMetricDescriptorsRequest {} = request;
    crate::status::unimplemented("ListMetricDescriptors", "metrics of pods")
}
