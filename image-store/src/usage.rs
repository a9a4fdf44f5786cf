//! What a directory tree occupies.
//!
//! Walks by descriptors and follows no link: the tree belongs to a container
//! that may change it meanwhile, so what vanishes on the way is left out.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

const MAX_DEPTH: usize = 512;
/// Files with several names that are remembered. Of further ones each name counts
/// for its share, which is the same where all names are in the tree.
const MAX_SEEN: usize = 1 << 16;

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
    usage_with(path, MAX_SEEN)
}

fn usage_with(path: &Path, remembered: usize) -> Result<Usage, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&top)?;
    let mut walk = Walk {
        total: Usage {
            bytes: blocks(stat.st_blocks),
            inodes: 1,
        },
        shares: 0,
        seen: HashSet::new(),
        remembered,
    };
    walk.add(&top, 0)?;
    walk.total.inodes += walk.shares >> SHARE_BITS;
    Ok(walk.total)
}

fn blocks(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0) * 512
}

/// Shares of an inode are counted in this many bits after the point.
const SHARE_BITS: u32 = 20;

struct Walk {
    total: Usage,
    /// Inodes of which each name counts for a part.
    shares: u64,
    seen: HashSet<(u64, u64)>,
    remembered: usize,
}

impl Walk {
    fn add(&mut self, dir: &OwnedFd, depth: usize) -> Result<(), Errno> {
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
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            self.count(&stat, is_dir);
            if is_dir && depth < MAX_DEPTH {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(dir, name, flags, Mode::empty()) {
                    Ok(sub) => self.add(&sub, depth + 1)?,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, stat: &Stat, is_dir: bool) {
        let bytes = blocks(stat.st_blocks);
        if stat.st_nlink > 1 && !is_dir {
            let inode = (stat.st_dev, stat.st_ino);
            if self.seen.contains(&inode) {
                return;
            }
            if self.seen.len() >= self.remembered {
                #[expect(
                    clippy::useless_conversion,
                    reason = "the type is another one elsewhere"
                )]
                let names = u64::from(stat.st_nlink);
                self.total.bytes += bytes / names;
                self.shares += (1 << SHARE_BITS) / names;
                return;
            }
            self.seen.insert(inode);
        }
        self.total.inodes += 1;
        self.total.bytes += bytes;
    }
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

    #[test]
    fn files_with_several_names_that_are_not_remembered_count_by_their_share() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..64 {
            let first = dir.path().join(format!("a{i}"));
            std::fs::write(&first, vec![1; 8192]).unwrap();
            std::fs::hard_link(&first, dir.path().join(format!("b{i}"))).unwrap();
        }
        let whole = usage(dir.path()).unwrap();
        assert_eq!(whole.inodes, 65);
        assert_eq!(usage_with(dir.path(), 0).unwrap(), whole);
        assert_eq!(usage_with(dir.path(), 20).unwrap(), whole);
    }
}
