//! What Prometheus may know: how long calls and their steps take, and how many
//! pods and containers there are.
//!
//! Owns the counts since the start; off unless configured, and then nothing of it
//! is kept. Labels come from closed lists, so that no client can make them grow.

mod server;

use std::borrow::Cow;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use runtime::client::steps::Step;

use crate::context::Engine;
use crate::pod::machine::State;

pub(crate) use server::{bind, serve};

/// Seconds, from what a step costs at best to what a client waits for at most.
const BUCKETS: [f64; 17] = [
    25e-6, 1e-4, 250e-6, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// All calls of the API; another name is a client's invention.
const RPCS: [&str; 43] = [
    "Attach",
    "CheckpointContainer",
    "CheckpointPod",
    "ContainerStats",
    "ContainerStatus",
    "CreateContainer",
    "Exec",
    "ExecSync",
    "GetContainerEvents",
    "ImageFsInfo",
    "ImageStatus",
    "ListContainerStats",
    "ListContainers",
    "ListImages",
    "ListMetricDescriptors",
    "ListPodSandbox",
    "ListPodSandboxMetrics",
    "ListPodSandboxStats",
    "PodSandboxStats",
    "PodSandboxStatus",
    "PortForward",
    "PullImage",
    "RemoveContainer",
    "RemoveImage",
    "RemovePodSandbox",
    "ReopenContainerLog",
    "RestorePod",
    "RunPodSandbox",
    "RuntimeConfig",
    "StartContainer",
    "Status",
    "StopContainer",
    "StopPodSandbox",
    "StreamContainerStats",
    "StreamContainers",
    "StreamImages",
    "StreamPodSandboxMetrics",
    "StreamPodSandboxStats",
    "StreamPodSandboxes",
    "UpdateContainerResources",
    "UpdatePodSandboxResources",
    "UpdateRuntimeConfig",
    "Version",
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabels {
    rpc: &'static str,
    /// gRPC's number.
    code: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    rpc: &'static str,
    step: Cow<'static, str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

/// The counts.
pub(crate) struct Metrics {
    registry: Registry,
    rpcs: Histograms<RpcLabels>,
    steps: Histograms<StepLabels>,
    pods: Family<StateLabels, Gauge>,
    containers: Family<StateLabels, Gauge>,
    stalled_logs: Gauge,
}

impl Metrics {
    /// Nothing counted yet.
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("slipway");
        let rpcs = Histograms::new_with_constructor(histogram as fn() -> Histogram);
        let steps = Histograms::new_with_constructor(histogram as fn() -> Histogram);
        let (pods, containers) = (Family::default(), Family::default());
        let seconds = Unit::Seconds;
        registry.register_with_unit("rpc", "Time of calls", seconds.clone(), Clone::clone(&rpcs));
        let help = "Time of the steps of calls, in engine and monitor";
        registry.register_with_unit("step", help, seconds, Clone::clone(&steps));
        registry.register("pods", "Pod sandboxes", Clone::clone(&pods));
        registry.register("containers", "Containers", Clone::clone(&containers));
        let stalled_logs = Gauge::default();
        let help = "Containers whose output waits for the disk of their log";
        registry.register("stalled_logs", help, Clone::clone(&stalled_logs));
        Self {
            registry,
            rpcs,
            steps,
            pods,
            containers,
            stalled_logs,
        }
    }

    /// Counts a call that ended.
    pub(crate) fn call(&self, rpc: &str, code: i32, took: Duration) {
        let rpc = known(rpc);
        let labels = RpcLabels { rpc, code };
        self.rpcs.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts the steps of a call.
    pub(crate) fn steps(&self, rpc: &str, steps: &[Step]) {
        let rpc = known(rpc);
        for step in steps {
            let labels = StepLabels {
                rpc,
                step: step.name.clone(),
            };
            let took = Duration::from_nanos(step.end.saturating_sub(step.start));
            self.steps
                .get_or_create(&labels)
                .observe(took.as_secs_f64());
        }
    }

    /// All counts, in the words of Prometheus.
    fn text(&self, engine: &Engine) -> Result<String, std::fmt::Error> {
        self.look(engine);
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }

    /// How many of which kind there are now.
    fn look(&self, engine: &Engine) {
        let views = engine.index.list();
        let ready = views.iter().filter(|view| view.ready).count();
        set(&self.pods, "ready", ready);
        set(&self.pods, "notready", views.len() - ready);
        let containers = || views.iter().flat_map(|view| &view.containers);
        let count = |of: fn(&State) -> bool| containers().filter(|one| of(&one.state)).count();
        let running = count(State::is_running);
        let exited = count(|state| matches!(state, State::Exited(_)));
        let stalled = containers().filter(|one| one.log_stalled).count();
        self.stalled_logs
            .set(i64::try_from(stalled).unwrap_or(i64::MAX));
        set(&self.containers, "running", running);
        set(&self.containers, "exited", exited);
        set(
            &self.containers,
            "created",
            containers().count() - running - exited,
        );
    }
}

fn set(family: &Family<StateLabels, Gauge>, state: &'static str, count: usize) {
    let gauge = family.get_or_create(&StateLabels { state });
    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
}

fn known(rpc: &str) -> &'static str {
    let found = RPCS.into_iter().find(|known| *known == rpc);
    found.unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use runtime::client::steps::Place;

    use super::*;

    #[test]
    fn calls_and_steps_are_histograms_by_their_names() {
        let metrics = Metrics::new();
        metrics.call("ExecSync", 0, Duration::from_millis(3));
        metrics.call("ExecSync", 4, Duration::from_secs(1));
        let step = Step {
            name: Cow::Borrowed("network"),
            place: Place::Engine,
            start: 1_000,
            end: 30_001_000,
            parent: None,
        };
        metrics.steps("RunPodSandbox", &[step]);
        let mut text = String::new();
        text::encode(&mut text, &metrics.registry).expect("encoded");
        for line in [
            r#"slipway_rpc_seconds_bucket{le="0.005",rpc="ExecSync",code="0"} 1"#,
            r#"slipway_rpc_seconds_count{rpc="ExecSync",code="4"} 1"#,
            r#"slipway_step_seconds_bucket{le="0.05",rpc="RunPodSandbox",step="network"} 1"#,
            r#"slipway_step_seconds_bucket{le="0.025",rpc="RunPodSandbox",step="network"} 0"#,
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn a_client_cannot_invent_labels() {
        let metrics = Metrics::new();
        for name in ["a", "b", "RunPodSandbox\n"] {
            metrics.call(name, 12, Duration::ZERO);
        }
        let mut text = String::new();
        text::encode(&mut text, &metrics.registry).expect("encoded");
        assert!(
            text.contains(r#"slipway_rpc_seconds_count{rpc="unknown",code="12"} 3"#),
            "{text}"
        );
    }

    #[test]
    fn every_call_of_the_api_is_known() {
        let defined = proto::DESCRIPTORS;
        let has = |name: &str| {
            defined
                .windows(name.len())
                .any(|part| part == name.as_bytes())
        };
        assert!(RPCS.iter().all(|name| has(name)));
        assert!(RPCS.is_sorted());
    }
}
