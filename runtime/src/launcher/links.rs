//! Links of an image that mounts must not follow.
//!
//! Owns the words for them and, for launchers whose mounts somebody else makes, the
//! look at the root filesystem before it is handed over. An image with `/proc ->
//! /dev/x` has procfs laid on another place, where no mask and no read-only path
//! meets it. Changes nothing.

use std::os::fd::BorrowedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Places of the kernel's filesystems.
const KERNELS: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Those that show the kernel itself: no link leads a volume there.
const SHOWN: [&str; 2] = ["/proc", "/sys"];

/// Words for a link where there must be none.
pub(crate) fn refused(path: &str) -> String {
    let above = match Path::new(path).components().count() {
        0..=2 => "",
        _ => ", or a directory above it,",
    };
    format!("the image's {path}{above} is a symbolic link")
}

/// Words for a link that leads a volume into what shows the kernel.
pub(crate) fn into_the_kernels(path: &str) -> String {
    format!("a symbolic link of the image leads {path} into /proc or /sys")
}

/// Whether a path is, by its text, at or below a place of the kernel's filesystems.
#[must_use]
pub fn is_kernels(path: &Path) -> bool {
    KERNELS.iter().any(|place| path.starts_with(place))
}

/// A path without dots; `..` takes the part before it away.
#[must_use]
pub fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// Looks at the places of mounts in a root filesystem in which none of them is yet.
/// `fresh` tells of a mount whether it hides what the image has below its place.
///
/// # Errors
/// Words for the first that a link leads away, or the kernel's answer.
pub fn check<'a>(
    rootfs: BorrowedFd<'_>,
    mounts: impl Iterator<Item = (&'a Path, bool)>,
) -> Result<(), String> {
    let mut hidden: Vec<PathBuf> = Vec::new();
    for (place, fresh) in mounts {
        let place = clean(place);
        // What the image has there is not seen any more.
        if !hidden.iter().any(|above| place.starts_with(above)) {
            look(rootfs, &place)?;
        }
        if fresh {
            hidden.push(place);
        }
    }
    Ok(())
}

fn look(rootfs: BorrowedFd<'_>, place: &Path) -> Result<(), String> {
    let name = place.display().to_string();
    match open(rootfs, place, ResolveFlags::NO_SYMLINKS) {
        Ok(_) => Ok(()),
        // Whoever makes it makes directories.
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(Errno::LOOP) if is_kernels(place) => Err(refused(&name)),
        Err(Errno::LOOP) => {
            let target = resolve(rootfs, place).map_err(|errno| format!("{name}: {errno}"))?;
            if SHOWN.iter().any(|place| target.starts_with(place)) {
                Err(into_the_kernels(&name))
            } else {
                Ok(())
            }
        }
        Err(errno) => Err(format!("{name}: {errno}")),
    }
}

fn open(
    rootfs: BorrowedFd<'_>,
    path: &Path,
    more: ResolveFlags,
) -> Result<std::os::fd::OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(rootfs, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Links on one way: as many as the kernel follows.
const MAX_LINKS: usize = 40;

/// Where a path leads, links and all, as text; what is missing is as it is written.
fn resolve(rootfs: BorrowedFd<'_>, path: &Path) -> Result<PathBuf, Errno> {
    let mut rest: Vec<std::ffi::OsString> = Vec::new();
    let push = |rest: &mut Vec<std::ffi::OsString>, path: &Path| {
        for part in path.components().rev() {
            match part {
                Component::Normal(name) => rest.push(name.to_owned()),
                Component::ParentDir => rest.push("..".into()),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
    };
    push(&mut rest, path);
    let mut here = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == ".." {
            here.pop();
            continue;
        }
        let next = here.join(&part);
        let above = match open(rootfs, &here, ResolveFlags::NO_SYMLINKS) {
            Ok(above) => above,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                here = next;
                continue;
            }
            Err(errno) => return Err(errno),
        };
        match rustix::fs::readlinkat(&above, part.as_os_str(), Vec::new()) {
            Ok(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target: PathBuf =
                    <std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(
                        target.into_bytes(),
                    )
                    .into();
                if target.is_absolute() {
                    here = PathBuf::from("/");
                }
                push(&mut rest, &target);
            }
            // It is none, or it is not there.
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => here = next,
            Err(errno) => return Err(errno),
        }
    }
    Ok(here)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::*;

    fn checked(links: &[(&str, &str)], mounts: &[(&str, bool)]) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        for (target, link) in links {
            let link = dir.path().join(link);
            std::fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(target, link).unwrap();
        }
        let rootfs = std::fs::File::open(dir.path()).unwrap();
        let mounts = mounts
            .iter()
            .map(|(place, fresh)| (Path::new(*place), *fresh));
        check(rootfs.as_fd(), mounts)
    }

    #[test]
    fn a_linked_place_of_the_kernels_is_named() {
        let kernels = [
            ("/proc", true),
            ("/dev", true),
            ("/dev/pts", true),
            ("/sys", true),
        ];
        for (link, words) in [
            ("proc", "the image's /proc is a symbolic link"),
            ("dev", "the image's /dev is a symbolic link"),
            ("sys", "the image's /sys is a symbolic link"),
        ] {
            assert_eq!(checked(&[("/x", link)], &kernels), Err(words.to_owned()));
        }
        // Hidden by the fresh /dev.
        assert_eq!(checked(&[("/x", "dev/pts")], &kernels), Ok(()));
    }

    #[test]
    fn a_volume_is_led_anywhere_but_into_the_kernels() {
        let volume = |links: &[(&str, &str)]| checked(links, &[("/data/in", false)]);
        assert_eq!(volume(&[("/run", "data")]), Ok(()));
        assert_eq!(volume(&[("../../..", "data")]), Ok(()));
        for target in ["/proc", "../proc/sys", "x"] {
            let links = [(target, "data"), ("/sys/kernel", "x")];
            let words = "a symbolic link of the image leads /data/in into /proc or /sys";
            assert_eq!(volume(&links), Err(words.to_owned()), "{target}");
        }
        assert!(volume(&[("data", "data")]).is_err());
    }
}
