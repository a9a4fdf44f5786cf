//! The context of every call: configuration, images, cgroups, monitors, network and the
//! index of pods.
//!
//! One value of [`Engine`] lives from start to end and is shared by all handlers and all
//! tasks of pods. What it holds guards itself by locks that are held for a moment, never
//! while something is waited for. A crash loses it: all that must outlive one is in records.

use image_store::ImageStore;
use runtime::cgroup::Driver;
use runtime::client::MonitorPool;
use runtime::netns::NetNsPool;
use runtime::seccomp;

use crate::cdi::Cdi;
use crate::cgroups::LeftParents;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::network::Network;
use crate::pod::index::Index;
use crate::pod_metrics::Known;
use crate::spec::HostPaths;
use crate::stats::Samples;
use crate::steps::Traces;
use crate::stream::Streams;
use crate::warnings::Warnings;

/// What all calls share.
pub(crate) struct Engine {
    pub(crate) config: Config,
    pub(crate) images: ImageStore,
    /// The only way to cgroups of pods and containers.
    pub(crate) cgroups: Box<dyn Driver>,
    pub(crate) monitors: MonitorPool,
    pub(crate) namespaces: NetNsPool,
    pub(crate) network: Network,
    pub(crate) index: Index,
    pub(crate) seccomp: seccomp::Cache,
    pub(crate) host_paths: HostPaths,
    /// Devices that vendors describe.
    pub(crate) cdi: Cdi,
    /// Sessions that clients may begin: exec, attach, port-forward.
    pub(crate) streams: Streams,
    pub(crate) samples: Samples,
    /// What metrics of pods are made of, as far as it stays the same.
    pub(crate) pod_metrics: Known,
    pub(crate) warnings: Warnings,
    pub(crate) traces: Traces,
    #[cfg(feature = "otel")]
    pub(crate) spans: Option<crate::otel::Spans>,
    /// Only where they are configured.
    pub(crate) metrics: Option<Metrics>,
    pub(crate) left_parents: LeftParents,
    /// Whether pods can have user namespaces, or why not.
    pub(crate) user_namespaces: Result<(), String>,
    /// The kernel's, which is another after every boot.
    pub(crate) boot_id: String,
    /// Whether an engine last worked on this root in an earlier boot.
    pub(crate) first_of_boot: bool,
}
