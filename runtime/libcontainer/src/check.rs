//! What libcontainer 0.7 cannot do.
//!
//! Owns the list: each thing that libcontainer would ignore, or do without
//! saying that it failed, and that asks for isolation or changes what a
//! process may do, is refused here by its name in the runtime spec. What fails
//! loudly in libcontainer itself is not listed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use libcontainer::oci_spec::runtime::{
    Hook, Linux, LinuxNamespaceType, Mount, Process, Spec, User,
};
use libcontainer::syscall::linux::{MountOption, MountRecursive};
use runtime::launcher::{LaunchError, links};

/// Options that only say how mounts propagate.
const PROPAGATION: [&str; 8] = [
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "unbindable",
    "runbindable",
];

/// Refuses a spec that asks for what would not happen. `given` tells whether
/// a mount's source is a detached mount, which brings its own propagation.
pub(crate) fn check(spec: &Spec, given: impl Fn(usize) -> bool) -> Result<(), LaunchError> {
    if let Some(process) = spec.process() {
        check_process(process)?;
    }
    if let Some(linux) = spec.linux() {
        check_linux(linux)?;
    }
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        check_dev(mount, given(index))?;
        check_mount(index, mount, given(index))?;
    }
    check_hooks(spec)
}

/// Refuses a root filesystem whose links would lead mounts away: not every runtime
/// looks, and what is masked is looked for by its path.
pub(crate) fn check_links(rootfs: &OwnedFd, spec: &Spec) -> Result<(), LaunchError> {
    let mounts = spec.mounts().iter().flatten();
    let mounts = mounts.map(|mount| (mount.destination().as_path(), true));
    links::check(rootfs.as_fd(), mounts).map_err(|words| LaunchError::failed("mount", words))
}

/// Whether the mount binds something that exists.
pub(crate) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount
            .options()
            .iter()
            .flatten()
            .any(|option| option == "bind" || option == "rbind")
}

fn refuse(what: impl Into<String>, message: &str) -> LaunchError {
    LaunchError::Unsupported {
        what: what.into(),
        message: message.to_owned(),
    }
}

fn check_process(process: &Process) -> Result<(), LaunchError> {
    check_user(process.user())?;
    if process
        .selinux_label()
        .as_ref()
        .is_some_and(|label| !label.is_empty())
    {
        return Err(refuse(
            "process.selinuxLabel",
            "libcontainer sets no SELinux labels",
        ));
    }
    Ok(())
}

/// The kernel takes -1 as "leave as it is": that would keep root.
fn check_user(user: &User) -> Result<(), LaunchError> {
    let groups = user.additional_gids().iter().flatten();
    let ids = [("uid", user.uid()), ("gid", user.gid())];
    let ids = ids
        .into_iter()
        .chain(groups.map(|gid| ("additionalGids", *gid)));
    for (name, id) in ids {
        if id == u32::MAX {
            let what = format!("process.user.{name} {id}");
            return Err(refuse(what, "this number is no id: it changes nothing"));
        }
    }
    Ok(())
}

fn check_linux(linux: &Linux) -> Result<(), LaunchError> {
    let mut namespaces = linux.namespaces().iter().flatten();
    if namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User) {
        let message = "libcontainer cannot bind the kubelet's files in a user namespace";
        return Err(refuse("linux.namespaces.user", message));
    }
    let mut namespaces = linux.namespaces().iter().flatten();
    let mount = namespaces.find(|namespace| namespace.typ() == LinuxNamespaceType::Mount);
    if mount.is_none_or(|namespace| namespace.path().is_some()) {
        let message = "a container needs a mount namespace of its own";
        return Err(refuse("linux.namespaces.mount", message));
    }
    if linux
        .mount_label()
        .as_ref()
        .is_some_and(|label| !label.is_empty())
    {
        return Err(refuse(
            "linux.mountLabel",
            "libcontainer does not label the root",
        ));
    }
    if linux
        .rootfs_propagation()
        .as_deref()
        .is_some_and(|how| how.ends_with("unbindable"))
    {
        return Err(refuse(
            "linux.rootfsPropagation",
            "unbindable is not implemented",
        ));
    }
    Ok(())
}

