//! Metrics of pods and containers as the API says them.

use proto::v1;
use runtime::cgroup::Counted;

use super::status::name_of_image;
use crate::pod::view::PodView;
use crate::pod_metrics::table::{Kind, LABELS, METRICS, Metric, Values};
use crate::pod_metrics::{ContainerReading, PodReading};

/// The metrics that this machine has.
fn offered(counted: &Counted) -> impl Iterator<Item = &'static Metric> {
    METRICS.iter().filter(|metric| (metric.counted)(counted))
}

/// All metrics that this machine has.
pub(crate) fn descriptors(counted: &Counted) -> Vec<v1::MetricDescriptor> {
    let descriptor = |metric: &Metric| v1::MetricDescriptor {
        name: metric.name.to_owned(),
        help: metric.help.to_owned(),
        label_keys: keys(metric),
    };
    offered(counted).map(descriptor).collect()
}

fn keys(metric: &Metric) -> Vec<String> {
    let keys = LABELS.iter().chain(metric.labels);
    keys.map(|key| (*key).to_owned()).collect()
}

/// One pod's, with those of its containers.
pub(crate) fn pod(reading: &PodReading, counted: &Counted) -> v1::PodSandboxMetrics {
    let PodReading {
        pod,
        containers,
        interfaces,
        at,
    } = reading;
    let id = pod.id.as_str();
    let labels = labels(pod, [id, id, "", ""]);
    let mut metrics = Vec::new();
    for metric in offered(counted) {
        let Values::Interface(value) = metric.values else {
            continue;
        };
        for one in interfaces {
            metrics.push(value_of(metric, &labels, &[&one.name], (*at, value(one))));
        }
    }
    let of_container = |one| container(pod, one, counted);
    v1::PodSandboxMetrics {
        pod_sandbox_id: pod.id.to_string(),
        metrics,
        container_metrics: containers.iter().map(of_container).collect(),
    }
}

fn container(pod: &PodView, reading: &ContainerReading, counted: &Counted) -> v1::ContainerMetrics {
    let container = &reading.container;
    let id = container.id.as_str();
    let name = container.config.key.name.as_str();
    let labels = labels(pod, [id, id, &name_of_image(container), name]);
    let mut metrics = Vec::new();
    for metric in offered(counted) {
        let mut out = |own: &[&str], value| {
            metrics.push(value_of(metric, &labels, own, (reading.at, value)));
        };
        match metric.values {
            Values::One(value) => {
                if let Some(value) = value(reading) {
                    out(&[], value);
                }
            }
            Values::Each(values) => values(reading, &mut out),
            Values::Interface(_) => {}
        }
    }
    v1::ContainerMetrics {
        container_id: container.id.to_string(),
        metrics,
    }
}

/// The values of [`LABELS`]. A pod's own series have no container and no image.
fn labels(pod: &PodView, [id, name, image, container]: [&str; 4]) -> [String; LABELS.len()] {
    let key = &pod.config.key;
    [id, name, image, container, &key.namespace, &key.name].map(str::to_owned)
}

