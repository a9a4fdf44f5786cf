//! RuntimeConfig: the cgroup driver, which the kubelet asks for once.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::context::Engine;

/// The driver in effect; the systemd driver is not there yet.
pub(crate) async fn handle(
    _engine: &Arc<Engine>,
    request: v1::RuntimeConfigRequest,
) -> Result<v1::RuntimeConfigResponse, Status> {
    let v1::RuntimeConfigRequest {} = request;
    let cgroup_driver = v1::CgroupDriver::Cgroupfs as i32;
    let linux = v1::LinuxRuntimeConfiguration { cgroup_driver };
    Ok(v1::RuntimeConfigResponse { linux: Some(linux) })
}
