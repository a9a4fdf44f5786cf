//! Reads the mount table of this process. Only reads.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::procfs::{mount_table, unescape};

/// One line of mountinfo, as much of it as is needed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The kernel's number of the mount.
    pub(crate) id: u64,
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// The peer group, if the mount is shared.
    pub(crate) peer_group: Option<u64>,
}

impl Entry {
    /// The mount that holds `path`, found by the kernel's own number: a path
    /// prefix would take a mount that is hidden under another.
    pub(crate) fn holding(path: &Path) -> io::Result<Self> {
        let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
        if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let table = mount_table("/proc/thread-self/mountinfo")?;
        let found = table
            .lines()
            .filter_map(Self::parse)
            .find(|e| e.id == stat.stx_mnt_id);
        found.ok_or_else(|| io::Error::other("the mount is not in the mount table"))
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let id = words.next()?.parse().ok()?;
        let point = unescape(words.nth(3)?);
        let peer_group = words
            .skip(1)
            .take_while(|&word| word != "-")
            .find_map(|word| word.strip_prefix("shared:")?.parse().ok());
        Some(Self {
            id,
            point,
            peer_group,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_group_and_escapes_are_read() {
        let line = "36 35 98:0 /mnt1 /a\\040b rw,noatime master:1 shared:7 - ext3 /dev/root rw";
        let want = Entry {
            id: 36,
            point: "/a b".into(),
            peer_group: Some(7),
        };
        assert_eq!(Entry::parse(line), Some(want));
        let private = "22 27 0:21 / /proc rw,relatime - proc proc rw";
        assert_eq!(Entry::parse(private).unwrap().peer_group, None);
        assert_eq!(Entry::parse("nonsense"), None);
    }
}
