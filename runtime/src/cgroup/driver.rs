//! Who makes and removes the cgroups of pods and containers, and where: what differs
//! between the cgroupfs driver, which is here, and one that leaves it to systemd.
//!
//! With cgroupfs the engine makes every directory itself ([`Hierarchies`]). Where systemd
//! owns the tree, nobody else may make cgroups in it but below a unit that was delegated:
//! that driver asks for one scope per pod, and names, makes and gives back pods its own way.
//! Below the scope it is as with cgroupfs: limits, figures, killing and joining are files of
//! the kernel, whoever made the directory. So all that is a matter of one cgroup alone stays
//! with [`Cgroup`], which every driver hands out, and is no part of the trait.
//!
//! What that driver asks of systemd takes time, and is asked by [`Driver::systemd`]: see
//! [`Systemd`].
//!
//! The engine holds a `Box<dyn Driver>`. An enum of both drivers would forward each method
//! by hand and save an indirect call where at least one system call follows, a few times in
//! a pod's life; what is asked often, the figures of each container, is asked of `Cgroup`.
//!
//! A driver keeps nothing between calls: after a crash the paths in the records are enough.

use std::fmt::Debug;

use std::path::PathBuf;

use super::{Cgroup, CgroupError, CgroupPath, Counted, Hierarchies, Systemd, Version};

/// Which driver it is, which the kubelet's must be the same as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverKind {
    /// The engine makes all cgroups. A pod's parent is a path.
    Cgroupfs,
    /// systemd makes a scope for each pod. A pod's parent is the name of a slice.
    Systemd,
}

impl DriverKind {
    /// Its name in configurations.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

/// What the engine needs of the cgroups of pods and containers. All but the names may wait
/// for the kernel.
pub trait Driver: Debug + Send + Sync {
    /// Which one it is.
    fn kind(&self) -> DriverKind;

    /// What makes and ends the scopes that the cgroups of pods are in; `None` where there are
    /// none. With it a pod's scope is begun before [`Driver::make_pod`].
    fn systemd(&self) -> Option<&Systemd>;

    /// The parent of pods whose request names none.
    fn shared_parent(&self) -> CgroupPath;

    /// The layout of the hierarchies that are used.
    fn version(&self) -> Version;

    /// What this kernel counts of every cgroup of a container; asks it.
    fn counted(&self) -> Counted;

    /// The cgroup for the own processes of the pod `id`, whose cgroups go below `parent`.
    ///
    /// # Errors
    /// [`CgroupError::Path`]: the id cannot be the name of a cgroup.
    fn pod_path(&self, parent: &CgroupPath, id: &str) -> Result<CgroupPath, CgroupError>;

    /// The cgroup for the container `id` of the pod whose own is `pod`: never below that,
    /// since on v2 a cgroup with processes cannot hand controllers to its children.
    ///
    /// # Errors
    /// [`CgroupError::Path`]: the id cannot be the name of a cgroup.
    fn container_path(&self, pod: &CgroupPath, id: &str) -> Result<CgroupPath, CgroupError>;

    /// Makes the cgroup of a pod, at a path from [`Driver::pod_path`], and what of its
    /// parents is missing. One that exists is left as it is.
    ///
    /// # Errors
    /// A directory cannot be made, or what it cannot live without cannot be handed down;
    /// what was made by then stays, for [`Driver::remove`].
    fn make_pod(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError>;

    /// The same for a container, at a path from [`Driver::container_path`].
    ///
    /// # Errors
    /// As those of [`Driver::make_pod`].
    fn make_container(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError>;

    /// The files by which a pod's monitor joins its cgroup, see [`Cgroup::files_to_join`]:
    /// without those of hierarchies in which it is there already.
    fn files_of_pod(&self, cgroup: &Cgroup) -> Vec<PathBuf>;

    /// A handle of the cgroup at `path`, existing or not; does no I/O.
    fn open(&self, path: &CgroupPath) -> Cgroup;

    /// The cgroups of the pod or container `id`, wherever they are: for one whose path is
    /// not known any more.
    ///
    /// # Errors
    /// [`CgroupError::Read`]: a hierarchy cannot be looked through, there may be others.
    fn find(&self, id: &str) -> Result<Vec<Cgroup>, CgroupError>;

    /// Removes a cgroup without processes, with all below it, and the shared parent of
    /// Slipway's own if nothing else is in that. One that does not exist is no error.
    ///
    /// # Errors
    /// [`CgroupError::Remove`]: it holds processes (`EBUSY`), or the kernel refuses.
    fn remove(&self, cgroup: &Cgroup) -> Result<(), CgroupError>;

    /// Removes a parent of pods that are gone, if whoever made it has removed it already as
    /// far as he knows of it: see [`Cgroup::remove_orphaned`].
    ///
    /// # Errors
    /// [`CgroupError::Remove`]: the kernel refuses, for another reason than that it is used.
    fn remove_orphaned(&self, parent: &CgroupPath) -> Result<(), CgroupError>;
}

/// The cgroupfs driver: pods and containers side by side, as directories named by their ids.
impl Driver for Hierarchies {
    fn kind(&self) -> DriverKind {
        DriverKind::Cgroupfs
    }

    fn systemd(&self) -> Option<&Systemd> {
        None
    }

    fn shared_parent(&self) -> CgroupPath {
        CgroupPath::slipway()
    }

    fn files_of_pod(&self, cgroup: &Cgroup) -> Vec<PathBuf> {
        cgroup.files_to_join()
    }

    fn version(&self) -> Version {
        Self::version(self)
    }

    fn counted(&self) -> Counted {
        Self::counted(self)
    }

    fn pod_path(&self, parent: &CgroupPath, id: &str) -> Result<CgroupPath, CgroupError> {
        parent.child(id)
    }

    fn container_path(&self, pod: &CgroupPath, id: &str) -> Result<CgroupPath, CgroupError> {
        pod.sibling(id)
    }

    fn make_pod(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        self.create(path)
    }

    fn make_container(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        self.create(path)
    }

    fn open(&self, path: &CgroupPath) -> Cgroup {
        Self::open(self, path)
    }

    fn find(&self, id: &str) -> Result<Vec<Cgroup>, CgroupError> {
        Self::find(self, id)
    }

    fn remove(&self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        cgroup.remove()?;
        let shared = CgroupPath::slipway();
        if cgroup.path().parent().as_ref() == Some(&shared)
            && let Err(error) = Self::open(self, &shared).remove_if_empty()
        {
            tracing::debug!(%error, "the default cgroup stays");
        }
        Ok(())
    }

    fn remove_orphaned(&self, parent: &CgroupPath) -> Result<(), CgroupError> {
        Self::open(self, parent).remove_orphaned()
    }
}
