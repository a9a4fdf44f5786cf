//! From a runtime spec to the native launcher's plan.
//!
//! Every field of the spec is looked at: what the plan cannot express is
//! refused by its name in the spec. Touches nothing on the machine.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci_spec::runtime::{
    Hook, Linux, LinuxDevice, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType, LinuxSeccomp,
    LinuxSeccompFilterFlag, Root, Spec,
};

use super::convert::convert_process;
use super::error::MonitorError;
use super::mount_plan;
use crate::devices::{Kind, Rule, complete};
use crate::protocol::{self, DeviceRule, MountKind, Namespace, NamespaceKind};

/// A plan and the seccomp filter, if the spec has one.
pub(super) struct Planned {
    /// What the launcher does.
    pub(super) plan: protocol::Plan,
    /// The compiled filter, when the spec has one that was not compiled yet.
    pub(super) filter: Option<Vec<u8>>,
}

/// Makes the plan. `given` tells whether a mount's source is a detached mount;
/// `compiled` whether the caller has the compiled filter.
pub(super) fn build(
    spec: &Spec,
    given: impl Fn(usize) -> bool,
    compiled: bool,
) -> Result<Planned, MonitorError> {
    let missing = |what: &'static str| MonitorError::Invalid {
        what: "runtime spec",
        message: format!("it has no {what}"),
    };
    check_spec(spec)?;
    let process = spec.process().as_ref().ok_or_else(|| missing("process"))?;
    refuse(
        "process.consoleSize",
        process.console_size().is_some(),
        "terminals begin without a size",
    )?;
    let linux = spec.linux().as_ref().ok_or_else(|| missing("linux"))?;
    check_linux(linux)?;
    let specified = spec.mounts().as_deref().unwrap_or_default();
    let mounts = specified
        .iter()
        .enumerate()
        .map(|(index, mount)| mount_plan::build(index, mount, given(index)))
        .collect::<Result<Vec<_>, _>>()?;
    let dev_is_bound = mounts
        .iter()
        .any(|mount| mount.kind() == MountKind::Bind && is_dev(&mount.destination));
    let texts = |paths: &Option<Vec<String>>| -> Vec<Vec<u8>> {
        let paths = paths.iter().flatten();
        paths.map(|path| path.clone().into_bytes()).collect()
    };
    let plan = protocol::Plan {
        process: Some(convert_process(process)?),
        namespaces: namespaces(linux)?,
        own_dev: !dev_is_bound,
        mounts,
        devices: linux
            .devices()
            .iter()
            .flatten()
            .map(device)
            .collect::<Result<_, _>>()?,
        device_rules: device_rules(linux)?,
        masked_paths: texts(linux.masked_paths()),
        readonly_paths: texts(linux.readonly_paths()),
        readonly_root: spec.root().as_ref().and_then(Root::readonly) == Some(true),
        shared_root: shared_root(linux)?,
        seccomp_flags: seccomp_flags(linux.seccomp().as_ref())?,
    };
    let filter =
        match linux.seccomp() {
            Some(profile) if !compiled => Some(crate::seccomp::compile(profile).map_err(
                |error| MonitorError::Invalid {
                    what: "linux.seccomp",
                    message: error.to_string(),
                },
            )?),
            _ => None,
        };
    Ok(Planned { plan, filter })
}

/// Refuses by name what is set.
pub(super) fn refuse(what: &str, set: bool, message: &str) -> Result<(), MonitorError> {
    if !set {
        return Ok(());
    }
    Err(MonitorError::Unsupported {
        what: what.to_owned(),
        message: message.to_owned(),
    })
}

