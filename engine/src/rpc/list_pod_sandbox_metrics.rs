//! ListPodSandboxMetrics: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::ListPodSandboxMetricsRequest) -> Status {
    let v1::ListPodSandboxMetricsRequest {} = request;
    crate::status::unimplemented("ListPodSandboxMetrics", "metrics of pods")
}
