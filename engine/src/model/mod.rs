//! What a pod and a container are asked to be, in Slipway's own types.
//!
//! Made only by `convert/`, which checks every value; stored in the records.
//! A field that is here is honoured.

mod bytes;
mod cgroup_parent;

pub(crate) use bytes::Bytes;
pub(crate) use cgroup_parent::CgroupParent;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Labels or annotations.
pub(crate) type Pairs = BTreeMap<String, String>;

/// The identity of a sandbox as the kubelet sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct SandboxKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) attempt: u32,
}

/// The identity of a container within its sandbox.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct ContainerKey {
    pub(crate) name: String,
    pub(crate) attempt: u32,
}

/// Whose network the pod uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NetworkMode {
    Pod,
    Node,
}

/// Whose IPC objects the pod uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum IpcMode {
    Pod,
    Node,
}

/// Whose processes a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PidMode {
    /// All of the pod's.
    Pod,
    /// Its own.
    Container,
    /// All of the node's.
    Node,
    /// Those of another container of the pod.
    Target(String),
}

/// Ids of the node that are those of a user namespace, from 0 on; of users and of groups
/// alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdRange {
    pub(crate) first: u32,
    pub(crate) length: u32,
}

/// Transport of a port mapping, by its name in CNI's runtime configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    Tcp,
    Udp,
    Sctp,
}

/// A port of the node that leads to the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortMapping {
    pub(crate) transport: Transport,
    pub(crate) container_port: u16,
    pub(crate) host_port: u16,
    pub(crate) host_ip: String,
}

/// The contents of the pod's resolv.conf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dns {
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

/// All of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxConfig {
    pub(crate) key: SandboxKey,
    pub(crate) hostname: String,
    /// Absolute; `None` when containers keep no log.
    pub(crate) log_directory: Option<PathBuf>,
    pub(crate) dns: Option<Dns>,
    pub(crate) port_mappings: Vec<PortMapping>,
    pub(crate) labels: Pairs,
    pub(crate) annotations: Pairs,
    pub(crate) cgroup_parent: CgroupParent,
    pub(crate) network: NetworkMode,
    pub(crate) pid: PidMode,
    pub(crate) ipc: IpcMode,
    pub(crate) sysctls: Pairs,
    pub(crate) privileged: bool,
    /// The ids of its user namespace; `None`: it has the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user_ids: Option<IdRange>,
}

/// How mounts made later cross between host and container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Propagation {
    Private,
    HostToContainer,
    Bidirectional,
}

/// A host path, or an image, in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) container_path: String,
    /// Empty where it is an image.
    pub(crate) host_path: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) recursive_read_only: bool,
    pub(crate) propagation: Propagation,
    /// Its files are shown with the ids of the pod's user namespace, which has these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user_ids: Option<IdRange>,
    /// What nobody can do through it.
    #[serde(default, skip_serializing_if = "Forbidden::is_nothing")]
    pub(crate) forbidden: Forbidden,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<ImageMount>,
}

impl Mount {
    /// A path of the host as it is.
    pub(crate) fn of_host(container_path: impl Into<String>, host_path: PathBuf) -> Self {
        Self {
            container_path: container_path.into(),
            host_path,
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::Private,
            forbidden: Forbidden::default(),
            image: None,
            user_ids: None,
        }
    }
}

/// What a volume forbids beside writes, in all of its tree as it is when the container is
/// made: what is mounted there later on the node arrives as it is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forbidden {
    /// To execute files (`noexec`).
    pub(crate) programs: bool,
    /// To open device nodes (`nodev`).
    pub(crate) devices: bool,
    /// To become somebody else by a file's mode (`nosuid`).
    pub(crate) set_ids: bool,
}

impl Forbidden {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// An image as a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageMount {
    /// As the caller named it.
    pub(crate) name: ImageName,
    /// Which one that was when the container was made.
    pub(crate) id: String,
    /// The directory or file in it; empty for all of it.
    pub(crate) sub_path: PathBuf,
}

/// A device node of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) container_path: String,
    pub(crate) host_path: PathBuf,
    /// Some of `rwm`.
    pub(crate) permissions: String,
}

