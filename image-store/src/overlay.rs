//! Detached overlay mounts.
//!
//! Owns the conversation with the kernel about one mount (fsopen, fsconfig,
//! fsmount). The mount is attached nowhere: it lives as long as its descriptor
//! or until someone attaches it, so the host's mount table never grows and a
//! crash leaves nothing (but see `page`, for kernels before 6.8).

mod page;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::layout;
use crate::manifest::MAX_LAYERS;
use crate::remove::remove_tree;
pub(crate) use page::{clear, clone_below};

/// The kernel takes no longer string for one option.
const MAX_VALUE: usize = 255;

/// What to stack.
#[derive(Debug)]
pub(crate) struct Stack<'a> {
    /// Layers, the topmost first; at least one.
    pub lowers: &'a [PathBuf],
    /// Where changes go: the upper and the work directory.
    pub upper: Option<(&'a Path, &'a Path)>,
    /// An empty directory for mounts of a moment, where the kernel needs one.
    pub place: &'a Path,
}

/// Why the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{step}{}", shown(log))]
pub struct OverlayError {
    step: String,
    /// What the kernel had to say about it.
    log: String,
    source: io::Error,
}

fn shown(log: &str) -> String {
    if log.is_empty() {
        String::new()
    } else {
        format!(" ({log})")
    }
}

/// Gives another view of a directory, as a detached mount: that of a layer as it is to be
/// seen, with the ids of a mapping that this crate need not know.
pub type Show<'a> = &'a dyn Fn(&Path) -> io::Result<OwnedFd>;

/// The same for a thread that may wait.
pub type ShowThere = Arc<dyn Fn(&Path) -> io::Result<OwnedFd> + Send + Sync>;

/// Layers as somebody shows them, open as long as the stack is mounted.
pub(crate) struct Layers {
    /// Paths that stand for the views.
    pub(crate) paths: Vec<PathBuf>,
    _views: Vec<OwnedFd>,
}

impl Layers {
    /// Has all of these shown.
    pub(crate) fn new(layers: &[PathBuf], show: Show<'_>) -> Result<Self, OverlayError> {
        let view = |layer: &PathBuf| {
            let failed = |error| plain_io(&format!("show {}", layer.display()), error);
            show(layer).map_err(failed)
        };
        let views: Vec<_> = layers.iter().map(view).collect::<Result<_, _>>()?;
        Ok(Self {
            paths: views.iter().map(path_of).collect(),
            _views: views,
        })
    }
}

fn path_of(view: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", view.as_raw_fd()))
}

/// Mounts two directories of the store at `root`, empty ones, as `show` gives them:
/// whether this kernel stacks such layers of this file system, and as what their root is
/// seen. Makes nothing that outlives the answer.
///
/// # Errors
/// What `show` says, or the kernel. `NotFound`: no store was opened there yet.
pub fn try_shown(root: &Path, show: Show<'_>) -> Result<OwnedFd, OverlayError> {
    let [empty, place] = layout::empty_dirs(root);
    let shown = Layers::new(&[empty, place.clone()], show)?;
    mount(&Stack {
        lowers: &shown.paths,
        upper: None,
        place: &place,
    })
}

/// Mounts the stack; read-only without an upper directory.
pub(crate) fn mount(stack: &Stack<'_>) -> Result<OwnedFd, OverlayError> {
    if takes_layers_one_by_one()? {
        return attempt(stack, lowers_one_by_one);
    }
    // Fourteen layers or so fit into a string.
    match attempt(stack, lowers_at_once) {
        Err(error) if error.source.raw_os_error() == Some(Errno::NAMETOOLONG.raw_os_error()) => {
            page::mount_by_page(stack, stack.place)
        }
        other => other,
    }
}

/// How many layers this kernel stacks, as far as anybody knows without trying.
pub fn stacked_layers() -> Result<usize, OverlayError> {
    Ok(match takes_layers_one_by_one()? {
        true => MAX_LAYERS,
        false => page::LAYERS,
    })
}

/// Whether the kernel knows `lowerdir+` (6.8). Before 6.5 overlayfs takes any
/// option until the mount is made, so a name that it cannot know tells.
fn takes_layers_one_by_one() -> Result<bool, OverlayError> {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(*known);
    }
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| plain("open the overlay file system", e))?;
    let known = fsconfig_set_string(&fs, "lowerdir+", "/").is_ok()
        && fsconfig_set_string(&fs, "slipway-cannot-be-known", "x").is_err();
    Ok(*KNOWN.get_or_init(|| known))
}

