//! The mounts of a container: the kernel's filesystems, the sandbox's files,
//! and what the request brings, the last as detached clones of host paths whose
//! propagation is already set.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use runtime::mount::{BindOptions, Propagation as TreePropagation};
use runtime::spec::{Attributes, Mount as SpecMount, MountAttrFlags as Attr, Parameter, What};

use super::{Inputs, SpecError, stuck};
use crate::model::{Forbidden, Mount, Propagation, Security};

/// What is mounted at a place.
enum Place {
    /// A filesystem of the kernel's.
    Kernels(SpecMount),
    /// A clone of a path of the host, or an image.
    Volume(Mount),
}

/// All mounts in an order in which no one hides another: the kernel's first, so that
/// a link of the image that leads a volume there is noticed; then all others by path,
/// so that a parent comes before what is mounted below it. A volume on /dev brings
/// what is below it, too.
pub(super) fn build(inputs: &Inputs<'_>) -> Result<Vec<SpecMount>, SpecError> {
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
    for mount in kernel(&inputs.config.security) {
        let target = mount.destination.clone();
        let mut above = target.ancestors().skip(1);
        match above.find(|above| places.contains_key(*above)) {
            _ if places.contains_key(&target) => {}
            None => mounts.push(mount),
            Some(above) if above == Path::new("/dev") => {}
            Some(_) => drop(places.insert(target, Place::Kernels(mount))),
        }
    }
    for (target, place) in places {
        match place {
            Place::Kernels(mount) => mounts.push(mount),
            Place::Volume(mount) if mount.image.is_some() => {
                mounts.push(image(inputs, target, &mount)?);
            }
            Place::Volume(mount) => {
                let path = &mount.host_path;
                let tree = inputs.host_paths.visit(path, || clone(&mount, inputs.user));
                let tree = tree.map_err(|source| stuck(path, source))??;
                mounts.push(volume(target, mount, tree));
            }
        }
    }
    Ok(mounts)
}

/// A filesystem of the kernel's, whose type is its source too.
fn filesystem(target: &str, kind: &str, top: Attributes, parameters: &[(&str, &str)]) -> SpecMount {
    let parameter = |(key, value): &(&str, &str)| Parameter {
        key: (*key).to_owned(),
        value: (!value.is_empty()).then(|| (*value).to_owned()),
    };
    let what = What::Filesystem {
        kind: kind.to_owned(),
        source: kind.to_owned(),
        parameters: parameters.iter().map(parameter).collect(),
    };
    kernels(target, what, top)
}

/// What shows the kernel itself travels nowhere.
fn kernels(target: &str, what: What, top: Attributes) -> SpecMount {
    SpecMount {
        destination: PathBuf::from(target),
        what,
        top,
        tree: Attributes::NONE,
        propagation: TreePropagation::Private,
    }
}

fn kernel(security: &Security) -> Vec<SpecMount> {
    let access = match security.privileged {
        true => Attr::empty(),
        false => Attr::MOUNT_ATTR_RDONLY,
    };
    let nosuid = Attr::MOUNT_ATTR_NOSUID;
    let plain = nosuid | Attr::MOUNT_ATTR_NOEXEC | Attr::MOUNT_ATTR_NODEV;
    let dev = Attributes::of(nosuid).with_atime(Attr::MOUNT_ATTR_STRICTATIME);
    let pts = Attributes::of(nosuid | Attr::MOUNT_ATTR_NOEXEC);
    let terminals = [
        ("newinstance", ""),
        ("ptmxmode", "0666"),
        ("mode", "0620"),
        ("gid", "5"),
    ];
    let cgroup = Attributes::of(plain | access).with_atime(Attr::MOUNT_ATTR_RELATIME);
    let neither = Attributes::of(plain);
    let size = [("mode", "755"), ("size", "65536k")];
    vec![
        filesystem("/proc", "proc", neither, &[]),
        filesystem("/dev", "tmpfs", dev, &size),
        filesystem("/dev/pts", "devpts", pts, &terminals),
        filesystem("/dev/mqueue", "mqueue", neither, &[]),
        filesystem("/sys", "sysfs", Attributes::of(plain | access), &[]),
        kernels("/sys/fs/cgroup", What::Cgroups, cgroup),
    ]
}

