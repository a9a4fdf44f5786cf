//! Named parts of a directory or of an archive.
//!
//! Owns finding and opening them; never writes, and never follows a name out
//! of the directory that is imported.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::compression::{self, Compression, Decoder};
use crate::error::ImportError;
use crate::tar::{Kind, TarReader};
use crate::unpack::Name;

/// Archives that hold images have a few entries for each layer.
const MAX_ENTRIES: u64 = 100_000;
/// Bytes of all their names.
const MAX_NAMES: usize = 16 << 20;

/// Where parts come from.
pub(super) struct Source {
    path: PathBuf,
    kind: Parts,
}

enum Parts {
    Dir(OwnedFd),
    Archive {
        file: Arc<File>,
        parts: HashMap<Vec<u8>, Part>,
    },
}

#[derive(Clone)]
enum Part {
    Bytes { offset: u64, size: u64 },
    Link(Vec<u8>),
}

/// Reads one stretch of a file, whoever else reads it at the same time.
pub(super) struct Stretch {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self, ImportError> {
        let fail = |step| {
            move |source| ImportError::Io {
                step,
                path: path.to_owned(),
                source,
            }
        };
        let file = File::open(path).map_err(fail("open"))?;
        let kind = if file.metadata().map_err(fail("look at"))?.is_dir() {
            Parts::Dir(file.into())
        } else {
            let file = Arc::new(plain(file).map_err(fail("decompress"))?);
            let parts = index(&file).map_err(|e| ImportError::NotAnImage {
                path: path.to_owned(),
                reason: format!("not a tar archive: {e}"),
            })?;
            Parts::Archive { file, parts }
        };
        Ok(Self {
            path: path.to_owned(),
            kind,
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.read(name).is_ok()
    }

    /// Opens a part and tells its size.
    pub(super) fn read(&self, name: &str) -> Result<(Stretch, u64), ImportError> {
        let missing = || ImportError::Missing {
            path: self.path.clone(),
            part: name.to_owned(),
        };
        let key = Name::parse(name.as_bytes()).map_err(|_| missing())?;
        match &self.kind {
            Parts::Dir(dir) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let fd = rustix::fs::openat2(dir, key.as_bytes(), flags, Mode::empty(), beneath)
                    .map_err(|_| missing())?;
                let file = File::from(fd);
                let size = file.metadata().map_err(|_| missing())?.len();
                Ok((
                    Stretch {
                        file: Arc::new(file),
                        offset: 0,
                        left: size,
                    },
                    size,
                ))
            }
            Parts::Archive { file, parts } => {
                let mut key = key.as_bytes().to_vec();
                // `docker save` links a layer that occurs twice.
                for _ in 0..8 {
                    match parts.get(&key) {
                        Some(Part::Bytes { offset, size }) => {
                            let (offset, left) = (*offset, *size);
                            return Ok((
                                Stretch {
                                    file: Arc::clone(file),
                                    offset,
                                    left,
                                },
                                left,
                            ));
                        }
                        Some(Part::Link(to)) => key.clone_from(to),
                        None => break,
                    }
                }
                Err(missing())
            }
        }
    }
}

impl Read for Stretch {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let n = self.file.read_at(&mut buf[..want], self.offset)?;
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

/// The archive itself, or its plain form in a file without a name.
fn plain(mut file: File) -> io::Result<File> {
    let (compression, _) = compression::sniff(&file)?;
    file.seek(SeekFrom::Start(0))?;
    match compression {
        Compression::None => return Ok(file),
        Compression::Refused(name) => {
            return Err(io::Error::other(format!("{name} is not read here")));
        }
        Compression::Gzip | Compression::Zstd => {}
    }
    let mut decoder = Decoder::new(compression, BufReader::with_capacity(1 << 17, file), None)?;
    let mut out = unnamed_file()?;
    io::copy(&mut decoder, &mut out)?;
    Ok(out)
}

fn unnamed_file() -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    Ok(File::from(rustix::fs::open(
        std::env::temp_dir(),
        flags,
        mode,
    )?))
}

fn index(file: &Arc<File>) -> io::Result<HashMap<Vec<u8>, Part>> {
    let size = file.metadata()?.len();
    let bytes = Stretch {
        file: Arc::clone(file),
        offset: 0,
        left: size,
    };
    let mut tar = TarReader::new(
        Skipping {
            inner: BufReader::new(bytes),
        },
        MAX_ENTRIES,
    );
    let mut parts = HashMap::new();
    let mut names = 0;
    while let Some(entry) = tar.next_entry().map_err(io::Error::other)? {
        let Ok(name) = Name::parse(&entry.name) else {
            continue;
        };
        let part = match entry.kind {
            // A blob with holes would not be in one piece.
            Kind::File if entry.sparse.is_some() => continue,
            Kind::File => Part::Bytes {
                offset: tar.position(),
                size: entry.size,
            },
            Kind::HardLink => match Name::parse(&entry.link) {
                Ok(to) => Part::Link(to.as_bytes().to_vec()),
                Err(_) => continue,
            },
            Kind::Symlink => match beside(name.split().0, &entry.link) {
                Some(to) => Part::Link(to),
                None => continue,
            },
            _ => continue,
        };
        names += name.as_bytes().len() + entry.link.len();
        if names > MAX_NAMES {
            return Err(io::Error::other("the names in it are above 16 MiB"));
        }
        parts.insert(name.as_bytes().to_vec(), part);
    }
    Ok(parts)
}

/// A link's target from the link's own directory, inside the archive.
fn beside(parent: &[u8], link: &[u8]) -> Option<Vec<u8>> {
    let mut out: Vec<&[u8]> = parent
        .split(|&b| b == b'/')
        .filter(|p| !p.is_empty())
        .collect();
    for part in link.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(out.pop()?),
            part => out.push(part),
        }
    }
    Some(out.join(&b'/'))
}

/// A place to skip bodies by seeking, should reading them ever cost too much.
struct Skipping<R> {
    inner: R,
}

impl<R: Read> Read for Skipping<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf)
    }
}
