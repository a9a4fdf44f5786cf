//! Metrics of pods and containers: what monitoring knows from cAdvisor.

use std::collections::{HashMap, HashSet};

use conformance::eventually;
use proto::v1;
use tonic::Code;

use crate::rig::{Rig, deadline, with_engine, with_own_engine, with_settings};

/// The names that critest looks for (cri-tools, pkg/validate/pod.go) but for those that it
/// lets engines leave out, and three of memory that not every kernel counts.
const EXPECTED: &[&str] = &[
    "container_blkio_device_usage_total",
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_cfs_throttled_seconds_total",
    "container_cpu_system_seconds_total",
    "container_cpu_usage_seconds_total",
    "container_cpu_user_seconds_total",
    "container_file_descriptors",
    "container_fs_inodes_free",
    "container_fs_inodes_total",
    "container_fs_limit_bytes",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_usage_bytes",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_last_seen",
    "container_memory_cache",
    "container_memory_failcnt",
    "container_memory_failures_total",
    "container_memory_mapped_file",
    "container_memory_rss",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_network_receive_bytes_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
    "container_network_receive_packets_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_errors_total",
    "container_network_transmit_packets_dropped_total",
    "container_network_transmit_packets_total",
    "container_oom_events_total",
    "container_processes",
    "container_sockets",
    "container_spec_cpu_period",
    "container_spec_cpu_shares",
    "container_spec_memory_limit_bytes",
    "container_spec_memory_swap_limit_bytes",
    "container_start_time_seconds",
    "container_threads",
    "container_threads_max",
];

/// A pod's metrics and those of its containers, by name and labels.
type Series = HashMap<(String, Vec<String>), u64>;

async fn descriptors(rig: &mut Rig) -> HashMap<String, Vec<String>> {
    let request = v1::ListMetricDescriptorsRequest {};
    let list = rig.client.runtime.list_metric_descriptors(request).await;
    let list = list.expect("descriptors").into_inner().descriptors;
    let told = |one: &v1::MetricDescriptor| !one.help.is_empty() && !one.label_keys.is_empty();
    assert!(list.iter().all(told));
    let count = list.len();
    let found: HashMap<_, _> = list
        .into_iter()
        .map(|one| (one.name, one.label_keys))
        .collect();
    assert_eq!(found.len(), count, "a name twice");
    found
}

async fn list(rig: &mut Rig) -> Vec<v1::PodSandboxMetrics> {
    let request = v1::ListPodSandboxMetricsRequest {};
    let list = rig.client.runtime.list_pod_sandbox_metrics(request).await;
    list.expect("metrics").into_inner().pod_metrics
}

async fn streamed(rig: &mut Rig) -> Vec<v1::PodSandboxMetrics> {
    let request = v1::StreamPodSandboxMetricsRequest {};
    let stream = rig.client.runtime.stream_pod_sandbox_metrics(request).await;
    let mut stream = stream.expect("a stream").into_inner();
    let mut all = Vec::new();
    while let Some(piece) = stream.message().await.expect("a piece") {
        assert_eq!(piece.pod_sandbox_metrics.len(), 1, "a message for each pod");
        all.extend(piece.pod_sandbox_metrics);
    }
    all
}

fn series(metrics: &v1::PodSandboxMetrics) -> Series {
    let of_containers = metrics
        .container_metrics
        .iter()
        .flat_map(|one| &one.metrics);
    let all = metrics.metrics.iter().chain(of_containers);
    let mut series = Series::new();
    for one in all {
        assert!(one.timestamp > 1_700_000_000_000_000_000, "{one:?}");
        let key = (one.name.clone(), one.label_values.clone());
        let twice = series.insert(key, one.value.expect("a value").value);
        assert_eq!(twice, None, "{one:?}");
    }
    series
}

/// The one value of a metric whose labels end in this.
fn value(series: &Series, name: &str, last: &str) -> u64 {
    let mut found = series
        .iter()
        .filter(|((of, labels), _)| of == name && labels.last().is_some_and(|one| one == last));
    let (_, value) = found.next().unwrap_or_else(|| panic!("{name} {last}"));
    *value
}

