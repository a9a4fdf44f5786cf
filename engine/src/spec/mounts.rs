//! The mounts of a container: the kernel's filesystems, the sandbox's files,
//! and what the request brings, the last as detached clones of host paths whose
//! propagation is already set.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount as OciMount;
use runtime::mount::{BindOptions, Propagation as TreePropagation};

use super::{Inputs, SpecError, stuck};
use crate::model::{Mount, Propagation};

type Sources = Vec<(usize, OwnedFd)>;

/// What is mounted at a place.
enum Place {
    /// A filesystem of the kernel's.
    Kernels(OciMount),
    /// A clone of a path of the host.
    Volume(Mount),
}

/// All mounts in an order in which no one hides another: the kernel's first, so that
/// a link of the image that leads a volume there is noticed; then all others by path,
/// so that a parent comes before what is mounted below it. A volume on /dev brings
/// what is below it, too.
pub(super) fn build(inputs: &Inputs<'_>) -> Result<(Vec<OciMount>, Sources), SpecError> {
    let mut places: BTreeMap<PathBuf, Place> = BTreeMap::new();
    for mount in inputs.image_volumes {
        let target = PathBuf::from(&mount.container_path);
        places.insert(target, Place::Volume(mount.clone()));
    }
    // The sandbox's own replace the image's wishes.
    for mount in sandbox_files(inputs) {
        places.insert(PathBuf::from(&mount.container_path), Place::Volume(mount));
    }
    // The request's wishes replace the sandbox's own.
    for mount in &inputs.config.mounts {
        let target = PathBuf::from(&mount.container_path);
        places.insert(target, Place::Volume(mount.clone()));
    }
    let mut mounts = Vec::new();
    for mount in kernel(inputs) {
        let target = mount.destination().clone();
        let mut above = target.ancestors().skip(1);
        match above.find(|above| places.contains_key(*above)) {
            _ if places.contains_key(&target) => {}
            None => mounts.push(mount),
            Some(above) if above == Path::new("/dev") => {}
            Some(_) => drop(places.insert(target, Place::Kernels(mount))),
        }
    }
    let mut sources = Vec::new();
    for (target, place) in places {
        match place {
            Place::Kernels(mount) => mounts.push(mount),
            Place::Volume(mount) => {
                let path = &mount.host_path;
                let source = inputs.host_paths.visit(path, || clone(&mount));
                let source = source.map_err(|source| stuck(path, source))??;
                sources.push((mounts.len(), source));
                mounts.push(bind(&target, &mount));
            }
        }
    }
    Ok((mounts, sources))
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
