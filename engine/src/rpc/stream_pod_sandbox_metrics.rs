//! StreamPodSandboxMetrics: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::StreamPodSandboxMetricsRequest) -> Status {
    let v1::StreamPodSandboxMetricsRequest {} = request;
    crate::status::unimplemented("StreamPodSandboxMetrics", "metrics of pods")
}