/// What only grows.
fn counters(metrics: &v1::PodSandboxMetrics) -> HashSet<String> {
    let of_containers = metrics
        .container_metrics
        .iter()
        .flat_map(|one| &one.metrics);
    let all = metrics.metrics.iter().chain(of_containers);
    let counters = all.filter(|one| one.metric_type() == v1::MetricType::Counter);
    counters.map(|one| one.name.clone()).collect()
}

#[test]
fn a_running_container_has_a_value_for_every_descriptor_and_counters_grow() {
    with_own_engine(async |rig| {
        let descriptors = descriptors(rig).await;
        for name in EXPECTED {
            assert!(descriptors.contains_key(*name), "{name} is missing");
        }
        let sandbox = rig.sandbox("measured");
        let busy = "dd if=/dev/zero of=/dev/shm/x bs=1M count=4; while :; do :; done";
        let mut config = rig.container("main", &["/bin/sh", "-c", busy]);
        let resources = v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 90_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 256 << 20,
            memory_swap_limit_in_bytes: 256 << 20,
            ..Default::default()
        };
        config.linux.get_or_insert_default().resources = Some(resources);
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let id = rig.started(&pod, &config, &sandbox).await;
        let found = list(rig).await;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].pod_sandbox_id, pod);
        assert_eq!(found[0].container_metrics[0].container_id, id);
        let first = series(&found[0]);
        assert_complete(&descriptors, &first, (&pod, &id));
        let main = |series: &Series, name| value(series, name, "measured");
        assert_eq!(main(&first, "container_spec_cpu_quota"), 90_000);
        assert_eq!(main(&first, "container_spec_cpu_shares"), 512);
        assert_eq!(main(&first, "container_spec_memory_limit_bytes"), 256 << 20);
        assert!(main(&first, "container_start_time_seconds") > 1_700_000_000);
        assert!(main(&first, "container_processes") >= 1);
        assert!(main(&first, "container_file_descriptors") >= 3);
        assert!(value(&first, "container_ulimits_soft", "max_open_files") > 0);
        assert!(value(&first, "container_network_receive_bytes_total", "eth0") < 1 << 30);
        let counters = counters(&found[0]);
        let used = |series: &Series| value(series, "container_cpu_usage_seconds_total", "total");
        let mut before = first;
        // Two seconds of CPU, and nothing that counts goes back on the way.
        let grown = async || {
            let found = list(rig).await;
            let now = series(&found[0]);
            for ((name, labels), value) in &now {
                let last = before.get(&(name.clone(), labels.clone()));
                let back = counters.contains(name) && last.is_some_and(|last| last > value);
                assert!(!back, "{name} {labels:?}: {last:?}, then {value}");
            }
            let working = main(&now, "container_memory_working_set_bytes");
            let usage = main(&now, "container_memory_usage_bytes");
            assert!(
                working <= usage && usage <= 256 << 20,
                "{working} of {usage}"
            );
            assert!(usage <= main(&now, "container_memory_max_usage_bytes"));
            let done = used(&now) >= 2 && working >= 4 << 20;
            before = now;
            done.then_some(())
        };
        eventually(deadline(), grown)
            .await
            .expect("it uses CPU and memory");
    });
}

/// Asserts that each descriptor has values of this pod and its container, and each value a
/// descriptor.
fn assert_complete(
    descriptors: &HashMap<String, Vec<String>>,
    series: &Series,
    (pod, id): (&str, &str),
) {
    let mut named = HashSet::new();
    for (name, labels) in series.keys() {
        let keys = descriptors.get(name).expect("a descriptor");
        assert_eq!(keys.len(), labels.len(), "{name}");
        let said: HashMap<_, _> = keys.iter().map(String::as_str).zip(labels).collect();
        let of_pod = name.starts_with("container_network_");
        let whose = if of_pod { (pod, "") } else { (id, "main") };
        assert_eq!((said["id"].as_str(), said["container"].as_str()), whose);
        assert_eq!(said["pod"], "measured");
        assert!(!said["namespace"].is_empty());
        assert_eq!(said["image"].is_empty(), of_pod);
        named.insert(name);
    }
    for name in descriptors.keys() {
        assert!(named.contains(name), "{name} has no value");
    }
}

