//! From one mount of a runtime spec to the native launcher's.
//!
//! Owns the meaning of options. An option that nobody knows is refused where
//! the kernel would not do so itself.

use std::os::unix::ffi::OsStrExt;

use oci_spec::runtime::Mount as Specified;
use rustix::mount::MountAttrFlags as Attr;

use super::error::MonitorError;
use crate::protocol::{Mount, MountAttributes, MountKind, MountPropagation, Parameter};

/// Attributes of one scope, from options in their order.
#[derive(Debug, Clone, Copy)]
struct Attributes {
    set: Attr,
    atime: bool,
}

impl Attributes {
    fn none() -> Self {
        Self {
            set: Attr::empty(),
            atime: false,
        }
    }

    /// Takes one option. `false`: it is none of these.
    fn take(&mut self, option: &str) -> bool {
        let atime = Attr::MOUNT_ATTR__ATIME;
        let (set, clear) = match option {
            "ro" => (Attr::MOUNT_ATTR_RDONLY, Attr::empty()),
            "rw" => (Attr::empty(), Attr::MOUNT_ATTR_RDONLY),
            "nosuid" => (Attr::MOUNT_ATTR_NOSUID, Attr::empty()),
            "suid" => (Attr::empty(), Attr::MOUNT_ATTR_NOSUID),
            "nodev" => (Attr::MOUNT_ATTR_NODEV, Attr::empty()),
            "dev" => (Attr::empty(), Attr::MOUNT_ATTR_NODEV),
            "noexec" => (Attr::MOUNT_ATTR_NOEXEC, Attr::empty()),
            "exec" => (Attr::empty(), Attr::MOUNT_ATTR_NOEXEC),
            "nodiratime" => (Attr::MOUNT_ATTR_NODIRATIME, Attr::empty()),
            "diratime" => (Attr::empty(), Attr::MOUNT_ATTR_NODIRATIME),
            "nosymfollow" => (Attr::MOUNT_ATTR_NOSYMFOLLOW, Attr::empty()),
            "symfollow" => (Attr::empty(), Attr::MOUNT_ATTR_NOSYMFOLLOW),
            "noatime" => (Attr::MOUNT_ATTR_NOATIME, atime),
            "strictatime" => (Attr::MOUNT_ATTR_STRICTATIME, atime),
            "relatime" | "atime" | "norelatime" | "nostrictatime" => (Attr::empty(), atime),
            _ => return false,
        };
        self.atime |= clear == atime;
        self.set = (self.set - clear) | set;
        true
    }

    /// Flags of the source that nobody speaks of stay: a volume on a mount
    /// without programs has none.
    fn message(self) -> Option<MountAttributes> {
        let clear = if self.atime {
            Attr::MOUNT_ATTR__ATIME
        } else {
            Attr::empty()
        };
        (!self.set.is_empty() || self.atime).then(|| MountAttributes {
            set: self.set.bits().into(),
            clear: clear.bits().into(),
        })
    }
}

/// What options say beside attributes.
struct Options {
    top: Attributes,
    tree: Attributes,
    bind: bool,
    recursive: bool,
    propagation: MountPropagation,
    others: Vec<String>,
}

/// Plans one mount. `given`: its source is a detached mount.
pub(super) fn build(index: usize, mount: &Specified, given: bool) -> Result<Mount, MonitorError> {
    let name = |part: &str| format!("mounts[{index}].{part} ({})", mount.destination().display());
    let refused = |part: &str, message: &str| MonitorError::Unsupported {
        what: name(part),
        message: message.to_owned(),
    };
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(refused("uidMappings", "not in this version"));
    }
    if !mount.destination().is_absolute() {
        return Err(MonitorError::Invalid {
            what: "runtime spec",
            message: format!("{} is not absolute", name("destination")),
        });
    }
    let options = read(mount.options().as_deref().unwrap_or_default())
        .map_err(|option| refused(&format!("options.{option}"), "not in this version"))?;
    let typ = mount.typ().as_deref().unwrap_or_default();
    let kind = if given || typ == "bind" || options.bind {
        MountKind::Bind
    } else if matches!(typ, "cgroup" | "cgroup2") {
        MountKind::Cgroup
    } else {
        MountKind::Filesystem
    };
    if kind != MountKind::Filesystem
        && let Some(option) = options.others.first()
    {
        let part = format!("options.{option}");
        return Err(refused(&part, "nobody would honour it"));
    }
    let source = mount.source().as_ref();
    Ok(Mount {
        destination: mount.destination().as_os_str().as_bytes().to_vec(),
        kind: kind.into(),
        filesystem: typ.to_owned(),
        source: source.map_or_else(Vec::new, |path| path.as_os_str().as_bytes().to_vec()),
        recursive: options.recursive,
        top: options.top.message(),
        tree: options.tree.message(),
        propagation: options.propagation.into(),
        parameters: options.others.iter().map(|text| parameter(text)).collect(),
    })
}

