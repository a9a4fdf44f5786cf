//! What all calls share: configuration, images, cgroups, monitors, network and
//! the index of pods.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use image_store::ImageStore;
use runtime::cgroup::Driver;
use runtime::client::MonitorPool;
use runtime::client::steps::Steps;
use runtime::netns::NetNsPool;
use runtime::seccomp;

use crate::cgroups::LeftParents;
use crate::config::Config;
use crate::ids::PodId;
use crate::metrics::Metrics;
use crate::network::Network;
use crate::pod::error::PodError;
use crate::pod::index::Index;
use crate::pod::record::PodDir;
use crate::spec::HostPaths;
use crate::stats::Samples;
use crate::steps::Traces;

/// The engine.
pub(crate) struct Engine {
    pub(crate) config: Config,
    pub(crate) images: ImageStore,
    pub(crate) cgroups: Box<dyn Driver>,
    pub(crate) monitors: MonitorPool,
    pub(crate) namespaces: NetNsPool,
    pub(crate) network: Network,
    pub(crate) index: Index,
    pub(crate) seccomp: seccomp::Cache,
    pub(crate) host_paths: HostPaths,
    pub(crate) samples: Samples,
    pub(crate) said: Said,
    pub(crate) traces: Traces,
    #[cfg(feature = "otel")]
    pub(crate) spans: Option<crate::otel::Spans>,
    /// Only where they are configured.
    pub(crate) metrics: Option<Metrics>,
    pub(crate) left_parents: LeftParents,
    /// The kernel's, which is another after every boot.
    pub(crate) boot_id: String,
    /// Whether an engine last worked on this root in an earlier boot.
    pub(crate) first_of_boot: bool,
}

/// Warnings that were given already: what is true of the node is said once, not
/// for every pod.
#[derive(Default)]
pub(crate) struct Said(Mutex<HashSet<String>>);

impl Said {
    /// Logs a warning, loudly only the first time.
    pub(crate) fn warn(&self, warning: &str) {
        // The same of another container is the same.
        let kind: String = warning
            .split(['/', ' '])
            .map(|word| if word.len() >= 64 { "ID" } else { word })
            .collect::<Vec<_>>()
            .join(" ");
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.insert(kind) {
            tracing::warn!(warning, "degraded; said once");
        } else {
            tracing::debug!(warning, "degraded");
        }
    }
}

impl Engine {
    /// The folder of a pod's records.
    pub(crate) fn pod_dir(&self, id: &PodId) -> PodDir {
        PodDir::new(&self.config.pods_dir(), id)
    }

    /// The folder of a pod's sockets and mounts.
    pub(crate) fn pod_state(&self, id: &PodId) -> PathBuf {
        self.config.pods_state_dir().join(id.as_str())
    }

    /// Where a pod's /dev/shm is mounted.
    pub(crate) fn shm(&self, id: &PodId) -> PathBuf {
        self.pod_state(id).join("shm")
    }

    /// Where a pod's network namespace is pinned.
    pub(crate) fn netns(&self, id: &PodId) -> PathBuf {
        self.config.cni.netns_dir.join(format!("slipway-{id}"))
    }
}

/// Now, in nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Runs work that reads or writes a small file, in place: other tasks of this thread
/// go to another one at once if the disk lets it wait. Cheaper than [`blocking`] where
/// the work takes less time than to wake a thread.
pub(crate) fn on_disk<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Runs work that may wait for the kernel or the disk on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PodError> + Send + 'static,
) -> Result<T, PodError> {
    let steps = Steps::current();
    let work = move || Steps::follow_sync(steps, work);
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(PodError::Defect(error.to_string())),
    }
}

/// The same with the engine at hand.
pub(crate) async fn blocking_with<T: Send + 'static>(
    engine: &Arc<Engine>,
    work: impl FnOnce(&Engine) -> Result<T, PodError> + Send + 'static,
) -> Result<T, PodError> {
    let engine = Arc::clone(engine);
    blocking(move || work(&engine)).await
}
