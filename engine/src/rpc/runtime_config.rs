//! RuntimeConfig: the cgroup driver, which the kubelet asks for once.

use std::sync::Arc;

use proto::v1;
use runtime::cgroup::DriverKind;
use tonic::Status;

use crate::context::Engine;

/// The driver in effect.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::RuntimeConfigRequest,
) -> Result<v1::RuntimeConfigResponse, Status> {
    let v1::RuntimeConfigRequest {} = request;
    let cgroup_driver = match engine.cgroups.kind() {
        DriverKind::Cgroupfs => v1::CgroupDriver::Cgroupfs,
        DriverKind::Systemd => v1::CgroupDriver::Systemd,
    };
    let linux = v1::LinuxRuntimeConfiguration {
        cgroup_driver: cgroup_driver.into(),
    };
    Ok(v1::RuntimeConfigResponse { linux: Some(linux) })
}
