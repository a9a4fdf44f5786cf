//! /dev of a container: nodes, links, the terminal.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::super::place::{Kind, Links, Root, below};
use super::mounts::{self, bind_file, node_of};
use super::prepare::{Device, Prepared, What};
use super::tree::Tree;
use crate::terminal::Terminal;
use crate::user_space::UserSpace;

/// Nodes that every container has: null, zero, full, random, urandom, tty.
const NODES: [(&CStr, u32, u32); 6] = [
    (c"null", 1, 3),
    (c"zero", 1, 5),
    (c"full", 1, 7),
    (c"random", 1, 8),
    (c"urandom", 1, 9),
    (c"tty", 5, 0),
];

/// Links that every container has: name and where it leads.
const LINKS: [(&CStr, &CStr); 5] = [
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"ptmx", c"pts/ptmx"),
];
/// The same where the kernel has what it leads to.
const CORE: (&CStr, &CStr) = (c"core", c"/proc/kcore");

/// Takes the container's own /dev and makes the nodes that every container has, unless
/// they are there.
pub(super) fn fill(tree: &mut Tree<'_>, missing: bool) -> Result<(), Errno> {
    let dev = tree.take_dev()?;
    if !missing {
        return Ok(());
    }
    let mode = Mode::from_raw_mode(0o666);
    for (name, major, minor) in NODES {
        let number = rustix::fs::makedev(major, minor);
        make_node(dev, name, (FileType::CharacterDevice, mode), number)?;
    }
    Ok(())
}

/// Makes a filesystem for /dev with all of its nodes, which belong to a user namespace:
/// one that is made in there has no devices.
pub(super) fn make_outside(prepared: &Prepared, space: &UserSpace) -> Result<OwnedFd, Errno> {
    let own = prepared.mounts.iter().find(|mount| mount.is_own_dev());
    let own = own.ok_or(Errno::NOENT)?;
    let What::Filesystem {
        kind,
        source,
        parameters,
    } = &own.what
    else {
        return Err(Errno::INVAL);
    };
    let (uid, gid) = space.root();
    let number = |id: u32| CString::new(id.to_string()).map_err(|_| Errno::INVAL);
    let mut parameters = parameters.clone();
    parameters.push((c"uid".to_owned(), Some(number(uid.as_raw())?)));
    parameters.push((c"gid".to_owned(), Some(number(gid.as_raw())?)));
    let made = mounts::new_filesystem(kind, source, &parameters, own.top.set)?;
    let dev = made.as_fd();
    let root = (Some(uid), Some(gid));
    let own = |parent: BorrowedFd<'_>, name: &CStr, (uid, gid): (Option<Uid>, Option<Gid>)| {
        rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    };
    let mode = Mode::from_raw_mode(0o666);
    for (name, major, minor) in NODES {
        let number = rustix::fs::makedev(major, minor);
        make_node(dev, name, (FileType::CharacterDevice, mode), number)?;
        own(dev, name, root)?;
    }
    for device in &prepared.devices {
        let rest = below(&device.parent, c"/dev").ok_or(Errno::INVAL)?;
        let parent = directories(dev, rest, |dir, name| own(dir, name, root))?;
        let (parent, name) = (parent.as_fd(), device.name.as_c_str());
        make_node(parent, name, (device.kind, device.mode), device.number)?;
        // An id of the node that the namespace has not is its root's there.
        let uid = space.on_node(device.owner.0.as_raw()).map(Uid::from_raw);
        let gid = space.on_node(device.owner.1.as_raw()).map(Gid::from_raw);
        own(parent, name, (uid.or(root.0), gid.or(root.1)))?;
        rustix::fs::chmodat(parent, name, device.mode, AtFlags::empty())?;
    }
    Ok(made)
}

