//! Specifications in the words of OCI.
//!
//! For those who read them: libcontainer, OCI runtimes, and the records, which keep a
//! container's process so. Plain conversion, every field is named.

use std::path::PathBuf;

use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxCapabilities, LinuxDevice, LinuxDeviceCgroup,
    LinuxDeviceType, LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount as OciMount,
    PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process as OciProcess, Root, Spec as OciSpec,
    User,
};

use super::{
    CapabilitySets, Device, DeviceKind, DeviceRule, DeviceRuleKind, Mount, Namespace,
    NamespaceKind, Process, Rlimit, Seccomp, Spec, Unsupported, What, words,
};

/// The version of the runtime specification that is written.
const VERSION: &str = "1.2.0";

/// All capabilities in the order of the kernel's numbers.
pub const CAPABILITIES: [Capability; 41] = {
    use Capability as C;
    [
        C::Chown,
        C::DacOverride,
        C::DacReadSearch,
        C::Fowner,
        C::Fsetid,
        C::Kill,
        C::Setgid,
        C::Setuid,
        C::Setpcap,
        C::LinuxImmutable,
        C::NetBindService,
        C::NetBroadcast,
        C::NetAdmin,
        C::NetRaw,
        C::IpcLock,
        C::IpcOwner,
        C::SysModule,
        C::SysRawio,
        C::SysChroot,
        C::SysPtrace,
        C::SysPacct,
        C::SysAdmin,
        C::SysBoot,
        C::SysNice,
        C::SysResource,
        C::SysTime,
        C::SysTtyConfig,
        C::Mknod,
        C::Lease,
        C::AuditWrite,
        C::AuditControl,
        C::Setfcap,
        C::MacOverride,
        C::MacAdmin,
        C::Syslog,
        C::WakeAlarm,
        C::BlockSuspend,
        C::AuditRead,
        C::Perfmon,
        C::Bpf,
        C::CheckpointRestore,
    ]
};

/// Limits in the order of the kernel's numbers, which are the same on every
/// architecture that Slipway runs on.
const RLIMITS: [PosixRlimitType; 16] = {
    use PosixRlimitType as L;
    [
        L::RlimitCpu,
        L::RlimitFsize,
        L::RlimitData,
        L::RlimitStack,
        L::RlimitCore,
        L::RlimitRss,
        L::RlimitNproc,
        L::RlimitNofile,
        L::RlimitMemlock,
        L::RlimitAs,
        L::RlimitLocks,
        L::RlimitSigpending,
        L::RlimitMsgqueue,
        L::RlimitNice,
        L::RlimitRtprio,
        L::RlimitRttime,
    ]
};

/// The kernel's bits for a set of capabilities.
#[must_use]
pub fn bits<'a>(set: impl IntoIterator<Item = &'a Capability>) -> u64 {
    let bit = |capability: &Capability| {
        let number = CAPABILITIES.iter().position(|known| known == capability);
        number.map_or(0, |number| 1 << number)
    };
    set.into_iter().fold(0, |bits, one| bits | bit(one))
}

fn capabilities(bits: u64) -> Capabilities {
    let all = CAPABILITIES.iter().enumerate();
    all.filter(|(number, _)| bits & (1 << number) != 0)
        .map(|(_, capability)| *capability)
        .collect()
}

/// The runtime specification for launchers that read one. `root.path` is theirs to set,
/// and the detached mounts are handed over beside it, by their places in `mounts`.
///
/// # Errors
/// The environment is not text, which JSON could not say.
pub fn write(spec: &Spec) -> Result<OciSpec, EnvironmentIsNotText> {
    if !spec.process.env_is_text() {
        return Err(EnvironmentIsNotText);
    }
    let Spec {
        process,
        namespaces,
        mounts,
        devices,
        device_rules,
        masked_paths,
        readonly_paths,
        readonly_root,
        cgroup,
        // The engine's own.
        limits: _,
        seccomp,
    } = spec;
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(device_rules.iter().map(device_rule).collect()));
    let some = |paths: &Vec<String>| (!paths.is_empty()).then(|| paths.clone());
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(all_namespaces(namespaces)))
        .set_resources(Some(resources))
        .set_cgroups_path(Some(PathBuf::from(cgroup)))
        .set_devices(Some(devices.iter().map(device).collect()))
        .set_masked_paths(some(masked_paths))
        .set_readonly_paths(some(readonly_paths))
        .set_seccomp(
            seccomp
                .as_ref()
                .map(|Seccomp { profile, .. }| profile.clone()),
        )
        .set_rootfs_propagation(None)
        .set_uid_mappings(None)
        .set_gid_mappings(None)
        .set_sysctl(None)
        .set_mount_label(None)
        .set_intel_rdt(None)
        .set_personality(None);
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs"))
        .set_readonly(Some(*readonly_root));
    let mut written = OciSpec::default();
    written
        .set_version(VERSION.to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts.iter().map(mount).collect()))
        .set_process(Some(write_process(process)))
        .set_hostname(None)
        .set_hooks(None)
        .set_annotations(None)
        .set_linux(Some(linux));
    Ok(written)
}

