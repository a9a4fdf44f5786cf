//! What older kernels do only with mounts that are attached: stacks of many layers, and
//! clones of a part of a mount.
//!
//! fsconfig takes no string above 255 bytes, which is fourteen layers or so;
//! mount(2) takes a page. It needs a place in the node's mount table, for a
//! moment: a directory that is a private mount of its own, so that nobody else
//! gets to see what is mounted there. The mount that is returned is a clone, and
//! attached nowhere. A crash in that moment leaves mounts at the place, which the
//! next mount or start takes away.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_bind, mount_change, move_mount, open_tree, unmount,
};

use super::{Keep, OverlayError, Stack, forget_volatile, plain, plain_io};

/// What mount(2) takes, its final zero included.
const PAGE: usize = 4096;
/// What one layer takes of it, by a descriptor of four digits and a colon.
const PER_LAYER: usize = "/proc/self/fd/1000:".len();
/// What the rest takes.
const REST: usize = 160;

/// Layers that fit.
pub(super) const LAYERS: usize = (PAGE - REST) / PER_LAYER;

/// Held while something is mounted at the place: there is one.
static PLACE: Mutex<()> = Mutex::new(());

/// Clones what is below a detached mount, at `part`, a descriptor of a file or directory
/// in it.
pub(crate) fn clone_below(
    mount: &OwnedFd,
    part: &OwnedFd,
    place: &Path,
) -> Result<OwnedFd, OverlayError> {
    match clone_part(part) {
        // Before Linux 6.15 only what is attached is cloned.
        Err(Errno::INVAL) => clone_attached(mount, part, place),
        other => other.map_err(|e| plain("clone a part of the mount", e)),
    }
}

fn clone_part(part: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(part, c"", flags)
}

fn clone_attached(mount: &OwnedFd, part: &OwnedFd, place: &Path) -> Result<OwnedFd, OverlayError> {
    let _one = PLACE.lock().unwrap_or_else(PoisonError::into_inner);
    clear(place)?;
    mount_bind(place, place).map_err(|e| plain("mount the place for mounts", e))?;
    let cloned = attach_private(mount, place)
        .and_then(|()| clone_part(part).map_err(|e| plain("clone a part of the mount", e)));
    clear(place)?;
    cloned
}

fn attach_private(mount: &OwnedFd, place: &Path) -> Result<(), OverlayError> {
    mount_change(place, MountPropagationFlags::PRIVATE)
        .map_err(|e| plain("make the place for mounts private", e))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mount, c"", CWD, place, flags).map_err(|e| plain("attach the mount for a moment", e))
}

/// Mounts the stack by way of the directory `place`.
pub(super) fn mount_by_page(stack: &Stack<'_>, place: &Path) -> Result<OwnedFd, OverlayError> {
    let mut keep = Keep::default();
    let options = options(stack, &mut keep)?;
    let _one = PLACE.lock().unwrap_or_else(PoisonError::into_inner);
    clear(place)?;
    mount_bind(place, place).map_err(|e| plain("mount the place for mounts", e))?;
    let mounted = mount_private(place, &options, stack.upper.is_none());
    clear(place)?;
    mounted
}

/// Takes away what is mounted at the place, if anything.
pub(crate) fn clear(place: &Path) -> Result<(), OverlayError> {
    loop {
        match unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there, or there is no such place.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(e) => return Err(plain("clear the place for mounts", e)),
        }
    }
}

fn mount_private(
    place: &Path,
    options: &CString,
    read_only: bool,
) -> Result<OwnedFd, OverlayError> {
    mount_change(place, MountPropagationFlags::PRIVATE)
        .map_err(|e| plain("make the place for mounts private", e))?;
    let flags = if read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    mount("overlay", place, "overlay", flags, Some(options.as_c_str()))
        .map_err(|e| plain("mount the overlay", e))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, place, flags).map_err(|e| plain("clone the overlay's mount", e))
}

fn options(stack: &Stack<'_>, keep: &mut Keep) -> Result<CString, OverlayError> {
    let mut out = b"index=off,metacopy=off".to_vec();
    if let Some((upper, work)) = stack.upper {
        forget_volatile(work).map_err(|e| plain_io("prepare the work directory", e))?;
        for (key, path) in [(&b",volatile,upperdir="[..], upper), (b",workdir=", work)] {
            out.extend_from_slice(key);
            out.extend_from_slice(&keep.by_descriptor(path)?);
        }
    }
    out.extend_from_slice(b",lowerdir=");
    out.extend_from_slice(&lowers(stack.lowers, keep)?);
    if out.len() >= PAGE {
        let step = format!(
            "stack {} layers, which takes Linux 6.8 or later (about {LAYERS} do without)",
            stack.lowers.len()
        );
        return Err(plain(&step, Errno::NAMETOOLONG));
    }
    CString::new(out).map_err(|_| plain("name the layers", Errno::INVAL))
}

/// The layers as one text; paths by descriptor are short and hold no colon.
pub(super) fn lowers(lowers: &[PathBuf], keep: &mut Keep) -> Result<Vec<u8>, OverlayError> {
    let mut value = Vec::new();
    for lower in lowers {
        if !value.is_empty() {
            value.push(b':');
        }
        value.extend_from_slice(&keep.by_descriptor(lower)?);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::fs::{Mode, OFlags};

    use super::*;

    #[test]
    fn a_part_is_cloned_by_way_of_the_place_and_leaves_no_mount() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let dir = dir.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            dir
        };
        let (layer, empty, place) = (make("layer"), make("empty"), make("place"));
        std::fs::create_dir(layer.join("below")).unwrap();
        std::fs::write(layer.join("below/here"), "x").unwrap();
        let stack = Stack {
            lowers: &[layer, empty],
            upper: None,
            place: &place,
        };
        for clone in [clone_attached, clone_below] {
            let mount = super::super::mount(&stack).unwrap();
            let part = rustix::fs::openat(&mount, "below", OFlags::PATH, Mode::empty()).unwrap();
            let cloned = clone(&mount, &part, &place).unwrap();
            drop((mount, part));
            let root = PathBuf::from(format!("/proc/self/fd/{}", cloned.as_raw_fd()));
            assert_eq!(std::fs::read_to_string(root.join("here")).unwrap(), "x");
            let error = std::fs::write(root.join("new"), "x").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        }
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(place.to_str().unwrap()), "{table}");
    }
}