fn value_of(
    metric: &Metric,
    labels: &[String; LABELS.len()],
    own: &[&str],
    (timestamp, value): (i64, u64),
) -> v1::Metric {
    let own = own.iter().map(|label| (*label).to_owned());
    let kind = match metric.kind {
        Kind::Counter => v1::MetricType::Counter,
        Kind::Gauge => v1::MetricType::Gauge,
    };
    v1::Metric {
        name: metric.name.to_owned(),
        timestamp,
        metric_type: kind as i32,
        label_values: labels.iter().cloned().chain(own).collect(),
        value: Some(v1::UInt64Value { value }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap, HashSet};
    use std::sync::Arc;

    use runtime::cgroup::{
        Descriptors, DeviceUse, Figures, HugePages, Memory, Processes, Psi, Stats, Throttling,
    };
    use runtime::netns::InterfaceStats;

    use super::*;
    use crate::convert::{container as containers, sandbox};
    use crate::ids::{ContainerId, PodId};
    use crate::pod::machine::State;
    use crate::pod::record::User;
    use crate::pod::view::ContainerView;
    use crate::pod_metrics::{Device, Disk};

    const ALL: Counted = Counted {
        cpu: true,
        cpu_times: true,
        throttling: true,
        memory: true,
        kernel_memory: true,
        memory_peak: true,
        swap: true,
        oom_kills: true,
        huge_pages: true,
        huge_pages_peak: true,
        devices: true,
        tasks: true,
        pressure: true,
    };

    fn pod_view() -> PodView {
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "web".into(),
                uid: "u".into(),
                namespace: "shop".into(),
                attempt: 0,
            }),
            ..Default::default()
        };
        PodView {
            id: PodId::random(),
            transition: 1,
            ready: true,
            reason: String::new(),
            config: Arc::new(
                sandbox::from_proto(config, runtime::cgroup::DriverKind::Cgroupfs)
                    .expect("a sandbox"),
            ),
            handler: String::new(),
            created_at: 1,
            cgroup: None,
            netns: None,
            ips: Vec::new(),
            monitor: None,
            containers: Vec::new(),
        }
    }

    fn container_view(pod: &PodView) -> ContainerView {
        let resources = v1::LinuxContainerResources {
            cpu_quota: 20_000,
            memory_limit_in_bytes: 64 << 20,
            memory_swap_limit_in_bytes: -1,
            ..Default::default()
        };
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: "nginx".into(),
                attempt: 0,
            }),
            image: Some(v1::ImageSpec {
                image: "sha256:1".into(),
                ..Default::default()
            }),
            linux: Some(v1::LinuxContainerConfig {
                resources: Some(resources),
                ..Default::default()
            }),
            ..Default::default()
        };
        let around = sandbox::around_container(None, &pod.config).expect("a sandbox");
        let config = containers::from_proto(config, &around).expect("a container");
        ContainerView {
            id: ContainerId::random(),
            pod: pod.id.clone(),
            state: State::Running {
                started_at: 7_900_000_000,
            },
            unread: false,
            resources: config.resources.clone(),
            config: Arc::new(config),
            image_id: "sha256:1".into(),
            image_ref: String::new(),
            image_name: "docker.io/library/nginx:1".into(),
            created_at: 1,
            cgroup: None,
            log_path: None,
            log_stalled: false,
            stop_signal: 15,
            user: User::default(),
            pid: Some(1),
            process: None,
            raw_environment: None,
        }
    }

    fn figures() -> Figures {
        Figures {
            stats: Stats {
                cpu_usage_ns: 3_999_999_999,
                page_faults: 9,
                swap_usage: Some(5),
                cpu_psi: Some(Psi::default()),
                memory_psi: Some(Psi::default()),
                io_psi: Some(Psi::default()),
                ..Stats::default()
            },
            cpu_user_ns: Some(2_000_000_000),
            cpu_system_ns: Some(1_000_000_000),
            throttling: Some(Throttling {
                throttled_ns: 1_500_000_000,
                ..Throttling::default()
            }),
            memory: Some(Memory {
                kernel: Some(1),
                peak: Some(2),
                limit_hits: Some(3),
                own_page_faults: 4,
                ..Memory::default()
            }),
            oom_kills: Some(0),
            huge_pages: vec![HugePages {
                size: "2MB".into(),
                used: 0,
                peak: Some(0),
            }],
            devices: Some(Vec::new()),
            tasks: Some(2),
            tasks_limit: None,
        }
    }

    fn reading() -> PodReading {
        let pod = pod_view();
        let disk = Disk {
            device: "/dev/vda1".into(),
            major: 254,
            minor: 1,
            bytes: 100,
            inodes: 10,
            inodes_free: 9,
        };
        let container = ContainerReading {
            container: Arc::new(container_view(&pod)),
            figures: Some(figures()),
            devices: Vec::new(),
            processes: Some(Processes {
                count: 1,
                descriptors: Some(Descriptors::default()),
                open_files_limit: Some(1024),
            }),
            layer: Some(crate::stats::Layer {
                bytes: 8,
                inodes: 1,
            }),
            disk: Some(Arc::new(disk)),
            at: 8_000_000_000,
        };
        let eth0 = InterfaceStats {
            name: "eth0".into(),
            rx_dropped: 6,
            ..InterfaceStats::default()
        };
        PodReading {
            pod: Arc::new(pod),
            containers: vec![container],
            interfaces: vec![eth0],
            at: 8_000_000_000,
        }
    }

    /// A pod's metrics and those of its containers.
    fn all(metrics: v1::PodSandboxMetrics) -> Vec<v1::Metric> {
        let v1::PodSandboxMetrics {
            pod_sandbox_id: _,
            mut metrics,
            container_metrics,
        } = metrics;
        metrics.extend(container_metrics.into_iter().flat_map(|one| one.metrics));
        metrics
    }

    /// Values of one metric, by what its own labels say.
    fn values(metrics: &[v1::Metric], name: &str) -> BTreeMap<String, u64> {
        let named = metrics.iter().filter(|one| one.name == name);
        named
            .map(|one| {
                let own = one.label_values[LABELS.len()..].join(" ");
                (own, one.value.expect("a value").value)
            })
            .collect()
    }

    #[test]
    fn every_metric_has_a_descriptor_and_as_many_values_as_keys() {
        let descriptors = descriptors(&ALL);
        assert_eq!(descriptors.len(), METRICS.len());
        let keys: HashMap<_, _> = descriptors
            .iter()
            .map(|one| (one.name.as_str(), one.label_keys.len()))
            .collect();
        assert_eq!(keys.len(), METRICS.len(), "a name twice");
        assert!(descriptors.iter().all(|one| !one.help.is_empty()));
        let metrics = all(pod(&reading(), &ALL));
        let mut named = HashSet::new();
        for metric in &metrics {
            named.insert(metric.name.as_str());
            let wanted = keys.get(metric.name.as_str());
            assert_eq!(wanted, Some(&metric.label_values.len()), "{metric:?}");
            assert_eq!(metric.timestamp, 8_000_000_000);
            let counter = metric.metric_type == v1::MetricType::Counter as i32;
            let total = metric.name.ends_with("_total") || metric.name.ends_with("_failcnt");
            assert_eq!(counter, total && metric.name != "container_fs_inodes_total");
        }
        for one in &descriptors {
            assert!(
                named.contains(one.name.as_str()),
                "{} has no value",
                one.name
            );
        }
    }

    #[test]
    fn what_the_kernel_does_not_count_has_neither_a_descriptor_nor_values() {
        let counted = Counted {
            memory_peak: false,
            swap: false,
            pressure: false,
            ..ALL
        };
        let left_out: HashSet<_> = METRICS
            .iter()
            .filter(|metric| !(metric.counted)(&counted))
            .map(|metric| metric.name)
            .collect();
        assert_eq!(left_out.len(), 2 + 6, "{left_out:?}");
        let descriptors = descriptors(&counted);
        assert_eq!(descriptors.len(), METRICS.len() - left_out.len());
        let metrics = all(pod(&reading(), &counted));
        assert!(
            metrics
                .iter()
                .all(|one| !left_out.contains(one.name.as_str()))
        );
    }

    #[test]
    fn series_say_whose_they_are_in_cadvisors_labels_and_units() {
        let reading = reading();
        let metrics = pod(&reading, &ALL);
        let pod_id = reading.pod.id.to_string();
        let network = &metrics.metrics[0].label_values;
        assert_eq!(
            network[..],
            [&pod_id, &pod_id, "", "", "shop", "web", "eth0"]
        );
        let id = reading.containers[0].container.id.to_string();
        let container = &metrics.container_metrics[0];
        assert_eq!(container.container_id, id);
        let image = "docker.io/library/nginx:1";
        let wanted = [&id, &id, image, "nginx", "shop", "web"];
        assert_eq!(container.metrics[0].label_values[..], wanted);
        let metrics = all(metrics);
        let of = |name| values(&metrics, name);
        let one = |label: &str, value| BTreeMap::from([(label.to_owned(), value)]);
        assert_eq!(of("container_cpu_usage_seconds_total"), one("total", 3));
        assert_eq!(of("container_cpu_cfs_throttled_seconds_total"), one("", 1));
        assert_eq!(of("container_start_time_seconds"), one("", 7));
        assert_eq!(of("container_last_seen"), one("", 8));
        assert_eq!(
            of("container_network_receive_packets_dropped_total"),
            one("eth0", 6)
        );
        assert_eq!(of("container_spec_cpu_quota"), one("", 20_000));
        assert_eq!(of("container_spec_cpu_period"), one("", 100_000));
        assert_eq!(of("container_spec_cpu_shares"), one("", 1024));
        assert_eq!(of("container_spec_memory_limit_bytes"), one("", 64 << 20));
        assert_eq!(of("container_spec_memory_swap_limit_bytes"), one("", 0));
        assert_eq!(of("container_threads_max"), one("", 0));
        assert_eq!(of("container_ulimits_soft"), one("max_open_files", 1024));
        assert_eq!(of("container_fs_usage_bytes"), one("/dev/vda1", 8));
        let faults = of("container_memory_failures_total");
        assert_eq!(
            (faults["pgfault container"], faults["pgfault hierarchy"]),
            (4, 9)
        );
    }

    #[test]
    fn a_device_that_was_used_takes_the_place_of_one_that_was_not() {
        let mut reading = reading();
        let of = |reading: &PodReading, name: &str| values(&all(pod(reading, &ALL)), name);
        let written = "container_fs_writes_bytes_total";
        assert_eq!(of(&reading, written), [("/dev/vda1".to_owned(), 0)].into());
        let used = DeviceUse {
            major: 8,
            minor: 0,
            bytes: [("Write".to_owned(), 7)].into(),
            requests: [("Write".to_owned(), 1)].into(),
        };
        let device = Device {
            name: "/dev/sda".into(),
            figures: used,
        };
        reading.containers[0].devices.push(device);
        assert_eq!(of(&reading, written), [("/dev/sda".to_owned(), 7)].into());
        let usage = of(&reading, "container_blkio_device_usage_total");
        assert_eq!(usage, [("/dev/sda 8 0 Write".to_owned(), 7)].into());
    }

    #[test]
    fn a_container_that_cannot_be_read_has_what_is_known_without_its_cgroup() {
        let mut reading = reading();
        let container = &mut reading.containers[0];
        (container.figures, container.processes) = (None, None);
        (container.layer, container.disk) = (None, None);
        let metrics = pod(&reading, &ALL).container_metrics.remove(0).metrics;
        let known = |one: &v1::Metric| {
            let name = one.name.as_str();
            name.starts_with("container_spec_")
                || matches!(name, "container_last_seen" | "container_start_time_seconds")
        };
        assert!(metrics.iter().all(known), "{metrics:?}");
        assert_eq!(metrics.len(), 7);
    }
}