/// A specification in JSON has an environment of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("in a runtime specification other bytes than UTF-8 cannot be said")]
pub struct EnvironmentIsNotText;

fn all_namespaces(namespaces: &[Namespace]) -> Vec<LinuxNamespace> {
    let mut written = Vec::with_capacity(namespaces.len() + 1);
    let mut add = |kind, path: Option<PathBuf>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(path);
        written.push(namespace);
    };
    add(LinuxNamespaceType::Mount, None);
    for Namespace { kind, path } in namespaces {
        let kind = match kind {
            NamespaceKind::Pid => LinuxNamespaceType::Pid,
            NamespaceKind::Ipc => LinuxNamespaceType::Ipc,
            NamespaceKind::Uts => LinuxNamespaceType::Uts,
            NamespaceKind::Network => LinuxNamespaceType::Network,
            NamespaceKind::Cgroup => LinuxNamespaceType::Cgroup,
        };
        add(kind, path.clone());
    }
    written
}

fn mount(mount: &Mount) -> OciMount {
    let (kind, source) = match &mount.what {
        What::Filesystem { kind, source, .. } => (kind.as_str(), PathBuf::from(source)),
        What::Volume { host_path, .. } => ("bind", host_path.clone()),
        What::Cgroups => ("cgroup", PathBuf::from("cgroup")),
    };
    let mut written = OciMount::default();
    written
        .set_destination(mount.destination.clone())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source))
        .set_options(Some(words::write(mount)));
    written
}

fn device(device: &Device) -> LinuxDevice {
    let Device {
        path,
        kind,
        major,
        minor,
        mode,
        uid,
        gid,
    } = device;
    let mut written = LinuxDevice::default();
    written
        .set_path(path.clone())
        .set_typ(match kind {
            DeviceKind::Block => LinuxDeviceType::B,
            DeviceKind::Char => LinuxDeviceType::C,
        })
        .set_major(i64::from(*major))
        .set_minor(i64::from(*minor))
        .set_file_mode(Some(*mode))
        .set_uid(Some(*uid))
        .set_gid(Some(*gid));
    written
}

fn device_rule(rule: &DeviceRule) -> LinuxDeviceCgroup {
    let DeviceRule {
        allow,
        kind,
        major,
        minor,
        access,
    } = *rule;
    let mut written = LinuxDeviceCgroup::default();
    written
        .set_allow(allow)
        .set_typ(Some(match kind {
            DeviceRuleKind::All => LinuxDeviceType::A,
            DeviceRuleKind::Block => LinuxDeviceType::B,
            DeviceRuleKind::Char => LinuxDeviceType::C,
        }))
        .set_major(major.map(i64::from))
        .set_minor(minor.map(i64::from))
        .set_access(Some(access.letters()));
    written
}

/// A process. Bytes of its environment that are no text are replaced: where those
/// matter they have to be kept beside it.
#[must_use]
pub fn write_process(process: &Process) -> OciProcess {
    let Process {
        args,
        env,
        cwd,
        terminal,
        uid,
        gid,
        groups,
        umask,
        capabilities: sets,
        rlimits,
        no_new_privileges,
        apparmor_profile,
        selinux_label,
        oom_score_adj,
    } = process;
    let mut user = User::default();
    user.set_uid(*uid)
        .set_gid(*gid)
        .set_additional_gids(Some(groups.clone()))
        .set_umask(*umask)
        .set_username(None);
    let text = |pair: &Vec<u8>| String::from_utf8_lossy(pair).into_owned();
    let mut written = OciProcess::default();
    written
        .set_terminal(Some(*terminal))
        .set_console_size(None)
        .set_user(user)
        .set_args(Some(args.clone()))
        .set_env(Some(env.iter().map(text).collect()))
        .set_cwd(cwd.clone())
        .set_capabilities(Some(capability_sets(sets)))
        .set_rlimits(Some(rlimits.iter().filter_map(rlimit).collect()))
        // Absent and not false: libcontainer takes Some(false) for a wish.
        .set_no_new_privileges(no_new_privileges.then_some(true))
        .set_apparmor_profile(apparmor_profile.clone())
        .set_selinux_label(selinux_label.clone())
        .set_oom_score_adj(*oom_score_adj);
    written
}

fn capability_sets(sets: &CapabilitySets) -> LinuxCapabilities {
    let mut written = LinuxCapabilities::default();
    written
        .set_bounding(Some(capabilities(sets.bounding)))
        .set_effective(Some(capabilities(sets.effective)))
        .set_permitted(Some(capabilities(sets.permitted)))
        .set_inheritable(Some(capabilities(sets.inheritable)))
        .set_ambient(Some(capabilities(sets.ambient)));
    written
}

/// `None`: the kernel has no such limit.
fn rlimit(limit: &Rlimit) -> Option<PosixRlimit> {
    let number = usize::try_from(limit.resource).ok()?;
    PosixRlimitBuilder::default()
        .typ(*RLIMITS.get(number)?)
        .soft(limit.soft)
        .hard(limit.hard)
        .build()
        .ok()
}

