//! Which metrics there are: names, help and labels as cAdvisor has them, so that dashboards
//! and alerts made for it go on working. Does no I/O.
//!
//! CRI's values are whole numbers: what cAdvisor gives as a fraction of seconds is rounded
//! down here, as by other engines. Counters only grow, since those of the kernel do.
//!
//! Left out is what cAdvisor itself gives only where it is switched on (container_tasks_state,
//! container_cpu_load_average_10s, sockets by states), and container_fs_io_*, which tell of the
//! whole disk and not of the container.

use runtime::cgroup::{Counted, Figures, Memory, Psi, Throttling};
use runtime::netns::InterfaceStats;

use super::{ContainerReading, Device, Disk};
use crate::model::Resources;
use crate::pod::machine::State;

/// Labels that every metric has, before its own: whose it is.
pub(crate) const LABELS: [&str; 6] = ["id", "name", "image", "container", "namespace", "pod"];

const SECOND: u64 = 1_000_000_000;
/// What the kernel has where no CPU limits are set.
const DEFAULT_PERIOD: i64 = 100_000;
const DEFAULT_SHARES: i64 = 1024;
/// From here on a limit is none: kernels round "no limit" differently.
const NO_LIMIT: i64 = 1 << 62;

/// What a value means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It only grows.
    Counter,
    Gauge,
}

/// Takes values, each with those of the metric's own labels.
pub(crate) type Out<'a> = dyn FnMut(&[&str], u64) + 'a;

/// Where values come from.
#[derive(Clone, Copy)]
pub(crate) enum Values {
    /// At most one of a container.
    One(fn(&ContainerReading) -> Option<u64>),
    /// Several of a container.
    Each(fn(&ContainerReading, &mut Out<'_>)),
    /// One of each interface of a pod.
    Interface(fn(&InterfaceStats) -> u64),
}

/// One metric.
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    /// Its own labels, after [`LABELS`].
    pub(crate) labels: &'static [&'static str],
    pub(crate) kind: Kind,
    /// Whether the kernel counts it.
    pub(crate) counted: fn(&Counted) -> bool,
    pub(crate) values: Values,
}

const fn metric(
    kind: Kind,
    (name, help): (&'static str, &'static str),
    counted: fn(&Counted) -> bool,
    values: Values,
) -> Metric {
    Metric {
        name,
        help,
        labels: &[],
        kind,
        counted,
        values,
    }
}

/// A counter with one value.
const fn counter(
    name: (&'static str, &'static str),
    counted: fn(&Counted) -> bool,
    value: fn(&ContainerReading) -> Option<u64>,
) -> Metric {
    metric(Kind::Counter, name, counted, Values::One(value))
}

/// A gauge with one value.
const fn gauge(
    name: (&'static str, &'static str),
    counted: fn(&Counted) -> bool,
    value: fn(&ContainerReading) -> Option<u64>,
) -> Metric {
    metric(Kind::Gauge, name, counted, Values::One(value))
}

/// Metrics with labels of their own.
const fn each(
    kind: Kind,
    name: (&'static str, &'static str),
    labels: &'static [&'static str],
    counted: fn(&Counted) -> bool,
    values: fn(&ContainerReading, &mut Out<'_>),
) -> Metric {
    let metric = metric(kind, name, counted, Values::Each(values));
    Metric { labels, ..metric }
}

/// A counter of each interface.
const fn interface(
    name: (&'static str, &'static str),
    value: fn(&InterfaceStats) -> u64,
) -> Metric {
    let metric = metric(Kind::Counter, name, always, Values::Interface(value));
    Metric {
        labels: &["interface"],
        ..metric
    }
}

fn always(_: &Counted) -> bool {
    true
}

fn memory(one: &ContainerReading) -> Option<&Memory> {
    one.figures.as_ref()?.memory.as_ref()
}

fn throttling(one: &ContainerReading) -> Option<&Throttling> {
    one.figures.as_ref()?.throttling.as_ref()
}

fn figures(one: &ContainerReading) -> Option<&Figures> {
    one.figures.as_ref()
}

fn resources(one: &ContainerReading) -> &Resources {
    &one.container.resources
}