/// Keeps descriptors open that stand for paths in options.
#[derive(Default)]
struct Keep(Vec<OwnedFd>);

type SetLowers = fn(&OwnedFd, &[PathBuf], &mut Keep) -> Result<(), OverlayError>;

fn attempt(stack: &Stack<'_>, set_lowers: SetLowers) -> Result<OwnedFd, OverlayError> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| plain("open the overlay file system", e))?;
    let mut keep = Keep::default();
    set(&fs, "source", b"overlay")?;
    set_lowers(&fs, stack.lowers, &mut keep)?;
    let mut attributes = MountAttrFlags::empty();
    if let Some((upper, work)) = stack.upper {
        forget_volatile(work).map_err(|e| plain_io("prepare the work directory", e))?;
        set(&fs, "upperdir", &keep.value(upper)?)?;
        set(&fs, "workdir", &keep.value(work)?)?;
        fsconfig_set_flag(&fs, "volatile").map_err(|e| failed(&fs, "set volatile", e))?;
    } else {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    for (key, value) in [("index", "off"), ("metacopy", "off")] {
        match fsconfig_set_string(&fs, key, value) {
            // Built without the feature: off anyway.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(e) => return Err(failed(&fs, &format!("set {key}"), e)),
        }
    }
    fsconfig_create(&fs).map_err(|e| failed(&fs, "create the overlay", e))?;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|e| failed(&fs, "mount the overlay", e))
}

fn lowers_one_by_one(
    fs: &OwnedFd,
    lowers: &[PathBuf],
    keep: &mut Keep,
) -> Result<(), OverlayError> {
    for lower in lowers {
        set(fs, "lowerdir+", &keep.value(lower)?)?;
    }
    Ok(())
}

fn lowers_at_once(fs: &OwnedFd, lowers: &[PathBuf], keep: &mut Keep) -> Result<(), OverlayError> {
    let value = page::lowers(lowers, keep)?;
    if value.len() > MAX_VALUE {
        return Err(plain("name the layers in one string", Errno::NAMETOOLONG));
    }
    set(fs, "lowerdir", &value)
}

impl Keep {
    /// The path itself, or a short one that stands for it.
    fn value(&mut self, path: &Path) -> Result<Vec<u8>, OverlayError> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() <= MAX_VALUE && !bytes.contains(&b'\\') {
            return Ok(bytes.to_vec());
        }
        self.by_descriptor(path)
    }

    fn by_descriptor(&mut self, path: &Path) -> Result<Vec<u8>, OverlayError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| plain(&format!("open {}", path.display()), e))?;
        let value = format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes();
        self.0.push(fd);
        Ok(value)
    }
}

