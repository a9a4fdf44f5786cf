//! Options of mounts in the words of mount(8) and of OCI runtime specifications.
//!
//! Owns the meaning of the words, in both directions. A word that nobody knows is
//! refused where the kernel would not do so itself.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::mount::MountAttrFlags as Attr;

use super::{Attributes, Mount, Parameter, Propagation, Unsupported, What};

/// Attributes of one scope, from options in their order.
#[derive(Debug, Clone, Copy)]
struct Read {
    set: Attr,
    atime: bool,
}

impl Read {
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

    fn attributes(self) -> Attributes {
        Attributes {
            set: self.set,
            clear: if self.atime {
                Attr::MOUNT_ATTR__ATIME
            } else {
                Attr::empty()
            },
        }
    }
}

/// What options say.
struct Options {
    top: Read,
    tree: Read,
    propagation: Propagation,
    others: Vec<String>,
}

impl Mount {
    /// A new filesystem, with options as a specification in words has them.
    ///
    /// # Errors
    /// Names an option that nobody would honour. A filesystem's own are not known here:
    /// the kernel refuses those that it has not.
    pub fn filesystem(
        destination: impl Into<PathBuf>,
        kind: &str,
        source: &str,
        options: &[&str],
    ) -> Result<Self, Unsupported> {
        let read = read(options)?;
        let what = if matches!(kind, "cgroup" | "cgroup2") {
            known_only(&read.others)?;
            What::Cgroups
        } else {
            What::Filesystem {
                kind: kind.to_owned(),
                source: source.to_owned(),
                parameters: read.others.iter().map(|text| parameter(text)).collect(),
            }
        };
        Ok(Self {
            destination: destination.into(),
            what,
            top: read.top.attributes(),
            tree: read.tree.attributes(),
            propagation: read.propagation,
        })
    }

    /// A path of the host by a detached clone of it, with options as a specification in
    /// words has them.
    ///
    /// # Errors
    /// Names an option that nobody would honour.
    pub fn volume(
        destination: impl Into<PathBuf>,
        (host_path, tree): (PathBuf, OwnedFd),
        options: &[&str],
    ) -> Result<Self, Unsupported> {
        let read = read(options)?;
        known_only(&read.others)?;
        Ok(Self {
            destination: destination.into(),
            what: What::Volume { host_path, tree },
            top: read.top.attributes(),
            tree: read.tree.attributes(),
            propagation: read.propagation,
        })
    }
}

fn refused(option: &str, message: &str) -> Unsupported {
    Unsupported {
        what: format!("options.{option}"),
        message: message.to_owned(),
    }
}

fn known_only(others: &[String]) -> Result<(), Unsupported> {
    let first = others.first();
    first.map_or(Ok(()), |option| {
        Err(refused(option, "nobody would honour it"))
    })
}

