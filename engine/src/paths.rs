//! Where things of a pod lie. All follows from its id and the configuration, so that what a
//! crash left is found by the id alone. Makes nothing.

use std::path::PathBuf;

use crate::context::Engine;
use crate::ids::PodId;
use crate::pod::record::PodDir;

impl Engine {
    /// The folder of a pod's records, below `--root`.
    pub(crate) fn pod_dir(&self, id: &PodId) -> PodDir {
        PodDir::new(&self.config.pods_dir(), id)
    }

    /// The folder of a pod's sockets and mounts, below `--state`.
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
