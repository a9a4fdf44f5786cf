//! A container's specification in Slipway's own terms.
//!
//! What the engine makes of a request and what every launcher starts from. Says each
//! thing once and in the kernel's terms (attributes, numbers, bytes), with the detached
//! mounts that belong to it; what it has no field for no container can be given. The
//! native launcher's plan is made from it directly, see [`crate::client`]; other
//! launchers read an OCI runtime specification, which [`oci`] writes.
//!
//! Plain data; touches nothing on the machine. Its detached mounts end with it.

pub mod oci;
mod words;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

pub use rustix::mount::MountAttrFlags;

pub use crate::cgroup::Resources;
pub use crate::devices::{Access, Kind as DeviceRuleKind, Rule as DeviceRule};
pub use crate::mount::Propagation;
pub use crate::protocol::{CapabilitySets, Rlimit};

/// A wish that a container cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this launcher does not support {what}: {message}")]
pub struct Unsupported {
    /// What was asked for, by its name in an OCI runtime specification.
    pub what: String,
    /// Why not.
    pub message: String,
}

/// A container.
#[derive(Debug)]
pub struct Spec {
    /// Its first process.
    pub process: Process,
    /// Namespaces beside its mount namespace, which is always one of its own. Of a
    /// kind that is not listed it has the monitor's.
    pub namespaces: Vec<Namespace>,
    /// Mounts, made in this order. One at /dev that is a volume brings its own nodes.
    pub mounts: Vec<Mount>,
    /// Device nodes beside those that every container has.
    pub devices: Vec<Device>,
    /// Which devices it may use: the last rule that speaks of an access decides. Those
    /// of every container are added.
    pub device_rules: Vec<DeviceRule>,
    /// Paths to hide; one that is not there is left out.
    pub masked_paths: Vec<String>,
    /// Paths to make read-only with all that is mounted below them.
    pub readonly_paths: Vec<String>,
    /// Whether its root is read-only.
    pub readonly_root: bool,
    /// Its cgroup, below the mount point of every hierarchy.
    pub cgroup: String,
    /// Limits of that cgroup. In force before anything is born there: no launcher sets
    /// any.
    pub limits: Resources,
    /// Its system call filter; `None`: every call is allowed.
    pub seccomp: Option<Seccomp>,
}

impl Spec {
    /// A process with nothing around it but its root.
    #[must_use]
    pub fn new(process: Process) -> Self {
        Self {
            process,
            namespaces: Vec::new(),
            mounts: Vec::new(),
            devices: Vec::new(),
            device_rules: Vec::new(),
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            readonly_root: false,
            cgroup: String::new(),
            limits: Resources::default(),
            seccomp: None,
        }
    }
}

/// What a process is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment in order, each a name, `=` and a value; duplicates are kept. The
    /// kernel takes any byte but NUL.
    pub env: Vec<Vec<u8>>,
    /// Working directory, in the container.
    pub cwd: PathBuf,
    /// Whether its stdio is a terminal.
    pub terminal: bool,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Mask of file modes; `None`: 022.
    pub umask: Option<u32>,
    /// Capabilities, as the kernel's bits.
    pub capabilities: CapabilitySets,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Whether execve may never raise privileges.
    pub no_new_privileges: bool,
    /// AppArmor profile.
    pub apparmor_profile: Option<String>,
    /// SELinux label.
    pub selinux_label: Option<String>,
    /// OOM score adjustment; `None`: that of whoever makes it.
    pub oom_score_adj: Option<i32>,
}

impl Process {
    /// Whether a text can say its environment, as those must who write it into one.
    #[must_use]
    pub fn env_is_text(&self) -> bool {
        self.env
            .iter()
            .all(|pair| std::str::from_utf8(pair).is_ok())
    }
}

/// A namespace to make or to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Of what.
    pub kind: NamespaceKind,
    /// Where it is; `None`: a new one. Of a PID namespace it only says that there is
    /// one to join: the number in it may be another process's by then, so that whose it
    /// is stands in the order, see [`crate::client::Pids`].
    pub path: Option<PathBuf>,
}

/// Kinds of namespaces beside that of mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceKind {
    /// Process ids.
    Pid,
    /// System V IPC and message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Network.
    Network,
    /// Cgroups.
    Cgroup,
}

/// One mount.
#[derive(Debug)]
pub struct Mount {
    /// Where, an absolute path in the container.
    pub destination: PathBuf,
    /// What.
    pub what: What,
    /// Attributes of the mount itself.
    pub top: Attributes,
    /// Attributes of the mount and all below it.
    pub tree: Attributes,
    /// How far mounts travel, at most.
    pub propagation: Propagation,
}

/// What is mounted.
#[derive(Debug)]
pub enum What {
    /// A new filesystem of the kernel's.
    Filesystem {
        /// Its type, as in /proc/filesystems.
        kind: String,
        /// Its source, which most only repeat in /proc/mounts.
        source: String,
        /// Its own options, as fsconfig(2) takes them.
        parameters: Vec<Parameter>,
    },
    /// A path of the host.
    Volume {
        /// The path, for the words of what goes wrong.
        host_path: PathBuf,
        /// A detached clone of it.
        tree: OwnedFd,
    },
    /// The container's own cgroups.
    Cgroups,
}

/// One option of a filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub key: String,
    /// Its value; `None`: it is a flag.
    pub value: Option<String>,
}

/// Attributes to set and to clear. What is in neither stays as the source has it: a
/// volume on a mount without programs has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// To set.
    pub set: MountAttrFlags,
    /// To clear. mount_setattr(2) wants all bits of the times of access cleared when
    /// one of them is set.
    pub clear: MountAttrFlags,
}

impl Attributes {
    /// Nothing is changed.
    pub const NONE: Self = Self {
        set: MountAttrFlags::empty(),
        clear: MountAttrFlags::empty(),
    };

    /// These are set.
    #[must_use]
    pub const fn of(set: MountAttrFlags) -> Self {
        let clear = MountAttrFlags::empty();
        Self { set, clear }
    }

    /// The same with times of access as this one says; none of them is `relatime`.
    #[must_use]
    pub const fn with_atime(self, atime: MountAttrFlags) -> Self {
        Self {
            set: self.set.union(atime),
            clear: self.clear.union(MountAttrFlags::MOUNT_ATTR__ATIME),
        }
    }

    /// Whether nothing is changed.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.set.is_empty() && self.clear.is_empty()
    }
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Where, an absolute path in the container.
    pub path: PathBuf,
    /// What kind of file.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permissions of the file.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Kinds of device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// A block device.
    Block,
    /// A character device.
    Char,
}

/// A system call filter.
#[derive(Debug, Clone)]
pub struct Seccomp {
    /// The profile, in the only form that profiles have.
    pub profile: oci_spec::runtime::LinuxSeccomp,
    /// The same compiled, an array of `sock_filter`.
    pub filter: Arc<Vec<u8>>,
}
