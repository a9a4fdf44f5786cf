//! `PodSandboxConfig` to [`SandboxConfig`] and back.

use std::path::PathBuf;
use std::sync::OnceLock;

use proto::v1;
use runtime::cgroup::DriverKind;

use super::{
    BadRequest, absolute, bandwidth, cgroup, missing, no_nul, required, unsupported, user_ids,
    wrong,
};
use crate::model::{
    CgroupParent, Dns, IdRange, IpcMode, NetworkMode, PidMode, PortMapping, SandboxConfig,
    SandboxKey, Transport,
};

/// Checks all of a sandbox's configuration. What names its cgroup depends on the driver.
pub(crate) fn from_proto(
    config: v1::PodSandboxConfig,
    driver: DriverKind,
) -> Result<SandboxConfig, BadRequest> {
    let v1::PodSandboxConfig {
        metadata,
        hostname,
        log_directory,
        dns_config,
        port_mappings,
        labels,
        annotations,
        linux,
        windows: _,
    } = config;
    let key = key_from_proto(metadata)?;
    if hostname.len() > 64 {
        return Err(wrong(
            "config.hostname",
            "is longer than 64 bytes, the kernel's limit",
        ));
    }
    no_nul("config.hostname", &hostname)?;
    let linux = linux_from_proto(linux.unwrap_or_default(), driver)?;
    let annotations = annotations.into_iter().collect();
    if linux.network == NetworkMode::Pod {
        for direction in bandwidth::DIRECTIONS {
            bandwidth::rate(&annotations, direction)?;
        }
    }
    Ok(SandboxConfig {
        key,
        // The kubelet sends no name for a pod that has the node's.
        hostname: match linux.network {
            NetworkMode::Node if hostname.is_empty() => node_name(),
            _ => hostname,
        },
        log_directory: match log_directory.as_str() {
            "" => None,
            path => Some(absolute("config.log_directory", path)?),
        },
        dns: dns_config.map(dns_from_proto),
        port_mappings: port_mappings
            .into_iter()
            .enumerate()
            .filter_map(|(at, mapping)| port_from_proto(at, mapping).transpose())
            .collect::<Result<_, _>>()?,
        labels: labels.into_iter().collect(),
        annotations,
        cgroup_parent: linux.cgroup_parent,
        network: linux.network,
        pid: linux.pid,
        ipc: linux.ipc,
        sysctls: linux.sysctls,
        privileged: linux.privileged,
        user_ids: linux.user_ids,
    })
}

/// The hostname of the node.
fn node_name() -> String {
    let names = rustix::system::uname();
    names.nodename().to_string_lossy().into_owned()
}

/// What a container takes from the sandbox that it is made in.
pub(crate) struct Around<'a> {
    /// As it was made.
    pub(crate) sandbox: &'a SandboxConfig,
    /// Whether the container may be privileged.
    pub(crate) privileged: bool,
    /// Absolute; `None` when the container keeps no log.
    pub(crate) log_directory: Option<PathBuf>,
}

/// Reads the sandbox's configuration that comes with CreateContainer. It counts where
/// a container may differ from what RunPodSandbox was told: an ephemeral container may
/// be privileged in a pod that had no such container when it was made. Namespaces,
/// names and cgroups are what the sandbox has. Without it, that of RunPodSandbox counts.
pub(crate) fn around_container(
    config: Option<v1::PodSandboxConfig>,
    sandbox: &SandboxConfig,
) -> Result<Around<'_>, BadRequest> {
    let Some(config) = config else {
        return Ok(Around {
            sandbox,
            privileged: sandbox.privileged,
            log_directory: sandbox.log_directory.clone(),
        });
    };
    let v1::PodSandboxConfig {
        log_directory,
        linux,
        metadata: _,
        hostname: _,
        dns_config: _,
        port_mappings: _,
        labels: _,
        annotations: _,
        windows: _,
    } = config;
    let context = linux.and_then(|linux| linux.security_context);
    Ok(Around {
        sandbox,
        privileged: sandbox.privileged || context.is_some_and(|context| context.privileged),
        log_directory: match log_directory.as_str() {
            "" => sandbox.log_directory.clone(),
            path => Some(absolute("sandbox_config.log_directory", path)?),
        },
    })
}