/// Limits; 0 and empty mean not given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resources {
    pub(crate) cpu_period: i64,
    pub(crate) cpu_quota: i64,
    pub(crate) cpu_shares: i64,
    pub(crate) memory_limit: i64,
    pub(crate) memory_swap_limit: i64,
    pub(crate) oom_score_adj: i64,
    pub(crate) cpuset_cpus: String,
    pub(crate) cpuset_mems: String,
    pub(crate) hugepage_limits: Vec<(String, u64)>,
    pub(crate) unified: Pairs,
}

/// The limits of a pod as the kubelet tells of them, which sets them itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PodResources {
    /// What the pod takes beside its containers.
    pub(crate) overhead: Option<Resources>,
    /// The sum over its containers.
    pub(crate) resources: Option<Resources>,
}

/// Which seccomp filter a container runs under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Seccomp {
    Unconfined,
    RuntimeDefault,
    Localhost(PathBuf),
}

/// Which AppArmor profile a container runs under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AppArmor {
    /// None was asked for, or there is no AppArmor.
    Unset,
    /// The engine's own.
    RuntimeDefault,
    Unconfined,
    Localhost(String),
}

/// Who the container's process is asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RunAs {
    /// Whom the image names.
    Image,
    Uid(u32),
    Name(String),
}

/// Isolation and identity of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Security {
    pub(crate) add_capabilities: Vec<String>,
    pub(crate) drop_capabilities: Vec<String>,
    pub(crate) ambient_capabilities: Vec<String>,
    pub(crate) privileged: bool,
    pub(crate) pid: PidMode,
    pub(crate) run_as: RunAs,
    pub(crate) run_as_group: Option<u32>,
    pub(crate) read_only_rootfs: bool,
    pub(crate) supplemental_groups: Vec<u32>,
    /// Only the groups that are listed, none of the image's.
    pub(crate) strict_groups: bool,
    pub(crate) no_new_privs: bool,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) seccomp: Seccomp,
    pub(crate) apparmor: AppArmor,
}

impl Security {
    /// Where nothing was asked for.
    pub(crate) fn of_nothing() -> Self {
        Self {
            add_capabilities: Vec::new(),
            drop_capabilities: Vec::new(),
            ambient_capabilities: Vec::new(),
            privileged: false,
            pid: PidMode::Container,
            run_as: RunAs::Image,
            run_as_group: None,
            read_only_rootfs: false,
            supplemental_groups: Vec::new(),
            strict_groups: false,
            no_new_privs: false,
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            seccomp: Seccomp::Unconfined,
            apparmor: AppArmor::Unset,
        }
    }
}

/// The image as the caller named it; answered as it came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageName {
    pub(crate) image: String,
    pub(crate) annotations: Pairs,
    pub(crate) user_specified: String,
}

/// All of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerConfig {
    pub(crate) key: ContainerKey,
    pub(crate) image: ImageName,
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) working_dir: String,
    pub(crate) envs: Vec<(String, Bytes)>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<Device>,
    /// Names of devices that vendors describe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) cdi_devices: Vec<String>,
    pub(crate) labels: Pairs,
    pub(crate) annotations: Pairs,
    /// The file of the log, absolute and without `..`.
    pub(crate) log_path: Option<PathBuf>,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) tty: bool,
    pub(crate) resources: Resources,
    pub(crate) security: Security,
    /// Number of the kernel; `None` = what the image says.
    pub(crate) stop_signal: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As engines recorded a volume that knew neither options nor images.
    #[test]
    fn a_volume_of_an_older_record_is_read_and_written_as_it_was() {
        let old = serde_json::json!({
            "container_path": "/x", "host_path": "/y", "read_only": true,
            "recursive_read_only": false, "propagation": "Private",
        });
        let read: Mount = serde_json::from_value(old.clone()).expect("a record");
        let plain = Mount {
            read_only: true,
            ..Mount::of_host("/x", PathBuf::from("/y"))
        };
        assert_eq!(read, plain);
        assert_eq!(serde_json::to_value(read).expect("JSON"), old);
    }
}