fn some<T>(list: Option<&[T]>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

fn check_spec(spec: &Spec) -> Result<(), MonitorError> {
    let other = "not for this kind of container";
    refuse("solaris", spec.solaris().is_some(), other)?;
    refuse("windows", spec.windows().is_some(), other)?;
    refuse("vm", spec.vm().is_some(), other)?;
    refuse("zos", spec.zos().is_some(), other)?;
    let pods = "the name is the pod's";
    refuse("hostname", spec.hostname().is_some(), pods)?;
    refuse("domainname", spec.domainname().is_some(), pods)?;
    let Some(hooks) = spec.hooks() else {
        return Ok(());
    };
    let hooks: [(&str, &Option<Vec<Hook>>); 6] = [
        ("hooks.prestart", hooks.prestart()),
        ("hooks.createRuntime", hooks.create_runtime()),
        ("hooks.createContainer", hooks.create_container()),
        ("hooks.startContainer", hooks.start_container()),
        ("hooks.poststart", hooks.poststart()),
        ("hooks.poststop", hooks.poststop()),
    ];
    hooks.iter().try_for_each(|(what, hooks)| {
        refuse(what, some(hooks.as_deref()), "this launcher runs no hooks")
    })
}

fn check_linux(linux: &Linux) -> Result<(), MonitorError> {
    let version = "not in this version";
    let users = "not without a user namespace";
    let mappings = some(linux.uid_mappings().as_deref()) || some(linux.gid_mappings().as_deref());
    refuse("linux.uidMappings", mappings, users)?;
    let labelled = linux.mount_label().as_ref();
    refuse(
        "linux.mountLabel",
        labelled.is_some_and(|label| !label.is_empty()),
        version,
    )?;
    let sysctls = linux.sysctl().as_ref().is_some_and(|map| !map.is_empty());
    refuse("linux.sysctl", sysctls, "they are the pod's")?;
    refuse("linux.intelRdt", linux.intel_rdt().is_some(), version)?;
    refuse("linux.personality", linux.personality().is_some(), version)?;
    let devices = linux.net_devices().as_ref();
    refuse(
        "linux.netDevices",
        devices.is_some_and(|map| !map.is_empty()),
        version,
    )?;
    let policy = linux.memory_policy().is_some();
    refuse("linux.memoryPolicy", policy, version)?;
    let offsets = linux.time_offsets().as_ref();
    refuse(
        "linux.timeOffsets",
        offsets.is_some_and(|map| !map.is_empty()),
        version,
    )
}

fn is_dev(destination: &[u8]) -> bool {
    let path = Path::new(std::ffi::OsStr::from_bytes(destination));
    path.components().eq(Path::new("/dev").components())
}

fn namespaces(linux: &Linux) -> Result<Vec<Namespace>, MonitorError> {
    let all = linux.namespaces().as_deref().unwrap_or_default();
    let mount = all
        .iter()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Mount);
    refuse(
        "linux.namespaces.mount",
        mount.is_none_or(|namespace| namespace.path().is_some()),
        "a container needs a mount namespace of its own",
    )?;
    all.iter().map(namespace).collect()
}

fn namespace(namespace: &LinuxNamespace) -> Result<Namespace, MonitorError> {
    let unsupported = |what: &str| MonitorError::Unsupported {
        what: format!("linux.namespaces.{what}"),
        message: "not in this version".to_owned(),
    };
    let kind = match namespace.typ() {
        LinuxNamespaceType::Mount => NamespaceKind::Mount,
        LinuxNamespaceType::Cgroup => NamespaceKind::Cgroup,
        LinuxNamespaceType::Uts => NamespaceKind::Uts,
        LinuxNamespaceType::Ipc => NamespaceKind::Ipc,
        LinuxNamespaceType::Pid => NamespaceKind::Pid,
        LinuxNamespaceType::Network => NamespaceKind::Network,
        LinuxNamespaceType::User => return Err(unsupported("user")),
        LinuxNamespaceType::Time => return Err(unsupported("time")),
    };
    let path = namespace.path().as_ref();
    Ok(Namespace {
        kind: kind.into(),
        path: path.map(|path| path.as_os_str().as_bytes().to_vec()),
    })
}

/// The root is a mount of its own: whatever does not share it is private.
fn shared_root(linux: &Linux) -> Result<bool, MonitorError> {
    match linux.rootfs_propagation().as_deref() {
        None | Some("" | "private" | "rprivate" | "slave" | "rslave") => Ok(false),
        Some("shared" | "rshared") => Ok(true),
        Some(other) => Err(MonitorError::Unsupported {
            what: "linux.rootfsPropagation".to_owned(),
            message: format!("{other:?} is not implemented"),
        }),
    }
}

/// The kernel's numbers.
pub(super) fn seccomp_flags(profile: Option<&LinuxSeccomp>) -> Result<u32, MonitorError> {
    let Some(profile) = profile else {
        return Ok(0);
    };
    let version = "not in this version";
    let listens = profile.listener_path().is_some();
    refuse("linux.seccomp.listenerPath", listens, version)?;
    let mut bits = 0;
    for flag in profile.flags().iter().flatten() {
        bits |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => 2,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 4,
            // There is one thread.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            other => {
                return Err(MonitorError::Unsupported {
                    what: format!("linux.seccomp.flags.{other:?}"),
                    message: version.to_owned(),
                });
            }
        };
    }
    Ok(bits)
}