/// A limit of memory as cAdvisor says it: 0 stands for none.
fn limit(bytes: i64) -> u64 {
    if bytes > NO_LIMIT {
        return 0;
    }
    u64::try_from(bytes).unwrap_or(0)
}

/// A value, or what the kernel has where it was not set.
fn or_default(value: i64, default: i64) -> Option<u64> {
    u64::try_from(if value == 0 { default } else { value }).ok()
}

fn waiting(psi: Option<Psi>) -> Option<u64> {
    Some(psi?.some.total_ns / SECOND)
}

fn stalled(psi: Option<Psi>) -> Option<u64> {
    Some(psi?.full.total_ns / SECOND)
}

/// The disk of a container's writable layer if it has used no device yet: it has read and
/// written nothing there. The kernel lists a device from its first use on.
fn unused(one: &ContainerReading) -> Option<&Disk> {
    let counted = figures(one)?.devices.is_some();
    one.disk
        .as_deref()
        .filter(|_| counted && one.devices.is_empty())
}

/// One value of each device for one operation.
fn by_device(one: &ContainerReading, out: &mut Out<'_>, value: fn(&Device) -> Option<u64>) {
    if let Some(disk) = unused(one) {
        out(&[&disk.device], 0);
    }
    for device in &one.devices {
        if let Some(value) = value(device) {
            out(&[&device.name], value);
        }
    }
}

/// Bytes by device and operation.
fn device_usage(one: &ContainerReading, out: &mut Out<'_>) {
    for Device { name, figures } in &one.devices {
        let (major, minor) = (figures.major.to_string(), figures.minor.to_string());
        for (operation, bytes) in &figures.bytes {
            out(&[name, &major, &minor, operation], *bytes);
        }
    }
    if let Some(disk) = unused(one) {
        let (major, minor) = (disk.major.to_string(), disk.minor.to_string());
        for operation in ["Read", "Write"] {
            out(&[&disk.device, &major, &minor, operation], 0);
        }
    }
}

fn page_faults(one: &ContainerReading, out: &mut Out<'_>) {
    let (Some(figures), Some(own)) = (figures(one), memory(one)) else {
        return;
    };
    let all = &figures.stats;
    out(&["pgfault", "container"], own.own_page_faults);
    out(&["pgfault", "hierarchy"], all.page_faults);
    out(&["pgmajfault", "container"], own.own_major_page_faults);
    out(&["pgmajfault", "hierarchy"], all.major_page_faults);
}

fn of_disk(one: &ContainerReading, out: &mut Out<'_>, value: Option<u64>) {
    if let (Some(disk), Some(value)) = (&one.disk, value) {
        out(&[&disk.device], value);
    }
}

