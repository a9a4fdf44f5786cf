//! The metrics of pods and containers that monitoring knows from cAdvisor.
//!
//! Reads all that they are made of, on threads that may wait; [`table`] says which there
//! are. A container that cannot be read has fewer values and holds no other up. Owns what
//! it asked the kernel once: which figures there are at all.

pub(crate) mod table;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use runtime::cgroup::{Counted, DeviceUse, Figures, Processes};
use runtime::netns::InterfaceStats;
use tokio::sync::Semaphore;

use crate::clock::now;
use crate::context::Engine;
use crate::pod::error::PodError;
use crate::pod::view::{ContainerView, PodView};
use crate::stats::{self, Layer, on_all_cores};
use crate::threads::{blocking, blocking_with};

/// So long the disk of writable layers may take to tell its size.
const MOMENT: Duration = Duration::from_millis(500);

/// What one container uses; parts that could not be read are absent.
pub(crate) struct ContainerReading {
    pub(crate) container: Arc<ContainerView>,
    pub(crate) figures: Option<Figures>,
    pub(crate) devices: Vec<Device>,
    pub(crate) processes: Option<Processes>,
    pub(crate) layer: Option<Layer>,
    pub(crate) disk: Option<Arc<Disk>>,
    pub(crate) at: i64,
}

/// A block device that the container used.
pub(crate) struct Device {
    /// "/dev/vda", or its numbers where it has no name.
    pub(crate) name: String,
    pub(crate) figures: DeviceUse,
}

/// The filesystem of the writable layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    /// The name of its device.
    pub(crate) device: String,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    pub(crate) inodes_free: u64,
}

/// What one pod uses.
pub(crate) struct PodReading {
    pub(crate) pod: Arc<PodView>,
    pub(crate) containers: Vec<ContainerReading>,
    /// All but the loopback.
    pub(crate) interfaces: Vec<InterfaceStats>,
    pub(crate) at: i64,
}

/// What the kernel was asked, and the disk.
pub(crate) struct Known {
    counted: OnceLock<Counted>,
    disk: Arc<Mutex<Option<Arc<Disk>>>>,
    /// One thread at a time asks the disk: one that does not answer keeps no more.
    asking: Arc<Semaphore>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            counted: OnceLock::new(),
            disk: Arc::default(),
            asking: Arc::new(Semaphore::new(1)),
        }
    }
}

/// Which figures there are on this machine; asked once, or again so long as no cgroup shows
/// what a v2 tree counts of memory: those of a node that has just started may not yet.
pub(crate) async fn counted(engine: &Arc<Engine>) -> Result<Counted, PodError> {
    if let Some(counted) = engine.pod_metrics.counted.get() {
        return Ok(*counted);
    }
    let ask = |engine: &Engine| Ok(engine.cgroups.counted());
    let counted = blocking_with(engine, ask).await?;
    if !counted.memory || counted.memory_peak || counted.swap {
        return Ok(*engine.pod_metrics.counted.get_or_init(|| counted));
    }
    Ok(counted)
}

/// The pods that metrics are given of.
pub(crate) fn pods(engine: &Engine) -> Vec<Arc<PodView>> {
    let mut pods = engine.index.list();
    pods.retain(|pod| pod.ready);
    pods
}

/// Reads the use of pods and of their running containers.
pub(crate) async fn of_pods(
    engine: &Arc<Engine>,
    pods: Vec<Arc<PodView>>,
) -> Result<Vec<PodReading>, PodError> {
    let all = pods.iter().flat_map(|pod| stats::running(pod)).cloned();
    let mut readings = on_all_cores(engine, all.collect(), measure).await?;
    // Side by side: each may be waited for for a moment.
    let of_layer = |one: &ContainerReading| {
        let id = one.container.id.clone();
        async move { engine.images.snapshot_usage(id.as_str()).await }
    };
    let layers = join_all(readings.iter().map(of_layer));
    let (layers, disk) = futures::join!(layers, disk(engine));
    for (one, layer) in readings.iter_mut().zip(layers) {
        one.layer = layer;
        one.disk.clone_from(&disk);
    }
    let mut traffic = stats::traffic(engine, &pods).await?;
    let mut readings = readings.into_iter();
    let of_pod = |pod: Arc<PodView>| {
        let mut interfaces = traffic.remove(&pod.id).unwrap_or_default();
        interfaces.retain(|one| one.name != "lo");
        PodReading {
            containers: readings
                .by_ref()
                .take(stats::running(&pod).count())
                .collect(),
            pod,
            interfaces,
            at: now(),
        }
    };
    Ok(pods.into_iter().map(of_pod).collect())
}