/// The identity of a sandbox; the uid may be empty for crictl's own pods.
pub(crate) fn key_from_proto(
    metadata: Option<v1::PodSandboxMetadata>,
) -> Result<SandboxKey, BadRequest> {
    let v1::PodSandboxMetadata {
        name,
        uid,
        namespace,
        attempt,
    } = metadata.ok_or_else(|| missing("config.metadata"))?;
    Ok(SandboxKey {
        name: required("config.metadata.name", name)?,
        namespace: required("config.metadata.namespace", namespace)?,
        uid: required("config.metadata.uid", uid)?,
        attempt,
    })
}

/// The identity as the API says it.
pub(crate) fn key_to_proto(key: &SandboxKey) -> v1::PodSandboxMetadata {
    let SandboxKey {
        namespace,
        name,
        uid,
        attempt,
    } = key.clone();
    v1::PodSandboxMetadata {
        name,
        uid,
        namespace,
        attempt,
    }
}

fn dns_from_proto(dns: v1::DnsConfig) -> Dns {
    let v1::DnsConfig {
        servers,
        searches,
        options,
    } = dns;
    Dns {
        servers,
        searches,
        options,
    }
}

fn port_from_proto(at: usize, mapping: v1::PortMapping) -> Result<Option<PortMapping>, BadRequest> {
    let v1::PortMapping {
        protocol,
        container_port,
        host_port,
        host_ip,
    } = mapping;
    let field = |name: &str| format!("config.port_mappings[{at}].{name}");
    let transport = match v1::Protocol::try_from(protocol) {
        Ok(v1::Protocol::Tcp) => Transport::Tcp,
        Ok(v1::Protocol::Udp) => Transport::Udp,
        Ok(v1::Protocol::Sctp) => Transport::Sctp,
        Err(_) => return Err(wrong(field("protocol"), format!("{protocol} is not known"))),
    };
    let port = |name: &str, port: i32| {
        u16::try_from(port).map_err(|_| wrong(field(name), format!("{port} is no port")))
    };
    let container_port = port("container_port", container_port)?;
    let host_port = port("host_port", host_port)?;
    if !host_ip.is_empty() && host_ip.parse::<std::net::IpAddr>().is_err() {
        return Err(wrong(
            field("host_ip"),
            format!("{host_ip:?} is no IP address"),
        ));
    }
    // Host port 0 says that the container listens there, and asks for nothing.
    let wanted = host_port != 0;
    Ok(wanted.then_some(PortMapping {
        transport,
        container_port,
        host_port,
        host_ip,
    }))
}

struct Linux {
    cgroup_parent: CgroupParent,
    network: NetworkMode,
    pid: PidMode,
    ipc: IpcMode,
    sysctls: crate::model::Pairs,
    privileged: bool,
    user_ids: Option<IdRange>,
}

fn linux_from_proto(
    linux: v1::LinuxPodSandboxConfig,
    driver: DriverKind,
) -> Result<Linux, BadRequest> {
    let v1::LinuxPodSandboxConfig {
        cgroup_parent,
        security_context,
        sysctls,
        // Tells VM runtimes what the kubelet added for them; no launcher has a use for it.
        overhead: _,
        resources: _,
    } = linux;
    let field = "config.linux.cgroup_parent";
    let cgroup_parent = cgroup::parent_from_proto(field, &cgroup_parent, driver)?;
    let context = security_context.unwrap_or_default();
    #[expect(deprecated, reason = "every field is named, the old ones too")]
    let v1::LinuxSandboxSecurityContext {
        namespace_options,
        selinux_options,
        // There is no process of the sandbox's own that they could apply to.
        run_as_user: _,
        run_as_group: _,
        readonly_rootfs: _,
        supplemental_groups: _,
        supplemental_groups_policy: _,
        privileged,
        seccomp: _,
        apparmor: _,
        seccomp_profile_path: _,
    } = context;
    refuse_selinux(
        "config.linux.security_context.selinux_options",
        selinux_options,
    )?;
    let field = "config.linux.security_context.namespace_options";
    let namespaces = namespaces_from_proto(field, namespace_options.unwrap_or_default())?;
    let Namespaces {
        network,
        pid,
        ipc,
        user_ids,
    } = namespaces;
    if user_ids.is_some() {
        user_ids::check_namespaces(field, network, &pid, ipc)?;
    }
    if matches!(pid, PidMode::Target(_)) {
        return Err(wrong(
            format!("{field}.pid"),
            "TARGET is for containers, not for sandboxes",
        ));
    }
    for name in sysctls.keys() {
        check_sysctl(name, network, ipc)?;
    }
    let sysctls = sysctls.into_iter().collect();
    Ok(Linux {
        cgroup_parent,
        network,
        pid,
        ipc,
        sysctls,
        privileged,
        user_ids,
    })
}