/// hostname, hosts, resolv.conf and /dev/shm of the sandbox.
fn sandbox_files(inputs: &Inputs<'_>) -> Vec<Mount> {
    let plain = |container_path: &str, host_path: PathBuf| Mount {
        read_only: inputs.config.security.read_only_rootfs && container_path.starts_with("/etc"),
        // They belong to root of the pod.
        ..Mount::of_host(container_path, host_path)
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

fn volume(target: PathBuf, wanted: Mount, tree: OwnedFd) -> SpecMount {
    let mut top = forbids(wanted.forbidden);
    top.set(Attr::MOUNT_ATTR_RDONLY, wanted.read_only);
    SpecMount {
        destination: target,
        what: What::Volume {
            host_path: wanted.host_path,
            tree,
        },
        // What is mounted below has the same by now, see `clone`.
        top: Attributes::of(top),
        tree: Attributes::NONE,
        propagation: travels(wanted.propagation),
    }
}

/// An image of which a mount was made. Nodes that it has are nobody's devices.
fn image(inputs: &Inputs<'_>, target: PathBuf, wanted: &Mount) -> Result<SpecMount, SpecError> {
    let named = |source| SpecError::Mount {
        host_path: inputs.images_dir.to_owned(),
        container_path: wanted.container_path.clone(),
        source,
    };
    let mounted = inputs.mounted_images.get(&wanted.container_path);
    let mounted = mounted.ok_or_else(|| named("its image is not mounted".into()))?;
    let tree = mounted.try_clone().map_err(|error| named(error.into()))?;
    let top = forbids(wanted.forbidden) | Attr::MOUNT_ATTR_RDONLY | Attr::MOUNT_ATTR_NODEV;
    Ok(SpecMount {
        destination: target,
        what: What::Volume {
            host_path: inputs.images_dir.to_owned(),
            tree,
        },
        top: Attributes::of(top),
        tree: Attributes::NONE,
        propagation: TreePropagation::Private,
    })
}

fn forbids(forbidden: Forbidden) -> Attr {
    let Forbidden {
        programs,
        devices,
        set_ids,
    } = forbidden;
    let mut attributes = Attr::empty();
    attributes.set(Attr::MOUNT_ATTR_NOEXEC, programs);
    attributes.set(Attr::MOUNT_ATTR_NODEV, devices);
    attributes.set(Attr::MOUNT_ATTR_NOSUID, set_ids);
    attributes
}

fn travels(propagation: Propagation) -> TreePropagation {
    match propagation {
        Propagation::Private => TreePropagation::Private,
        Propagation::HostToContainer => TreePropagation::Slave,
        Propagation::Bidirectional => TreePropagation::Shared,
    }
}

fn clone(mount: &Mount, user: Option<&OwnedFd>) -> Result<OwnedFd, SpecError> {
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
    let idmap = match (mount.user_ids, user) {
        (None, _) => None,
        (Some(_), Some(user)) => {
            let user = user.try_clone();
            Some(user.map_err(|error| named(error.into()))?)
        }
        (Some(_), None) => return Err(named("the pod has no user namespace".into())),
    };
    let options = BindOptions {
        recursive: true,
        read_only: mount.read_only,
        recursive_read_only: mount.recursive_read_only,
        propagation: travels(mount.propagation),
        idmap,
        forbidden: forbids(mount.forbidden),
    };
    runtime::mount::clone_tree(&mount.host_path, &options).map_err(|error| named(error.into()))
}

#[cfg(test)]
mod tests {
    use runtime::spec::{Spec, oci};
    use serde_json::{Value, json};

    use super::*;

    /// As OCI runtimes read them.
    fn written(mounts: Vec<SpecMount>) -> Value {
        let process = oci_spec::runtime::Process::default();
        let spec = Spec {
            mounts,
            ..Spec::new(oci::read_process(&process).expect("a process"))
        };
        let written = oci::write(&spec).expect("text");
        serde_json::to_value(written.mounts()).expect("JSON")
    }

    fn one(target: &str, kind: &str, source: &str, options: &[&str]) -> Value {
        json!({ "destination": target, "type": kind, "source": source, "options": options })
    }

    #[test]
    fn oci_runtimes_read_the_usual_filesystems() {
        let tmpfs = ["nosuid", "strictatime", "mode=755", "size=65536k"];
        let terminals = [
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ];
        let plain = ["nosuid", "noexec", "nodev"];
        let sys = ["nosuid", "noexec", "nodev", "ro"];
        let cgroup = ["nosuid", "noexec", "nodev", "relatime", "ro"];
        let usual = [
            one("/proc", "proc", "proc", &plain),
            one("/dev", "tmpfs", "tmpfs", &tmpfs),
            one("/dev/pts", "devpts", "devpts", &terminals),
            one("/dev/mqueue", "mqueue", "mqueue", &plain),
            one("/sys", "sysfs", "sysfs", &sys),
            one("/sys/fs/cgroup", "cgroup", "cgroup", &cgroup),
        ];
        assert_eq!(written(kernel(&Security::of_nothing())), json!(usual));
        let privileged = Security {
            privileged: true,
            ..Security::of_nothing()
        };
        let open = written(kernel(&privileged)).to_string();
        assert!(!open.contains("\"ro\""), "{open}");
    }

    #[test]
    fn oci_runtimes_read_volumes_with_access_and_propagation() {
        for (read_only, propagation, options) in [
            (false, Propagation::Private, ["rbind", "rw", "rprivate"]),
            (
                true,
                Propagation::HostToContainer,
                ["rbind", "ro", "rslave"],
            ),
            (
                false,
                Propagation::Bidirectional,
                ["rbind", "rw", "rshared"],
            ),
        ] {
            let wanted = Mount {
                read_only,
                propagation,
                ..Mount::of_host("/x", PathBuf::from("/host"))
            };
            let tree = std::fs::File::open("/dev/null").expect("opened").into();
            let volume = volume(PathBuf::from("/x"), wanted, tree);
            let expected = [one("/x", "bind", "/host", &options)];
            assert_eq!(written(vec![volume]), json!(expected));
        }
    }
}