/// Reads options in their order; the error is the one that is refused.
fn read(options: &[String]) -> Result<Options, String> {
    let mut read = Options {
        top: Attributes::none(),
        tree: Attributes::none(),
        bind: false,
        recursive: false,
        propagation: MountPropagation::Private,
        others: Vec::new(),
    };
    for option in options {
        match option.as_str() {
            "" | "defaults" => {}
            "bind" => read.bind = true,
            "rbind" => (read.bind, read.recursive) = (true, true),
            "private" | "rprivate" => read.propagation = MountPropagation::Private,
            "slave" | "rslave" => read.propagation = MountPropagation::Slave,
            "shared" | "rshared" => read.propagation = MountPropagation::Shared,
            "unbindable" | "runbindable" | "idmap" | "ridmap" | "tmpcopyup" | "remount" => {
                return Err(option.clone());
            }
            other => {
                let tree = other.strip_prefix('r').unwrap_or_default();
                if !read.top.take(other) && !read.tree.take(tree) {
                    read.others.push(other.to_owned());
                }
            }
        }
    }
    Ok(read)
}

fn parameter(text: &str) -> Parameter {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.as_bytes().to_vec())),
        None => (text, None),
    };
    Parameter {
        key: key.as_bytes().to_vec(),
        value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(typ: &str, options: &[&str]) -> Result<Mount, MonitorError> {
        let mount = serde_json::json!({
            "destination": "/x", "type": typ, "source": "/y", "options": options
        });
        build(1, &serde_json::from_value(mount).unwrap(), false)
    }

    fn bits(attributes: Attr) -> u64 {
        attributes.bits().into()
    }

    #[test]
    fn the_last_word_on_an_attribute_counts() {
        let top = mount("bind", &["ro", "nosuid", "rw"]).unwrap().top.unwrap();
        assert_eq!((top.set, top.clear), (bits(Attr::MOUNT_ATTR_NOSUID), 0));
        let top = mount("bind", &["noatime", "relatime"])
            .unwrap()
            .top
            .unwrap();
        assert_eq!((top.set, top.clear), (0, bits(Attr::MOUNT_ATTR__ATIME)));
        assert_eq!(mount("bind", &["rw"]).unwrap().top, None);
    }

    #[test]
    fn recursive_attributes_are_the_trees() {
        let mount = mount("bind", &["rbind", "rro", "rslave"]).unwrap();
        assert!(mount.recursive && mount.top.is_none());
        assert_eq!(mount.tree.unwrap().set, bits(Attr::MOUNT_ATTR_RDONLY));
        assert_eq!(mount.propagation(), MountPropagation::Slave);
    }

    #[test]
    fn a_filesystems_own_options_are_passed_on() {
        let mount = mount("tmpfs", &["nosuid", "mode=755", "newinstance"]).unwrap();
        assert_eq!(mount.kind(), MountKind::Filesystem);
        let expected =
            [("mode", Some("755")), ("newinstance", None)].map(|(key, value)| Parameter {
                key: key.into(),
                value: value.map(Into::into),
            });
        assert_eq!(mount.parameters, expected);
    }

    #[test]
    fn options_that_would_be_ignored_are_named() {
        for (typ, option) in [
            ("bind", "sync"),
            ("bind", "idmap"),
            ("tmpfs", "tmpcopyup"),
            ("bind", "runbindable"),
            ("cgroup", "nsdelegate"),
        ] {
            let error = mount(typ, &[option]).unwrap_err();
            let expected = format!("mounts[1].options.{option} (/x)");
            assert!(
                matches!(&error, MonitorError::Unsupported { what, .. } if *what == expected),
                "{error}"
            );
        }
    }
}
