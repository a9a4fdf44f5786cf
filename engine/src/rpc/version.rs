//! Version: what clients use as their connection check.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::context::Engine;

/// Names the engine; the version that the client says is of no use.
pub(crate) async fn handle(
    _engine: &Arc<Engine>,
    request: v1::VersionRequest,
) -> Result<v1::VersionResponse, Status> {
    let v1::VersionRequest { version: _ } = request;
    Ok(v1::VersionResponse {
        // The version of the kubelet's own runtime API, the same since its first days.
        version: "0.1.0".to_owned(),
        runtime_name: "slipway".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    })
}
