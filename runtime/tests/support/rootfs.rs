//! Root filesystems and mounts, detached as the engine hands them over.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

use super::binaries;

/// A root filesystem of BusyBox: an overlay over a tree that all tests share.
/// `dir` holds what the container changes, which belongs to root of the user namespace.
pub(crate) fn overlay(dir: &Path, user: Option<BorrowedFd<'_>>) -> OwnedFd {
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    for made in [&upper, &work] {
        std::fs::create_dir_all(made).unwrap();
    }
    let filesystem = rustix::mount::fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let mapped = user.map(|user| mapped(&base(), user));
    let lower = match &mapped {
        None => base(),
        Some(tree) => {
            let root = rustix::fs::fstat(tree).unwrap();
            std::os::unix::fs::chown(&upper, Some(root.st_uid), Some(root.st_gid)).unwrap();
            PathBuf::from(format!("/proc/self/fd/{}", tree.as_raw_fd()))
        }
    };
    let options = [
        ("lowerdir", lower),
        ("upperdir", upper),
        ("workdir", work),
        ("source", "o".into()),
    ];
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(filesystem.as_fd(), key, &value).unwrap();
    }
    mount(&filesystem)
}

/// A clone of what is at a path, with the ids of a user namespace.
fn mapped(path: &Path, user: BorrowedFd<'_>) -> OwnedFd {
    let options = runtime::mount::BindOptions {
        idmap: Some(user.try_clone_to_owned().unwrap()),
        ..Default::default()
    };
    runtime::mount::clone_tree(path, &options).unwrap()
}

/// An empty tmpfs.
pub(crate) fn detached_tmpfs() -> OwnedFd {
    mount(&rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap())
}

/// A clone of what is at a path, with its propagation.
pub(crate) fn bind_clone(path: &Path) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(CWD, path, flags).unwrap()
}

fn mount(filesystem: &OwnedFd) -> OwnedFd {
    rustix::mount::fsconfig_create(filesystem.as_fd()).unwrap();
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    rustix::mount::fsmount(filesystem.as_fd(), flags, MountAttrFlags::empty()).unwrap()
}

/// The tree, made once per test process.
fn base() -> PathBuf {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    MADE.get_or_init(make_base).path().to_owned()
}

fn make_base() -> tempfile::TempDir {
    let base = tempfile::tempdir_in(binaries::target_dir()).unwrap();
    std::fs::set_permissions(&base, PermissionsExt::from_mode(0o755)).unwrap();
    for dir in ["bin", "dev", "etc", "home", "proc", "sys", "tmp"] {
        std::fs::create_dir(base.path().join(dir)).unwrap();
    }
    std::fs::set_permissions(base.path().join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    std::fs::copy(binaries::busybox(), base.path().join("bin/busybox")).unwrap();
    let list = std::process::Command::new(binaries::busybox())
        .arg("--list")
        .output()
        .unwrap();
    for applet in String::from_utf8(list.stdout)
        .unwrap()
        .lines()
        .filter(|name| *name != "busybox")
    {
        symlink("busybox", base.path().join("bin").join(applet)).unwrap();
    }
    base
}
