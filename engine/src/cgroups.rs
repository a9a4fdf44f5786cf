//! The cgroups of pods and containers: their names, and the parents that are left over.
//!
//! Makes and removes none itself: that is the driver's ([`runtime::cgroup::Driver`]).

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use runtime::cgroup::{CgroupPath, Driver, Version};

use crate::context::Engine;
use crate::ids::{ContainerId, PodId};
use crate::model::CgroupParent;
use crate::pod::error::PodError;

impl Engine {
    /// The cgroup of a pod's own processes.
    pub(crate) fn pod_cgroup(
        &self,
        parent: &CgroupParent,
        id: &PodId,
    ) -> Result<CgroupPath, PodError> {
        let path = self
            .cgroups
            .pod_path(&parent.path(&*self.cgroups), id.as_str());
        path.map_err(|error| PodError::runtime(format!("name the cgroup of pod {id}"), error))
    }

    /// The cgroup of a container in the pod whose own cgroup is `pod`.
    pub(crate) fn container_cgroup(
        &self,
        pod: &CgroupPath,
        id: &ContainerId,
    ) -> Result<CgroupPath, PodError> {
        let path = self.cgroups.container_path(pod, id.as_str());
        path.map_err(|error| PodError::runtime(format!("name the cgroup of container {id}"), error))
    }

    /// Whether pods are in the unified hierarchy only.
    pub(crate) fn unified(&self) -> bool {
        matches!(self.cgroups.version(), Version::V2)
    }
}

/// The parents of cgroups of pods that are gone, which may be left over: where v1 and a
/// v2 tree stand side by side, the kubelet removes a pod's cgroup from the v1
/// hierarchies only, and some time after the pod. One that lives on, as that of all pods
/// does, is noted once, however many pods come and go.
#[derive(Default)]
pub(crate) struct LeftParents(Mutex<HashSet<CgroupPath>>);

impl LeftParents {
    /// Notes that of a pod that was stopped.
    pub(crate) fn note(&self, parent: CgroupPath) {
        self.noted().insert(parent);
    }

    fn noted(&self) -> MutexGuard<'_, HashSet<CgroupPath>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the parents that only the v2 tree still has, and forgets those that are gone.
    pub(crate) fn sweep(&self, driver: &dyn Driver) {
        let all: Vec<CgroupPath> = self.noted().iter().cloned().collect();
        for parent in all {
            if let Err(error) = driver.remove_orphaned(&parent) {
                tracing::warn!(%parent, %error, "the parent of a pod's cgroup stays");
            }
            if !driver.open(&parent).exists() {
                self.noted().remove(&parent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_of_many_pods_that_come_and_go_is_noted_once() {
        let parents = LeftParents::default();
        for _ in 0..1500 {
            parents.note(CgroupPath::slipway());
        }
        let pod = "/kubepods/besteffort/pod1".parse().expect("path");
        parents.note(pod);
        let noted = parents.noted();
        assert_eq!(noted.len(), 2, "{noted:?}");
    }
}
