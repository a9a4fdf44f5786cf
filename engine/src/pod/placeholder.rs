//! What is shown of sandboxes and containers whose records cannot be read: their ids, and
//! what else is known without the record. Never written to disk.

use std::sync::Arc;

use runtime::cgroup::{CgroupError, CgroupPath};

use super::machine::State;
use super::record::{self, ContainerRecord, User};
use crate::ids::{ContainerId, PodId};
use crate::model::{
    CgroupParent, ContainerConfig, ContainerKey, ImageName, IpcMode, NetworkMode, Pairs, PidMode,
    Resources, SandboxConfig, SandboxKey, Security,
};

/// A sandbox of which only the id is known.
pub(super) fn sandbox(id: &PodId) -> SandboxConfig {
    SandboxConfig {
        key: SandboxKey {
            namespace: "unreadable".to_owned(),
            name: id.to_string(),
            uid: id.to_string(),
            attempt: 0,
        },
        hostname: String::new(),
        log_directory: None,
        dns: None,
        port_mappings: Vec::new(),
        labels: Pairs::new(),
        annotations: Pairs::new(),
        cgroup_parent: CgroupParent::Shared,
        network: NetworkMode::Pod,
        pid: PidMode::Container,
        ipc: IpcMode::Pod,
        sysctls: Pairs::new(),
        privileged: false,
        user_ids: None,
    }
}

/// A container of which only the id and the sandbox are known, or what it was asked to be
/// as well. The kubelet finds the pod of a container by labels, which most of the sandbox's
/// are. Its cgroup is not known: the path is one where no other's can be.
///
/// # Errors
/// The id cannot be the name of a cgroup, which that of a [`ContainerId`] always can.
pub(super) fn container(
    id: &ContainerId,
    sandbox: &SandboxConfig,
    config: Option<ContainerConfig>,
) -> Result<ContainerRecord, CgroupError> {
    let config = config.unwrap_or_else(|| ContainerConfig {
        key: ContainerKey {
            name: id.to_string(),
            attempt: 0,
        },
        labels: sandbox.labels.clone(),
        ..nothing()
    });
    Ok(ContainerRecord {
        version: record::version(),
        boot_id: String::new(),
        transition: 0,
        id: id.clone(),
        created_at: 1,
        state: State::Running { started_at: 0 },
        stop_signal: config.stop_signal.unwrap_or(libc::SIGTERM),
        log_path: config.log_path.clone(),
        config: Arc::new(config),
        image_id: String::new(),
        image_ref: String::new(),
        image_name: String::new(),
        cgroup: CgroupPath::slipway().child(id.as_str())?,
        user: User::default(),
        raw_environment: None,
        process: None,
    })
}

fn nothing() -> ContainerConfig {
    ContainerConfig {
        key: ContainerKey {
            name: String::new(),
            attempt: 0,
        },
        image: ImageName::default(),
        command: Vec::new(),
        args: Vec::new(),
        working_dir: String::new(),
        envs: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        cdi_devices: Vec::new(),
        labels: Pairs::new(),
        annotations: Pairs::new(),
        log_path: None,
        stdin: false,
        stdin_once: false,
        tty: false,
        resources: Resources::default(),
        security: Security::of_nothing(),
        stop_signal: None,
    }
}