/// The nodes and links of /dev are made in what is mounted there: in a volume
/// that would be a directory of the host.
fn check_dev(mount: &Mount, given: bool) -> Result<(), LaunchError> {
    if (given || is_bind(mount)) && is_dev(mount.destination()) {
        let message = "its devices would be made in the host's directory";
        return Err(refuse("a volume on /dev", message));
    }
    Ok(())
}

/// Whether a path in the container is /dev, however it is written.
fn is_dev(destination: &Path) -> bool {
    let mut parts = Vec::new();
    for part in destination.components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    parts == ["dev"]
}

fn check_mount(index: usize, mount: &Mount, given: bool) -> Result<(), LaunchError> {
    let name = |part: &str| format!("mounts[{index}].{part} ({})", mount.destination().display());
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(refuse(
            name("uidMappings"),
            "libcontainer has no id-mapped mounts",
        ));
    }
    for option in mount.options().iter().flatten().map(String::as_str) {
        if matches!(option, "idmap" | "ridmap") {
            return Err(refuse(
                name("options.idmap"),
                "libcontainer has no id-mapped mounts",
            ));
        }
        if option == "tmpcopyup" {
            return Err(refuse(
                name("options.tmpcopyup"),
                "libcontainer does not know it",
            ));
        }
        if !is_bind(mount) {
            continue;
        }
        let propagates = PROPAGATION.contains(&option) && !option.ends_with("private");
        if propagates && !given {
            let message = "libcontainer ignores propagation: the mount must be given";
            return Err(refuse(name(&format!("options.{option}")), message));
        }
        let known =
            option.parse::<MountOption>().is_ok() || option.parse::<MountRecursive>().is_ok();
        if !known {
            let message = "libcontainer ignores unknown options of bind mounts";
            return Err(refuse(name(&format!("options.{option}")), message));
        }
    }
    Ok(())
}

