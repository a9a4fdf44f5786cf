//! Specifications as an engine would make them for a kubelet's container, from words
//! that are short to write: those of OCI.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime as words;
use runtime::spec::{
    Device, DeviceKind, DeviceRule, DeviceRuleKind, Mount, Namespace, NamespaceKind, Process,
    Resources, Seccomp, Spec, oci,
};
use serde_json::{Value, json};

/// Capabilities of an ordinary container.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_MKNOD",
];

/// A spec in the making.
#[derive(Debug, Clone)]
pub(crate) struct TestSpec(pub(crate) Value);

impl TestSpec {
    /// An ordinary container that runs these.
    pub(crate) fn new(args: &[&str]) -> Self {
        Self(json!({
            "ociVersion": "1.2.0",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": args,
                "env": ["PATH=/bin", "HOME=/"],
                "cwd": "/",
                "noNewPrivileges": false,
                "capabilities": {
                    "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES
                },
            },
            "root": { "path": "ignored", "readonly": false },
            "mounts": [
                mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
                mount("/dev/pts", "devpts",
                    &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
                mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
                mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
            ],
            "linux": {
                "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "cgroup" }],
                "resources": {
                    "devices": [{ "allow": false, "access": "rwm" }],
                    "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
                },
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys", "/proc/irq", "/proc/bus"],
            },
        }))
    }

    /// Runs a shell script.
    pub(crate) fn shell(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    /// Sets a value by its path, as in `linux.seccomp`.
    pub(crate) fn set(mut self, path: &str, value: Value) -> Self {
        let pointer = format!("/{}", path.replace('.', "/"));
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        self.0.pointer_mut(parent).unwrap()[name] = value;
        self
    }

    /// As the engine's type.
    pub(crate) fn build(&self) -> Spec {
        let spec: words::Spec = serde_json::from_value(self.0.clone()).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        let mounts = spec.mounts().iter().flatten();
        let resources = linux.resources().as_ref().unwrap();
        let rules = resources.devices().iter().flatten();
        let namespaces = linux.namespaces().iter().flatten();
        Spec {
            process: oci::read_process(spec.process().as_ref().unwrap()).unwrap(),
            namespaces: namespaces.filter_map(namespace).collect(),
            mounts: mounts.map(filesystem).collect(),
            devices: linux.devices().iter().flatten().map(device).collect(),
            device_rules: rules.map(device_rule).collect(),
            masked_paths: linux.masked_paths().clone().unwrap_or_default(),
            readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
            readonly_root: spec.root().as_ref().unwrap().readonly() == Some(true),
            cgroup: String::new(),
            limits: Resources::default(),
            seccomp: linux.seccomp().as_ref().map(|profile| Seccomp {
                profile: profile.clone(),
                filter: Arc::new(runtime::seccomp::compile(profile).unwrap()),
            }),
        }
    }

    /// The process alone, to run it in a container.
    pub(crate) fn process(&self) -> Process {
        let process = serde_json::from_value(self.0["process"].clone()).unwrap();
        oci::read_process(&process).unwrap()
    }
}

/// A detached mount at a place, as a specification's.
pub(crate) fn volume(destination: &str, tree: OwnedFd, options: &[&str]) -> Mount {
    Mount::volume(destination, (PathBuf::from("volume"), tree), options).unwrap()
}

fn mount(destination: &str, kind: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": kind, "options": options })
}

fn filesystem(mount: &words::Mount) -> Mount {
    let kind = mount.typ().as_deref().unwrap();
    let options = mount.options().iter().flatten();
    let options: Vec<_> = options.map(String::as_str).collect();
    Mount::filesystem(mount.destination(), kind, kind, &options).unwrap()
}

/// `None`: the mount namespace, which every container has.
fn namespace(namespace: &words::LinuxNamespace) -> Option<Namespace> {
    let kind = match namespace.typ() {
        words::LinuxNamespaceType::Mount => return None,
        words::LinuxNamespaceType::Pid => NamespaceKind::Pid,
        words::LinuxNamespaceType::Ipc => NamespaceKind::Ipc,
        words::LinuxNamespaceType::Uts => NamespaceKind::Uts,
        words::LinuxNamespaceType::Network => NamespaceKind::Network,
        words::LinuxNamespaceType::Cgroup => NamespaceKind::Cgroup,
        other => panic!("{other:?}"),
    };
    let path = namespace.path().clone();
    Some(Namespace { kind, path })
}

fn device(device: &words::LinuxDevice) -> Device {
    let number = |number: i64| u32::try_from(number).unwrap();
    assert_eq!(device.typ(), words::LinuxDeviceType::C);
    Device {
        path: device.path().clone(),
        kind: DeviceKind::Char,
        major: number(device.major()),
        minor: number(device.minor()),
        mode: device.file_mode().unwrap(),
        uid: device.uid().unwrap(),
        gid: device.gid().unwrap(),
    }
}

fn device_rule(rule: &words::LinuxDeviceCgroup) -> DeviceRule {
    let kind = match rule.typ() {
        None => DeviceRuleKind::All,
        Some(words::LinuxDeviceType::C) => DeviceRuleKind::Char,
        other => panic!("{other:?}"),
    };
    let numbers = (rule.major(), rule.minor());
    DeviceRule::parse(rule.allow(), kind, numbers, rule.access().as_deref()).unwrap()
}
