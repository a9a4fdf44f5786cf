//! Attributes of directories that layers do not list.
//!
//! An archive may hold `tmp/x` without `tmp`. Where layers are unpacked upon
//! each other, `/tmp` then stays as a lower layer made it: mode 1777, its owner,
//! its extended attributes. Here each layer is unpacked alone, under its DiffID,
//! and may be stacked upon different ones in different images; so what such an
//! implied directory is like belongs to the image and not to the layer. It is
//! told by one more directory for the image, stacked above its layers: the
//! patch. It holds nothing but those directories, as the lower layers have them,
//! and overlayfs takes a directory's attributes from the topmost layer that has
//! it. Most images need none.
//!
//! Owns making a patch, from layers that are complete. Reads and writes relative
//! to directory descriptors and follows no link: what stands below a link in a
//! lower layer is another place. A crash leaves staging.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use crate::unpack::{IMPLIED, is_kept};

/// Looking at one directory in one layer counts once. Honest images need some
/// thousands; an image that needs more than this is made to keep the node busy.
const MAX_LOOKS: u64 = 20_000_000;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOATIME);

/// Why a patch could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PatchError {
    /// More work than any honest image asks for.
    #[error("more than {MAX_LOOKS} directories have to be looked at")]
    TooMuch,
    /// A directory could not be read or made.
    #[error("{0}")]
    Io(&'static str, #[source] io::Error),
}

fn failed(step: &'static str) -> impl Fn(Errno) -> PatchError {
    move |errno| PatchError::Io(step, errno.into())
}

/// One layer of a stack.
pub(crate) struct Layer {
    /// Its directory, open.
    pub(crate) dir: OwnedFd,
    /// A file with the paths that it may have implied, each with a zero byte at its end,
    /// if it has one: read when it is the layer's turn, since all of an image's may be
    /// gigabytes.
    pub(crate) implied: PathBuf,
}

/// Makes the directories of the patch for a stack, the topmost layer first, in
/// the open directory `into`; tells how many there are.
pub(crate) fn make(stack: &[Layer], into: &OwnedFd) -> Result<u64, PatchError> {
    let mut patch = Patch {
        stack,
        into,
        made: Vec::new(),
        looks: 0,
    };
    for (place, layer) in stack.iter().enumerate() {
        patch.layer(place, layer)?;
    }
    patch.date()?;
    Ok(patch.made.len() as u64)
}

/// What one layer has at a path.
enum Seen {
    Nothing,
    /// Something that hides what lower layers have there.
    Hidden,
    Dir(OwnedFd),
}

/// What a container sees at a path.
#[derive(Default)]
struct View {
    /// The topmost layer that has a directory there.
    top: Option<usize>,
    /// And lists it.
    listed: bool,
    /// Whether a lower one has it too.
    below: bool,
    /// The directory that says what it is like.
    source: Option<OwnedFd>,
}

struct Patch<'a> {
    stack: &'a [Layer],
    into: &'a OwnedFd,
    /// Directories of the patch, and their times.
    made: Vec<(Vec<u8>, Timespec)>,
    looks: u64,
}