/// All of them.
pub(crate) const METRICS: &[Metric] = &[
    gauge(
        (
            "container_last_seen",
            "Last time a container was seen by the exporter",
        ),
        always,
        |one| Some(one.at.unsigned_abs() / SECOND),
    ),
    gauge(
        (
            "container_start_time_seconds",
            "Start time of the container since unix epoch in seconds.",
        ),
        always,
        |one| match one.container.state {
            State::Running { started_at }
            | State::Stopping { started_at }
            | State::Killing { started_at } => Some(started_at.unsigned_abs() / SECOND),
            State::Creating | State::Created | State::Starting | State::Exited(_) => None,
        },
    ),
    // CPU.
    each(
        Kind::Counter,
        (
            "container_cpu_usage_seconds_total",
            "Cumulative cpu time consumed in seconds.",
        ),
        &["cpu"],
        |counted| counted.cpu,
        |one, out| {
            if let Some(figures) = figures(one) {
                out(&["total"], figures.stats.cpu_usage_ns / SECOND);
            }
        },
    ),
    counter(
        (
            "container_cpu_user_seconds_total",
            "Cumulative user cpu time consumed in seconds.",
        ),
        |counted| counted.cpu_times,
        |one| Some(figures(one)?.cpu_user_ns? / SECOND),
    ),
    counter(
        (
            "container_cpu_system_seconds_total",
            "Cumulative system cpu time consumed in seconds.",
        ),
        |counted| counted.cpu_times,
        |one| Some(figures(one)?.cpu_system_ns? / SECOND),
    ),
    counter(
        (
            "container_cpu_cfs_periods_total",
            "Number of elapsed enforcement period intervals.",
        ),
        |counted| counted.throttling,
        |one| Some(throttling(one)?.periods),
    ),
    counter(
        (
            "container_cpu_cfs_throttled_periods_total",
            "Number of throttled period intervals.",
        ),
        |counted| counted.throttling,
        |one| Some(throttling(one)?.throttled_periods),
    ),
    counter(
        (
            "container_cpu_cfs_throttled_seconds_total",
            "Total time duration the container has been throttled.",
        ),
        |counted| counted.throttling,
        |one| Some(throttling(one)?.throttled_ns / SECOND),
    ),
    // Memory.
    gauge(
        (
            "container_memory_cache",
            "Number of bytes of page cache memory.",
        ),
        |counted| counted.memory,
        |one| Some(memory(one)?.cache),
    ),
    gauge(
        ("container_memory_rss", "Size of RSS in bytes."),
        |counted| counted.memory,
        |one| {
            memory(one)
                .and(figures(one))
                .map(|all| all.stats.memory_rss)
        },
    ),
    gauge(
        (
            "container_memory_kernel_usage",
            "Size of kernel memory allocated in bytes.",
        ),
        |counted| counted.kernel_memory,
        |one| memory(one)?.kernel,
    ),
    gauge(
        (
            "container_memory_mapped_file",
            "Size of memory mapped files in bytes.",
        ),
        |counted| counted.memory,
        |one| Some(memory(one)?.mapped_file),
    ),
    gauge(
        ("container_memory_swap", "Container swap usage in bytes."),
        |counted| counted.swap,
        |one| figures(one)?.stats.swap_usage,
    ),
    counter(
        (
            "container_memory_failcnt",
            "Number of memory usage hits limits",
        ),
        |counted| counted.memory,
        |one| memory(one)?.limit_hits,
    ),
    gauge(
        (
            "container_memory_usage_bytes",
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
        ),
        |counted| counted.memory,
        |one| {
            memory(one)
                .and(figures(one))
                .map(|all| all.stats.memory_usage)
        },
    ),
    gauge(
        (
            "container_memory_max_usage_bytes",
            "Maximum memory usage recorded in bytes",
        ),
        |counted| counted.memory_peak,
        |one| memory(one)?.peak,
    ),
    gauge(
        (
            "container_memory_working_set_bytes",
            "Current working set in bytes.",
        ),
        |counted| counted.memory,
        |one| {
            memory(one)
                .and(figures(one))
                .map(|all| all.stats.memory_working_set)
        },
    ),
    gauge(
        (
            "container_memory_total_active_file_bytes",
            "Current total active file in bytes.",
        ),
        |counted| counted.memory,
        |one| Some(memory(one)?.active_file),
    ),
    gauge(
        (
            "container_memory_total_inactive_file_bytes",
            "Current total inactive file in bytes.",
        ),
        |counted| counted.memory,
        |one| Some(memory(one)?.inactive_file),
    ),
    each(
        Kind::Counter,
        (
            "container_memory_failures_total",
            "Cumulative count of memory allocation failures.",
        ),
        &["failure_type", "scope"],
        |counted| counted.memory,
        page_faults,
    ),
    counter(
        (
            "container_oom_events_total",
            "Count of out of memory events observed for the container",
        ),
        |counted| counted.oom_kills,
        |one| figures(one)?.oom_kills,
    ),
    each(
        Kind::Gauge,
        (
            "container_hugetlb_usage_bytes",
            "Current hugepage usage in bytes",
        ),
        &["pagesize"],
        |counted| counted.huge_pages,
        |one, out| {
            for pages in figures(one).into_iter().flat_map(|all| &all.huge_pages) {
                out(&[&pages.size], pages.used);
            }
        },
    ),
    each(
        Kind::Gauge,
        (
            "container_hugetlb_max_usage_bytes",
            "Maximum hugepage usage recorded in bytes",
        ),
        &["pagesize"],
        |counted| counted.huge_pages_peak,
        |one, out| {
            for pages in figures(one).into_iter().flat_map(|all| &all.huge_pages) {
                if let Some(peak) = pages.peak {
                    out(&[&pages.size], peak);
                }
            }
        },
    ),
    // Disks.
    each(
        Kind::Gauge,
        (
            "container_fs_usage_bytes",
            "Number of bytes that are consumed by the container on this filesystem.",
        ),
        &["device"],
        always,
        |one, out| of_disk(one, out, one.layer.as_ref().map(|layer| layer.bytes)),
    ),
    each(
        Kind::Gauge,
        (
            "container_fs_limit_bytes",
            "Number of bytes that can be consumed by the container on this filesystem.",
        ),
        &["device"],
        always,
        |one, out| of_disk(one, out, one.disk.as_ref().map(|disk| disk.bytes)),
    ),
    each(
        Kind::Gauge,
        ("container_fs_inodes_total", "Number of Inodes"),
        &["device"],
        always,
        |one, out| of_disk(one, out, one.disk.as_ref().map(|disk| disk.inodes)),
    ),
    each(
        Kind::Gauge,
        ("container_fs_inodes_free", "Number of available Inodes"),
        &["device"],
        always,
        |one, out| of_disk(one, out, one.disk.as_ref().map(|disk| disk.inodes_free)),
    ),
    each(
        Kind::Counter,
        (
            "container_fs_reads_bytes_total",
            "Cumulative count of bytes read",
        ),
        &["device"],
        |counted| counted.devices,
        |one, out| by_device(one, out, |device| device.figures.bytes.get("Read").copied()),
    ),
    each(
        Kind::Counter,
        (
            "container_fs_reads_total",
            "Cumulative count of reads completed",
        ),
        &["device"],
        |counted| counted.devices,
        |one, out| {
            by_device(one, out, |device| {
                device.figures.requests.get("Read").copied()
            })
        },
    ),
    each(
        Kind::Counter,
        (
            "container_fs_writes_bytes_total",
            "Cumulative count of bytes written",
        ),
        &["device"],
        |counted| counted.devices,
        |one, out| {
            by_device(one, out, |device| {
                device.figures.bytes.get("Write").copied()
            })
        },
    ),
    each(
        Kind::Counter,
        (
            "container_fs_writes_total",
            "Cumulative count of writes completed",
        ),
        &["device"],
        |counted| counted.devices,
        |one, out| {
            by_device(one, out, |device| {
                device.figures.requests.get("Write").copied()
            })
        },
    ),
    each(
        Kind::Counter,
        (
            "container_blkio_device_usage_total",
            "Blkio Device bytes usage",
        ),
        &["device", "major", "minor", "operation"],
        |counted| counted.devices,
        device_usage,
    ),
    // The pod's network.
    interface(
        (
            "container_network_receive_bytes_total",
            "Cumulative count of bytes received",
        ),
        |one| one.rx_bytes,
    ),
    interface(
        (
            "container_network_receive_packets_total",
            "Cumulative count of packets received",
        ),
        |one| one.rx_packets,
    ),
    interface(
        (
            "container_network_receive_packets_dropped_total",
            "Cumulative count of packets dropped while receiving",
        ),
        |one| one.rx_dropped,
    ),
    interface(
        (
            "container_network_receive_errors_total",
            "Cumulative count of errors encountered while receiving",
        ),
        |one| one.rx_errors,
    ),
    interface(
        (
            "container_network_transmit_bytes_total",
            "Cumulative count of bytes transmitted",
        ),
        |one| one.tx_bytes,
    ),
    interface(
        (
            "container_network_transmit_packets_total",
            "Cumulative count of packets transmitted",
        ),
        |one| one.tx_packets,
    ),
    interface(
        (
            "container_network_transmit_packets_dropped_total",
            "Cumulative count of packets dropped while transmitting",
        ),
        |one| one.tx_dropped,
    ),
    interface(
        (
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
        ),
        |one| one.tx_errors,
    ),
    // Processes.
    gauge(
        (
            "container_processes",
            "Number of processes running inside the container.",
        ),
        always,
        |one| Some(one.processes.as_ref()?.count),
    ),
    gauge(
        (
            "container_file_descriptors",
            "Number of open file descriptors for the container.",
        ),
        always,
        |one| Some(one.processes.as_ref()?.descriptors?.open),
    ),
    gauge(
        (
            "container_sockets",
            "Number of open sockets for the container.",
        ),
        always,
        |one| Some(one.processes.as_ref()?.descriptors?.sockets),
    ),
    gauge(
        (
            "container_threads",
            "Number of threads running inside the container",
        ),
        |counted| counted.tasks,
        |one| figures(one)?.tasks,
    ),
    gauge(
        (
            "container_threads_max",
            "Maximum number of threads allowed inside the container, infinity if value is zero",
        ),
        |counted| counted.tasks,
        |one| {
            let figures = figures(one)?;
            figures.tasks.map(|_| figures.tasks_limit.unwrap_or(0))
        },
    ),
    each(
        Kind::Gauge,
        (
            "container_ulimits_soft",
            "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice",
        ),
        &["ulimit"],
        always,
        |one, out| {
            if let Some(limit) = one.processes.as_ref().and_then(|all| all.open_files_limit) {
                out(&["max_open_files"], limit);
            }
        },
    ),
    // What the container was given.
    gauge(
        ("container_spec_cpu_period", "CPU period of the container."),
        always,
        |one| or_default(resources(one).cpu_period, DEFAULT_PERIOD),
    ),
    // As with cAdvisor without a value where there is no limit: dashboards divide by it.
    gauge(
        ("container_spec_cpu_quota", "CPU quota of the container."),
        always,
        |one| {
            u64::try_from(resources(one).cpu_quota)
                .ok()
                .filter(|quota| *quota > 0)
        },
    ),
    gauge(
        ("container_spec_cpu_shares", "CPU share of the container."),
        always,
        |one| or_default(resources(one).cpu_shares, DEFAULT_SHARES),
    ),
    gauge(
        (
            "container_spec_memory_limit_bytes",
            "Memory limit for the container.",
        ),
        always,
        |one| Some(limit(resources(one).memory_limit)),
    ),
    gauge(
        (
            "container_spec_memory_swap_limit_bytes",
            "Memory swap limit for the container.",
        ),
        always,
        |one| Some(limit(resources(one).memory_swap_limit)),
    ),
    gauge(
        (
            "container_spec_memory_reservation_limit_bytes",
            "Memory reservation limit for the container.",
        ),
        |counted| counted.memory,
        |one| Some(memory(one)?.reservation),
    ),
    // Pressure.
    counter(
        (
            "container_pressure_cpu_stalled_seconds_total",
            "Total time duration no tasks in the container could make progress due to CPU congestion.",
        ),
        |counted| counted.pressure,
        |one| stalled(figures(one)?.stats.cpu_psi),
    ),
    counter(
        (
            "container_pressure_cpu_waiting_seconds_total",
            "Total time duration tasks in the container have waited due to CPU congestion.",
        ),
        |counted| counted.pressure,
        |one| waiting(figures(one)?.stats.cpu_psi),
    ),
    counter(
        (
            "container_pressure_memory_stalled_seconds_total",
            "Total time duration no tasks in the container could make progress due to memory congestion.",
        ),
        |counted| counted.pressure,
        |one| stalled(figures(one)?.stats.memory_psi),
    ),
    counter(
        (
            "container_pressure_memory_waiting_seconds_total",
            "Total time duration tasks in the container have waited due to memory congestion.",
        ),
        |counted| counted.pressure,
        |one| waiting(figures(one)?.stats.memory_psi),
    ),
    counter(
        (
            "container_pressure_io_stalled_seconds_total",
            "Total time duration no tasks in the container could make progress due to IO congestion.",
        ),
        |counted| counted.pressure,
        |one| stalled(figures(one)?.stats.io_psi),
    ),
    counter(
        (
            "container_pressure_io_waiting_seconds_total",
            "Total time duration tasks in the container have waited due to IO congestion.",
        ),
        |counted| counted.pressure,
        |one| waiting(figures(one)?.stats.io_psi),
    ),
];
