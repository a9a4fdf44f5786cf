//! What a directory tree occupies.
//!
//! Walks by descriptors and follows no link: the tree belongs to a container
//! that may change it meanwhile, so what vanishes on the way is left out. However deep
//! the tree is, few directories are held open. The way back into one that was closed
//! is `..`, taken only if it leads to that same directory: a rename leads nowhere else.
//! A tree may be large, and a container can keep a walk busy for as long as it likes by
//! what it moves, so a walk has a bound, and so has the depth to which it is one.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, DirEntry, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Directories that are held open at either end of the way from the top to where the walk
/// is. From the lowest one of the first it goes on where the way back is lost.
const HELD: usize = 128;
/// The most directories on the way from the top to where the walk is, of which each takes
/// some memory: no tree that is not made to hurt is so deep.
const DEEPEST: usize = 100_000;
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

/// How much may be looked at, and for how long.
#[derive(Debug)]
pub(crate) struct Effort {
    until: Instant,
    entries: u64,
}

impl Effort {
    /// So much from now on.
    pub(crate) fn new(time: Duration, entries: u64) -> Self {
        let until = Instant::now() + time;
        Self { until, entries }
    }

    /// Pays for one entry; false where nothing is left.
    fn spend(&mut self) -> bool {
        let left = self.entries > 0 && Instant::now() < self.until;
        self.entries = self.entries.saturating_sub(1);
        left
    }
}

/// What a walk found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    pub(crate) usage: Usage,
    /// It came to the end of the tree, not of what it may look at.
    pub(crate) whole: bool,
}

/// Adds up a tree, or as much of it as the effort allows.
pub(crate) fn usage(path: &Path, effort: &mut Effort) -> Result<Counted, Errno> {
    let mut walk = Walk::of(path, MAX_SEEN, HELD)?;
    let whole = loop {
        if !effort.spend() {
            break false;
        }
        if !walk.step()? {
            break !walk.cut;
        }
    };
    let usage = walk.sum();
    Ok(Counted { usage, whole })
}

fn blocks(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0) * 512
}

/// Shares of an inode are counted in this many bits after the point.
const SHARE_BITS: u32 = 20;

/// Device and inode.
type Identity = (u64, u64);

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// A directory on the way from the top to where the walk is.
struct Level {
    /// Its stream; `None` while it is closed, which should take little memory.
    dir: Option<Box<Dir>>,
    identity: Identity,
    /// Where its stream goes on.
    offset: i64,
}

struct Walk {
    total: Usage,
    /// Inodes of which each name counts for a part.
    shares: u64,
    seen: HashSet<Identity>,
    remembered: usize,
    /// The first `held` and the last `held` are open, but for those of the last that
    /// the walk has yet to come back to.
    levels: Vec<Level>,
    /// The directories of `levels`. One of them that is moved to below where the walk is
    /// is not entered again: two that change places again and again would have no end.
    entered: HashSet<Identity>,
    held: usize,
    /// Levels that there may be.
    deepest: usize,
    /// What is below the deepest ones was left out.
    cut: bool,
}

impl Walk {
    fn of(path: &Path, remembered: usize, held: usize) -> Result<Self, Errno> {
        let mut walk = Self {
            total: Usage::default(),
            shares: 0,
            seen: HashSet::new(),
            remembered,
            levels: Vec::new(),
            entered: HashSet::new(),
            held,
            deepest: DEEPEST,
            cut: false,
        };
        let top = rustix::fs::open(path, flags(), Mode::empty())?;
        walk.enter(top)?;
        Ok(walk)
    }

    fn sum(&self) -> Usage {
        let mut total = self.total;
        total.inodes += self.shares >> SHARE_BITS;
        total
    }

    /// Takes the next entry of the directory where the walk is; false at the end.
    fn step(&mut self) -> Result<bool, Errno> {
        let Some(level) = self.levels.last_mut() else {
            return Ok(false);
        };
        match level.dir.as_mut().and_then(|dir| dir.read()) {
            None => self.leave()?,
            Some(entry) => {
                let entry = entry?;
                level.offset = entry.offset();
                self.look_at(&entry)?;
            }
        }
        Ok(true)
    }

