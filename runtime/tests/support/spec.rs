//! Runtime specs as an engine would write them for a kubelet's container.

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

    /// Adds a bind mount; gives its index.
    pub(crate) fn bind(&mut self, destination: &str, options: &[&str]) -> usize {
        let mounts = self.0["mounts"].as_array_mut().unwrap();
        mounts.push(mount(destination, "bind", options));
        mounts.len() - 1
    }

    /// As the engine's type.
    pub(crate) fn build(&self) -> oci_spec::runtime::Spec {
        serde_json::from_value(self.0.clone()).unwrap()
    }

    /// The process alone, to run it in a container.
    pub(crate) fn process(&self) -> oci_spec::runtime::Process {
        serde_json::from_value(self.0["process"].clone()).unwrap()
    }
}

fn mount(destination: &str, kind: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": kind, "options": options })
}
