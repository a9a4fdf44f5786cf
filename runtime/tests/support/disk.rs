//! Disks that do not take what is written: one that can be made to stall, ext4 on a loop
//! device, and one that is full, a small tmpfs.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted disk; thawed and removed when dropped.
#[derive(Debug)]
pub(crate) struct StallingDisk {
    dir: tempfile::TempDir,
    frozen: bool,
}

impl StallingDisk {
    /// A disk of 64 MiB. `None` where loop devices are impossible, which is said.
    pub(crate) fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
        let mount = dir.path().join("mount");
        std::fs::create_dir(&mount).unwrap();
        run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]).unwrap();
        let options = [
            "-o",
            "loop",
            image.to_str().unwrap(),
            mount.to_str().unwrap(),
        ];
        if let Err(reason) = run("mount", &options) {
            println!("SKIPPED: no loop device can be mounted: {reason}");
            return None;
        }
        let frozen = false;
        Some(Self { dir, frozen })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    /// From now on who writes waits.
    pub(crate) fn freeze(&mut self) {
        run("fsfreeze", &["-f", self.path().to_str().unwrap()]).unwrap();
        self.frozen = true;
    }

    /// Who waited goes on.
    pub(crate) fn thaw(&mut self) {
        if std::mem::take(&mut self.frozen) {
            run("fsfreeze", &["-u", self.path().to_str().unwrap()]).unwrap();
        }
    }
}

impl Drop for StallingDisk {
    fn drop(&mut self) {
        self.thaw();
        // A writer may still be at it; the mount goes with its last user.
        let path: &Path = &self.path();
        let unmounted = run("umount", &["-l", path.to_str().unwrap()]);
        if !std::thread::panicking() {
            unmounted.unwrap();
        }
    }
}

/// A disk that is filled and emptied; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct FullDisk(PathBuf);

impl FullDisk {
    /// One that has room, at a folder.
    pub(crate) fn at(dir: PathBuf) -> Self {
        let target = dir.to_str().unwrap();
        let options = ["-t", "tmpfs", "-o", "size=64k", "none", target];
        run("mount", &options).unwrap();
        Self(dir)
    }

    fn filler(&self) -> PathBuf {
        self.0.join(".tmp-filler")
    }

    /// Takes all room that is left.
    pub(crate) fn fill(&self) {
        let filled = std::fs::write(self.filler(), vec![1; 1 << 20]);
        assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    }

    /// Gives it back.
    pub(crate) fn empty(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }

    /// What else is there.
    pub(crate) fn names(&self) -> Vec<std::ffi::OsString> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names.filter(|name| name != ".tmp-filler").collect()
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let unmounted = run("umount", &["-l", self.0.to_str().unwrap()]);
        if !std::thread::panicking() {
            unmounted.unwrap();
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    ))
}
