//! Device nodes and the rules that allow them.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use runtime::devices::BadRule;
use runtime::spec::{Access, Device as Node, DeviceKind, DeviceRule, DeviceRuleKind as Kind};
use rustix::fs::{major, minor};

use super::{Inputs, SpecError, stuck};
use crate::model::Device;

/// Nodes to make and rules to set.
pub(super) struct Devices {
    pub(super) nodes: Vec<Node>,
    pub(super) rules: Vec<DeviceRule>,
}

/// What may always be used, as type, major, minor: null, zero, full, random,
/// urandom, tty, console, and pseudo terminals.
const ALWAYS: [(u32, Option<u32>); 8] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(2)),
    (136, None),
];

/// Making a node, which is no access to what it stands for.
const MAKE: Access = Access {
    read: false,
    write: false,
    mknod: true,
};

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
    // Root of a user namespace is to reach no device of the node that was not named.
    if config.security.privileged && inputs.sandbox.user_ids.is_none() {
        devices.rules.push(DeviceRule::everything(true));
        let dev = Path::new("/dev");
        let all = inputs.host_paths.visit(dev, || all_of_the_host(dev));
        devices.nodes = all.map_err(|source| stuck(dev, source))?;
    } else {
        devices.rules.push(DeviceRule::everything(false));
        for (major, minor) in ALWAYS {
            let numbers = (Some(major), minor);
            devices.rules.push(allow(Kind::Char, numbers, Access::ALL));
        }
        // mknod itself is harmless without a rule that lets the node be opened.
        for kind in [Kind::Char, Kind::Block] {
            devices.rules.push(allow(kind, (None, None), MAKE));
        }
    }
    for wanted in &config.devices {
        let path = &wanted.host_path;
        let found = inputs.host_paths.visit(path, || nodes(wanted));
        let found = found.map_err(|source| stuck(path, source))??;
        let access = Access::parse(&wanted.permissions).ok_or_else(|| SpecError::Device {
            path: path.clone(),
            source: std::io::Error::other(BadRule::Access(wanted.permissions.clone())),
        })?;
        for node in &found {
            let kind = match node.kind {
                DeviceKind::Block => Kind::Block,
                DeviceKind::Char => Kind::Char,
            };
            let numbers = (Some(node.major), Some(node.minor));
            devices.rules.push(allow(kind, numbers, access));
        }
        devices.nodes.extend(found);
    }
    // The last wish for a path is the one that counts.
    let mut seen = std::collections::HashSet::new();
    devices.nodes.reverse();
    devices.nodes.retain(|node| seen.insert(node.path.clone()));
    devices.nodes.reverse();
    Ok(devices)
}

fn allow(kind: Kind, (major, minor): (Option<u32>, Option<u32>), access: Access) -> DeviceRule {
    DeviceRule {
        allow: true,
        kind,
        major,
        minor,
        access,
    }
}

fn node(host: &Path, path: PathBuf) -> std::io::Result<Node> {
    let found = std::fs::symlink_metadata(host)?;
    let kind = if found.file_type().is_char_device() {
        DeviceKind::Char
    } else if found.file_type().is_block_device() {
        DeviceKind::Block
    } else {
        return Err(std::io::Error::other("is no device node"));
    };
    Ok(Node {
        path,
        kind,
        major: major(found.rdev()),
        minor: minor(found.rdev()),
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
    })
}

fn all_of_the_host(dir: &Path) -> Vec<Node> {
    let mut nodes = Vec::new();
    below(dir, dir, &mut nodes);
    nodes
}

/// The node at a path of the host, or all nodes of the folder there.
fn nodes(wanted: &Device) -> Result<Vec<Node>, SpecError> {
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
fn below(host: &Path, container: &Path, nodes: &mut Vec<Node>) {
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
