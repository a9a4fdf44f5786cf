//! Unpacks one layer's plain tar into a directory.
//!
//! Owns the meaning of a layer archive: whiteouts become what overlayfs reads
//! (device 0:0, the opaque attribute), links and devices are made as they are
//! named, later entries replace earlier ones, directories get the times that
//! their entries say, and what aufs left behind is not seen. Everything happens relative to directory descriptors, so a hostile
//! archive is refused by entry name and never touches what is outside. Never
//! contacts a registry and never decides where layers live. A crash leaves a
//! half-filled staging directory, which start-up removes.

mod name;
mod node;
mod tree;

use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{Dev, FileType, Mode};
use rustix::io::Errno;

use name::Meaning;
pub(crate) use name::Name;
pub(crate) use node::is_kept;
pub(crate) use tree::IMPLIED;
use tree::{Found, Tree, look, make_directory, open_directory, set_opaque};

use crate::tar::{Entry, Kind, TarError, TarReader, shown};

/// Disk space is handed out in blocks of this size almost everywhere.
const BLOCK: u64 = 4096;

/// Bounds of what one layer may hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Entries in the archive.
    pub entries: u64,
    /// Bytes of all files together.
    pub bytes: u64,
    /// Device nodes.
    pub devices: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4_000_000,
            bytes: 512 << 30,
            devices: 4096,
        }
    }
}

/// What an unpacked layer occupies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Occupied {
    /// Bytes on disk, in whole blocks.
    pub bytes: u64,
    /// Files, directories and the rest.
    pub inodes: u64,
    /// The layer hides everything below it.
    pub opaque: bool,
    /// The archive lists the layer's root, and so says what it is like.
    #[serde(default = "was_believed")]
    pub root: bool,
}

/// Records of before tell it of no layer: each layer's root was taken as it is.
fn was_believed() -> bool {
    true
}

