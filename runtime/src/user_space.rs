//! User namespaces in which processes are made.
//!
//! Owns the way in: a process that has entered one has every privilege there and none
//! elsewhere, so that whatever needs the node's comes before.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::LinkNameSpaceType;

/// A user namespace to make processes in, and which ids of the node its ids are.
#[derive(Debug)]
pub struct UserSpace {
    namespace: OwnedFd,
    first: u32,
    length: u32,
}

impl UserSpace {
    /// A namespace whose ids from 0 on are `length` of the node, from `first` on.
    #[must_use]
    pub fn new(namespace: OwnedFd, first: u32, length: u32) -> Self {
        Self {
            namespace,
            first,
            length,
        }
    }

    /// Its namespace, and the range of ids.
    #[must_use]
    pub fn parts(&self) -> (BorrowedFd<'_>, u32, u32) {
        (self.namespace.as_fd(), self.first, self.length)
    }

    /// Another one of the same namespace.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn again(&self) -> Result<Self, Errno> {
        let namespace = rustix::io::fcntl_dupfd_cloexec(&self.namespace, 3)?;
        Ok(Self::new(namespace, self.first, self.length))
    }

    /// Which id of the node an id of the namespace is; `None`: it is none.
    #[must_use]
    pub fn on_node(&self, id: u32) -> Option<u32> {
        self.first.checked_add(id).filter(|_| id < self.length)
    }

    /// Which ids of the node its root is.
    #[must_use]
    pub fn root(&self) -> (Uid, Gid) {
        (Uid::from_raw(self.first), Gid::from_raw(self.first))
    }

    /// The highest of its ids up to this one.
    #[must_use]
    pub fn highest(&self, most: u32) -> u32 {
        most.min(self.length.saturating_sub(1))
    }

    /// Enters the namespace as its root. The process has every privilege there, and none
    /// elsewhere.
    ///
    /// # Errors
    /// The kernel's answer; `EINVAL`: the process has more than one thread.
    pub fn enter(&self) -> Result<(), Errno> {
        let kind = Some(LinkNameSpaceType::User);
        rustix::thread::move_into_link_name_space(self.namespace.as_fd(), kind)?;
        become_root()
    }
}

/// Becomes root of the user namespace that this process has entered: until then it has
/// ids of the node, which own nothing here.
pub(crate) fn become_root() -> Result<(), Errno> {
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}
