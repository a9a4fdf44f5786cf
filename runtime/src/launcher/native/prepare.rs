//! Everything that the child needs, made before it is born.
//!
//! Owns the checks of what came from outside and all descriptors. They close
//! in the monitor as soon as the child has its copies.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags};
use rustix::process::{Gid, Uid};

use super::super::place::{Links, below, clean};
use super::super::{ContainerStdio, LaunchError, SharedPids};
use super::{Shared, procfs};
use crate::exec;
use crate::joining::is_v2;
use crate::protocol::{
    self, Create, Fds, MountAttributes, MountKind, MountPropagation, NamespaceKind, Plan,
};
use crate::sys::fork::NewNamespaces;
use crate::sys::propagation::Propagation;
use crate::user_space::UserSpace;

/// Where all cgroup filesystems are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Filesystems that show the kernel itself.
const KERNELS: [&CStr; 4] = [c"proc", c"sysfs", c"devpts", c"mqueue"];
/// Places of the kernel's filesystems: at and below them no link leads anywhere.
const PLAIN: [&CStr; 3] = [c"/proc", c"/sys", c"/dev"];

/// A container, ready to be made.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Its first process.
    pub(super) process: exec::Plan,
    /// Its streams; `None`: a terminal. One that is missing is a null device.
    pub(super) stdio: Option<ContainerStdio>,
    /// Namespaces that it is born with.
    pub(super) new: NewNamespaces,
    /// Whether it makes a cgroup namespace once it is in its cgroups.
    pub(super) new_cgroup: bool,
    /// Namespaces that it joins.
    pub(super) joined: Vec<OwnedFd>,
    /// The pid namespace to be born in, if others live in it.
    pub(super) pid_namespace: Option<Foreign>,
    /// How it sees its cgroups.
    pub(super) view: CgroupView,
    /// Its root.
    pub(super) rootfs: OwnedFd,
    /// Its mounts in order.
    pub(super) mounts: Vec<Mount>,
    /// Whether /dev is its own.
    pub(super) own_dev: bool,
    /// Its device nodes.
    pub(super) devices: Vec<Device>,
    /// What is hidden.
    pub(super) masked: Vec<CString>,
    /// What is read-only.
    pub(super) readonly: Vec<CString>,
    /// Whether the root is read-only.
    pub(super) readonly_root: bool,
    /// Whether the root is shared.
    pub(super) shared_root: bool,
}

/// A pid namespace that others live in.
#[derive(Debug)]
pub(super) struct Foreign {
    /// The namespace.
    pub(super) namespace: OwnedFd,
    /// A mount namespace that has its proc filesystem.
    pub(super) procfs: OwnedFd,
}

/// A mount.
#[derive(Debug)]
pub(super) struct Mount {
    /// Where, by a clean path.
    pub(super) destination: CString,
    /// What becomes of an image's links on the way there.
    pub(super) links: Links,
    /// Whether it shows the kernel itself: processes, devices, cgroups.
    pub(super) kernels: bool,
    /// What.
    pub(super) what: What,
    /// Attributes of it alone.
    pub(super) top: Attributes,
    /// Attributes of it and what is below.
    pub(super) tree: Attributes,
    /// How far mounts travel.
    pub(super) propagation: Propagation,
}

/// Attributes to set and to clear.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    /// To set.
    pub(super) set: MountAttrFlags,
    /// To clear.
    pub(super) clear: MountAttrFlags,
}

/// What is mounted.
#[derive(Debug)]
pub(super) enum What {
    /// A new filesystem.
    Filesystem {
        /// Its type.
        kind: CString,
        /// Its source.
        source: CString,
        /// Its options.
        parameters: Vec<(CString, Option<CString>)>,
    },
    /// A detached mount.
    Bind {
        /// The mount.
        tree: OwnedFd,
        /// Whether its root is a directory.
        directory: bool,
    },
    /// The view of the container's cgroups.
    Cgroup,
}

impl What {
    /// Whether it is a proc filesystem.
    pub(super) fn is_proc(&self) -> bool {
        matches!(self, Self::Filesystem { kind, .. } if kind.as_c_str() == c"proc")
    }
}

/// A device node.
#[derive(Debug)]
pub(super) struct Device {
    /// The directory that holds it.
    pub(super) parent: CString,
    /// Its name there.
    pub(super) name: CString,
    /// Its type.
    pub(super) kind: FileType,
    /// Its permissions.
    pub(super) mode: Mode,
    /// Its numbers.
    pub(super) number: u64,
    /// Its owner and group.
    pub(super) owner: (Uid, Gid),
}

/// What a container sees where cgroups are mounted.
#[derive(Debug)]
pub(super) struct CgroupView {
    /// Whether it is one hierarchy, at the very top: the v2 tree alone.
    pub(super) unified: bool,
    /// The container's cgroups, by hierarchy.
    pub(super) hierarchies: Vec<Hierarchy>,
}