/// Makes the directories of a path, in a filesystem that nobody else has seen.
fn directories(
    top: BorrowedFd<'_>,
    path: &CStr,
    own: impl Fn(BorrowedFd<'_>, &CStr) -> Result<(), Errno>,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here = rustix::io::fcntl_dupfd_cloexec(top, 3)?;
    let parts = path.to_bytes().split(|byte| *byte == b'/');
    for part in parts.filter(|part| !part.is_empty()) {
        let name = CString::new(part).map_err(|_| Errno::INVAL)?;
        match rustix::fs::mkdirat(&here, &name, Mode::from_raw_mode(0o755)) {
            Ok(()) => own(here.as_fd(), &name)?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        here = rustix::fs::openat(&here, &name, flags, Mode::empty())?;
    }
    Ok(here)
}

/// Makes the links that every container has, when all nodes are there: the
/// node ptmx of a host would give terminals of the host's.
pub(super) fn link(tree: &Tree<'_>) -> Result<(), Errno> {
    let dev = tree.own_dev().ok_or(Errno::NOENT)?;
    let core = tree.find(CORE.1)?.map(|_| CORE);
    for (name, target) in LINKS.into_iter().chain(core) {
        let linked = rustix::fs::symlinkat(target, dev, name);
        match linked {
            Err(Errno::EXIST) if name == c"ptmx" => {
                match rustix::fs::unlinkat(dev, name, AtFlags::empty()) {
                    Ok(()) => rustix::fs::symlinkat(target, dev, name)?,
                    // A volume's.
                    Err(Errno::BUSY) => {}
                    Err(errno) => return Err(errno),
                }
            }
            // An image's own, or a volume's.
            Err(Errno::EXIST) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Makes a node that was asked for.
pub(super) fn make(tree: &Tree<'_>, device: &Device) -> Result<(), Errno> {
    let parent = tree.directory(&device.parent)?;
    let (parent, name) = (parent.as_fd(), device.name.as_c_str());
    let (uid, gid) = device.owner;
    make_node(parent, name, (device.kind, device.mode), device.number)?;
    rustix::fs::chownat(
        parent,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    // Changing the owner takes set-id bits away, and it may have been there.
    rustix::fs::chmodat(parent, name, device.mode, AtFlags::empty())
}

/// One that is there already must be the same.
fn make_node(
    parent: BorrowedFd<'_>,
    name: &CStr,
    (kind, mode): (FileType, Mode),
    number: u64,
) -> Result<(), Errno> {
    match rustix::fs::mknodat(parent, name, kind, mode, number) {
        Err(Errno::EXIST) if node_of(parent, name)? == (kind.as_raw_mode(), number) => Ok(()),
        other => other,
    }
}

/// Opens a terminal in the container's devpts; `console`: shows it as
/// /dev/console, too.
pub(super) fn open_terminal(tree: &Tree<'_>, owner: Uid, console: bool) -> Result<Terminal, Errno> {
    // A volume on /dev has the terminals of whoever filled it.
    let volumes = match tree.mount_at(c"/dev/pts") {
        Some(_) => None,
        None => Some(tree.directory(c"/dev/pts")?),
    };
    let terminals = volumes.as_ref().map(AsFd::as_fd);
    let terminals = terminals.or(tree.mount_at(c"/dev/pts"));
    let terminals = terminals.ok_or(Errno::NOENT)?;
    let terminal = Terminal::open(terminals, owner)?;
    if let Some(dev) = tree.own_dev().filter(|_| console) {
        let place = Root::of(dev).place(c"/console", Kind::File, Links::Refused)?;
        let name = rustix::pty::ptsname(&terminal.master, Vec::new())?;
        let number = name.to_bytes().rsplit(|byte| *byte == b'/').next();
        let number = CString::new(number.unwrap_or_default());
        let number = number.map_err(|_| Errno::INVAL)?;
        let file = Root::of(terminals).find(&number, Links::Refused)?;
        bind_file(file.as_fd(), place.as_fd())?;
    }
    Ok(terminal)
}
