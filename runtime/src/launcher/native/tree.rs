//! What a container's root is made of, while it is made.
//!
//! Owns the list of mounts that were attached. A path is looked for in the mount
//! that it belongs to by its text, from that mount's own descriptor: whatever links
//! an image has, and whatever lies above or over the place, a mask of /proc/kcore
//! meets the kernel's kcore or there is none.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use super::super::place::{Kind, Links, Root, below};

/// What filesystems of cgroups are told by, of version 1 and 2.
const CGROUPS: [rustix::fs::FsWord; 2] = [0x0027_e0eb, 0x6367_7270];

/// A mount that was attached.
#[derive(Debug)]
struct Attached<'a> {
    destination: &'a CStr,
    mount: Held<'a>,
    /// Whether it shows the kernel itself: no volume gets there by a link.
    kernels: bool,
}

/// A descriptor.
#[derive(Debug)]
pub(super) enum Held<'a> {
    /// Made here.
    Own(OwnedFd),
    /// Given by the monitor.
    Given(BorrowedFd<'a>),
}

impl AsFd for Held<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(own) => own.as_fd(),
            Self::Given(given) => given.as_fd(),
        }
    }
}

/// A container's root and what is mounted in it.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    root: Root<OwnedFd>,
    dev: Option<OwnedFd>,
    attached: Vec<Attached<'a>>,
}

impl<'a> Tree<'a> {
    /// The root of this process, with nothing mounted in it.
    pub(super) fn own() -> Result<Self, Errno> {
        Ok(Self {
            root: Root::own()?,
            dev: None,
            attached: Vec::new(),
        })
    }

    /// Takes note of a mount.
    pub(super) fn attached(&mut self, destination: &'a CStr, mount: Held<'a>, kernels: bool) {
        self.attached.push(Attached {
            destination,
            mount,
            kernels,
        });
    }

    /// The place of a mount. Links of the image lead a volume anywhere in the root
    /// but into the kernel's own filesystems (`EXDEV`).
    pub(super) fn place(&self, path: &CStr, kind: Kind, links: Links) -> Result<OwnedFd, Errno> {
        match self.root.place(path, kind, Links::Refused) {
            Err(Errno::LOOP) if links == Links::Followed => {
                let place = self.root.place(path, kind, Links::Followed)?;
                self.refuse_kernels(place.as_fd())?;
                Ok(place)
            }
            other => other,
        }
    }

    fn refuse_kernels(&self, place: BorrowedFd<'_>) -> Result<(), Errno> {
        // A hierarchy below the place where cgroups are is a mount of its own.
        if CGROUPS.contains(&rustix::fs::fstatfs(place)?.f_type) {
            return Err(Errno::XDEV);
        }
        let there = mount_id(place)?;
        for known in self.attached.iter().filter(|known| known.kernels) {
            if mount_id(known.mount.as_fd())? == there {
                return Err(Errno::XDEV);
            }
        }
        Ok(())
    }

    /// Finds what a path means. `None`: the mount that it belongs to lacks it.
    pub(super) fn find(&self, path: &CStr) -> Result<Option<OwnedFd>, Errno> {
        let found = match self.owner(path) {
            Some((mount, rest)) if rest.is_empty() => rustix::io::fcntl_dupfd_cloexec(mount, 3),
            Some((mount, rest)) => Root::of(mount).find(rest, Links::Followed),
            None => self.root.find(path, Links::Followed),
        };
        match found {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            other => other.map(Some),
        }
    }

    /// The directory of a path that is to be filled, made where it is missing, in
    /// the mount that it belongs to: no link leads away from it there.
    pub(super) fn directory(&self, path: &CStr) -> Result<OwnedFd, Errno> {
        match self.owner(path) {
            Some((mount, rest)) if rest.is_empty() => rustix::io::fcntl_dupfd_cloexec(mount, 3),
            Some((mount, rest)) => Root::of(mount).place(rest, Kind::Directory, Links::Refused),
            None => self.root.place(path, Kind::Directory, Links::Refused),
        }
    }

    /// The container's own /dev, to be filled.
    pub(super) fn take_dev(&mut self) -> Result<BorrowedFd<'_>, Errno> {
        self.dev = Some(self.directory(c"/dev")?);
        self.own_dev().ok_or(Errno::NOENT)
    }

    /// The container's own /dev with its nodes; `None`: it is a volume's.
    pub(super) fn own_dev(&self) -> Option<BorrowedFd<'_>> {
        self.dev.as_ref().map(AsFd::as_fd)
    }

    /// The mount at a path, if there is one.
    pub(super) fn mount_at(&self, path: &CStr) -> Option<BorrowedFd<'_>> {
        let (mount, rest) = self.owner(path)?;
        rest.is_empty().then_some(mount)
    }

    /// The last and nearest mount at or above a path, and the way from there.
    fn owner<'p>(&self, path: &'p CStr) -> Option<(BorrowedFd<'_>, &'p CStr)> {
        let above = self.attached.iter().rev().filter_map(|known| {
            let rest = below(path, known.destination)?;
            Some((known.mount.as_fd(), rest))
        });
        above.min_by_key(|(_, rest)| rest.to_bytes().len())
    }
}

/// Tells mounts apart.
fn mount_id(place: BorrowedFd<'_>) -> Result<u64, Errno> {
    let flags = AtFlags::EMPTY_PATH;
    let found = rustix::fs::statx(place, c"", flags, StatxFlags::MNT_ID)?;
    if found.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(Errno::NOSYS);
    }
    Ok(found.stx_mnt_id)
}
