//! Resource use of containers and sandboxes, read from their cgroups.
//!
//! Owns the last sample of each, from which the rate of CPU use follows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use runtime::cgroup::Stats;
use runtime::netns::InterfaceStats;

use crate::engine::{Engine, blocking_with, now};
use crate::pod::error::PodError;
use crate::pod::view::{ContainerView, PodView};

/// Two samples closer than this say nothing about a rate.
const SHORTEST: i64 = 100_000_000;

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: i64,
    cpu_ns: u64,
    rate: Option<u64>,
}

/// The last samples by id.
#[derive(Default)]
pub(crate) struct Samples(Mutex<HashMap<String, Sample>>);

impl Samples {
    /// CPU use in nanoseconds per second since the sample before; `None` at first.
    pub(crate) fn rate(&self, id: &str, at: i64, cpu_ns: u64) -> Option<u64> {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = samples.get_mut(id) else {
            samples.insert(
                id.to_owned(),
                Sample {
                    at,
                    cpu_ns,
                    rate: None,
                },
            );
            return None;
        };
        let elapsed = at - last.at;
        if elapsed < SHORTEST {
            return last.rate;
        }
        let used = u128::from(cpu_ns.saturating_sub(last.cpu_ns));
        let rate = used * 1_000_000_000 / u128::from(elapsed.unsigned_abs());
        let rate = u64::try_from(rate).ok();
        *last = Sample { at, cpu_ns, rate };
        rate
    }

    /// Forgets a removed container.
    pub(crate) fn forget(&self, id: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}

/// Bytes and inodes of a writable layer.
pub(crate) type Layer = image_store::Usage;

/// One container's use; parts that could not be read are absent.
pub(crate) struct ContainerUse {
    pub(crate) container: Arc<ContainerView>,
    pub(crate) cgroup: Option<Stats>,
    pub(crate) nano_cores: Option<u64>,
    pub(crate) layer: Option<Layer>,
}

/// One sandbox's use.
pub(crate) struct PodUse {
    pub(crate) pod: Arc<PodView>,
    pub(crate) containers: Vec<ContainerUse>,
    /// Of the cgroup that the kubelet made for the pod.
    pub(crate) cgroup: Option<Stats>,
    pub(crate) nano_cores: Option<u64>,
    pub(crate) interfaces: Vec<InterfaceStats>,
    pub(crate) at: i64,
}

/// Reads the use of containers; one that cannot be read holds no other up.
pub(crate) async fn of_containers(
    engine: &Arc<Engine>,
    containers: Vec<Arc<ContainerView>>,
) -> Result<Vec<ContainerUse>, PodError> {
    let mut uses = blocking_with(engine, move |engine| {
        Ok(containers
            .into_iter()
            .map(|container| measure(engine, container))
            .collect::<Vec<_>>())
    })
    .await?;
    for one in &mut uses {
        one.layer = engine
            .images
            .snapshot_usage(one.container.id.as_str())
            .await;
    }
    Ok(uses)
}

fn measure(engine: &Engine, container: Arc<ContainerView>) -> ContainerUse {
    let cgroup = read(engine, &container.cgroup);
    let rate = |stats: &Stats| {
        engine
            .samples
            .rate(container.id.as_str(), stats.timestamp, stats.cpu_usage_ns)
    };
    let nano_cores = cgroup.as_ref().and_then(rate);
    ContainerUse {
        container,
        cgroup,
        nano_cores,
        layer: None,
    }
}

fn read(engine: &Engine, path: &str) -> Option<Stats> {
    let stats = engine.cgroups.open(path).stats();
    stats
        .inspect_err(|error| tracing::debug!(path, %error, "cgroup statistics"))
        .ok()
}

/// Reads the use of sandboxes and all their running containers.
pub(crate) async fn of_pods(
    engine: &Arc<Engine>,
    pods: Vec<Arc<PodView>>,
) -> Result<Vec<PodUse>, PodError> {
    let mut uses = Vec::new();
    for pod in pods {
        let running = pod
            .containers
            .iter()
            .filter(|container| container.state.is_running())
            .cloned();
        let containers = of_containers(engine, running.collect()).await?;
        uses.push(of_pod(engine, pod, containers).await?);
    }
    Ok(uses)
}

async fn of_pod(
    engine: &Arc<Engine>,
    pod: Arc<PodView>,
    containers: Vec<ContainerUse>,
) -> Result<PodUse, PodError> {
    blocking_with(engine, move |engine| {
        let parent = pod.cgroup.rsplit_once('/').map_or("", |(parent, _)| parent);
        // Without a cgroup of its own, the pod's use is that of its parts.
        let own = !pod.config.cgroup_parent.is_empty();
        let cgroup = if own { read(engine, parent) } else { None };
        let rate = |stats: &Stats| {
            engine
                .samples
                .rate(pod.id.as_str(), stats.timestamp, stats.cpu_usage_ns)
        };
        let nano_cores = cgroup.as_ref().and_then(rate);
        let interfaces = match &pod.netns {
            Some(netns) if pod.ready => runtime::netns::interface_stats(netns)
                .inspect_err(|error| tracing::debug!(pod = %pod.id, %error, "interface statistics"))
                .unwrap_or_default(),
            _ => Vec::new(),
        };
        Ok(PodUse {
            pod,
            containers,
            cgroup,
            nano_cores,
            interfaces,
            at: now(),
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_samples_some_time_apart() {
        let samples = Samples::default();
        assert_eq!(samples.rate("a", 1_000_000_000, 0), None);
        assert_eq!(samples.rate("a", 1_000_000_001, 9), None);
        assert_eq!(
            samples.rate("a", 3_000_000_000, 1_000_000_000),
            Some(500_000_000)
        );
        samples.forget("a");
        assert_eq!(samples.rate("a", 4_000_000_000, 0), None);
    }
}