/// Reads options in their order.
fn read(options: &[&str]) -> Result<Options, Unsupported> {
    let mut read = Options {
        top: Read::none(),
        tree: Read::none(),
        propagation: Propagation::Private,
        others: Vec::new(),
    };
    for option in options {
        match *option {
            "" | "defaults" | "bind" | "rbind" => {}
            "private" | "rprivate" => read.propagation = Propagation::Private,
            "slave" | "rslave" => read.propagation = Propagation::Slave,
            "shared" | "rshared" => read.propagation = Propagation::Shared,
            "unbindable" | "runbindable" | "idmap" | "ridmap" | "tmpcopyup" | "remount" => {
                return Err(refused(option, "not in this version"));
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
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, None),
    };
    Parameter {
        key: key.to_owned(),
        value,
    }
}

/// The options of a mount, from which [`Mount::filesystem`] and [`Mount::volume`] read
/// the same again.
pub(super) fn write(mount: &Mount) -> Vec<String> {
    let volume = matches!(mount.what, What::Volume { .. });
    let mut words = Vec::new();
    if volume {
        words.push("rbind".to_owned());
    }
    words.extend(attributes(mount.top).map(str::to_owned));
    words.extend(attributes(mount.tree).map(|word| format!("r{word}")));
    // OCI runtimes keep a source read-only unless they are told otherwise.
    let readonly = mount.top.set.contains(Attr::MOUNT_ATTR_RDONLY);
    if volume && !readonly {
        words.push("rw".to_owned());
    }
    match mount.propagation {
        Propagation::Private if volume => words.push("rprivate".to_owned()),
        Propagation::Private => {}
        Propagation::Slave => words.push("rslave".to_owned()),
        Propagation::Shared => words.push("rshared".to_owned()),
    }
    if let What::Filesystem { parameters, .. } = &mount.what {
        words.extend(parameters.iter().map(|one| match &one.value {
            Some(value) => format!("{}={value}", one.key),
            None => one.key.clone(),
        }));
    }
    words
}

/// Words for attributes of one scope.
fn attributes(attributes: Attributes) -> impl Iterator<Item = &'static str> {
    let Attributes { set, clear } = attributes;
    let atime = if set.contains(Attr::MOUNT_ATTR_NOATIME) {
        Some("noatime")
    } else if set.contains(Attr::MOUNT_ATTR_STRICTATIME) {
        Some("strictatime")
    } else {
        clear
            .contains(Attr::MOUNT_ATTR__ATIME)
            .then_some("relatime")
    };
    let words = [
        (Attr::MOUNT_ATTR_NOSUID, "nosuid"),
        (Attr::MOUNT_ATTR_NOEXEC, "noexec"),
        (Attr::MOUNT_ATTR_NODEV, "nodev"),
        (Attr::MOUNT_ATTR_NODIRATIME, "nodiratime"),
        (Attr::MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"),
    ];
    let words = words.into_iter();
    let words = words.filter_map(move |(bit, word)| set.contains(bit).then_some(word));
    let readonly = set.contains(Attr::MOUNT_ATTR_RDONLY).then_some("ro");
    words.chain(atime).chain(readonly)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filesystem(kind: &str, options: &[&str]) -> Result<Mount, Unsupported> {
        Mount::filesystem("/x", kind, "/y", options)
    }

    fn volume(options: &[&str]) -> Result<Mount, Unsupported> {
        let tree = std::fs::File::open("/dev/null").unwrap().into();
        Mount::volume("/x", (PathBuf::from("/y"), tree), options)
    }

    #[test]
    fn the_last_word_on_an_attribute_counts() {
        let top = volume(&["ro", "nosuid", "rw"]).unwrap().top;
        assert_eq!(top, Attributes::of(Attr::MOUNT_ATTR_NOSUID));
        let top = volume(&["noatime", "relatime"]).unwrap().top;
        assert_eq!(top, Attributes::NONE.with_atime(Attr::empty()));
        assert!(volume(&["rw"]).unwrap().top.is_none());
    }

    #[test]
    fn recursive_attributes_are_the_trees() {
        let mount = volume(&["rbind", "rro", "rslave"]).unwrap();
        assert!(mount.top.is_none());
        assert_eq!(mount.tree, Attributes::of(Attr::MOUNT_ATTR_RDONLY));
        assert_eq!(mount.propagation, Propagation::Slave);
    }

    #[test]
    fn a_filesystems_own_options_are_passed_on() {
        let mount = filesystem("tmpfs", &["nosuid", "mode=755", "newinstance"]).unwrap();
        let What::Filesystem { parameters, .. } = mount.what else {
            panic!("{mount:?}");
        };
        let expected =
            [("mode", Some("755")), ("newinstance", None)].map(|(key, value)| Parameter {
                key: key.into(),
                value: value.map(Into::into),
            });
        assert_eq!(parameters, expected);
    }

    #[test]
    fn options_that_would_be_ignored_are_named() {
        for (mount, option) in [
            (volume(&["sync"]), "sync"),
            (volume(&["idmap"]), "idmap"),
            (filesystem("tmpfs", &["tmpcopyup"]), "tmpcopyup"),
            (volume(&["runbindable"]), "runbindable"),
            (filesystem("cgroup", &["nsdelegate"]), "nsdelegate"),
        ] {
            assert_eq!(mount.unwrap_err().what, format!("options.{option}"));
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for words in [
            &["rbind", "rw", "rprivate"][..],
            &["rbind", "ro", "rslave"],
            &["rbind", "nosuid", "noatime", "rro", "rw", "rshared"],
        ] {
            assert_eq!(write(&volume(words).unwrap()), words);
        }
        for words in [
            &["nosuid", "noexec", "nodev", "ro"][..],
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
            &["nosuid", "noexec", "newinstance", "gid=5"],
        ] {
            assert_eq!(write(&filesystem("tmpfs", words).unwrap()), words);
        }
        let words = ["nosuid", "noexec", "nodev", "relatime", "ro"];
        assert_eq!(write(&filesystem("cgroup", &words).unwrap()), words);
    }
}