fn measure(engine: &Engine, container: Arc<ContainerView>) -> ContainerReading {
    let cgroup = container
        .cgroup
        .as_ref()
        .map(|path| engine.cgroups.open(path));
    let id = &container.id;
    let figures = cgroup.as_ref().and_then(|cgroup| {
        let figures = cgroup.figures();
        figures
            .inspect_err(|error| tracing::debug!(container = %id, %error, "cgroup figures"))
            .ok()
    });
    let processes = cgroup.as_ref().and_then(|cgroup| {
        let processes = cgroup.processes(container.pid);
        processes
            .inspect_err(|error| tracing::debug!(container = %id, %error, "processes"))
            .ok()
    });
    let devices = figures.as_ref().and_then(|figures| figures.devices.clone());
    let named = |figures: DeviceUse| Device {
        name: device_name(figures.major, figures.minor),
        figures,
    };
    ContainerReading {
        devices: devices.into_iter().flatten().map(named).collect(),
        container,
        figures,
        processes,
        layer: None,
        disk: None,
        at: now(),
    }
}

/// The node in /dev that a device's numbers stand for, as the kernel calls it.
fn device_name(major: u32, minor: u32) -> String {
    let event = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
    let event = event.unwrap_or_default();
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"))
}

/// The filesystem of the writable layers; what was known of it where it does not answer.
async fn disk(engine: &Arc<Engine>) -> Option<Arc<Disk>> {
    let known = &engine.pod_metrics;
    let path = engine.images.fs_info().mountpoint;
    let (asking, last) = (Arc::clone(&known.asking), Arc::clone(&known.disk));
    let ask = async move {
        let Ok(turn) = asking.acquire_owned().await else {
            return;
        };
        let asked = blocking(move || {
            let _turn = turn;
            match ask_disk(&path) {
                Ok(disk) => {
                    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                    *last = Some(Arc::new(disk));
                }
                Err(errno) => tracing::debug!(?path, %errno, "size of the disk of layers"),
            }
            Ok(())
        });
        if let Err(error) = asked.await {
            tracing::error!(%error, "size of the disk of layers");
        }
    };
    if tokio::time::timeout(MOMENT, ask).await.is_err() {
        tracing::debug!("the disk of layers does not answer");
    }
    let last = known.disk.lock().unwrap_or_else(PoisonError::into_inner);
    last.clone()
}

fn ask_disk(path: &std::path::Path) -> rustix::io::Result<Disk> {
    let device = rustix::fs::stat(path)?.st_dev;
    let size = rustix::fs::statvfs(path)?;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    Ok(Disk {
        device: device_name(major, minor),
        major,
        minor,
        bytes: size.f_blocks.saturating_mul(size.f_frsize),
        inodes: size.f_files,
        inodes_free: size.f_ffree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_a_name_is_called_by_its_numbers() {
        assert_eq!(device_name(0, 4095), "0:4095");
    }

    #[test]
    fn a_disk_tells_its_size() {
        let disk = ask_disk(std::path::Path::new("/")).expect("a root");
        assert!(disk.bytes > 0 && !disk.device.is_empty(), "{disk:?}");
        assert!(disk.inodes_free <= disk.inodes);
        assert!(ask_disk(std::path::Path::new("/nonexistent")).is_err());
    }
}
