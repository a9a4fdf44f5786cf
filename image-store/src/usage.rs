//! What a directory tree occupies.
//!
//! Walks by descriptors and follows no link: the tree belongs to a container
//! that may change it meanwhile, so what vanishes on the way is left out.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

const MAX_DEPTH: usize = 512;

/// Bytes and inodes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files, directories and the rest.
    pub inodes: u64,
}

/// Adds up a tree.
pub(crate) fn usage(path: &Path) -> Result<Usage, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&top)?;
    let mut total = Usage {
        bytes: blocks(stat.st_blocks),
        inodes: 1,
    };
    add(&top, &mut total, &mut HashSet::new(), 0)?;
    Ok(total)
}

fn blocks(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0) * 512
}

fn add(
    dir: &OwnedFd,
    total: &mut Usage,
    seen: &mut HashSet<(u64, u64)>,
    depth: usize,
) -> Result<(), Errno> {
    for item in Dir::read_from(dir)? {
        let item = item?;
        let name = item.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e),
        };
        if stat.st_nlink > 1
            && FileType::from_raw_mode(stat.st_mode) != FileType::Directory
            && !seen.insert((stat.st_dev, stat.st_ino))
        {
            continue;
        }
        total.inodes += 1;
        total.bytes += blocks(stat.st_blocks);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && depth < MAX_DEPTH {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(dir, name, flags, Mode::empty()) {
                Ok(sub) => add(&sub, total, seen, depth + 1)?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hard_links_count_once_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("sub")).unwrap();
        std::fs::write(dir.path().join("outside"), vec![1; 1 << 20]).unwrap();
        std::fs::write(tree.join("a"), vec![1; 10_000]).unwrap();
        std::fs::hard_link(tree.join("a"), tree.join("sub/b")).unwrap();
        std::os::unix::fs::symlink("../..", tree.join("sub/up")).unwrap();
        let got = usage(&tree).unwrap();
        assert_eq!(got.inodes, 4);
        assert!(got.bytes < 100_000, "{got:?}");
    }
}
