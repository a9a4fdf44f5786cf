//! From a container's configuration and its image to its specification, with the
//! detached mounts that belong to it.
//!
//! Reads the image's user database and the host's paths; changes nothing but
//! that it makes a missing host folder, as the kubelet's users expect.

mod caps;
pub(crate) use caps::may_trace;
mod devices;
mod host_paths;
mod limits;
mod mounts;
mod process;
mod seen;
mod user;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use runtime::spec::{Namespace, NamespaceKind as Kind, Seccomp as Filter, Spec};

use runtime::cgroup::CgroupPath;

use crate::convert::resources;
use crate::model::{
    AppArmor, ContainerConfig, IpcMode, Mount, NetworkMode, PidMode, SandboxConfig, Seccomp,
};
pub(crate) use host_paths::{HostPaths, Stuck, Visitor, Whereabouts};
use seen::Seen;

/// What can go wrong while a specification is made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// The image or the request names a user or group that the image has not.
    #[error("{what} {name:?} is not in the image's {file}")]
    NoSuchName {
        /// `user` or `group`.
        what: &'static str,
        /// Its name.
        name: String,
        /// `/etc/passwd` or `/etc/group`.
        file: &'static str,
    },
    /// An id that no user or group can have.
    #[error("{id} is the id of no {what}, the highest is {max}", max = crate::convert::MAX_ID)]
    NoId {
        /// `user` or `group`.
        what: &'static str,
        /// The id as it was given.
        id: String,
    },
    /// A capability that the kernel does not know.
    #[error("{field}: {name:?} is no capability")]
    NoSuchCapability {
        /// Where it stands in the request.
        field: &'static str,
        /// The name.
        name: String,
    },
    /// An id that the pod's user namespace has not.
    #[error("{id} is the id of no {what} of the pod's user namespace, which has {length}")]
    OutsideUserNamespace {
        /// `user` or `group`.
        what: &'static str,
        /// The id.
        id: u32,
        /// How many ids there are, from 0 on.
        length: u32,
    },
    /// The image's working directory depends on where its reader is.
    #[error("the image's working directory {0:?} is not an absolute path")]
    RelativeWorkingDir(String),
    /// The container has nothing to run.
    #[error("neither the request nor the image has a command")]
    NoCommand,
    /// A path of the host cannot be mounted.
    #[error("mount {} on {container_path}", host_path.display())]
    Mount {
        /// On the host.
        host_path: PathBuf,
        /// In the container.
        container_path: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The image asks for a volume that no container can have.
    #[error("the image's volume {place:?}: {reason}")]
    ImageVolume {
        /// Where.
        place: String,
        /// Why not.
        reason: String,
    },
    /// A path of the host does not answer.
    #[error("{}", path.display())]
    Stuck {
        /// On the host.
        path: PathBuf,
        /// For how long.
        source: Stuck,
    },
    /// Recursive read-only is asked for and the kernel has it not.
    #[error("the kernel has no recursive read-only mounts, {container_path} asks for one")]
    NoRecursiveReadOnly {
        /// In the container.
        container_path: String,
    },
    /// A device of the host cannot be used.
    #[error("device {}", path.display())]
    Device {
        /// On the host.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The seccomp profile cannot be used.
    #[error("seccomp profile {}", path.display())]
    Seccomp {
        /// The file, or the name of the built-in one.
        path: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A user is in groups without end.
    #[error("{user:?} is in more than {most} groups of the image's /etc/group")]
    TooManyGroups {
        /// The user.
        user: String,
        /// What one may be in.
        most: usize,
    },
    /// The image's user database cannot be read.
    #[error("read the image's {file}")]
    UserDatabase {
        /// The file.
        file: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A sandbox of another PID mode is needed.
    #[error("config.linux.security_context.namespace_options.pid: {0}")]
    PidMode(&'static str),
}

/// What a specification is made from.
pub(crate) struct Inputs<'a> {
    pub(crate) config: &'a ContainerConfig,
    pub(crate) sandbox: &'a SandboxConfig,
    /// What the image says of its containers' process.
    pub(crate) image: &'a oci_spec::image::Config,
    /// The container's root, a detached mount.
    pub(crate) rootfs: &'a OwnedFd,
    pub(crate) cgroup: &'a CgroupPath,
    /// Folder of the sandbox's hostname, hosts and resolv.conf.
    pub(crate) files: PathBuf,
    /// The sandbox's /dev/shm; `None` with the node's IPC namespace.
    pub(crate) shm: Option<PathBuf>,
    pub(crate) netns: Option<PathBuf>,
    /// The process that holds the sandbox's IPC and UTS namespaces.
    pub(crate) monitor_pid: i32,
    /// PID 1 of the shared PID namespace, or of the target container's.
    pub(crate) pid_of_namespace: Option<i32>,
    pub(crate) unified_cgroups: bool,
    /// How many files its processes may have open.
    pub(crate) open_files: u64,
    pub(crate) seccomp: &'a runtime::seccomp::Cache,
    pub(crate) host_paths: Visitor<'a>,
    /// The pod's user namespace, whose ids those of the configuration are; `None`: it has
    /// the node's.
    pub(crate) user: Option<&'a OwnedFd>,
    /// The directories for the volumes that the image asks for.
    pub(crate) image_volumes: &'a [Mount],
    /// Detached mounts of the images that the request has as volumes, by where they go.
    pub(crate) mounted_images: &'a BTreeMap<String, OwnedFd>,
    /// Where the store has its images.
    pub(crate) images_dir: &'a Path,
}

/// Makes the specification; blocking, for a thread that may wait for the disk.
pub(crate) fn build(inputs: &Inputs<'_>) -> Result<Spec, SpecError> {
    let security = &inputs.config.security;
    let mounts = mounts::build(inputs)?;
    let seen = Seen::new(inputs.rootfs, &mounts, inputs.host_paths);
    let account = user::resolve(inputs, &seen)?;
    account.is_within(inputs.sandbox.user_ids)?;
    let process = process::build(inputs, account)?;
    let devices = devices::build(inputs)?;
    let seccomp = seccomp(inputs)?;
    // A privileged container sees all that the kernel shows.
    let hidden = |paths: &[String]| match security.privileged {
        true => Vec::new(),
        false => paths.to_vec(),
    };
    Ok(Spec {
        process,
        namespaces: namespaces(inputs)?,
        mounts,
        devices: devices.nodes,
        device_rules: devices.rules,
        masked_paths: hidden(&security.masked_paths),
        readonly_paths: hidden(&security.readonly_paths),
        readonly_root: security.read_only_rootfs,
        cgroup: inputs.cgroup.to_string(),
        limits: resources::to_runtime(&inputs.config.resources, 0),
        seccomp,
    })
}

fn stuck(path: &Path, source: Stuck) -> SpecError {
    let path = path.to_owned();
    SpecError::Stuck { path, source }
}

fn namespaces(inputs: &Inputs<'_>) -> Result<Vec<Namespace>, SpecError> {
    let of_monitor = |name: &str| PathBuf::from(format!("/proc/{}/ns/{name}", inputs.monitor_pid));
    let mut namespaces = Vec::new();
    let mut add = |kind: Kind, path: Option<PathBuf>| namespaces.push(Namespace { kind, path });
    if inputs.sandbox.ipc == IpcMode::Pod {
        add(Kind::Ipc, Some(of_monitor("ipc")));
    }
    if inputs.sandbox.network == NetworkMode::Pod {
        add(Kind::Uts, Some(of_monitor("uts")));
        add(Kind::Network, inputs.netns.clone());
    }
    // A privileged container on a unified hierarchy manages the node's cgroups.
    let manages = inputs.unified_cgroups && inputs.config.security.privileged;
    if !manages || inputs.sandbox.user_ids.is_some() {
        add(Kind::Cgroup, None);
    }
    match (&inputs.config.security.pid, inputs.pid_of_namespace) {
        (PidMode::Container, _) => add(Kind::Pid, None),
        (PidMode::Pod | PidMode::Target(_), Some(pid)) => {
            add(
                Kind::Pid,
                Some(PathBuf::from(format!("/proc/{pid}/ns/pid"))),
            );
        }
        (PidMode::Pod, None) => {
            return Err(SpecError::PidMode(
                "the sandbox has no shared PID namespace",
            ));
        }
        (PidMode::Target(_), None) => {
            return Err(SpecError::PidMode("the target container does not run"));
        }
        (PidMode::Node, _) => {}
    }
    Ok(namespaces)
}

fn seccomp(inputs: &Inputs<'_>) -> Result<Option<Filter>, SpecError> {
    let security = &inputs.config.security;
    if security.privileged {
        return Ok(None);
    }
    let (path, profile) = match &security.seccomp {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::RuntimeDefault => {
            let capabilities = caps::bounding(security)?;
            (
                PathBuf::from("RuntimeDefault"),
                runtime::seccomp::default_for(&capabilities),
            )
        }
        Seccomp::Localhost(path) => {
            let named = |source| SpecError::Seccomp {
                path: path.clone(),
                source,
            };
            let text = inputs.host_paths.visit(path, || read_profile(path));
            let text = text.map_err(|source| stuck(path, source))?;
            let text = text.map_err(|error| named(error.into()))?;
            let profile = runtime::seccomp::parse(&text).map_err(|error| named(error.into()))?;
            (path.clone(), profile)
        }
    };
    let filter = inputs
        .seccomp
        .get(&profile)
        .map_err(|error| SpecError::Seccomp {
            path,
            source: error.into(),
        })?;
    Ok(Some(Filter { profile, filter }))
}

/// A profile on the node: a regular file of a sensible size, so that neither a
/// FIFO nor a device holds the engine up.
fn read_profile(path: &Path) -> std::io::Result<Vec<u8>> {
    const LARGEST: u64 = 4 * 1024 * 1024;
    let found = std::fs::metadata(path)?;
    if !found.is_file() || found.len() > LARGEST {
        return Err(std::io::Error::other("is no regular file of at most 4 MiB"));
    }
    std::fs::read(path)
}

/// The AppArmor profile that a process is to run under.
pub(crate) fn apparmor(config: &ContainerConfig) -> Option<String> {
    if config.security.privileged {
        return None;
    }
    match &config.security.apparmor {
        AppArmor::Unset => None,
        AppArmor::RuntimeDefault => Some(crate::apparmor::DEFAULT.to_owned()),
        AppArmor::Unconfined => Some("unconfined".to_owned()),
        AppArmor::Localhost(name) => Some(name.clone()),
    }
}