/// Reads a process, as [`write_process`] wrote it or somebody else.
///
/// # Errors
/// Names what no process here can have.
pub fn read_process(process: &OciProcess) -> Result<Process, Unsupported> {
    let refused = [
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        (
            "process.execCPUAffinity",
            process.exec_cpu_affinity().is_some(),
        ),
    ];
    if let Some((what, _)) = refused.iter().find(|(_, set)| *set) {
        return Err(Unsupported {
            what: (*what).to_owned(),
            message: "not in this version".to_owned(),
        });
    }
    let user = process.user();
    let set = |set: &Option<Capabilities>| bits(set.iter().flatten());
    let sets = process.capabilities().as_ref();
    let env = process.env().iter().flatten();
    Ok(Process {
        args: process.args().clone().unwrap_or_default(),
        env: env.map(|pair| pair.clone().into_bytes()).collect(),
        cwd: process.cwd().clone(),
        terminal: process.terminal() == Some(true),
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask(),
        capabilities: sets.map_or_else(CapabilitySets::default, |sets| CapabilitySets {
            bounding: set(sets.bounding()),
            effective: set(sets.effective()),
            permitted: set(sets.permitted()),
            inheritable: set(sets.inheritable()),
            ambient: set(sets.ambient()),
        }),
        rlimits: process
            .rlimits()
            .iter()
            .flatten()
            .map(|limit| Rlimit {
                resource: rlimit_number(limit.typ()),
                soft: limit.soft(),
                hard: limit.hard(),
            })
            .collect(),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        apparmor_profile: process.apparmor_profile().clone(),
        selinux_label: process.selinux_label().clone(),
        oom_score_adj: process.oom_score_adj(),
    })
}

fn rlimit_number(limit: PosixRlimitType) -> u32 {
    let numbers = (0..).zip(RLIMITS);
    let mut known = numbers.filter(|(_, known)| *known == limit);
    // All of them are known; the kernel refuses this one.
    known.next().map_or(u32::MAX, |(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::capability_number;

    fn process() -> Process {
        Process {
            args: vec!["sh".to_owned(), "-c".to_owned()],
            env: vec![b"A=1".to_vec(), b"A=2".to_vec()],
            cwd: PathBuf::from("/tmp"),
            terminal: true,
            uid: 1,
            gid: 2,
            groups: vec![2, 3],
            umask: Some(0o77),
            capabilities: CapabilitySets {
                bounding: 1 << 40 | 1,
                effective: 1 << 21,
                ..CapabilitySets::default()
            },
            rlimits: (0..16)
                .map(|resource| Rlimit {
                    resource,
                    soft: 5,
                    hard: u64::MAX,
                })
                .collect(),
            no_new_privileges: true,
            apparmor_profile: Some("profile".to_owned()),
            selinux_label: Some("label".to_owned()),
            oom_score_adj: Some(-5),
        }
    }

    #[test]
    fn a_process_that_is_written_is_read_again() {
        let written = write_process(&process());
        assert_eq!(read_process(&written), Ok(process()));
        let json = serde_json::to_string(&written).unwrap();
        assert_eq!(serde_json::from_str::<OciProcess>(&json).unwrap(), written);
        let none = read_process(&OciProcess::default()).unwrap();
        assert_eq!(none.umask, None);
    }

    #[test]
    fn bytes_that_are_no_text_keep_a_specification_from_being_written() {
        let raw = Process {
            env: vec![b"A=\xff".to_vec()],
            ..process()
        };
        assert_eq!(
            write_process(&raw).env().as_deref(),
            Some(&["A=\u{fffd}".to_owned()][..])
        );
        assert_eq!(write(&spec(raw)).unwrap_err(), EnvironmentIsNotText);
        assert!(write(&spec(process())).is_ok());
    }

    fn spec(process: Process) -> Spec {
        Spec::new(process)
    }

    #[test]
    fn capabilities_have_the_kernels_numbers() {
        for (number, capability) in (0..).zip(CAPABILITIES) {
            assert_eq!(capability_number(&capability.to_string()), Some(number));
            assert_eq!(bits([&capability]), 1 << number);
        }
        assert_eq!(bits(&[]), 0);
        assert_eq!(bits(&capabilities(u64::MAX)), (1 << 41) - 1);
    }

    #[test]
    fn limits_have_the_kernels_numbers() {
        assert_eq!(rlimit_number(PosixRlimitType::RlimitNofile), 7);
        assert_eq!(rlimit_number(PosixRlimitType::RlimitRttime), 15);
    }

    #[test]
    fn what_no_process_can_have_is_refused_by_name() {
        let json = serde_json::json!({
            "user": { "uid": 0, "gid": 0 }, "cwd": "/",
            "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": 1 },
        });
        let refused = read_process(&serde_json::from_value(json).unwrap()).unwrap_err();
        assert_eq!(refused.what, "process.ioPriority");
    }
}
