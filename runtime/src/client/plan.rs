//! From a container's specification to the native launcher's plan.
//!
//! Takes every field of the specification apart: what the plan cannot express is
//! refused by its name. Touches nothing on the machine.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};

use super::error::MonitorError;
use crate::devices::complete;
use crate::mount::Propagation;
use crate::protocol::{
    self, DeviceRule, MountAttributes, MountKind, MountPropagation, Parameter, Plan,
};
use crate::spec::{
    Attributes, Device, DeviceKind, Mount, Namespace, NamespaceKind, Process, Spec, What,
};

/// Makes the plan.
///
/// # Errors
/// `Invalid` or `Unsupported`, which name what is in the way.
pub(super) fn build(spec: &Spec) -> Result<Plan, MonitorError> {
    let Spec {
        process,
        namespaces,
        mounts,
        devices,
        device_rules,
        masked_paths,
        readonly_paths,
        readonly_root,
        // The files by which it is joined stand in the order.
        cgroup: _,
        // Are in force by now.
        limits: _,
        seccomp,
    } = spec;
    let mounts = mounts.iter().enumerate();
    let mounts: Vec<_> = mounts
        .map(|(index, one)| mount(index, one))
        .collect::<Result<_, _>>()?;
    let dev_is_bound = mounts
        .iter()
        .any(|mount| mount.kind() == MountKind::Bind && is_dev(&mount.destination));
    let texts = |paths: &[String]| paths.iter().map(|path| path.clone().into_bytes()).collect();
    let rules = complete(device_rules.clone());
    Ok(Plan {
        process: Some(self::process(process)),
        namespaces: all_namespaces(namespaces),
        own_dev: !dev_is_bound,
        mounts,
        devices: devices.iter().map(device).collect(),
        device_rules: rules.iter().map(DeviceRule::from).collect(),
        masked_paths: texts(masked_paths),
        readonly_paths: texts(readonly_paths),
        readonly_root: *readonly_root,
        // The root is a mount of its own, whose mounts no other namespace shares.
        shared_root: false,
        seccomp_flags: seccomp_flags(seccomp.as_ref().map(|seccomp| &seccomp.profile))?,
    })
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

/// A process as its message.
pub(super) fn process(process: &Process) -> protocol::Process {
    let Process {
        args,
        env,
        cwd,
        // Stands in the order.
        terminal: _,
        uid,
        gid,
        groups,
        umask,
        capabilities,
        rlimits,
        no_new_privileges,
        apparmor_profile,
        selinux_label,
        oom_score_adj,
    } = process;
    protocol::Process {
        args: args.iter().map(|arg| arg.clone().into_bytes()).collect(),
        env: env.clone(),
        cwd: bytes(cwd),
        uid: *uid,
        gid: *gid,
        groups: groups.clone(),
        umask: *umask,
        capabilities: Some(*capabilities),
        rlimits: rlimits.clone(),
        no_new_privileges: *no_new_privileges,
        apparmor_profile: apparmor_profile.clone().unwrap_or_default(),
        selinux_label: selinux_label.clone().unwrap_or_default(),
        oom_score_adj: *oom_score_adj,
    }
}

fn is_dev(destination: &[u8]) -> bool {
    let path = Path::new(std::ffi::OsStr::from_bytes(destination));
    path.components().eq(Path::new("/dev").components())
}

/// The mount namespace first, which is always one of its own.
fn all_namespaces(namespaces: &[Namespace]) -> Vec<protocol::Namespace> {
    let mount = protocol::Namespace {
        kind: protocol::NamespaceKind::Mount.into(),
        path: None,
    };
    let others = namespaces.iter().map(|Namespace { kind, path }| {
        let kind = match kind {
            NamespaceKind::Pid => protocol::NamespaceKind::Pid,
            NamespaceKind::Ipc => protocol::NamespaceKind::Ipc,
            NamespaceKind::Uts => protocol::NamespaceKind::Uts,
            NamespaceKind::Network => protocol::NamespaceKind::Network,
            NamespaceKind::Cgroup => protocol::NamespaceKind::Cgroup,
        };
        protocol::Namespace {
            kind: kind.into(),
            path: path.as_deref().map(bytes),
        }
    });
    std::iter::once(mount).chain(others).collect()
}

fn mount(index: usize, mount: &Mount) -> Result<protocol::Mount, MonitorError> {
    let Mount {
        destination,
        what,
        top,
        tree,
        propagation,
    } = mount;
    if !destination.is_absolute() {
        let path = destination.display();
        return Err(MonitorError::Invalid {
            what: "runtime spec",
            message: format!("mounts[{index}].destination ({path}) is not absolute"),
        });
    }
    let (kind, filesystem, source, parameters) = match what {
        What::Filesystem {
            kind,
            source,
            parameters,
        } => {
            let source = source.clone().into_bytes();
            (
                MountKind::Filesystem,
                kind.as_str(),
                source,
                &parameters[..],
            )
        }
        What::Volume { host_path, tree: _ } => (MountKind::Bind, "bind", bytes(host_path), &[][..]),
        What::Cgroups => (MountKind::Cgroup, "cgroup", b"cgroup".to_vec(), &[][..]),
    };
    let parameters = parameters.iter().map(|one| Parameter {
        key: one.key.clone().into_bytes(),
        value: one.value.clone().map(String::into_bytes),
    });
    Ok(protocol::Mount {
        destination: bytes(destination),
        kind: kind.into(),
        filesystem: filesystem.to_owned(),
        source,
        recursive: kind == MountKind::Bind,
        top: attributes(*top),
        tree: attributes(*tree),
        propagation: match propagation {
            Propagation::Private => MountPropagation::Private,
            Propagation::Slave => MountPropagation::Slave,
            Propagation::Shared => MountPropagation::Shared,
        }
        .into(),
        parameters: parameters.collect(),
    })
}

fn attributes(attributes: Attributes) -> Option<MountAttributes> {
    let Attributes { set, clear } = attributes;
    (!attributes.is_none()).then(|| MountAttributes {
        set: set.bits().into(),
        clear: clear.bits().into(),
    })
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

fn device(device: &Device) -> protocol::Device {
    let Device {
        path,
        kind,
        major,
        minor,
        mode,
        uid,
        gid,
    } = device;
    let kind = match kind {
        DeviceKind::Block => libc::S_IFBLK,
        DeviceKind::Char => libc::S_IFCHR,
    };
    protocol::Device {
        path: bytes(path),
        mode: kind | mode & 0o7777,
        major: *major,
        minor: *minor,
        uid: *uid,
        gid: *gid,
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::spec::{MountAttrFlags, Seccomp};

    fn spec(change: impl FnOnce(&mut Spec)) -> Spec {
        let process = oci_spec::runtime::Process::default();
        let mut spec = Spec::new(crate::spec::oci::read_process(&process).unwrap());
        change(&mut spec);
        spec
    }

    fn plan(change: impl FnOnce(&mut Spec)) -> Result<Plan, MonitorError> {
        build(&spec(change))
    }

    fn profile(json: serde_json::Value) -> Option<Seccomp> {
        Some(Seccomp {
            profile: serde_json::from_value(json).unwrap(),
            filter: Arc::new(Vec::new()),
        })
    }

    fn volume(destination: &str, options: &[&str]) -> Mount {
        let tree = std::fs::File::open("/dev/null").unwrap().into();
        Mount::volume(destination, (PathBuf::from("/y"), tree), options).unwrap()
    }

    #[test]
    fn what_the_plan_cannot_express_is_refused_by_name() {
        for (json, what) in [
            (
                serde_json::json!({"listenerPath": "/x"}),
                "linux.seccomp.listenerPath",
            ),
            (
                serde_json::json!({"flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}),
                "linux.seccomp.flags.SeccompFilterFlagWaitKillableRecv",
            ),
        ] {
            let mut json = json;
            json["defaultAction"] = "SCMP_ACT_ALLOW".into();
            match plan(|spec| spec.seccomp = profile(json)) {
                Err(MonitorError::Unsupported { what: named, .. }) => assert_eq!(named, what),
                other => panic!("{other:?}"),
            }
        }
        let relative = plan(|spec| spec.mounts = vec![volume("x", &[])]).unwrap_err();
        let said =
            "runtime spec cannot be sent to a monitor: mounts[0].destination (x) is not absolute";
        assert_eq!(relative.to_string(), said);
    }

    #[test]
    fn a_dev_that_is_bound_is_left_alone() {
        let tmpfs = Mount::filesystem("/dev/", "tmpfs", "tmpfs", &[]).unwrap();
        for (mount, own) in [(volume("/dev/", &["rbind"]), false), (tmpfs, true)] {
            let given = volume("/given", &["rbind"]);
            let planned = plan(|spec| spec.mounts = vec![given, mount]).unwrap();
            assert_eq!(planned.own_dev, own);
        }
    }

    #[test]
    fn attributes_are_the_kernels_bits() {
        let bits = |attributes: MountAttrFlags| u64::from(attributes.bits());
        let options = ["ro", "noatime", "rnosuid", "rslave"];
        let planned = plan(|spec| spec.mounts = vec![volume("/x", &options)]).unwrap();
        let [mount] = &planned.mounts[..] else {
            panic!("{planned:?}");
        };
        let top = MountAttributes {
            set: bits(MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOATIME),
            clear: bits(MountAttrFlags::MOUNT_ATTR__ATIME),
        };
        let tree = MountAttributes {
            set: bits(MountAttrFlags::MOUNT_ATTR_NOSUID),
            clear: 0,
        };
        assert_eq!((mount.top, mount.tree), (Some(top), Some(tree)));
        assert_eq!(mount.propagation(), MountPropagation::Slave);
        let plain = plan(|spec| spec.mounts = vec![volume("/x", &["rw"])]).unwrap();
        assert_eq!((plain.mounts[0].top, plain.mounts[0].tree), (None, None));
    }

    #[test]
    fn rules_are_complete_and_a_mount_namespace_is_there() {
        let json = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]
        });
        let planned = plan(|spec| spec.seccomp = profile(json)).unwrap();
        assert_eq!(planned.device_rules.len(), 12);
        assert_eq!(planned.seccomp_flags, 2);
        let kinds = planned.namespaces.iter().map(protocol::Namespace::kind);
        assert!(kinds.eq([protocol::NamespaceKind::Mount]));
    }
}