/// One cgroup hierarchy.
#[derive(Debug)]
pub(super) struct Hierarchy {
    /// The container's cgroup in it.
    pub(super) dir: CString,
    /// The hierarchy's directory.
    pub(super) name: CString,
    /// Its other names: `cpu,cpuacct` is found as `cpu` and as `cpuacct`.
    pub(super) links: Vec<CString>,
}

impl Prepared {
    /// Checks and prepares a plan.
    pub(super) fn new(
        (plan, create): (&Plan, &Create),
        (mut fds, stdio): (Fds, ContainerStdio),
        (shared, user_space): (Option<Foreign>, Option<UserSpace>),
    ) -> Result<Self, LaunchError> {
        let described = plan
            .process
            .as_ref()
            .ok_or_else(|| LaunchError::failed("read the plan", "it has no process"))?;
        let filter = create.seccomp_bpf.as_deref();
        let process = exec::Plan::new(described, &create.cgroup_files, filter)
            .map_err(|error| LaunchError::failed("read process", error))?
            .with_seccomp_flags(plan.seccomp_flags)
            .with_keyring(&create.id, &create.keyring, described)
            .map_err(|error| LaunchError::failed("read process", error))?
            .within(user_space);
        let rootfs = fds.take(create.rootfs_fd, "the root filesystem")?;
        let mut namespaces = Namespaces::default();
        let mut shared = shared;
        for namespace in &plan.namespaces {
            namespaces.add(namespace, &mut shared)?;
        }
        let Namespaces {
            new,
            new_cgroup,
            joined,
            pid_namespace,
        } = namespaces;
        if !new.mount {
            return Err(LaunchError::failed(
                "read the plan",
                "it has no mount namespace",
            ));
        }
        let mut given = |index| given(create, &mut fds, index);
        let mounts = plan.mounts.iter().enumerate();
        let mounts = mounts.map(|(index, mount)| Mount::new(mount, given(index)?));
        let prepared = Self {
            process,
            stdio: (!create.tty).then_some(stdio),
            new,
            new_cgroup,
            joined,
            pid_namespace,
            view: CgroupView::new(&create.cgroup_files, new_cgroup)?,
            rootfs,
            mounts: mounts.collect::<Result<_, _>>()?,
            own_dev: plan.own_dev,
            devices: plan
                .devices
                .iter()
                .map(Device::new)
                .collect::<Result<_, _>>()?,
            masked: clean_texts(&plan.masked_paths)?,
            readonly: clean_texts(&plan.readonly_paths)?,
            readonly_root: plan.readonly_root,
            shared_root: plan.shared_root,
        };
        if prepared.process.user_space.is_some() {
            prepared.fits_into_user_namespace()?;
        }
        Ok(prepared)
    }

    /// Refuses what cannot be made in a user namespace, or would reach out of it.
    fn fits_into_user_namespace(&self) -> Result<(), LaunchError> {
        let refuse = |what: String, message: &str| {
            let message = format!("{message} in a pod with a user namespace");
            Err(LaunchError::Unsupported { what, message })
        };
        let own = self.new.pid || self.pid_namespace.is_some();
        if !own || self.new.ipc || self.new.uts || self.new.network {
            let message = "only those of the pod are entered, and one of processes";
            return refuse("linux.namespaces".to_owned(), message);
        }
        if !self.own_dev || !self.mounts.iter().any(Mount::is_own_dev) {
            return refuse("mount /dev".to_owned(), "it has to be the container's own");
        }
        for mount in &self.mounts {
            if mount.propagation == Propagation::Shared {
                let path = mount.destination.to_string_lossy();
                let message = "mounts do not travel to the node";
                return refuse(format!("mount {path}"), message);
            }
        }
        for device in &self.devices {
            let mut above = self.mounts.iter().filter(|mount| !mount.is_own_dev());
            let hidden = above.any(|mount| below(&device.parent, &mount.destination).is_some());
            if hidden || below(&device.parent, c"/dev").is_none() {
                let path = device.parent.to_string_lossy();
                let what = format!("device {path}/{}", device.name.to_string_lossy());
                return refuse(what, "nodes can only be in the container's own /dev");
            }
        }
        Ok(())
    }
}

/// The directories of a container's cgroups.
pub(super) fn cgroup_dirs(create: &Create) -> Vec<PathBuf> {
    let files = create.cgroup_files.iter();
    files
        .filter_map(|file| parent(file).map(Path::to_owned))
        .collect()
}

fn parent(file: &[u8]) -> Option<&Path> {
    Path::new(OsStr::from_bytes(file)).parent()
}