    fn look_at(&mut self, entry: &DirEntry) -> Result<(), Errno> {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            return Ok(());
        }
        let Some(Level { dir: Some(dir), .. }) = self.levels.last() else {
            return Ok(());
        };
        if entry.file_type() != FileType::Directory {
            let stat = match rustix::fs::statat(dir.fd()?, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Ok(()),
                Err(e) => return Err(e),
            };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                self.count(&stat, false);
                return Ok(());
            }
        }
        match open_below(dir, name)? {
            Some(sub) => self.enter(sub),
            None => Ok(()),
        }
    }

    /// Counts a directory and goes on with what is in it.
    fn enter(&mut self, dir: OwnedFd) -> Result<(), Errno> {
        let stat = rustix::fs::fstat(&dir)?;
        let identity = identity(&stat);
        if !self.entered.insert(identity) {
            return Ok(());
        }
        self.count(&stat, true);
        if self.levels.len() >= self.deepest {
            self.entered.remove(&identity);
            self.cut = true;
            return Ok(());
        }
        self.levels.push(Level {
            dir: Some(Box::new(Dir::new(dir)?)),
            identity,
            offset: 0,
        });
        let closed = self.levels.len().checked_sub(self.held + 1);
        if let Some(closed) = closed.filter(|closed| *closed >= self.held) {
            self.levels[closed].dir = None;
        }
        Ok(())
    }

    /// Goes back to the directory above, or to the lowest open one where the directory
    /// that was read is in another one by now.
    fn leave(&mut self) -> Result<(), Errno> {
        let Some(done) = self.pop() else {
            return Ok(());
        };
        if let (Some(above), Some(done)) = (self.levels.last_mut(), done.dir) {
            above.open_above(&done)?;
        }
        while self.levels.last().is_some_and(|level| level.dir.is_none()) {
            self.pop();
        }
        Ok(())
    }

    fn pop(&mut self) -> Option<Level> {
        let level = self.levels.pop()?;
        self.entered.remove(&level.identity);
        Some(level)
    }

    fn count(&mut self, stat: &Stat, is_dir: bool) {
        let bytes = blocks(stat.st_blocks);
        if stat.st_nlink > 1 && !is_dir {
            let inode = identity(stat);
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

impl Level {
    /// Opens it again if it was closed, and if a directory that was in it still is.
    fn open_above(&mut self, below: &Dir) -> Result<(), Errno> {
        if self.dir.is_some() {
            return Ok(());
        }
        let Some(above) = open_below(below, c"..")? else {
            return Ok(());
        };
        if identity(&rustix::fs::fstat(&above)?) == self.identity {
            let mut dir = Dir::new(above)?;
            dir.seek(self.offset)?;
            self.dir = Some(Box::new(dir));
        }
        Ok(())
    }
}

fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Opens a directory by its name in another; `None` if it is none any more.
fn open_below(dir: &Dir, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    match rustix::fs::openat(dir.fd()?.as_fd(), name, flags(), Mode::empty()) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::remove::remove_tree;

    fn usage(path: &Path) -> Result<Usage, Errno> {
        let mut effort = Effort::new(Duration::from_secs(600), u64::MAX);
        let counted = super::usage(path, &mut effort)?;
        assert!(counted.whole);
        Ok(counted.usage)
    }

    fn usage_with(path: &Path, remembered: usize) -> Result<Usage, Errno> {
        let mut walk = Walk::of(path, remembered, HELD)?;
        while walk.step()? {}
        Ok(walk.sum())
    }

    /// Directories below one another, each with a directory with a file beside the next
    /// one: no path is long enough to name the last ones.
    fn make_deep(top: &Path, depth: usize) {
        let mut dir = rustix::fs::open(top, flags(), Mode::empty()).unwrap();
        let below = |dir: &OwnedFd, name: &str| {
            rustix::fs::mkdirat(dir, name, Mode::RWXU).unwrap();
            rustix::fs::openat(dir, name, flags(), Mode::empty()).unwrap()
        };
        for level in 0..depth {
            // Some of these names come before that of the next level, and some after it.
            let side = below(&dir, &format!("side{level}"));
            let create = OFlags::CREATE | OFlags::WRONLY;
            let file = rustix::fs::openat(&side, "file", create, Mode::RUSR).unwrap();
            rustix::io::write(&file, &[1; 1000]).unwrap();
            dir = below(&dir, "next");
        }
    }

    /// A tree that is removed however deep it is.
    struct Tree(tempfile::TempDir);

    impl Drop for Tree {
        fn drop(&mut self) {
            let top = self.0.path().join("top");
            remove_tree(rustix::fs::CWD, top.as_os_str().as_encoded_bytes()).unwrap();
        }
    }

    fn deep(depth: usize) -> (Tree, PathBuf) {
        let tree = Tree(tempfile::tempdir().unwrap());
        let top = tree.0.path().join("top");
        std::fs::create_dir(&top).unwrap();
        make_deep(&top, depth);
        (tree, top)
    }

    #[test]
    fn what_is_deeper_than_memory_lasts_is_left_out_and_told() {
        let (_tree, top) = deep(20);
        for (deepest, cut, inodes) in [(30, false, 61), (10, true, 31)] {
            let mut walk = Walk::of(&top, MAX_SEEN, HELD).unwrap();
            walk.deepest = deepest;
            while walk.step().unwrap() {}
            assert_eq!(walk.cut, cut, "{deepest}");
            assert!(walk.sum().inodes.abs_diff(inodes) < 3, "{:?}", walk.sum());
        }
    }

    #[test]
    fn a_file_counts_however_deep_it_is_and_few_directories_are_open() {
        let (_tree, top) = deep(2000);
        let whole = usage(&top).unwrap();
        // Of each level: two directories and a file.
        assert_eq!(whole.inodes, 1 + 2000 * 3);
        assert!(whole.bytes >= 2000 * 1000, "{whole:?}");
        for held in [1, 3, 4000] {
            let mut walk = Walk::of(&top, MAX_SEEN, held).unwrap();
            while walk.step().unwrap() {
                if held < 4000 && walk.levels.len() > 1990 {
                    let open = walk.levels.iter().filter(|level| level.dir.is_some());
                    assert!(open.count() <= 2 * held + 1);
                }
            }
            assert_eq!(walk.sum(), whole, "{held}");
        }
    }

    #[test]
    fn a_directory_that_is_moved_meanwhile_leads_nowhere_else() {
        let (tree, top) = deep(20);
        let outside = tree.0.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("big"), vec![1; 1 << 20]).unwrap();
        let mut walk = Walk::of(&top, MAX_SEEN, 2).unwrap();
        while walk.levels.len() < 18 {
            assert!(walk.step().unwrap());
        }
        let moved = top.join("next/".repeat(10));
        std::fs::rename(moved, outside.join("moved")).unwrap();
        while walk.step().unwrap() {}
        let got = walk.sum();
        assert!(got.bytes < 1 << 20, "{got:?}");
        // The levels that are held open are read to their ends, and so are those
        // that were moved.
        assert!(got.inodes >= 1 + 2 * 3 + 10 * 3, "{got:?}");
        assert!(got.inodes <= 1 + 20 * 3, "{got:?}");
    }

    #[test]
    fn directories_that_are_moved_into_one_another_end_the_walk() {
        let dir = tempfile::tempdir().unwrap();
        let (top, other) = (dir.path().join("top"), dir.path().join("b"));
        std::fs::create_dir_all(top.join("a")).unwrap();
        std::fs::create_dir(&other).unwrap();
        let mut walk = Walk::of(&top, MAX_SEEN, HELD).unwrap();
        let until = |walk: &mut Walk, depth: usize| {
            while walk.levels.len() < depth {
                assert!(walk.step().unwrap());
            }
        };
        until(&mut walk, 2);
        std::fs::rename(&other, top.join("a/b")).unwrap();
        until(&mut walk, 3);
        // Now the one that the walk came from lies in the one where it is.
        std::fs::rename(top.join("a/b"), &other).unwrap();
        std::fs::rename(top.join("a"), other.join("a")).unwrap();
        while walk.step().unwrap() {
            assert!(walk.levels.len() <= 3);
        }
        assert_eq!(walk.sum().inodes, 3);
    }

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

    #[test]
    fn a_walk_over_more_than_it_may_look_at_ends_and_keeps_what_it_counted() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..300 {
            std::fs::write(dir.path().join(format!("f{i}")), "x").unwrap();
        }
        let mut effort = Effort::new(Duration::from_secs(600), 100);
        let cut = super::usage(dir.path(), &mut effort).unwrap();
        assert!(!cut.whole && (98..=101).contains(&cut.usage.inodes));
        // What is left is for what comes next, and that is nothing.
        let rest = super::usage(dir.path(), &mut effort).unwrap();
        assert!(!rest.whole && rest.usage.inodes == 1);
        let mut late = Effort::new(Duration::ZERO, u64::MAX);
        assert!(!super::usage(dir.path(), &mut late).unwrap().whole);
    }

    /// A directory that is always moved to where the walk comes next would be counted
    /// once for each of the others.
    #[test]
    fn a_directory_that_is_moved_along_with_the_walk_ends_it_at_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        for i in 0..200 {
            std::fs::create_dir_all(top.join(format!("p{i}"))).unwrap();
        }
        let read = std::fs::read_dir(&top).unwrap();
        let order: Vec<_> = read.map(|entry| entry.unwrap().path()).collect();
        let mut at = dir.path().join("moved");
        std::fs::create_dir(&at).unwrap();
        for i in 0..100 {
            std::fs::write(at.join(format!("f{i}")), "x").unwrap();
        }
        let mut walk = Walk::of(&top, MAX_SEEN, HELD).unwrap();
        let (mut effort, mut next) = (Effort::new(Duration::from_secs(600), 5000), 0);
        while effort.spend() && walk.step().unwrap() {
            if walk.levels.len() == 1 && next < order.len() {
                let to = order[next].join("moved");
                std::fs::rename(&at, &to).unwrap();
                (at, next) = (to, next + 1);
            }
        }
        assert_eq!(effort.entries, 0, "the walk came to its bound");
        assert!(walk.sum().inodes > 1 + 200 + 101, "{:?}", walk.sum());
    }
}
