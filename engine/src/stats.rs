//! Resource use of containers and sandboxes, read from their cgroups.
//!
//! Owns the last sample of each, from which the rate of CPU use follows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use runtime::cgroup::{CgroupPath, Stats};
use runtime::netns::{self, InterfaceStats};

use crate::clock::{now, since_boot};
use crate::context::Engine;
use crate::ids::PodId;
use crate::model::CgroupParent;
use crate::pod::error::PodError;
use crate::pod::view::{ContainerView, PodView};
use crate::threads::blocking_with;

/// Two samples closer than this say nothing about a rate.
const SHORTEST: i64 = 100_000_000;
/// Fewer than this are read where they are: another thread has to be woken for more.
const SMALLEST_PART: usize = 16;

#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Nanoseconds of a clock that is never set.
    at: i64,
    cpu_ns: u64,
    rate: Option<u64>,
}

/// The last samples by id.
#[derive(Default)]
pub(crate) struct Samples(Mutex<HashMap<String, Sample>>);

impl Samples {
    /// CPU use in nanoseconds per second since the sample before; `None` at first.
    /// `at` is in nanoseconds of a clock that is never set.
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
    let mut uses = on_all_cores(engine, containers, measure).await?;
    // Side by side: each may be waited for for a moment.
    let of_layer = |one: &ContainerUse| {
        let id = one.container.id.clone();
        async move { engine.images.snapshot_usage(id.as_str()).await }
    };
    let layers = futures::future::join_all(uses.iter().map(of_layer)).await;
    for (one, layer) in uses.iter_mut().zip(layers) {
        one.layer = layer;
    }
    Ok(uses)
}

/// Does the same work for each, in order: many of them in one part for each core.
pub(crate) async fn on_all_cores<I: Send + 'static, O: Send + 'static>(
    engine: &Arc<Engine>,
    mut items: Vec<I>,
    work: fn(&Engine, I) -> O,
) -> Result<Vec<O>, PodError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let size = items.len().div_ceil(cores).max(SMALLEST_PART);
    let mut parts = Vec::new();
    while !items.is_empty() {
        let rest = items.split_off(size.min(items.len()));
        let part = std::mem::replace(&mut items, rest).into_iter();
        parts.push(blocking_with(engine, move |engine| {
            Ok(part.map(|item| work(engine, item)).collect::<Vec<_>>())
        }));
    }
    let parts = futures::future::try_join_all(parts).await?;
    Ok(parts.into_iter().flatten().collect())
}

fn measure(engine: &Engine, container: Arc<ContainerView>) -> ContainerUse {
    let (cgroup, nano_cores) = match &container.cgroup {
        Some(path) => of_cgroup(engine, container.id.as_str(), path),
        None => (None, None),
    };
    ContainerUse {
        container,
        cgroup,
        nano_cores,
        layer: None,
    }
}

/// The use of what has this id, and its rate of CPU use.
fn of_cgroup(engine: &Engine, id: &str, path: &CgroupPath) -> (Option<Stats>, Option<u64>) {
    let cgroup = read(engine, path);
    // Taken beside the reading: the time in the statistics is the node's wall clock,
    // which may be set.
    let at = since_boot();
    let rate = |stats: &Stats| engine.samples.rate(id, at, stats.cpu_usage_ns);
    let nano_cores = cgroup.as_ref().and_then(rate);
    (cgroup, nano_cores)
}

fn read(engine: &Engine, path: &CgroupPath) -> Option<Stats> {
    let stats = engine.cgroups.open(path).stats();
    stats
        .inspect_err(|error| tracing::debug!(%path, %error, "cgroup statistics"))
        .ok()
}

/// Reads the use of sandboxes and all their running containers.
pub(crate) async fn of_pods(
    engine: &Arc<Engine>,
    pods: Vec<Arc<PodView>>,
) -> Result<Vec<PodUse>, PodError> {
    let all = pods.iter().flat_map(|pod| running(pod)).cloned().collect();
    let mut containers = of_containers(engine, all).await?.into_iter();
    let mut traffic = traffic(engine, &pods).await?;
    let mut uses = on_all_cores(engine, pods, of_pod).await?;
    for one in &mut uses {
        let count = running(&one.pod).count();
        one.containers = containers.by_ref().take(count).collect();
        one.interfaces = traffic.remove(&one.pod.id).unwrap_or_default();
    }
    Ok(uses)
}

/// The containers of a pod that run.
pub(crate) fn running(pod: &PodView) -> impl Iterator<Item = &Arc<ContainerView>> {
    let all = pod.containers.iter();
    all.filter(|container| container.state.is_running())
}

fn of_pod(engine: &Engine, pod: Arc<PodView>) -> PodUse {
    let (cgroup, nano_cores) = match (&pod.config.cgroup_parent, &pod.cgroup) {
        (CgroupParent::OfPod(path), Some(_)) => of_cgroup(engine, pod.id.as_str(), path),
        // Without a cgroup for it alone, the pod's use is that of its parts; where its record
        // cannot be read, it is not said which ones those are.
        (CgroupParent::Shared, _) | (_, None) => (None, None),
    };
    PodUse {
        pod,
        containers: Vec::new(),
        cgroup,
        nano_cores,
        interfaces: Vec::new(),
        at: now(),
    }
}

/// What the interfaces of the sandboxes with a network of their own carried.
pub(crate) async fn traffic(
    engine: &Arc<Engine>,
    pods: &[Arc<PodView>],
) -> Result<HashMap<PodId, Vec<InterfaceStats>>, PodError> {
    let ready = pods.iter().filter(|pod| pod.ready);
    let (ids, paths): (Vec<_>, Vec<_>) = ready
        .filter_map(|pod| Some((pod.id.clone(), pod.netns.clone()?)))
        .unzip();
    blocking_with(engine, move |_| {
        let all = netns::interface_stats(&paths)
            .inspect_err(|error| tracing::warn!(%error, "no interface statistics"))
            .unwrap_or_default();
        let each = ids.into_iter().zip(all).filter_map(|(id, interfaces)| {
            let interfaces = interfaces
                .inspect_err(|error| tracing::debug!(pod = %id, %error, "interface statistics"));
            Some((id, interfaces.ok()?))
        });
        Ok(each.collect())
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
