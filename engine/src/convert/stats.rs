//! Resource use as the API says it.

use proto::v1;
use runtime::cgroup::{Psi, PsiData, Stats};
use runtime::netns::InterfaceStats;

use super::container::key_to_proto;
use super::sandbox;
use crate::network::INTERFACE;
use crate::pod::view::{ContainerView, PodView};
use crate::stats::{ContainerUse, PodUse};

#[expect(
    clippy::unnecessary_wraps,
    reason = "the API's fields are optional messages"
)]
fn number(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

/// One container's use; `mountpoint` is where writable layers are.
pub(crate) fn container(usage: &ContainerUse, mountpoint: &str) -> v1::ContainerStats {
    let ContainerUse {
        container,
        cgroup,
        nano_cores,
        layer,
    } = usage;
    let writable_layer = layer.as_ref().map(|layer| v1::FilesystemUsage {
        timestamp: crate::clock::now(),
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: mountpoint.to_owned(),
        }),
        used_bytes: number(layer.bytes),
        inodes_used: number(layer.inodes),
    });
    v1::ContainerStats {
        attributes: Some(container_attributes(container)),
        cpu: cgroup.as_ref().map(|stats| cpu(stats, *nano_cores)),
        memory: cgroup.as_ref().and_then(memory),
        writable_layer,
        swap: cgroup.as_ref().and_then(swap),
        io: cgroup.as_ref().and_then(io),
    }
}

fn container_attributes(container: &ContainerView) -> v1::ContainerAttributes {
    v1::ContainerAttributes {
        id: container.id.to_string(),
        metadata: Some(key_to_proto(&container.config.key)),
        labels: container.config.labels.clone().into_iter().collect(),
        annotations: container.config.annotations.clone().into_iter().collect(),
    }
}

fn cpu(stats: &Stats, nano_cores: Option<u64>) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: stats.timestamp,
        usage_core_nano_seconds: number(stats.cpu_usage_ns),
        usage_nano_cores: nano_cores.and_then(number),
        psi: stats.cpu_psi.as_ref().map(psi),
    }
}

/// None where nobody counts it: zero would be a figure.
fn memory(stats: &Stats) -> Option<v1::MemoryUsage> {
    if !stats.memory_counted {
        return None;
    }
    let available = stats
        .memory_limit
        .map(|limit| limit.saturating_sub(stats.memory_working_set));
    Some(v1::MemoryUsage {
        timestamp: stats.timestamp,
        working_set_bytes: number(stats.memory_working_set),
        available_bytes: available.and_then(number),
        usage_bytes: number(stats.memory_usage),
        rss_bytes: number(stats.memory_rss),
        page_faults: number(stats.page_faults),
        major_page_faults: number(stats.major_page_faults),
        psi: stats.memory_psi.as_ref().map(psi),
    })
}

fn swap(stats: &Stats) -> Option<v1::SwapUsage> {
    let used = stats.swap_usage?;
    Some(v1::SwapUsage {
        timestamp: stats.timestamp,
        swap_available_bytes: stats
            .swap_limit
            .and_then(|limit| number(limit.saturating_sub(used))),
        swap_usage_bytes: number(used),
    })
}

fn io(stats: &Stats) -> Option<v1::IoUsage> {
    let pressure = stats.io_psi.as_ref()?;
    Some(v1::IoUsage {
        timestamp: stats.timestamp,
        psi: Some(psi(pressure)),
    })
}

fn psi(pressure: &Psi) -> v1::PsiStats {
    let data = |data: &PsiData| v1::PsiData {
        total: data.total_ns,
        avg10: data.avg10,
        avg60: data.avg60,
        avg300: data.avg300,
    };
    v1::PsiStats {
        full: Some(data(&pressure.full)),
        some: Some(data(&pressure.some)),
    }
}

/// One sandbox's use.
pub(crate) fn pod(usage: &PodUse, mountpoint: &str) -> v1::PodSandboxStats {
    let PodUse {
        pod,
        containers,
        cgroup,
        nano_cores,
        interfaces,
        at,
    } = usage;
    let each = |pick: fn(&Stats) -> u64| {
        containers
            .iter()
            .filter_map(|one| one.cgroup.as_ref())
            .map(pick)
            .sum::<u64>()
    };
    let mut parts = containers.iter().filter_map(|one| one.cgroup.as_ref());
    let counted = parts.all(|stats| stats.memory_counted);
    let (cpu, memory) = match cgroup {
        Some(stats) => (cpu(stats, *nano_cores), memory(stats)),
        None => (
            v1::CpuUsage {
                timestamp: *at,
                usage_core_nano_seconds: number(each(|stats| stats.cpu_usage_ns)),
                ..Default::default()
            },
            counted.then(|| v1::MemoryUsage {
                timestamp: *at,
                working_set_bytes: number(each(|stats| stats.memory_working_set)),
                usage_bytes: number(each(|stats| stats.memory_usage)),
                rss_bytes: number(each(|stats| stats.memory_rss)),
                page_faults: number(each(|stats| stats.page_faults)),
                major_page_faults: number(each(|stats| stats.major_page_faults)),
                ..Default::default()
            }),
        ),
    };
    let linux = v1::LinuxPodSandboxStats {
        cpu: Some(cpu),
        memory,
        network: network(interfaces, *at),
        process: Some(v1::ProcessUsage {
            timestamp: *at,
            process_count: number(each(|stats| stats.pids)),
        }),
        containers: containers
            .iter()
            .map(|one| container(one, mountpoint))
            .collect(),
        io: cgroup.as_ref().and_then(io),
    };
    v1::PodSandboxStats {
        attributes: Some(pod_attributes(pod)),
        linux: Some(linux),
        windows: None,
    }
}

fn pod_attributes(pod: &PodView) -> v1::PodSandboxAttributes {
    v1::PodSandboxAttributes {
        id: pod.id.to_string(),
        metadata: Some(sandbox::key_to_proto(&pod.config.key)),
        labels: pod.config.labels.clone().into_iter().collect(),
        annotations: pod.config.annotations.clone().into_iter().collect(),
    }
}

fn network(interfaces: &[InterfaceStats], at: i64) -> Option<v1::NetworkUsage> {
    let usage = |one: &InterfaceStats| v1::NetworkInterfaceUsage {
        name: one.name.clone(),
        rx_bytes: number(one.rx_bytes),
        rx_errors: number(one.rx_errors),
        tx_bytes: number(one.tx_bytes),
        tx_errors: number(one.tx_errors),
    };
    let (default, others): (Vec<_>, Vec<_>) =
        interfaces.iter().partition(|one| one.name == INTERFACE);
    if interfaces.is_empty() {
        return None;
    }
    Some(v1::NetworkUsage {
        timestamp: at,
        default_interface: default.first().map(|one| usage(one)),
        interfaces: others
            .into_iter()
            .filter(|one| one.name != "lo")
            .map(usage)
            .collect(),
    })
}