/// What came of an archive.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub occupied: Occupied,
    /// Directories that the archive does not list, each with a zero byte at its
    /// end. Some of them may have been listed or replaced later: those that are
    /// meant bear the mark [`IMPLIED`].
    pub implied: Vec<u8>,
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// The entry would do harm or asks for nonsense.
    #[error("the entry {entry} is refused: {reason}")]
    Hostile {
        /// The entry's name.
        entry: String,
        /// What it tried.
        reason: String,
    },
    /// The archive itself cannot be read.
    #[error("the archive cannot be read")]
    Tar(#[source] TarError),
    /// A file could not be made.
    #[error("{step} for the entry {entry}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The entry's name.
        entry: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A failure before the entry's name is known to the one who reports it.
#[derive(Debug)]
pub(crate) enum Problem {
    Hostile(String),
    Io(&'static str, Errno),
    Tar(TarError),
}

impl Problem {
    fn io(step: &'static str, errno: Errno) -> Self {
        match errno {
            // The archive asks for what no file system can do.
            Errno::NAMETOOLONG | Errno::LOOP | Errno::MLINK | Errno::NOTDIR => {
                Self::Hostile(format!("{step}: {}", io::Error::from(errno)))
            }
            _ => Self::Io(step, errno),
        }
    }

    fn hostile(reason: &str) -> Self {
        Self::Hostile(reason.to_owned())
    }

    fn at(self, name: &[u8]) -> UnpackError {
        let entry = shown(name);
        match self {
            Self::Hostile(reason) => UnpackError::Hostile { entry, reason },
            Self::Io(step, errno) => UnpackError::Io {
                step,
                entry,
                source: errno.into(),
            },
            Self::Tar(source) => UnpackError::Tar(source),
        }
    }
}

/// Unpacks the archive that `reader` yields into the open directory `root`,
/// up to the archive's end mark; what follows it is left to the caller.
pub(crate) fn unpack<R: Read>(
    reader: R,
    root: OwnedFd,
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    let tree = Tree::new(root, limits.entries).map_err(|problem| problem.at(b"."))?;
    let mut unpacker = Unpacker {
        tar: TarReader::new(reader, limits.entries.saturating_mul(3)),
        tree,
        limits,
        entries: 0,
        devices: 0,
        file_bytes: 0,
        occupied: Occupied {
            bytes: BLOCK,
            inodes: 1,
            opaque: false,
            root: false,
        },
        has_links: false,
        buffer: vec![0; 128 * 1024],
    };
    while let Some(entry) = unpacker.tar.next_entry().map_err(UnpackError::Tar)? {
        unpacker
            .entry(&entry)
            .map_err(|problem| problem.at(&entry.name))?;
    }
    unpacker.finish()
}

struct Unpacker<'a, R> {
    tar: TarReader<R>,
    tree: Tree,
    limits: &'a Limits,
    entries: u64,
    devices: u64,
    file_bytes: u64,
    occupied: Occupied,
    /// The directory of aufs that hard links lead into was made.
    has_links: bool,
    buffer: Vec<u8>,
}

impl<R: Read> Unpacker<'_, R> {
    fn entry(&mut self, entry: &Entry) -> Result<(), Problem> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Problem::Hostile(format!(
                "more than {} entries",
                self.limits.entries
            )));
        }
        let name = Name::parse(&entry.name).map_err(Problem::hostile)?;
        if name.is_root() {
            return self.root_entry(entry);
        }
        let (parent, _) = name.split();
        self.has_links |= name.as_bytes().starts_with(name::LINKS);
        match name.meaning().map_err(Problem::hostile)? {
            Meaning::Ignored => Ok(()),
            Meaning::Opaque => {
                self.occupied.opaque |= parent.is_empty();
                let dir = self.tree.directory(parent)?;
                set_opaque(&dir)
            }
            Meaning::Whiteout(hidden) => self.whiteout(parent, hidden),
            Meaning::Plain(last) => self.plain(entry, &name, (parent, last)),
        }
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<(), Problem> {
        if entry.kind != Kind::Dir {
            return Err(Problem::hostile("the layer's root is no directory"));
        }
        node::apply(&self.tree.root(), entry)?;
        self.tree.date_root(entry.mtime);
        self.occupied.root = true;
        Ok(())
    }

    /// A whiteout hides what lower layers have, never what this layer makes.
    fn whiteout(&mut self, parent: &[u8], hidden: &[u8]) -> Result<(), Problem> {
        let dir = self.tree.directory(parent)?;
        match look(&dir, hidden)? {
            Found::Nothing => {
                self.occupied.inodes += 1;
                rustix::fs::mknodat(
                    &**dir,
                    hidden,
                    FileType::CharacterDevice,
                    Mode::empty(),
                    Dev::default(),
                )
                .map_err(|e| Problem::io("make a whiteout", e))
            }
            Found::Dir => {
                let hiding = open_directory(&dir, hidden)?;
                self.tree.no_longer_implied(&hiding)?;
                set_opaque(&hiding)
            }
            Found::Whiteout | Found::Other => Ok(()),
        }
    }

    fn plain(
        &mut self,
        entry: &Entry,
        name: &Name,
        (parent, last): (&[u8], &[u8]),
    ) -> Result<(), Problem> {
        let dir = self.tree.directory(parent)?;
        // Files are the bulk: try to make them first, look only when that fails.
        if entry.kind == Kind::File {
            return self.file(&dir, last, entry);
        }
        let found = look(&dir, last)?;
        if entry.kind == Kind::Dir {
            return self.dir(&dir, last, (entry, found));
        }
        if entry.kind == Kind::HardLink {
            return self.hard_link(&dir, last, (entry, name, found));
        }
        if found != Found::Nothing {
            self.tree.remove(&dir, last, found)?;
        }
        self.occupied.inodes += 1;
        if matches!(entry.kind, Kind::Char | Kind::Block) {
            self.devices += 1;
            if self.devices > self.limits.devices {
                return Err(Problem::Hostile(format!(
                    "more than {} devices",
                    self.limits.devices
                )));
            }
        }
        node::make_special(&dir, last, entry)
    }

    fn file(&mut self, dir: &OwnedFd, last: &[u8], entry: &Entry) -> Result<(), Problem> {
        self.file_bytes = self.file_bytes.saturating_add(entry.size);
        if self.file_bytes > self.limits.bytes {
            return Err(Problem::Hostile(format!(
                "more than {} bytes in files",
                self.limits.bytes
            )));
        }
        let fd = match node::create_file(dir, last) {
            Err(Errno::EXIST) => {
                let found = look(dir, last)?;
                self.tree.remove(dir, last, found)?;
                node::create_file(dir, last)
            }
            other => other,
        }
        .map_err(|e| Problem::io("make a file", e))?;
        match &entry.sparse {
            None => self.fill(&fd, entry.size)?,
            Some(segments) => {
                for segment in segments {
                    node::seek(&fd, segment.offset)?;
                    self.fill(&fd, segment.len)?;
                }
                node::set_size(&fd, entry.size)?;
            }
        }
        self.occupied.inodes += 1;
        node::apply(&fd, entry)?;
        node::set_times(&fd, entry.mtime)
    }

    /// Writes the next bytes of the archive to where the file stands.
    fn fill(&mut self, fd: &OwnedFd, len: u64) -> Result<(), Problem> {
        self.occupied.bytes += len.div_ceil(BLOCK) * BLOCK;
        let mut left = len;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            let most = most.min(self.buffer.len());
            let buffer = &mut self.buffer[..most];
            let n = self.tar.read_body(buffer).map_err(Problem::Tar)?;
            if n == 0 {
                return Err(Problem::hostile("fewer bytes than its size"));
            }
            node::write_all(fd, &buffer[..n])?;
            left -= n as u64;
        }
        Ok(())
    }

    fn dir(
        &mut self,
        dir: &OwnedFd,
        last: &[u8],
        (entry, found): (&Entry, Found),
    ) -> Result<(), Problem> {
        if found == Found::Dir {
            let fd = open_directory(dir, last)?;
            node::apply(&fd, entry)?;
            return self.tree.list(&fd, entry.mtime);
        }
        if found != Found::Nothing {
            self.tree.remove(dir, last, found)?;
        }
        self.occupied.inodes += 1;
        self.occupied.bytes += BLOCK;
        let fd = make_directory(dir, last, found == Found::Whiteout)?;
        node::apply(&fd, entry)?;
        node::set_times(&fd, entry.mtime)
    }

    fn hard_link(
        &mut self,
        dir: &OwnedFd,
        last: &[u8],
        (entry, name, found): (&Entry, &Name, Found),
    ) -> Result<(), Problem> {
        let target = Name::parse(&entry.link)
            .map_err(|reason| Problem::Hostile(format!("a hard link to {reason}")))?;
        if target == *name {
            return Err(Problem::hostile("a hard link to itself"));
        }
        let (target_parent, target_last) = target.split();
        let outside = || {
            Problem::Hostile(format!(
                "a hard link to {}, which is no file of this layer",
                shown(&entry.link)
            ))
        };
        let from = self
            .tree
            .existing_directory(target_parent)
            .map_err(|_| outside())?;
        if !matches!(look(&from, target_last)?, Found::Other) {
            return Err(outside());
        }
        if found != Found::Nothing {
            self.tree.remove(dir, last, found)?;
        }
        match rustix::fs::linkat(&from, target_last, dir, last, rustix::fs::AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => Err(Problem::hostile(
                "a hard link that replaces the directory of its target",
            )),
            Err(e) => Err(Problem::io("make a hard link", e)),
        }
    }

    /// Ends what is open and counts what was made on the way.
    fn finish(mut self) -> Result<Unpacked, UnpackError> {
        let root = self.tree.root();
        let ended = if self.has_links {
            self.tree.remove(&root, name::LINKS, Found::Dir)
        } else {
            Ok(())
        };
        let implied = ended
            .and_then(|()| self.tree.finish())
            .map_err(|problem| problem.at(b"."))?;
        self.occupied.inodes += self.tree.made();
        self.occupied.bytes += self.tree.made() * BLOCK;
        // Kept beside the layer.
        self.occupied.bytes += implied.len() as u64;
        Ok(Unpacked {
            occupied: self.occupied,
            implied,
        })
    }
}

#[cfg(test)]
mod tests;
