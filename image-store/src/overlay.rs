//! Detached overlay mounts.
//!
//! Owns the conversation with the kernel about one mount (fsopen, fsconfig,
//! fsmount). The mount is attached nowhere: it lives as long as its descriptor
//! or until someone attaches it, so the host's mount table never grows and a
//! crash leaves nothing.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::remove::remove_tree;

/// The kernel takes no longer string for one option.
const MAX_VALUE: usize = 255;

/// What to stack.
#[derive(Debug)]
pub(crate) struct Stack<'a> {
    /// Layers, the topmost first; at least one.
    pub lowers: &'a [PathBuf],
    /// Where changes go: the upper and the work directory.
    pub upper: Option<(&'a Path, &'a Path)>,
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

/// Mounts the stack; read-only without an upper directory.
pub(crate) fn mount(stack: &Stack<'_>) -> Result<OwnedFd, OverlayError> {
    match attempt(stack, lowers_one_by_one) {
        // Kernels before 6.8 know no `lowerdir+`.
        Err(error) if error.source.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            attempt(stack, lowers_at_once)
                .map_err(|second| if error.log.is_empty() { second } else { error })
        }
        other => other,
    }
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
    let mut value = Vec::new();
    for lower in lowers {
        if !value.is_empty() {
            value.push(b':');
        }
        // Paths by descriptor are short and hold no colon.
        value.extend_from_slice(&keep.by_descriptor(lower)?);
    }
    if value.len() > MAX_VALUE {
        let step = format!(
            "stack {} layers, which takes Linux 6.8 or later",
            lowers.len()
        );
        return Err(plain(&step, Errno::NAMETOOLONG));
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
        };
        for way in [lowers_one_by_one as SetLowers, lowers_at_once] {
            check(&attempt(&stack, way).unwrap(), 5);
        }
    }

    #[test]
    fn long_and_odd_paths_can_be_mounted() {
        for name in [&"long/".repeat(70), "a:b,c", "back\\slash", "sp ace\"'#"] {
            let dir = tempfile::tempdir().unwrap();
            let (lowers, upper, work) = place(&dir.path().join(name), 3);
            let stack = Stack {
                lowers: &lowers,
                upper: Some((&upper, &work)),
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
