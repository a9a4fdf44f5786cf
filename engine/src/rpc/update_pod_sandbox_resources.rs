//! UpdatePodSandboxResources.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::must_find;
use crate::context::Engine;
use crate::convert::resources::from_proto;
use crate::model::PodResources;
use crate::pod::error::PodError;
use crate::status;

/// Keeps what the kubelet says, for PodSandboxStatus to show, until the engine ends. Nothing
/// is written: the limits are those of the pod's parent cgroup, which is the kubelet's and
/// has them already, and there is no virtual machine that would have to grow.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::UpdatePodSandboxResourcesRequest,
) -> Result<v1::UpdatePodSandboxResourcesResponse, Status> {
    let v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id,
        overhead,
        resources,
    } = request;
    let unknown = PodError::NoPod(pod_sandbox_id.clone());
    let found = engine.index.pod(&pod_sandbox_id);
    let view = must_find(found, "pod_sandbox_id", &pod_sandbox_id, &unknown)?;
    let checked = |field, given: Option<_>| {
        let checked = given.map(|given| from_proto(field, given)).transpose();
        checked.map_err(|error| status::bad_request(&error))
    };
    let told = PodResources {
        overhead: checked("overhead", overhead)?,
        resources: checked("resources", resources)?,
    };
    if engine.index.tell_resources(&view.id, told) {
        Ok(v1::UpdatePodSandboxResourcesResponse {})
    } else {
        Err(status::pod(&unknown))
    }
}