/// A volatile mount leaves a mark that forbids the next one, since after a
/// power cut the upper directory may be incomplete. Within one boot it is not,
/// and after a reboot no container of before is started again.
fn forget_volatile(work: &Path) -> io::Result<()> {
    let inner = match File::open(work.join("work")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    remove_tree(&inner, b"incompat").map_err(io::Error::from)
}

fn set(fs: &OwnedFd, key: &str, value: &[u8]) -> Result<(), OverlayError> {
    fsconfig_set_string(fs, key, value).map_err(|e| {
        failed(
            fs,
            &format!("set {key} to {}", String::from_utf8_lossy(value)),
            e,
        )
    })
}

fn plain(step: &str, errno: Errno) -> OverlayError {
    plain_io(step, errno.into())
}

fn plain_io(step: &str, source: io::Error) -> OverlayError {
    OverlayError {
        step: step.to_owned(),
        log: String::new(),
        source,
    }
}

/// Adds what the kernel wrote into the context's log.
fn failed(fs: &OwnedFd, step: &str, errno: Errno) -> OverlayError {
    let mut log = String::new();
    let mut buffer = [0; 1024];
    while let Ok(n) = rustix::io::read(fs, &mut buffer) {
        if n == 0 || log.len() > 4096 {
            break;
        }
        if !log.is_empty() {
            log.push_str("; ");
        }
        log.push_str(String::from_utf8_lossy(&buffer[..n]).trim());
    }
    OverlayError {
        step: step.to_owned(),
        log,
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers with one file each, and an upper and a work directory.
    fn place(root: &Path, layers: usize) -> (Vec<PathBuf>, PathBuf, PathBuf) {
        let make = |name: &str| {
            let dir = root.join(name);
            std::fs::create_dir_all(&dir).unwrap();
            dir
        };
        let lowers = (0..layers)
            .map(|i| make(&format!("layer{i}")))
            .collect::<Vec<_>>();
        for (i, lower) in lowers.iter().enumerate() {
            std::fs::write(lower.join(format!("f{i}")), "x").unwrap();
            std::fs::write(lower.join("top"), i.to_string()).unwrap();
        }
        (lowers, make("upper"), make("work"))
    }

    fn check(mount: &OwnedFd, layers: usize) {
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), layers + 1);
        assert_eq!(std::fs::read_to_string(root.join("top")).unwrap(), "0");
        std::fs::write(root.join("new"), "x").unwrap();
        std::fs::remove_file(root.join("new")).unwrap();
    }

    #[test]
    fn both_ways_to_name_layers_give_the_same_mount() {
        let dir = tempfile::tempdir().unwrap();
        let (lowers, upper, work) = place(dir.path(), 5);
        let stack = Stack {
            lowers: &lowers,
            upper: Some((&upper, &work)),
            place: dir.path(),
        };
        for way in [lowers_one_by_one as SetLowers, lowers_at_once] {
            check(&attempt(&stack, way).unwrap(), 5);
        }
    }

    #[test]
    fn many_layers_are_stacked_by_a_page_of_options_and_leave_no_mount() {
        let dir = tempfile::tempdir().unwrap();
        let (lowers, upper, work) = place(dir.path(), 120);
        let here = dir.path().join("place");
        std::fs::create_dir(&here).unwrap();
        let mut stack = Stack {
            lowers: &lowers,
            upper: Some((&upper, &work)),
            place: &here,
        };
        let error = attempt(&stack, lowers_at_once).unwrap_err();
        let long = Errno::NAMETOOLONG.raw_os_error();
        assert_eq!(
            error.source.raw_os_error(),
            Some(long),
            "more than a string takes"
        );
        // What a crash left is no matter.
        rustix::mount::mount_bind(&here, &here).unwrap();
        let mounts: Vec<_> = (0..3)
            .map(|_| page::mount_by_page(&stack, &here).unwrap())
            .collect();
        check(&mounts[2], 120);
        stack.upper = None;
        let read_only = page::mount_by_page(&stack, &here).unwrap();
        let path = format!("/proc/self/fd/{}/new", read_only.as_raw_fd());
        let error = std::fs::write(path, "x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(here.to_str().unwrap()), "{table}");
        assert!(std::fs::read_dir(&here).unwrap().next().is_none());
    }

    #[test]
    fn as_many_layers_fit_into_the_page_as_are_promised_and_more_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (lowers, upper, work) = place(dir.path(), 260);
        let here = dir.path().join("place");
        std::fs::create_dir(&here).unwrap();
        let mut stack = Stack {
            lowers: &lowers[..page::LAYERS],
            upper: Some((&upper, &work)),
            place: &here,
        };
        check(&page::mount_by_page(&stack, &here).unwrap(), page::LAYERS);
        stack.lowers = &lowers;
        let error = page::mount_by_page(&stack, &here).unwrap_err().to_string();
        assert!(
            error.contains("260 layers") && error.contains("6.8"),
            "{error}"
        );
    }

    #[test]
    fn long_and_odd_paths_can_be_mounted() {
        for name in [&"long/".repeat(70), "a:b,c", "back\\slash", "sp ace\"'#"] {
            let dir = tempfile::tempdir().unwrap();
            let (lowers, upper, work) = place(&dir.path().join(name), 3);
            let stack = Stack {
                lowers: &lowers,
                upper: Some((&upper, &work)),
                place: dir.path(),
            };
            check(
                &mount(&stack).unwrap_or_else(|e| panic!("{name}: {e:?}")),
                3,
            );
        }
    }

    #[test]
    fn refusal_says_what_the_kernel_said() {
        let dir = tempfile::tempdir().unwrap();
        let missing = [dir.path().join("missing")];
        let error = mount(&Stack {
            lowers: &missing,
            upper: None,
            place: dir.path(),
        })
        .unwrap_err();
        let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert!(
            text.contains("lowerdir") && text.contains("missing"),
            "{text}"
        );
        assert!(text.contains("No such file"), "{text}");
    }
}