fn given(create: &Create, fds: &mut Fds, index: usize) -> Result<Option<OwnedFd>, LaunchError> {
    let mut mounts = create.mounts.iter();
    match mounts.find(|mount| usize::try_from(mount.index) == Ok(index)) {
        Some(mount) => Ok(Some(fds.take(mount.fd, "a mount")?)),
        None => Ok(None),
    }
}

fn text(bytes: &[u8]) -> Result<CString, LaunchError> {
    CString::new(bytes).map_err(|error| LaunchError::failed("read the plan", error))
}

fn clean_texts(all: &[Vec<u8>]) -> Result<Vec<CString>, LaunchError> {
    all.iter().map(|bytes| text(&clean(bytes))).collect()
}

/// Namespaces, sorted by what happens to them.
#[derive(Debug, Default)]
struct Namespaces {
    new: NewNamespaces,
    new_cgroup: bool,
    joined: Vec<OwnedFd>,
    pid_namespace: Option<Foreign>,
}

impl Namespaces {
    fn add(
        &mut self,
        namespace: &protocol::Namespace,
        shared: &mut Option<Foreign>,
    ) -> Result<(), LaunchError> {
        let (new, own): (_, &CStr) = match namespace.kind() {
            NamespaceKind::Pid if namespace.path.is_some() => {
                // Whose it is the order says: the number of a process in a path may be
                // another's by now.
                let none = || LaunchError::failed("open namespace", "there is none to share");
                self.pid_namespace = Some(shared.take().ok_or_else(none)?);
                return Ok(());
            }
            NamespaceKind::Pid => (&mut self.new.pid, c"/proc/self/ns/pid"),
            NamespaceKind::Mount => (&mut self.new.mount, c"/proc/self/ns/mnt"),
            NamespaceKind::Ipc => (&mut self.new.ipc, c"/proc/self/ns/ipc"),
            NamespaceKind::Uts => (&mut self.new.uts, c"/proc/self/ns/uts"),
            NamespaceKind::Network => (&mut self.new.network, c"/proc/self/ns/net"),
            NamespaceKind::Cgroup => (&mut self.new_cgroup, c"/proc/self/ns/cgroup"),
            NamespaceKind::Unspecified => {
                return Err(LaunchError::Unsupported {
                    what: "linux.namespaces".to_owned(),
                    message: "this monitor knows no such namespace".to_owned(),
                });
            }
        };
        let Some(path) = &namespace.path else {
            *new = true;
            return Ok(());
        };
        let failed = |errno: Errno| {
            let path = String::from_utf8_lossy(path);
            LaunchError::failed("open namespace", format!("{path}: {errno}"))
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path.as_slice(), flags, Mode::empty()).map_err(failed)?;
        // The pod's namespaces are the monitor's: the child is born in them.
        let number = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let its = rustix::fs::fstat(&opened).map(number).map_err(failed)?;
        let ours = rustix::fs::stat(own).map(number).map_err(failed)?;
        if its != ours {
            self.joined.push(opened);
        }
        Ok(())
    }
}

impl Foreign {
    /// The pod's own one has a proc filesystem that is kept for it.
    pub(super) fn new(pids: SharedPids, pods: Option<&Shared>) -> Result<Self, Errno> {
        let SharedPids { namespace, mounts } = pids;
        let own = procfs::identity(namespace.as_fd())?;
        let procfs = match pods.filter(|pods| pods.namespace == own) {
            Some(pods) => rustix::io::fcntl_dupfd_cloexec(&pods.procfs, 3)?,
            None => mounts,
        };
        Ok(Self { namespace, procfs })
    }
}

impl Attributes {
    fn new(message: Option<MountAttributes>) -> Self {
        let MountAttributes { set, clear } = message.unwrap_or_default();
        // Bits that this machine's calls cannot carry are refused by them.
        let bits = |bits: u64| u32::try_from(bits).unwrap_or(u32::MAX);
        Self {
            set: MountAttrFlags::from_bits_retain(bits(set)),
            clear: MountAttrFlags::from_bits_retain(bits(clear)),
        }
    }

    /// The same where all that is not set is cleared.
    pub(super) fn alone(self) -> Self {
        let all = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        Self {
            set: self.set,
            clear: (self.clear | all) - (self.set & all),
        }
    }

    /// Whether there is nothing to change.
    pub(super) fn is_empty(self) -> bool {
        self.set.is_empty() && self.clear.is_empty()
    }
}

impl Mount {
    /// Whether it is the container's own /dev.
    pub(super) fn is_own_dev(&self) -> bool {
        let is_filesystem = matches!(&self.what, What::Filesystem { .. });
        is_filesystem && self.destination.as_c_str() == c"/dev"
    }

