//! The mounts of a container: the kernel's filesystems, the sandbox's files,
//! and what the request brings, the last as detached clones of host paths whose
//! propagation is already set.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount as OciMount;
use runtime::mount::{BindOptions, Propagation as TreePropagation};

use super::{Inputs, SpecError};
use crate::model::{Mount, Propagation};

type Sources = Vec<(usize, OwnedFd)>;

/// All mounts in an order in which no one hides another.
pub(super) fn build(inputs: &Inputs<'_>) -> Result<(Vec<OciMount>, Sources), SpecError> {
    let mut binds: BTreeMap<PathBuf, Mount> = BTreeMap::new();
    for mount in sandbox_files(inputs) {
        binds.insert(PathBuf::from(&mount.container_path), mount);
    }
    // The request's wishes replace the sandbox's own.
    for mount in &inputs.config.mounts {
        binds.insert(normal(&mount.container_path), mount.clone());
    }
    let mut mounts: Vec<OciMount> = kernel(inputs)
        .into_iter()
        .filter(|mount| !binds.contains_key(mount.destination()))
        .collect();
    let mut sources = Vec::new();
    // By path, so that a parent comes before what is mounted below it.
    for (target, mount) in &binds {
        sources.push((mounts.len(), clone(mount)?));
        mounts.push(bind(target, mount));
    }
    Ok((mounts, sources))
}

/// The path without doubled slashes and dots, so that equal paths are equal.
fn normal(path: &str) -> PathBuf {
    Path::new(path).components().collect()
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> OciMount {
    let mut mount = OciMount::default();
    mount
        .set_destination(PathBuf::from(target))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(
            options.iter().map(|option| (*option).to_owned()).collect(),
        ));
    mount
}

fn kernel(inputs: &Inputs<'_>) -> Vec<OciMount> {
    let security = &inputs.config.security;
    let access = if security.privileged { "rw" } else { "ro" };
    let dev = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    let pts = [
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
        "gid=5",
    ];
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &dev),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", access],
        ),
    ];
    let cgroup = ["nosuid", "noexec", "nodev", "relatime", access];
    mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &cgroup));
    if inputs.shm.is_none() {
        // The node's IPC namespace comes with the node's /dev/shm, bound below.
        return mounts;
    }
    mounts
}

/// hostname, hosts, resolv.conf and /dev/shm of the sandbox.
fn sandbox_files(inputs: &Inputs<'_>) -> Vec<Mount> {
    let plain = |container_path: &str, host_path: PathBuf| Mount {
        container_path: container_path.to_owned(),
        host_path,
        read_only: inputs.config.security.read_only_rootfs && container_path.starts_with("/etc"),
        recursive_read_only: false,
        propagation: Propagation::Private,
    };
    let mut mounts = Vec::new();
    mounts.push(plain("/etc/hostname", inputs.files.join("hostname")));
    mounts.push(plain("/etc/hosts", inputs.files.join("hosts")));
    mounts.push(plain("/etc/resolv.conf", inputs.files.join("resolv.conf")));
    let shm = inputs
        .shm
        .clone()
        .unwrap_or_else(|| PathBuf::from("/dev/shm"));
    mounts.push(plain("/dev/shm", shm));
    mounts
}

fn bind(target: &Path, wanted: &Mount) -> OciMount {
    let access = if wanted.read_only { "ro" } else { "rw" };
    let propagation = match wanted.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let mut mount = mount("", "bind", "", &["rbind", access, propagation]);
    mount
        .set_destination(target.to_owned())
        .set_source(Some(wanted.host_path.clone()));
    mount
}

fn clone(mount: &Mount) -> Result<OwnedFd, SpecError> {
    let named = |source| SpecError::Mount {
        host_path: mount.host_path.clone(),
        container_path: mount.container_path.clone(),
        source,
    };
    if mount.recursive_read_only && !runtime::mount::supports_recursive_read_only() {
        let container_path = mount.container_path.clone();
        return Err(SpecError::NoRecursiveReadOnly { container_path });
    }
    if !mount.host_path.exists() {
        // The kubelet's users count on a missing hostPath becoming a folder.
        std::fs::create_dir_all(&mount.host_path).map_err(|error| named(error.into()))?;
    }
    let options = BindOptions {
        recursive: true,
        read_only: mount.read_only,
        recursive_read_only: mount.recursive_read_only,
        propagation: match mount.propagation {
            Propagation::Private => TreePropagation::Private,
            Propagation::HostToContainer => TreePropagation::Slave,
            Propagation::Bidirectional => TreePropagation::Shared,
        },
        idmap: None,
    };
    runtime::mount::clone_tree(&mount.host_path, &options).map_err(|error| named(error.into()))
}