fn device(device: &LinuxDevice) -> Result<protocol::Device, MonitorError> {
    let invalid = |message: &str| MonitorError::Invalid {
        what: "linux.devices",
        message: format!("{}: {message}", device.path().display()),
    };
    let kind = match device.typ() {
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => return Err(invalid("it has no type")),
    };
    let number = |number: i64| u32::try_from(number).map_err(|_| invalid("it has no number"));
    let fifo = kind == libc::S_IFIFO;
    Ok(protocol::Device {
        path: device.path().as_os_str().as_bytes().to_vec(),
        mode: kind | device.file_mode().unwrap_or(0o666) & 0o7777,
        major: if fifo { 0 } else { number(device.major())? },
        minor: if fifo { 0 } else { number(device.minor())? },
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

fn device_rules(linux: &Linux) -> Result<Vec<DeviceRule>, MonitorError> {
    let invalid = |message: String| MonitorError::Invalid {
        what: "linux.resources.devices",
        message,
    };
    let resources = linux.resources().as_ref();
    let devices = resources.and_then(|resources| resources.devices().as_ref());
    let mut rules = Vec::new();
    for device in devices.into_iter().flatten() {
        let kind = match device.typ() {
            Some(LinuxDeviceType::B) => Kind::Block,
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Kind::Char,
            Some(LinuxDeviceType::A) | None => Kind::All,
            Some(LinuxDeviceType::P) => return Err(invalid("a pipe is no device".to_owned())),
        };
        let numbers = (device.major(), device.minor());
        let access = device.access().as_deref();
        let rule = Rule::parse(device.allow(), kind, numbers, access);
        rules.push(rule.map_err(|error| invalid(error.to_string()))?);
    }
    Ok(complete(rules).iter().map(DeviceRule::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl FnOnce(&mut serde_json::Value)) -> Result<Planned, MonitorError> {
        let mut spec = serde_json::json!({
            "ociVersion": "1.2.0",
            "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["sh"] },
            "linux": { "namespaces": [{ "type": "mount" }] },
        });
        change(&mut spec);
        let spec: Spec = serde_json::from_value(spec).unwrap();
        build(&spec, |index| index == 0, false)
    }

    fn refused(change: impl FnOnce(&mut serde_json::Value)) -> String {
        match plan(change).map(|planned| planned.plan) {
            Err(MonitorError::Unsupported { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_plan_cannot_express_is_refused_by_name() {
        use serde_json::json;
        for (path, value, what) in [
            ("/hostname", json!("x"), "hostname"),
            (
                "/hooks",
                json!({"poststop": [{"path": "/x"}]}),
                "hooks.poststop",
            ),
            (
                "/process/consoleSize",
                json!({"height": 1, "width": 1}),
                "process.consoleSize",
            ),
            ("/linux/mountLabel", json!("x"), "linux.mountLabel"),
            ("/linux/sysctl", json!({"a": "b"}), "linux.sysctl"),
            (
                "/linux/namespaces",
                json!([{"type": "pid"}]),
                "linux.namespaces.mount",
            ),
            (
                "/linux/namespaces",
                json!([{"type": "mount", "path": "/x"}]),
                "linux.namespaces.mount",
            ),
            (
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "user"}]),
                "linux.namespaces.user",
            ),
            (
                "/linux/rootfsPropagation",
                json!("unbindable"),
                "linux.rootfsPropagation",
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}),
                "linux.seccomp.listenerPath",
            ),
        ] {
            let named = refused(|spec| {
                let (parent, name) = path.rsplit_once('/').unwrap();
                spec.pointer_mut(parent).unwrap()[name] = value;
            });
            assert_eq!(named, what);
        }
    }

    #[test]
    fn a_dev_that_is_bound_is_left_alone() {
        for (kind, own) in [("bind", false), ("tmpfs", true)] {
            let planned = plan(|spec| {
                spec["mounts"] = serde_json::json!([
                    { "destination": "/given", "type": "bind", "options": ["rbind"] },
                    { "destination": "/dev/", "type": kind, "source": "/dev", "options": [] }
                ]);
            });
            assert_eq!(planned.unwrap().plan.own_dev, own);
        }
    }

    #[test]
    fn rules_and_filter_are_complete() {
        let planned = plan(|spec| {
            spec["linux"]["seccomp"] = serde_json::json!({
                "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]
            });
        })
        .unwrap();
        assert_eq!(planned.plan.device_rules.len(), 12);
        assert_eq!(planned.plan.seccomp_flags, 2);
        assert!(planned.filter.is_some_and(|filter| !filter.is_empty()));
    }
}
