//! What devices change in a container's specification.
//!
//! In come a specification and the names of devices; out goes the specification with
//! their environment, nodes, mounts and groups. What a file asks for beside those is
//! refused: programs of the node (`hooks`), which would run as root where the container's
//! files are; Intel RDT; network devices.

use std::collections::HashSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use runtime::launcher::links::{clean, is_kernels};
use runtime::mount::{BindOptions, Propagation};
use runtime::spec::{
    Access, Device as MadeNode, DeviceKind, DeviceRule, DeviceRuleKind, Mount as MadeMount, Spec,
};

use super::file::{Edits, Mount, Node};
use super::{Cdi, CdiError};
use crate::spec::Visitor;

/// Mode of a node where the file says none, as OCI runtimes have it.
const MODE: u32 = 0o666;

/// Applies the devices of these names; blocking.
///
/// # Errors
/// A device that is not known, or what it needs cannot be had.
pub(crate) fn apply(
    cdi: &Cdi,
    names: &[String],
    visitor: Visitor<'_>,
    mut spec: Spec,
) -> Result<Spec, CdiError> {
    let dirs = cdi.dirs().first().map_or(Path::new("/"), PathBuf::as_path);
    let found = visitor.visit(dirs, || cdi.find(names));
    let found = found.map_err(|source| CdiError::Stuck {
        path: dirs.to_owned(),
        source,
    })??;
    let mut files = HashSet::new();
    for one in &found {
        let mut apply = Apply {
            file: &one.source.path,
            visitor,
            spec: &mut spec,
        };
        // What comes with any device of a file comes once.
        if files.insert(&one.source.path) {
            apply.edits(&one.source.file.container_edits)?;
        }
        if let Some(device) = one.device() {
            apply.edits(&device.container_edits)?;
        }
    }
    Ok(spec)
}

struct Apply<'a> {
    file: &'a Path,
    visitor: Visitor<'a>,
    spec: &'a mut Spec,
}

