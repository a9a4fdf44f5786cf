//! The proc filesystem of a pid namespace that others live in.
//!
//! The kernel makes one for the pid namespace of whoever asks, so that a process with
//! every privilege would have to live where a container's tracer sees it. Instead one is
//! made while nobody but the pod's init lives there, and kept in a mount namespace that
//! only the monitor holds; a container's is a clone of it. For the pid namespace of
//! another container it is a clone of what that container has on /proc, if that is what
//! it should be.
//!
//! Owns making, keeping and cloning it. A crash of the monitor leaves nothing: the mount
//! namespace ends with its last descriptor.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::thread::LinkNameSpaceType;
use rustix::time::Timespec;

use crate::sys::fork::{self, NewNamespaces};

/// How long making one may take.
const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};
/// What all proc filesystems are told by.
const MAGIC: rustix::fs::FsWord = 0x9fa0;
/// The number of a proc filesystem's root.
const ROOT: u64 = 1;

/// Device and number of a namespace.
pub(super) type Identity = (u64, u64);

/// Tells namespaces apart.
pub(super) fn identity(namespace: BorrowedFd<'_>) -> Result<Identity, Errno> {
    rustix::fs::fstat(namespace).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Makes a mount namespace with nothing but the proc filesystem of a pid namespace, in
/// which nobody lives who may trace others.
pub(super) fn keep(pid_namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let (ready, report) = rustix::pipe::pipe()?;
    let new = NewNamespaces {
        mount: true,
        ..NewNamespaces::default()
    };
    let holder = fork::spawn(new, || {
        if hold(pid_namespace).is_ok() && rustix::io::write(&report, b"r") == Ok(1) {
            // Until it is killed.
            let _never = rustix::event::poll(&mut [], None);
        }
        1
    })?;
    drop(report);
    let mut wanted = [PollFd::new(&ready, PollFlags::IN)];
    let polled = rustix::io::retry_on_intr(|| rustix::event::poll(&mut wanted, Some(&PATIENCE)));
    let kept = if polled == Ok(1) && rustix::io::read(&ready, &mut [0; 1]) == Ok(1) {
        let path = format!("/proc/{}/ns/mnt", holder.pid.as_raw_nonzero());
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    } else {
        Err(Errno::CHILD)
    };
    // Reaped with all other children.
    rustix::process::pidfd_send_signal(&holder.pidfd, Signal::KILL)?;
    kept
}

/// Makes the proc filesystem the root of this process's mount namespace.
fn hold(pid_namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    let everything = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", everything)?;
    let kind = Some(LinkNameSpaceType::ProcessID);
    rustix::thread::move_into_link_name_space(pid_namespace, kind)?;
    let maker = fork::spawn(NewNamespaces::default(), || u8::from(mount().is_err()))?;
    let ended = rustix::process::waitid(WaitId::PidFd(maker.pidfd.as_fd()), WaitIdOptions::EXITED)?;
    if ended.and_then(|ended| ended.exit_status()) != Some(0) {
        return Err(Errno::CHILD);
    }
    rustix::process::chdir(c"/proc")?;
    rustix::process::pivot_root(c".", c".")?;
    // The old root lies on top of the new one now.
    rustix::mount::unmount(c".", UnmountFlags::DETACH)
}

/// Lays a proc filesystem over /proc.
fn mount() -> Result<(), Errno> {
    let context = rustix::mount::fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let made = rustix::mount::fsmount(context.as_fd(), flags, attributes)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&made, c"", CWD, c"/proc", flags)
}

/// Clones, for each that is wanted, the proc filesystem of a pid namespace out of a mount
/// namespace that has it at its root or on /proc. This process comes back to its own.
pub(super) fn clones(
    mounts: BorrowedFd<'_>,
    pid_namespace: BorrowedFd<'_>,
    wanted: usize,
) -> Result<Vec<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = rustix::fs::open(c"/proc/self/ns/mnt", flags, Mode::empty())?;
    let expected = identity(pid_namespace)?;
    let enter = |namespace: BorrowedFd<'_>| {
        rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount))
    };
    enter(mounts)?;
    let clones = (0..wanted).map(|_| match clone(c"/", expected) {
        Err(Errno::NODEV) => clone(c"/proc", expected),
        other => other,
    });
    let clones = clones.collect();
    enter(own.as_fd())?;
    clones
}

/// Clones what is at a path; `ENODEV`: it is not the root of a proc filesystem of this
/// pid namespace.
fn clone(path: &CStr, expected: Identity) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = rustix::mount::open_tree(CWD, path, flags)?;
    if rustix::fs::fstatfs(&tree)?.f_type != MAGIC || rustix::fs::fstat(&tree)?.st_ino != ROOT {
        return Err(Errno::NODEV);
    }
    let first = rustix::fs::statat(&tree, c"1/ns/pid", AtFlags::empty())?;
    if (first.st_dev, first.st_ino) == expected {
        Ok(tree)
    } else {
        Err(Errno::NODEV)
    }
}