/// The container waits for its start behind libcontainer's own gate, so that
/// hooks of the start would run too early, and nobody runs those after it.
fn check_hooks(spec: &Spec) -> Result<(), LaunchError> {
    let Some(hooks) = spec.hooks() else {
        return Ok(());
    };
    let some = |hooks: &Option<Vec<Hook>>| hooks.as_ref().is_some_and(|hooks| !hooks.is_empty());
    for (what, set) in [
        ("hooks.startContainer", some(hooks.start_container())),
        ("hooks.poststart", some(hooks.poststart())),
        ("hooks.poststop", some(hooks.poststop())),
    ] {
        if set {
            return Err(refuse(
                what,
                "this launcher runs hooks of the creation only",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &serde_json::Value) -> Option<String> {
        let mut spec = serde_json::json!({
            "ociVersion": "1.2.0",
            "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/" },
            "linux": { "namespaces": [{ "type": "mount" }] },
        });
        for (key, value) in json.as_object().unwrap() {
            for (inner, value) in value.as_object().unwrap_or(&serde_json::Map::new()) {
                spec[key][inner] = value.clone();
            }
            if value.is_array() {
                spec[key] = value.clone();
            }
        }
        let spec: Spec = serde_json::from_value(spec).unwrap();
        match check(&spec, |index| index == 0) {
            Ok(()) => None,
            Err(LaunchError::Unsupported { what, .. }) => Some(what),
            Err(other) => panic!("{other}"),
        }
    }

    fn mounts(options: &[&str]) -> serde_json::Value {
        let mount = serde_json::json!({
            "destination": "/x", "type": "bind", "source": "/y", "options": options
        });
        let given = serde_json::json!({
            "destination": "/g", "type": "bind", "source": "/g", "options": ["rbind", "rshared"]
        });
        serde_json::json!({ "mounts": [given, mount] })
    }

    #[test]
    fn plain_specs_pass() {
        assert_eq!(refused(&serde_json::json!({})), None);
        assert_eq!(
            refused(&mounts(&["rbind", "ro", "rprivate", "rro", "nosuid"])),
            None
        );
    }

    #[test]
    fn everything_that_would_be_ignored_is_named() {
        let namespaces = serde_json::json!([{ "type": "user" }]);
        let none = serde_json::json!([{ "type": "pid" }]);
        let shared = serde_json::json!([{ "type": "mount", "path": "/x" }]);
        for (json, what) in [
            (
                serde_json::json!({"process": {"selinuxLabel": "a"}}),
                "process.selinuxLabel",
            ),
            (
                serde_json::json!({"linux": {"namespaces": namespaces}}),
                "linux.namespaces.user",
            ),
            (
                serde_json::json!({"linux": {"namespaces": none}}),
                "linux.namespaces.mount",
            ),
            (
                serde_json::json!({"linux": {"namespaces": shared}}),
                "linux.namespaces.mount",
            ),
            (
                serde_json::json!({"linux": {"mountLabel": "a"}}),
                "linux.mountLabel",
            ),
            (
                serde_json::json!({"linux": {"rootfsPropagation": "unbindable"}}),
                "linux.rootfsPropagation",
            ),
            (mounts(&["rbind", "idmap"]), "mounts[1].options.idmap (/x)"),
            (
                mounts(&["rbind", "tmpcopyup"]),
                "mounts[1].options.tmpcopyup (/x)",
            ),
            (
                mounts(&["rbind", "rslave"]),
                "mounts[1].options.rslave (/x)",
            ),
            (
                mounts(&["bind", "nosymfollow"]),
                "mounts[1].options.nosymfollow (/x)",
            ),
        ] {
            assert_eq!(refused(&json).as_deref(), Some(what));
        }
    }

    #[test]
    fn id_that_changes_nothing_is_refused() {
        let last = u32::MAX - 1;
        for (user, what) in [
            (
                serde_json::json!({ "uid": u32::MAX, "gid": 0 }),
                Some("process.user.uid 4294967295"),
            ),
            (
                serde_json::json!({ "uid": 0, "gid": u32::MAX }),
                Some("process.user.gid 4294967295"),
            ),
            (
                serde_json::json!({ "uid": 0, "gid": 0, "additionalGids": [1, u32::MAX] }),
                Some("process.user.additionalGids 4294967295"),
            ),
            (
                serde_json::json!({ "uid": last, "gid": last, "additionalGids": [last] }),
                None,
            ),
        ] {
            let json = serde_json::json!({ "process": { "user": user } });
            assert_eq!(refused(&json).as_deref(), what);
        }
    }

    #[test]
    fn volume_on_dev_is_refused_and_what_lies_in_it_is_not() {
        let on = |destination: &str, kind: &str, options: &[&str]| {
            let mount = serde_json::json!({
                "destination": destination, "type": kind, "source": "/y", "options": options
            });
            let given = serde_json::json!({ "destination": "/g", "type": "bind", "source": "/g" });
            refused(&serde_json::json!({ "mounts": [given, mount] }))
        };
        for destination in ["/dev", "/dev/", "//dev/.", "dev", "/dev/x/..", "/../dev"] {
            let what = on(destination, "bind", &["rbind"]);
            assert_eq!(what.as_deref(), Some("a volume on /dev"), "{destination}");
        }
        let what = on("/dev", "none", &["rbind"]);
        assert_eq!(what.as_deref(), Some("a volume on /dev"));
        for destination in ["/dev/shm", "/dev/termination-log", "/device", "/x/dev"] {
            assert_eq!(on(destination, "bind", &["rbind"]), None, "{destination}");
        }
        assert_eq!(on("/dev", "tmpfs", &["nosuid"]), None);
        let given = serde_json::json!({ "destination": "/dev", "type": "tmpfs", "source": "y" });
        let what = refused(&serde_json::json!({ "mounts": [given] }));
        assert_eq!(what.as_deref(), Some("a volume on /dev"));
    }

    #[test]
    fn hooks_that_would_run_at_the_wrong_time_are_named() {
        for what in ["startContainer", "poststart", "poststop"] {
            let mut hooks = serde_json::json!({ "hooks": {} });
            hooks["hooks"][what] = serde_json::json!([{ "path": "/bin/true" }]);
            let mut spec = serde_json::json!({ "ociVersion": "1.2.0" });
            spec["hooks"] = hooks["hooks"].clone();
            let spec: Spec = serde_json::from_value(spec).unwrap();
            let error = check(&spec, |_| false).unwrap_err();
            assert!(
                error.to_string().starts_with(&format!("hooks.{what}")),
                "{error}"
            );
        }
    }
}