    fn new(mount: &protocol::Mount, given: Option<OwnedFd>) -> Result<Self, LaunchError> {
        let name = String::from_utf8_lossy(&mount.destination);
        let failed = |errno: Errno| LaunchError::failed(&format!("mount {name}"), errno);
        let what = match mount.kind() {
            MountKind::Filesystem => What::Filesystem {
                kind: text(mount.filesystem.as_bytes())?,
                source: text(&mount.source)?,
                parameters: mount
                    .parameters
                    .iter()
                    .map(|one| {
                        let value = one.value.as_ref().map(|value| text(value)).transpose()?;
                        Ok((text(&one.key)?, value))
                    })
                    .collect::<Result<_, LaunchError>>()?,
            },
            MountKind::Bind => {
                let tree = match given {
                    Some(tree) => tree,
                    None => clone_path(&mount.source, mount.recursive).map_err(failed)?,
                };
                let stat = rustix::fs::statat(&tree, c"", AtFlags::EMPTY_PATH).map_err(failed)?;
                let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                What::Bind { tree, directory }
            }
            MountKind::Cgroup => What::Cgroup,
            MountKind::Unspecified => {
                return Err(LaunchError::Unsupported {
                    what: format!("mount {name}"),
                    message: "this monitor knows no such mount".to_owned(),
                });
            }
        };
        let destination = text(&clean(&mount.destination))?;
        let kernels = match &what {
            What::Filesystem { kind, .. } => KERNELS.contains(&kind.as_c_str()),
            What::Cgroup => true,
            What::Bind { .. } => false,
        };
        let plain = |place: &&CStr| below(&destination, place).is_some();
        let links = if kernels || PLAIN.iter().any(plain) {
            Links::Refused
        } else {
            Links::Followed
        };
        Ok(Self {
            links,
            kernels,
            destination,
            what,
            top: Attributes::new(mount.top),
            tree: Attributes::new(mount.tree),
            propagation: match mount.propagation() {
                MountPropagation::Private => Propagation::Private,
                MountPropagation::Slave => Propagation::Slave,
                MountPropagation::Shared => Propagation::Shared,
            },
        })
    }
}

fn clone_path(path: &[u8], recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(CWD, path, flags)
}

impl Device {
    fn new(device: &protocol::Device) -> Result<Self, LaunchError> {
        let path = clean(&device.path);
        let path = Path::new(OsStr::from_bytes(&path));
        let bad = || LaunchError::failed("read the plan", format!("{}: no file", path.display()));
        let parent = path.parent().ok_or_else(bad)?;
        let name = path.file_name().ok_or_else(bad)?;
        Ok(Self {
            parent: text(parent.as_os_str().as_bytes())?,
            name: text(name.as_bytes())?,
            kind: FileType::from_raw_mode(device.mode),
            mode: Mode::from_raw_mode(device.mode & 0o7777),
            number: rustix::fs::makedev(device.major, device.minor),
            owner: (Uid::from_raw(device.uid), Gid::from_raw(device.gid)),
        })
    }
}

impl CgroupView {
    /// Without a cgroup namespace of its own, which only a container has not that manages
    /// the node's cgroups, it sees the whole v2 tree: what its entry in /proc names is there.
    fn new(files: &[Vec<u8>], own_namespace: bool) -> Result<Self, LaunchError> {
        // The same where the tree is mounted beside others that are not used.
        let unified = files.len() == 1 && files.iter().all(|file| is_v2(file));
        let unified = unified || Path::new(CGROUPS).join("cgroup.procs").exists();
        let shown = |dir| match dir {
            dir if unified && !own_namespace => hierarchy_of(dir),
            dir => Some(dir),
        };
        let dirs = files
            .iter()
            .filter_map(|file| parent(file))
            .filter_map(shown);
        let hierarchies = dirs
            .filter_map(|dir| Hierarchy::new(dir).transpose())
            .collect::<Result<_, _>>()?;
        Ok(Self {
            unified,
            hierarchies,
        })
    }
}

/// Where the hierarchy is mounted that a cgroup is in.
fn hierarchy_of(dir: &Path) -> Option<&Path> {
    let mut above = dir.ancestors();
    let is_mounted = |dir: &&Path| dir.join("cgroup.procs").exists();
    let root = above.by_ref().take_while(is_mounted).last()?;
    root.starts_with(CGROUPS).then_some(root)
}

impl Hierarchy {
    /// `None`: it is not where cgroups are.
    fn new(dir: &Path) -> Result<Option<Self>, LaunchError> {
        let Ok(below) = dir.strip_prefix(CGROUPS) else {
            return Ok(None);
        };
        // The v2 tree alone has no name.
        let name = below.components().next();
        let name = name.map_or(&b"cgroup"[..], |name| name.as_os_str().as_bytes());
        let links = name.split(|byte| *byte == b',');
        let links = links.filter(|_| name.contains(&b','));
        Ok(Some(Self {
            dir: text(dir.as_os_str().as_bytes())?,
            name: text(name)?,
            links: links.map(text).collect::<Result<_, _>>()?,
        }))
    }
}
