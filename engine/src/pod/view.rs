//! What lists and statuses answer from: immutable pictures of a pod, replaced as
//! a whole by its task. Reading them takes no lock that work holds.

use std::path::PathBuf;
use std::sync::Arc;

use runtime::cgroup::CgroupPath;
use runtime::client::Monitor;

use super::machine::State;
use super::record::{ContainerRecord, User};
use crate::ids::{ContainerId, PodId};
use crate::model::{Bytes, ContainerConfig, Resources, SandboxConfig};

/// A container at one moment.
#[derive(Debug, Clone)]
pub(crate) struct ContainerView {
    pub(crate) id: ContainerId,
    pub(crate) pod: PodId,
    pub(crate) state: State,
    /// Its record cannot be read: unless it has ended, its state is not known.
    pub(crate) unread: bool,
    pub(crate) config: Arc<ContainerConfig>,
    /// The limits in effect, which an update changes.
    pub(crate) resources: Resources,
    pub(crate) image_id: String,
    pub(crate) image_ref: String,
    pub(crate) image_name: String,
    pub(crate) created_at: i64,
    /// Not known where its record cannot be read.
    pub(crate) cgroup: Option<CgroupPath>,
    pub(crate) log_path: Option<PathBuf>,
    /// Whether the log takes nothing for the time being: its output waits.
    pub(crate) log_stalled: bool,
    pub(crate) stop_signal: i32,
    pub(crate) user: User,
    pub(crate) pid: Option<i32>,
    pub(crate) process: Option<Arc<oci_spec::runtime::Process>>,
    pub(crate) raw_environment: Option<Arc<Vec<Bytes>>>,
}

impl ContainerView {
    /// What a record says.
    pub(crate) fn of(record: &ContainerRecord, pod: &PodId) -> Self {
        Self {
            id: record.id.clone(),
            pod: pod.clone(),
            state: record.state.clone(),
            unread: false,
            config: Arc::clone(&record.config),
            resources: record.config.resources.clone(),
            image_id: record.image_id.clone(),
            image_ref: record.image_ref.clone(),
            image_name: record.image_name.clone(),
            created_at: record.created_at,
            cgroup: Some(record.cgroup.clone()),
            log_path: record.log_path.clone(),
            log_stalled: false,
            stop_signal: record.stop_signal,
            user: record.user.clone(),
            pid: None,
            process: record.process.clone(),
            raw_environment: record.raw_environment.clone(),
        }
    }
}

/// A sandbox and its containers at one moment.
#[derive(Clone)]
pub(crate) struct PodView {
    pub(crate) id: PodId,
    /// Grows with every transition of any pod; from the one writer.
    pub(crate) transition: u64,
    pub(crate) ready: bool,
    /// Why it is not ready, if it should be.
    pub(crate) reason: String,
    pub(crate) config: Arc<SandboxConfig>,
    pub(crate) handler: String,
    pub(crate) created_at: i64,
    /// Not known where its record cannot be read.
    pub(crate) cgroup: Option<CgroupPath>,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) ips: Vec<String>,
    pub(crate) monitor: Option<Monitor>,
    pub(crate) containers: Vec<Arc<ContainerView>>,
}

impl PodView {
    /// Whether another view says the same. Containers' views are replaced where they say
    /// something new.
    pub(crate) fn says_as(&self, other: &Self) -> bool {
        let Self {
            id,
            transition: _,
            ready,
            reason,
            config,
            handler,
            created_at,
            cgroup,
            netns,
            ips,
            monitor,
            containers,
        } = self;
        let mut pairs = containers.iter().zip(&other.containers);
        *id == other.id
            && *ready == other.ready
            && *reason == other.reason
            && Arc::ptr_eq(config, &other.config)
            && *handler == other.handler
            && *created_at == other.created_at
            && *cgroup == other.cgroup
            && *netns == other.netns
            && *ips == other.ips
            && monitor.is_some() == other.monitor.is_some()
            && containers.len() == other.containers.len()
            && pairs.all(|(one, other)| Arc::ptr_eq(one, other))
    }

    /// One of its containers.
    pub(crate) fn container(&self, id: &ContainerId) -> Option<&Arc<ContainerView>> {
        self.containers.iter().find(|container| container.id == *id)
    }
}
