//! Device nodes and the rules that allow them.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use rustix::fs::{major, minor};

use super::{Inputs, SpecError, stuck};
use crate::model::Device;

/// Nodes to make and rules to set.
pub(super) struct Devices {
    pub(super) nodes: Vec<LinuxDevice>,
    pub(super) rules: Vec<LinuxDeviceCgroup>,
}

/// What may always be used, as type, major, minor: null, zero, full, random,
/// urandom, tty, console, and pseudo terminals.
const ALWAYS: [(i64, Option<i64>); 8] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(2)),
    (136, None),
];

/// Nodes below /dev that a privileged container does not get: they belong to the
/// container's own mounts.
const NOT_COPIED: [&str; 6] = [
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/dev/console",
    "/dev/fd",
    "/dev/.lxc",
];

/// Devices of a container.
pub(super) fn build(inputs: &Inputs<'_>) -> Result<Devices, SpecError> {
    let config = inputs.config;
    let mut devices = Devices {
        nodes: Vec::new(),
        rules: Vec::new(),
    };
    if config.security.privileged {
        devices
            .rules
            .push(rule(true, LinuxDeviceType::A, (None, None), "rwm"));
        let dev = Path::new("/dev");
        let all = inputs.host_paths.visit(dev, || all_of_the_host(dev));
        devices.nodes = all.map_err(|source| stuck(dev, source))?;
    } else {
        devices
            .rules
            .push(rule(false, LinuxDeviceType::A, (None, None), "rwm"));
        for (major, minor) in ALWAYS {
            devices
                .rules
                .push(rule(true, LinuxDeviceType::C, (Some(major), minor), "rwm"));
        }
        // mknod itself is harmless without a rule that lets the node be opened.
        devices
            .rules
            .push(rule(true, LinuxDeviceType::C, (None, None), "m"));
        devices
            .rules
            .push(rule(true, LinuxDeviceType::B, (None, None), "m"));
    }
    for wanted in &config.devices {
        let path = &wanted.host_path;
        let found = inputs.host_paths.visit(path, || nodes(wanted));
        let found = found.map_err(|source| stuck(path, source))??;
        for node in &found {
            let numbers = (Some(node.major()), Some(node.minor()));
            devices
                .rules
                .push(rule(true, node.typ(), numbers, &wanted.permissions));
        }
        devices.nodes.extend(found);
    }
    // The last wish for a path is the one that counts.
    let mut seen = std::collections::HashSet::new();
    devices.nodes.reverse();
    devices
        .nodes
        .retain(|node| seen.insert(node.path().clone()));
    devices.nodes.reverse();
    Ok(devices)
}

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    (major, minor): (Option<i64>, Option<i64>),
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(Some(kind))
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    rule
}

fn node(host: &Path, path: PathBuf) -> std::io::Result<LinuxDevice> {
    let found = std::fs::symlink_metadata(host)?;
    let kind = if found.file_type().is_char_device() {
        LinuxDeviceType::C
    } else if found.file_type().is_block_device() {
        LinuxDeviceType::B
    } else {
        return Err(std::io::Error::other("is no device node"));
    };
    let mut node = LinuxDevice::default();
    node.set_path(path)
        .set_typ(kind)
        .set_major(i64::from(major(found.rdev())))
        .set_minor(i64::from(minor(found.rdev())))
        .set_file_mode(Some(found.mode() & 0o7777))
        .set_uid(Some(found.uid()))
        .set_gid(Some(found.gid()));
    Ok(node)
}

fn all_of_the_host(dir: &Path) -> Vec<LinuxDevice> {
    let mut nodes = Vec::new();
    below(dir, dir, &mut nodes);
    nodes
}

/// The node at a path of the host, or all nodes of the folder there.
fn nodes(wanted: &Device) -> Result<Vec<LinuxDevice>, SpecError> {
    let path = &wanted.host_path;
    let target = PathBuf::from(&wanted.container_path);
    let host = path.canonicalize().map_err(|source| SpecError::Device {
        path: path.clone(),
        source,
    })?;
    if host.is_dir() {
        let mut nodes = Vec::new();
        below(&host, &target, &mut nodes);
        return Ok(nodes);
    }
    match node(&host, target) {
        Ok(node) => Ok(vec![node]),
        Err(source) => Err(SpecError::Device { path: host, source }),
    }
}

/// All device nodes of a folder; what cannot be read is not there.
fn below(host: &Path, container: &Path, nodes: &mut Vec<LinuxDevice>) {
    let Ok(entries) = std::fs::read_dir(host) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let (path, target) = (entry.path(), container.join(entry.file_name()));
        if NOT_COPIED.iter().any(|name| path == Path::new(name)) {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => below(&path, &target, nodes),
            Ok(kind) if kind.is_char_device() || kind.is_block_device() => {
                nodes.extend(node(&path, target));
            }
            _ => {}
        }
    }
}