impl Patch<'_> {
    fn layer(&mut self, place: usize, layer: &Layer) -> Result<(), PatchError> {
        // Below a directory that is in no other layer there is nothing to find.
        let mut alone: Option<&[u8]> = None;
        let implied = match std::fs::read(&layer.implied) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            read => read.map_err(|error| {
                PatchError::Io("read the directories that a layer does not list", error)
            })?,
        };
        for path in implied.split(|&b| b == 0).filter(|p| !p.is_empty()) {
            if alone.is_some_and(|alone| is_below(path, alone)) {
                continue;
            }
            let view = self.view(path)?;
            // Hidden, a higher layer's affair, or listed after all.
            if view.top != Some(place) || view.listed {
                continue;
            }
            if view.source.is_some() {
                self.copy(path)?;
            } else if !view.below {
                alone = Some(path);
            }
        }
        Ok(())
    }

    /// Finds out what a container sees at a path, and who says what it is like:
    /// the topmost layer that lists it.
    fn view(&mut self, path: &[u8]) -> Result<View, PatchError> {
        let mut view = View::default();
        for (place, layer) in self.stack.iter().enumerate() {
            self.looks += 1;
            if self.looks > MAX_LOOKS {
                return Err(PatchError::TooMuch);
            }
            let (seen, opaque) = look(&layer.dir, path)?;
            match seen {
                Seen::Hidden => break,
                Seen::Nothing => {}
                Seen::Dir(dir) => {
                    view.below = view.top.is_some();
                    view.top.get_or_insert(place);
                    if !has(&dir, IMPLIED)? {
                        view.listed = !view.below;
                        view.source = Some(dir);
                        break;
                    }
                }
            }
            // A directory on the way hides what lower layers have in it.
            if opaque {
                break;
            }
        }
        Ok(view)
    }

    /// Makes a directory of the patch, and those that lead to it.
    fn copy(&mut self, path: &[u8]) -> Result<(), PatchError> {
        let mut at: Option<OwnedFd> = None;
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/');
        let ends: Vec<usize> = ends.map(|(i, _)| i).chain([path.len()]).collect();
        for end in ends {
            let path = &path[..end];
            let name = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
            let parent = at.as_ref().unwrap_or(self.into);
            let made = rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700));
            let is_new = match made {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(e) => return Err(failed("make a directory of a patch")(e)),
            };
            let dir = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())
                .map_err(failed("open a directory of a patch"))?;
            if is_new {
                let mtime = self.describe(path, &dir)?;
                self.made.push((path.to_vec(), mtime));
            }
            at = Some(dir);
        }
        Ok(())
    }

    /// Gives a directory of the patch the attributes that a container shall see.
    fn describe(&mut self, path: &[u8], dir: &OwnedFd) -> Result<Timespec, PatchError> {
        let view = self.view(path)?;
        let source = match (view.source, view.top) {
            (Some(source), _) => source,
            // On the way to others, and listed nowhere.
            (None, Some(top)) => match look(&self.stack[top].dir, path)?.0 {
                Seen::Dir(dir) => dir,
                Seen::Nothing | Seen::Hidden => return mtime_of(dir),
            },
            (None, None) => return mtime_of(dir),
        };
        copy_attributes(&source, dir).map_err(failed("copy attributes of a directory"))?;
        mtime_of(&source)
    }

    /// Sets times, when nothing is made in the directories any more.
    fn date(&self) -> Result<(), PatchError> {
        for (path, mtime) in &self.made {
            let dir = rustix::fs::openat(self.into, &path[..], DIRECTORY, Mode::empty())
                .map_err(failed("open a directory of a patch"))?;
            let times = Timestamps {
                last_access: Timespec {
                    tv_sec: 0,
                    tv_nsec: UTIME_OMIT,
                },
                last_modification: *mtime,
            };
            rustix::fs::futimens(&dir, &times).map_err(failed("set a directory's time"))?;
        }
        Ok(())
    }
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn mtime_of(dir: &OwnedFd) -> Result<Timespec, PatchError> {
    let stat = rustix::fs::fstat(dir).map_err(failed("look at a directory"))?;
    Ok(Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
    })
}

/// What a layer has at a path; and whether a directory on the way hides what
/// lower layers have in it.
fn look(layer: &OwnedFd, path: &[u8]) -> Result<(Seen, bool), PatchError> {
    let mut at: Option<OwnedFd> = None;
    let mut opaque = false;
    for part in path.split(|&b| b == b'/') {
        if let Some(dir) = &at {
            opaque |= has(dir, "trusted.overlay.opaque")?;
        }
        let from = at.as_ref().unwrap_or(layer);
        match rustix::fs::openat(from, part, DIRECTORY, Mode::empty()) {
            Ok(dir) => at = Some(dir),
            Err(Errno::NOENT) => return Ok((Seen::Nothing, opaque)),
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok((Seen::Hidden, opaque)),
            Err(e) => return Err(failed("open a directory of a layer")(e)),
        }
    }
    Ok((at.map_or(Seen::Nothing, Seen::Dir), opaque))
}

fn has(dir: &OwnedFd, attribute: &str) -> Result<bool, PatchError> {
    match rustix::fs::fgetxattr(dir, attribute, &mut [0u8; 8][..]) {
        Ok(_) | Err(Errno::RANGE) => Ok(true),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(e) => Err(failed("read an attribute of a directory")(e)),
    }
}

/// Copies owner, extended attributes and mode, in the order in which none
/// undoes another.
pub(crate) fn copy_attributes(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let stat = rustix::fs::fstat(from)?;
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to, Some(owner.0), Some(owner.1))?;
    let mut names = vec![0u8; 64 << 10];
    let len = match rustix::fs::flistxattr(from, &mut names[..]) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    for name in names[..len].split(|&b| b == 0).filter(|name| is_kept(name)) {
        let mut value = vec![0u8; 64 << 10];
        let len = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        rustix::fs::fsetxattr(to, name, &value[..len], XattrFlags::empty())?;
    }
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))
}
