//! UpdatePodSandboxResources: not there yet.

use proto::v1;
use tonic::Status;

/// Answers that it is not there yet, by its name.
pub(crate) fn handle(request: &v1::UpdatePodSandboxResourcesRequest) -> Status {
    let v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: _,
        overhead: _,
        resources: _,
    } = request;
    crate::status::unimplemented(
        "UpdatePodSandboxResources",
        "telling launchers of changed pod limits",
    )
}