impl Apply<'_> {
    fn edits(&mut self, edits: &Edits) -> Result<(), CdiError> {
        let Edits {
            env,
            device_nodes,
            mounts,
            additional_gids,
            hooks,
            intel_rdt,
            net_devices,
        } = edits;
        for (asked, what) in [
            (!hooks.is_empty(), "hooks"),
            (intel_rdt.is_some(), "intelRdt"),
            (!net_devices.is_empty(), "netDevices"),
        ] {
            if asked {
                return Err(self.unsupported(what.to_owned()));
            }
        }
        env.iter().try_for_each(|pair| self.variable(pair))?;
        device_nodes.iter().try_for_each(|node| self.node(node))?;
        mounts.iter().try_for_each(|mount| self.mount(mount))?;
        for gid in additional_gids.iter().filter(|gid| **gid != 0) {
            if !self.spec.process.groups.contains(gid) {
                self.spec.process.groups.push(*gid);
            }
        }
        Ok(())
    }

    fn unsupported(&self, what: String) -> CdiError {
        let file = self.file.to_owned();
        CdiError::Unsupported { file, what }
    }

    fn wrong(
        &self,
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> CdiError {
        CdiError::Edit {
            file: self.file.to_owned(),
            what: what.into(),
            source: source.into(),
        }
    }

    fn visit<T>(&self, path: &Path, work: impl FnOnce() -> T) -> Result<T, CdiError> {
        let stuck = |source| CdiError::Stuck {
            path: path.to_owned(),
            source,
        };
        self.visitor.visit(path, work).map_err(stuck)
    }

    /// A clean place in the container that is not the kernel's.
    fn place(&self, path: &Path) -> Result<PathBuf, CdiError> {
        let clean = clean(path);
        if !path.is_absolute() || clean == Path::new("/") || is_kernels(&clean) {
            return Err(self.wrong(path.display().to_string(), "is no place for it"));
        }
        Ok(clean)
    }

    /// Replaces what the container has by that name.
    fn variable(&mut self, pair: &str) -> Result<(), CdiError> {
        let name = pair.split_once('=').map(|(name, _)| name);
        let Some(name) = name.filter(|name| !name.is_empty() && !pair.contains('\0')) else {
            return Err(self.wrong(format!("env {pair:?}"), "is no variable with its value"));
        };
        let env = &mut self.spec.process.env;
        let of_name = |known: &Vec<u8>| {
            let rest = known.strip_prefix(name.as_bytes());
            rest.is_some_and(|rest| rest.starts_with(b"="))
        };
        env.retain(|known| !of_name(known));
        env.push(pair.as_bytes().to_vec());
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Result<(), CdiError> {
        let path = clean(&node.path);
        let dev = Path::new("/dev");
        if !node.path.is_absolute() || !path.starts_with(dev) || path == dev {
            let what = node.path.display().to_string();
            return Err(self.wrong(format!("{what} is not below /dev"), "no node can be there"));
        }
        let (kind, major, minor) = self.numbers(node)?;
        let letters = node.permissions.as_deref().unwrap_or("rwm");
        let access = Access::parse(letters).ok_or_else(|| {
            self.wrong(
                format!("permissions {letters:?}"),
                "are not made of r, w and m",
            )
        })?;
        let process = &self.spec.process;
        let made = MadeNode {
            path,
            kind,
            major,
            minor,
            mode: node.file_mode.unwrap_or(MODE) & 0o7777,
            // Without a word of whose it is, it is the process's.
            uid: node.uid.unwrap_or(process.uid),
            gid: node.gid.unwrap_or(process.gid),
        };
        self.spec.devices.retain(|known| known.path != made.path);
        self.spec.devices.push(made);
        self.spec.device_rules.push(DeviceRule {
            allow: true,
            kind: match kind {
                DeviceKind::Block => DeviceRuleKind::Block,
                DeviceKind::Char => DeviceRuleKind::Char,
            },
            major: Some(major),
            minor: Some(minor),
            access,
        });
        Ok(())
    }

    /// What kind of device it is, by the file or else by the node's own.
    fn numbers(&self, node: &Node) -> Result<(DeviceKind, u32, u32), CdiError> {
        let said = match node.kind.as_deref() {
            None | Some("") => None,
            Some("b") => Some(DeviceKind::Block),
            Some("c" | "u") => Some(DeviceKind::Char),
            Some(other) => return Err(self.unsupported(format!("a node of type {other:?}"))),
        };
        if let (Some(kind), Some(major)) = (said, node.major.filter(|major| *major != 0)) {
            return Ok((kind, major, node.minor.unwrap_or(0)));
        }
        let host = node.host_path.as_deref().unwrap_or(&node.path);
        let named = |source: std::io::Error| self.wrong(host.display().to_string(), source);
        let found = self
            .visit(host, || std::fs::metadata(host))?
            .map_err(named)?;
        let kind = if found.file_type().is_block_device() {
            DeviceKind::Block
        } else if found.file_type().is_char_device() {
            DeviceKind::Char
        } else {
            return Err(self.wrong(host.display().to_string(), "is no device node"));
        };
        if said.is_some_and(|said| said != kind) {
            return Err(self.wrong(host.display().to_string(), "is of another type"));
        }
        let number = found.rdev();
        Ok((kind, rustix::fs::major(number), rustix::fs::minor(number)))
    }

    fn mount(&mut self, mount: &Mount) -> Result<(), CdiError> {
        match mount.kind.as_deref() {
            None | Some("" | "bind" | "none") => {}
            Some(other) => return Err(self.unsupported(format!("a mount of type {other:?}"))),
        }
        let target = self.place(&mount.container_path)?;
        let (host, said) = (&mount.host_path, mount.host_path.display().to_string());
        if !host.is_absolute() {
            return Err(self.wrong(said, "is not an absolute path"));
        }
        let words: Vec<&str> = mount.options.iter().map(String::as_str).collect();
        let options = BindOptions {
            recursive: words.contains(&"rbind"),
            propagation: propagation(&words),
            ..BindOptions::default()
        };
        let tree = self.visit(host, || runtime::mount::clone_tree(host, &options))?;
        let tree = tree.map_err(|error| self.wrong(said.clone(), error))?;
        let made = MadeMount::volume(target, (host.clone(), tree), &words);
        let made = made.map_err(|error| self.wrong(said, error))?;
        let mounts = &mut self.spec.mounts;
        mounts.retain(|known| known.destination != made.destination);
        // Before what is mounted below it.
        let below = |known: &MadeMount| known.destination.starts_with(&made.destination);
        let at = mounts.iter().position(below).unwrap_or(mounts.len());
        mounts.insert(at, made);
        Ok(())
    }
}

/// The last word on it, as mounts have it.
fn propagation(words: &[&str]) -> Propagation {
    let one = |word: &&str| match *word {
        "private" | "rprivate" => Some(Propagation::Private),
        "slave" | "rslave" => Some(Propagation::Slave),
        "shared" | "rshared" => Some(Propagation::Shared),
        _ => None,
    };
    words.iter().rev().find_map(one).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use runtime::spec::oci;

    use super::super::tests::write;
    use super::*;
    use crate::spec::{HostPaths, Whereabouts};

    /// The specification of a process of user 7 with one device whose edits these are.
    fn applied(edits: &str) -> Result<Spec, CdiError> {
        let dir = tempfile::tempdir().expect("a folder");
        let device = format!(r#"{{ "name": "x", "containerEdits": {edits} }}"#);
        write(dir.path(), "a.json", "v.com/c", &device);
        let process = oci_spec::runtime::Process::default();
        let mut spec = Spec::new(oci::read_process(&process).expect("a process"));
        spec.process.uid = 7;
        spec.process.env = vec![b"A=1".to_vec(), b"AB=2".to_vec()];
        let tree = std::fs::File::open("/dev/null").expect("opened").into();
        let below = MadeMount::volume("/lib/card/below", (PathBuf::from("/y"), tree), &[]);
        spec.mounts = vec![below.expect("a mount")];
        let (paths, at) = (HostPaths::default(), Whereabouts::default());
        let visitor = Visitor {
            paths: &paths,
            at: &at,
        };
        let cdi = Cdi::new(vec![dir.path().to_owned()]);
        apply(&cdi, &["v.com/c=x".to_owned()], visitor, spec)
    }

    #[test]
    fn edits_reach_the_specification() {
        let spec = applied(
            r#"{ "env": ["A=3=4"], "additionalGids": [0, 44, 44],
                 "deviceNodes": [
                   { "path": "/dev/card", "hostPath": "/dev/null", "permissions": "rw" },
                   { "path": "/dev/made", "type": "b", "major": 9, "minor": 3, "uid": 0, "fileMode": 384 }
                 ],
                 "mounts": [
                   { "hostPath": "/usr", "containerPath": "/lib/../lib/card", "options": ["ro", "nosuid", "rbind"] }
                 ] }"#,
        );
        let spec = spec.expect("applied");
        assert_eq!(spec.process.env, [&b"AB=2"[..], b"A=3=4"]);
        assert_eq!(spec.process.groups, [44]);
        let said = |node: &MadeNode| (node.major, node.minor, node.mode, node.uid);
        let nodes: Vec<_> = spec.devices.iter().map(said).collect();
        assert_eq!(nodes, [(1, 3, 0o666, 7), (9, 3, 0o600, 0)]);
        let rules: Vec<_> = spec
            .device_rules
            .iter()
            .map(|rule| rule.access.letters())
            .collect();
        assert_eq!(rules, ["rw", "rwm"]);
        let places: Vec<_> = spec.mounts.iter().map(|mount| &mount.destination).collect();
        assert_eq!(
            places,
            [Path::new("/lib/card"), Path::new("/lib/card/below")]
        );
        let flags = runtime::spec::MountAttrFlags::MOUNT_ATTR_RDONLY
            | runtime::spec::MountAttrFlags::MOUNT_ATTR_NOSUID;
        assert_eq!(spec.mounts[0].top.set, flags);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (edits, word) in [
            (
                r#"{ "hooks": [{ "hookName": "createContainer", "path": "/bin/x" }] }"#,
                "hooks",
            ),
            (r#"{ "intelRdt": { "closID": "x" } }"#, "intelRdt"),
            (
                r#"{ "netDevices": [{ "hostInterfaceName": "x", "name": "y" }] }"#,
                "netDevices",
            ),
            (
                r#"{ "deviceNodes": [{ "path": "/dev/p", "type": "p" }] }"#,
                "type \"p\"",
            ),
            (
                r#"{ "deviceNodes": [{ "path": "/dev/none-such" }] }"#,
                "/dev/none-such",
            ),
            (
                r#"{ "deviceNodes": [{ "path": "/dev/x", "hostPath": "/etc/passwd" }] }"#,
                "/etc/passwd",
            ),
            (
                r#"{ "deviceNodes": [{ "path": "/dev/x", "hostPath": "/dev/null", "type": "b" }] }"#,
                "/dev/null",
            ),
            (
                r#"{ "deviceNodes": [{ "path": "/dev/../etc/x", "hostPath": "/dev/null" }] }"#,
                "not below /dev",
            ),
            (
                r#"{ "deviceNodes": [{ "path": "/dev/null", "permissions": "x" }] }"#,
                "permissions",
            ),
            (
                r#"{ "mounts": [{ "hostPath": "/usr", "containerPath": "/proc/x" }] }"#,
                "/proc/x",
            ),
            (
                r#"{ "mounts": [{ "hostPath": "/usr", "containerPath": "/a/.." }] }"#,
                "/a/..",
            ),
            (
                r#"{ "mounts": [{ "hostPath": "/none/such", "containerPath": "/x" }] }"#,
                "/none/such",
            ),
            (
                r#"{ "mounts": [{ "hostPath": "/usr", "containerPath": "/x", "type": "tmpfs" }] }"#,
                "tmpfs",
            ),
            (
                r#"{ "mounts": [{ "hostPath": "/usr", "containerPath": "/x", "options": ["odd"] }] }"#,
                "/usr",
            ),
            (r#"{ "env": ["A"] }"#, "env \"A\""),
        ] {
            let error = applied(edits).err().unwrap_or_else(|| panic!("{edits}"));
            assert!(error.to_string().contains(word), "{edits}: {error}");
        }
    }
}
