//! A disk that can be made to stall: ext4 on a loop device.

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
