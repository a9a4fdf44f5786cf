//! User namespaces that exist for their id mapping only.
//!
//! Owns a helper process for as long as a call lasts: it holds the namespace
//! until its mapping is written and a descriptor keeps it. A crash kills the
//! helper with the thread that made it.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use super::MountError;
use crate::sys::mount_attr::{MountAttr, mount_setattr};
use crate::sys::user_ns::Holder;

/// One line of an id mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMapping {
    /// First id inside.
    pub container_id: u32,
    /// First id outside.
    pub host_id: u32,
    /// How many.
    pub length: u32,
}

/// Makes a user namespace with these mappings, for [`super::BindOptions`].
/// Copies this process for a moment (34 µs per MB of its memory), so it
/// belongs where pods are made, not where requests are answered.
pub fn user_namespace(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd, MountError> {
    let failed = |step| move |source| MountError::UserNamespace { step, source };
    let holder = Holder::spawn().map_err(failed("start its first process"))?;
    map(holder.pid(), uids, gids)?;
    let file = File::open(format!("/proc/{}/ns/user", holder.pid())).map_err(failed("open it"))?;
    Ok(file.into())
}

/// Maps the ids of a process's user namespace, which has no mapping yet.
pub(crate) fn map(pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> Result<(), MountError> {
    let failed = |step| move |source| MountError::UserNamespace { step, source };
    let proc = format!("/proc/{pid}");
    fs::write(format!("{proc}/uid_map"), lines(uids)).map_err(failed("map user ids"))?;
    fs::write(format!("{proc}/gid_map"), lines(gids)).map_err(failed("map group ids"))
}

fn lines(mappings: &[IdMapping]) -> String {
    mappings
        .iter()
        .map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.length))
        .collect()
}

/// Whether the file system that holds `path` can be mounted with other ids:
/// tried on a detached clone of it.
pub fn supports_idmap(path: &Path) -> bool {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let Ok(tree) = open_tree(CWD, path, flags) else {
        return false;
    };
    let mapping = [IdMapping {
        container_id: 0,
        host_id: 65_536,
        length: 65_536,
    }];
    let Ok(user_ns) = user_namespace(&mapping, &mapping) else {
        return false;
    };
    let attr = MountAttr {
        set: MountAttrFlags::MOUNT_ATTR_IDMAP,
        user_ns: Some(user_ns.as_fd()),
        ..MountAttr::default()
    };
    mount_setattr(tree.as_fd(), &attr, false).is_ok()
}