/// A sysctl must be one of a namespace that the pod has for itself: any other
/// would change the node.
fn check_sysctl(name: &str, network: NetworkMode, ipc: IpcMode) -> Result<(), BadRequest> {
    let field = format!("config.linux.sysctls[{name}]");
    let dotted = name.replace('/', ".");
    let of_ipc = [
        "kernel.sem",
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
    ]
    .contains(&dotted.as_str())
        || dotted.starts_with("kernel.shm")
        || dotted.starts_with("fs.mqueue.");
    if of_ipc {
        return match ipc {
            IpcMode::Pod => Ok(()),
            IpcMode::Node => Err(wrong(field, "belongs to the node's IPC namespace")),
        };
    }
    if dotted.starts_with("net.") {
        return match network {
            NetworkMode::Pod => Ok(()),
            NetworkMode::Node => Err(wrong(field, "belongs to the node's network namespace")),
        };
    }
    Err(wrong(field, "is not namespaced, it would change the node"))
}

/// Refuses a label where the kernel could set one, which is not done yet. Where it has no
/// SELinux there is nothing that a label would change, and clusters send their pods' to
/// every node.
pub(super) fn refuse_selinux(
    field: &str,
    options: Option<v1::SeLinuxOption>,
) -> Result<(), BadRequest> {
    let v1::SeLinuxOption {
        user,
        role,
        r#type,
        level,
    } = options.unwrap_or_default();
    let says_nothing = [user, role, r#type, level].iter().all(String::is_empty);
    match says_nothing || !kernel_has_selinux() {
        true => Ok(()),
        false => Err(unsupported(field, "SELinux labelling")),
    }
}

/// Whether the kernel was started with SELinux: it has its filesystem then, whether or
/// not a policy is loaded.
fn kernel_has_selinux() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let known = std::fs::read_to_string("/proc/filesystems");
        // What cannot be told is not taken for a no.
        known.map_or(true, |text| names_selinux(&text))
    })
}

/// A line is `nodev`, where it needs no device, and a name.
fn names_selinux(filesystems: &str) -> bool {
    let mut names = filesystems.split_whitespace();
    names.any(|name| name == "selinuxfs")
}

/// The namespaces of a sandbox or container as they are asked for.
pub(super) struct Namespaces {
    pub(super) network: NetworkMode,
    pub(super) pid: PidMode,
    pub(super) ipc: IpcMode,
    /// Those of the user namespace; `None`: the node's is asked for, or nothing.
    pub(super) user_ids: Option<IdRange>,
}

