//! UpdateRuntimeConfig: the node's range of pod addresses.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::context::Engine;

/// Takes note. The range matters only to configurations that are made from a
/// template, and networks here are configured by files.
pub(crate) async fn handle(
    _engine: &Arc<Engine>,
    request: v1::UpdateRuntimeConfigRequest,
) -> Result<v1::UpdateRuntimeConfigResponse, Status> {
    let v1::UpdateRuntimeConfigRequest { runtime_config } = request;
    let v1::RuntimeConfig { network_config } = runtime_config.unwrap_or_default();
    let v1::NetworkConfig { pod_cidr } = network_config.unwrap_or_default();
    if !pod_cidr.is_empty() {
        tracing::info!(pod_cidr, "the kubelet told the range of pod addresses");
    }
    Ok(v1::UpdateRuntimeConfigResponse {})
}
