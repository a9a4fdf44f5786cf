//! The namespaces of a pod that has a user namespace, which owns the others.
//!
//! They are made in one helper process, in the order in which the kernel finds an owner
//! for everything: the user namespace, its mapping, the others. What keeps the user
//! namespace is the pin of the network namespace that it owns: whoever opens that asks
//! the kernel for the owner ([`owner_of_network`]), so that nothing else has to be
//! pinned or given back. A crash before the pin leaves nothing.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use super::{NetNs, NetNsError, netlink, on_thread, parent, prepare_dir};
use crate::mount::idmap::map;
use crate::mount::{IdMapping, MountError};
use crate::sys::user_ns::{Owner, owner_of};

/// The namespaces of a pod that its user namespace owns.
#[derive(Debug)]
pub struct PodNamespaces {
    /// The user namespace.
    pub user: OwnedFd,
    /// Its IPC namespace.
    pub ipc: OwnedFd,
    /// Its UTS namespace, with the node's name until it is set.
    pub uts: OwnedFd,
}

impl PodNamespaces {
    /// Makes them, with the same mapping for users and groups, and with a network whose
    /// loopback is up, which is pinned at `pin`. Copies this process for a moment, as
    /// [`crate::mount::user_namespace`] does; blocks.
    ///
    /// # Errors
    /// Something is pinned there already, or the kernel's answer.
    pub fn pinned(ids: IdMapping, pin: &Path) -> Result<Self, NetNsError> {
        prepare_dir(parent(pin))?;
        let (made, network) = Self::make(ids)?;
        let raised = on_thread("netns-owned", || {
            setns(&network, CloneFlags::CLONE_NEWNET)?;
            netlink::loopback_up()
        });
        raised
            .and_then(|raised| raised)
            .map_err(|source| NetNsError::Create {
                step: "bring lo up",
                source,
            })?;
        NetNs::pin(&network, pin)?;
        Ok(made)
    }

    fn make(ids: IdMapping) -> Result<(Self, OwnedFd), MountError> {
        let failed = |step| move |source| MountError::UserNamespace { step, source };
        let others = libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET;
        let owner = Owner::spawn(others).map_err(failed("start its first process"))?;
        map(owner.pid(), &[ids], &[ids])?;
        owner.make().map_err(failed("make what it owns"))?;
        let open = |name: &str| {
            let file = File::open(format!("/proc/{}/ns/{name}", owner.pid()));
            file.map(OwnedFd::from).map_err(failed("open it"))
        };
        let made = Self {
            user: open("user")?,
            ipc: open("ipc")?,
            uts: open("uts")?,
        };
        Ok((made, open("net")?))
    }
}

/// The user namespace that owns a pinned network namespace.
///
/// # Errors
/// The kernel's answer; `ENOTTY`: no namespace is pinned there.
pub fn owner_of_network(pin: &Path) -> std::io::Result<OwnedFd> {
    let network = File::open(pin)?;
    Ok(owner_of(network.as_fd())?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::tests::Pins;
    use super::*;

    const IDS: IdMapping = IdMapping {
        container_id: 0,
        host_id: 500_000,
        length: 65_536,
    };

    #[test]
    fn the_pin_of_a_network_keeps_the_user_namespace_that_owns_it() {
        let pins = Pins::new();
        let pin = pins.path("one");
        let made = PodNamespaces::pinned(IDS, &pin).unwrap();
        let number = |file: &OwnedFd| rustix::fs::fstat(file).unwrap().st_ino;
        let (own, ipc) = (number(&made.user), owner_of(made.ipc.as_fd()).unwrap());
        assert_eq!(number(&ipc), own);
        assert_eq!(number(&owner_of(made.uts.as_fd()).unwrap()), own);
        drop((made, ipc));
        assert_eq!(number(&owner_of_network(&pin).unwrap()), own);
        let nodes = std::fs::metadata("/proc/self/ns/user").unwrap();
        assert_ne!(nodes.ino(), own);
        let again = PodNamespaces::pinned(IDS, &pin).unwrap_err();
        assert!(matches!(again, NetNsError::Exists { .. }), "{again}");
        NetNs::unpin(&pin).unwrap();
        owner_of_network(&pin).unwrap_err();
    }
}
