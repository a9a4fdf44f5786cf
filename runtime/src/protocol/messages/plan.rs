//! What the native launcher does for a container, computed by the engine.

use super::Process;

/// A container as system calls: everything of its spec, in order.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Plan {
    /// Its first process. The terminal stands in `Create`.
    #[prost(message, optional, tag = "1")]
    pub process: Option<Process>,
    /// Namespaces that are not simply the monitor's.
    #[prost(message, repeated, tag = "2")]
    pub namespaces: Vec<Namespace>,
    /// Mounts in order. The slots of detached ones stand in `Create`.
    #[prost(message, repeated, tag = "3")]
    pub mounts: Vec<Mount>,
    /// Device nodes beside those that every container has.
    #[prost(message, repeated, tag = "4")]
    pub devices: Vec<Device>,
    /// Rules about devices, complete and in order.
    #[prost(message, repeated, tag = "5")]
    pub device_rules: Vec<DeviceRule>,
    /// Paths to hide.
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub masked_paths: Vec<Vec<u8>>,
    /// Paths to make read-only.
    #[prost(bytes = "vec", repeated, tag = "7")]
    pub readonly_paths: Vec<Vec<u8>>,
    /// Whether the root filesystem is read-only.
    #[prost(bool, tag = "8")]
    pub readonly_root: bool,
    /// Whether mounts below the root may be shared with namespaces that the
    /// container makes itself.
    #[prost(bool, tag = "9")]
    pub shared_root: bool,
    /// Whether the nodes and links of /dev are to be made.
    #[prost(bool, tag = "10")]
    pub own_dev: bool,
    /// Flags of the seccomp filter, as the kernel's.
    #[prost(uint32, tag = "11")]
    pub seccomp_flags: u32,
}

/// Kinds of namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum NamespaceKind {
    /// What an unknown kind decodes to: refused.
    Unspecified = 0,
    /// Process ids.
    Pid = 1,
    /// Mounts.
    Mount = 2,
    /// System V IPC and message queues.
    Ipc = 3,
    /// Host name.
    Uts = 4,
    /// Network.
    Network = 5,
    /// Cgroups.
    Cgroup = 6,
}

/// A namespace to make or to join.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Namespace {
    /// Of what.
    #[prost(enumeration = "NamespaceKind", tag = "1")]
    pub kind: i32,
    /// Where it is; missing: a new one.
    #[prost(bytes = "vec", optional, tag = "2")]
    pub path: Option<Vec<u8>>,
}

/// What is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum MountKind {
    /// What an unknown kind decodes to: refused.
    Unspecified = 0,
    /// A new filesystem.
    Filesystem = 1,
    /// Something that exists: a detached mount, or a path of the host.
    Bind = 2,
    /// The container's own cgroups.
    Cgroup = 3,
}

/// How mounts below a mount travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum MountPropagation {
    /// Not at all.
    Private = 0,
    /// From the source only.
    Slave = 1,
    /// Both ways.
    Shared = 2,
}

/// One mount.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// Where, in the container.
    #[prost(bytes = "vec", tag = "1")]
    pub destination: Vec<u8>,
    /// What.
    #[prost(enumeration = "MountKind", tag = "2")]
    pub kind: i32,
    /// The filesystem's type.
    #[prost(string, tag = "3")]
    pub filesystem: String,
    /// The filesystem's source, or the path to bind.
    #[prost(bytes = "vec", tag = "4")]
    pub source: Vec<u8>,
    /// Whether a path is bound with the mounts below it.
    #[prost(bool, tag = "5")]
    pub recursive: bool,
    /// Attributes of the mount itself.
    #[prost(message, optional, tag = "6")]
    pub top: Option<MountAttributes>,
    /// Attributes of the mount and all below it.
    #[prost(message, optional, tag = "7")]
    pub tree: Option<MountAttributes>,
    /// How far mounts travel, at most.
    #[prost(enumeration = "MountPropagation", tag = "8")]
    pub propagation: i32,
    /// The filesystem's own options.
    #[prost(message, repeated, tag = "9")]
    pub parameters: Vec<Parameter>,
}

/// Attributes as the kernel's `MOUNT_ATTR_` bits.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct MountAttributes {
    /// To set.
    #[prost(uint64, tag = "1")]
    pub set: u64,
    /// To clear.
    #[prost(uint64, tag = "2")]
    pub clear: u64,
}

/// One option of a filesystem.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Parameter {
    /// Its name.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// Its value; missing: it is a flag.
    #[prost(bytes = "vec", optional, tag = "2")]
    pub value: Option<Vec<u8>>,
}

/// A device node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Device {
    /// Where, in the container.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// The file's type and permissions.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// Major number.
    #[prost(uint32, tag = "3")]
    pub major: u32,
    /// Minor number.
    #[prost(uint32, tag = "4")]
    pub minor: u32,
    /// Owner.
    #[prost(uint32, tag = "5")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "6")]
    pub gid: u32,
}

/// One rule about devices.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeviceRule {
    /// Whether it allows or denies.
    #[prost(bool, tag = "1")]
    pub allow: bool,
    /// `a`, `b` or `c`.
    #[prost(string, tag = "2")]
    pub kind: String,
    /// Major number; missing: any.
    #[prost(uint32, optional, tag = "3")]
    pub major: Option<u32>,
    /// Minor number; missing: any.
    #[prost(uint32, optional, tag = "4")]
    pub minor: Option<u32>,
    /// Letters out of `rwm`.
    #[prost(string, tag = "5")]
    pub access: String,
}