/// Checks the namespaces of a sandbox or container.
pub(super) fn namespaces_from_proto(
    field: &str,
    options: v1::NamespaceOption,
) -> Result<Namespaces, BadRequest> {
    let v1::NamespaceOption {
        network,
        pid,
        ipc,
        target_id,
        userns_options,
    } = options;
    let mode = |name: &str, mode: i32| {
        v1::NamespaceMode::try_from(mode)
            .map_err(|_| wrong(format!("{field}.{name}"), format!("{mode} is not known")))
    };
    use v1::NamespaceMode as Mode;
    let pod_or_node = |name: &str, value: i32| match mode(name, value)? {
        Mode::Pod => Ok(true),
        Mode::Node => Ok(false),
        other @ (Mode::Container | Mode::Target) => {
            let name = format!("{field}.{name}");
            Err(wrong(
                name,
                format!("{} is not possible here", other.as_str_name()),
            ))
        }
    };
    let network = if pod_or_node("network", network)? {
        NetworkMode::Pod
    } else {
        NetworkMode::Node
    };
    let ipc = if pod_or_node("ipc", ipc)? {
        IpcMode::Pod
    } else {
        IpcMode::Node
    };
    let pid = match mode("pid", pid)? {
        Mode::Pod => PidMode::Pod,
        Mode::Container => PidMode::Container,
        Mode::Node => PidMode::Node,
        Mode::Target => PidMode::Target(required(&format!("{field}.target_id"), target_id)?),
    };
    let user_ids = user_ids::from_proto(&format!("{field}.userns_options"), userns_options)?;
    Ok(Namespaces {
        network,
        pid,
        ipc,
        user_ids,
    })
}

/// The namespaces of a sandbox as its status says them.
pub(crate) fn namespaces_to_proto(config: &SandboxConfig) -> v1::NamespaceOption {
    use v1::NamespaceMode as Mode;
    let network = match config.network {
        NetworkMode::Pod => Mode::Pod,
        NetworkMode::Node => Mode::Node,
    };
    let ipc = match config.ipc {
        IpcMode::Pod => Mode::Pod,
        IpcMode::Node => Mode::Node,
    };
    let (pid, target_id) = match &config.pid {
        PidMode::Pod => (Mode::Pod, String::new()),
        PidMode::Container => (Mode::Container, String::new()),
        PidMode::Node => (Mode::Node, String::new()),
        PidMode::Target(id) => (Mode::Target, id.clone()),
    };
    v1::NamespaceOption {
        network: network as i32,
        pid: pid as i32,
        ipc: ipc as i32,
        target_id,
        userns_options: config.user_ids.map(user_ids::to_proto),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "n".into(),
                uid: "u".into(),
                namespace: "ns".into(),
                attempt: 1,
            }),
            ..Default::default()
        }
    }

    fn field_of(config: v1::PodSandboxConfig) -> String {
        from_proto(config, DriverKind::Cgroupfs)
            .expect_err("refused")
            .to_string()
    }

    #[test]
    fn missing_metadata_is_named() {
        let mut config = valid();
        config.metadata = None;
        assert!(field_of(config).starts_with("config.metadata is missing"));
        let mut config = valid();
        config.metadata.as_mut().expect("there").name.clear();
        assert!(field_of(config).starts_with("config.metadata.name"));
    }

    #[test]
    fn a_kernel_with_selinux_is_known_by_its_filesystem() {
        assert!(names_selinux("nodev\tsysfs\nnodev\tselinuxfs\n\text4\n"));
        assert!(!names_selinux("nodev\tsysfs\n\tselinuxfs2\n\text4\n"));
    }

    #[test]
    fn a_sysctl_of_the_node_is_refused() {
        for name in ["vm.swappiness", "kernel.hostname", "net.ipv4.ip_forward"] {
            let mut config = valid();
            let node = v1::NamespaceMode::Node as i32;
            let options = v1::NamespaceOption {
                network: node,
                ..Default::default()
            };
            config.linux = Some(v1::LinuxPodSandboxConfig {
                sysctls: [(name.to_owned(), "1".to_owned())].into(),
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..Default::default()
                }),
                ..Default::default()
            });
            assert!(field_of(config).contains(name));
        }
    }

    #[test]
    fn a_log_directory_cannot_climb() {
        let mut config = valid();
        config.log_directory = "/var/log/../../etc".into();
        assert!(field_of(config).contains("log_directory"));
    }

    #[test]
    fn host_port_zero_asks_for_nothing() {
        let mut config = valid();
        config.port_mappings = vec![v1::PortMapping {
            container_port: 80,
            ..Default::default()
        }];
        let sandbox = from_proto(config, DriverKind::Cgroupfs).expect("valid");
        assert!(sandbox.port_mappings.is_empty());
    }
}