#[test]
fn what_the_v2_tree_alone_does_not_count_is_left_out_of_descriptors_too() {
    if !std::path::Path::new("/sys/fs/cgroup/unified").exists() {
        return;
    }
    with_settings("[cgroup]\nhierarchy = \"unified\"\n", async |rig| {
        let descriptors = descriptors(rig).await;
        assert!(descriptors.contains_key("container_cpu_usage_seconds_total"));
        let controllers = std::fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers");
        let memory = controllers.expect("a v2 tree").contains("memory");
        assert_eq!(descriptors.contains_key("container_memory_rss"), memory);
        let sandbox = rig.sandbox("measured");
        let config = rig.container("main", &["/bin/sleep", "1000"]);
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let id = rig.started(&pod, &config, &sandbox).await;
        let found = list(rig).await;
        let series = series(&found[0]);
        assert_complete(&descriptors, &series, (&pod, &id));
    });
}

#[test]
fn the_stream_of_metrics_says_what_the_list_says_and_only_of_what_runs() {
    with_own_engine(async |rig| {
        assert_eq!(list(rig).await, []);
        assert_eq!(streamed(rig).await, []);
        let (pod, id) = rig.running("first", &["/bin/sleep", "1000"]).await;
        let (other, ended) = rig.running("second", &["/bin/true"]).await;
        rig.exited(&ended).await;
        let names = |all: &[v1::PodSandboxMetrics]| {
            let mut names = HashMap::new();
            for one in all {
                let keys = series(one).into_keys().collect::<HashSet<_>>();
                names.insert(one.pod_sandbox_id.clone(), keys);
            }
            names
        };
        let (listed, streamed) = (list(rig).await, streamed(rig).await);
        assert_eq!(names(&listed), names(&streamed));
        assert_eq!(listed.len(), 2);
        for one in &streamed {
            let running: Vec<_> = one.container_metrics.iter().collect();
            if one.pod_sandbox_id == other {
                assert!(running.is_empty());
                assert!(!one.metrics.is_empty(), "a pod has its network");
            } else {
                assert_eq!((&one.pod_sandbox_id, running.len()), (&pod, 1));
                assert_eq!(running[0].container_id, id);
            }
        }
        rig.client.stop_pod(&pod).await.expect("stop");
        assert_eq!(list(rig).await.len(), 1);
    });
}

#[test]
fn what_the_kubelet_tells_of_a_pods_limits_is_shown_and_kept_apart_from_them() {
    with_engine(async |rig| {
        let unknown = v1::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: "2".repeat(64),
            ..Default::default()
        };
        let mut client = rig.client.runtime.clone();
        let error = client.update_pod_sandbox_resources(unknown).await;
        assert_eq!(error.expect_err("unknown").code(), Code::NotFound);
        let sandbox = rig.sandbox("told");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let told = |memory, oom_score_adj| v1::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.clone(),
            overhead: None,
            resources: Some(v1::LinuxContainerResources {
                memory_limit_in_bytes: memory,
                oom_score_adj,
                ..Default::default()
            }),
        };
        let wrong = client.update_pod_sandbox_resources(told(1, 5000)).await;
        assert_eq!(wrong.expect_err("wrong").code(), Code::InvalidArgument);
        for memory in [64 << 20, 128 << 20] {
            let answer = client.update_pod_sandbox_resources(told(memory, 0)).await;
            answer.expect("accepted");
            let request = v1::PodSandboxStatusRequest {
                pod_sandbox_id: pod.clone(),
                verbose: true,
            };
            let status = client.pod_sandbox_status(request).await.expect("status");
            let info = &status.into_inner().info["info"];
            let info: serde_json::Value = serde_json::from_str(info).expect("JSON");
            assert_eq!(info["resources"]["resources"]["memory_limit"], memory);
            assert!(info["resources"]["overhead"].is_null());
        }
    });
}
