//! The executables of monitor and launcher helper, held in memory.
//!
//! Owns copies that nobody can change, so that an upgrade of the files never mixes versions
//! and no container can change what the next one is started by. Writes
//! nothing; a crash leaves nothing.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::error::BinariesError;
use crate::executable;
use crate::launcher::version_line;

/// Sealed copies of `slipway-monitor` and `slipway-libcontainer`.
#[derive(Debug)]
pub struct MonitorBinaries {
    monitor: OwnedFd,
    libcontainer: OwnedFd,
    build: String,
}

impl MonitorBinaries {
    /// Loads both from a directory: the one of the engine's own executable.
    ///
    /// # Errors
    /// One is missing, does not run, or is of another version.
    pub fn load(dir: &Path) -> Result<Self, BinariesError> {
        let mut digest = Sha256::new();
        Ok(Self {
            monitor: load_one(dir, crate::launcher::MONITOR_NAME, &mut digest)?,
            libcontainer: load_one(dir, "slipway-libcontainer", &mut digest)?,
            build: hex(&digest.finalize()),
        })
    }

    /// Which build they are: by their bytes.
    pub(super) fn build(&self) -> &str {
        &self.build
    }

    pub(super) fn monitor(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }

    pub(super) fn libcontainer(&self) -> BorrowedFd<'_> {
        self.libcontainer.as_fd()
    }
}

/// Path by which a child of this process executes one of its descriptors.
pub(super) fn executable_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

fn load_one(dir: &Path, name: &str, digest: &mut Sha256) -> Result<OwnedFd, BinariesError> {
    let path = dir.join(name);
    let read = |path: &Path| {
        let mut bytes = Vec::new();
        File::open(path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read(&path).map_err(|source| BinariesError::Read {
        path: path.clone(),
        source,
    })?;
    let copy = executable::copy(name, &bytes).map_err(|source| BinariesError::Copy {
        path: path.clone(),
        source,
    })?;
    digest.update(&bytes);
    check_version(&path, name, copy.as_fd())?;
    Ok(copy)
}

fn check_version(path: &Path, name: &str, copy: BorrowedFd<'_>) -> Result<(), BinariesError> {
    let output = Command::new(executable_path(copy))
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|source| BinariesError::Run {
            path: path.to_owned(),
            source,
        })?;
    let found = match output.status.success() {
        true => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        // A crash has no version; how it ended is the better hint.
        false => output.status.to_string(),
    };
    let wanted = version_line(name);
    if found == wanted {
        return Ok(());
    }
    Err(BinariesError::Version {
        path: path.to_owned(),
        found,
        wanted,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn missing_executable_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = MonitorBinaries::load(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("slipway-monitor"), "{error}");
    }

    #[test]
    fn an_executable_that_fails_is_refused_by_how_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let failing = ["/bin/false", "/usr/bin/false"];
        let failing = failing.iter().find(|path| Path::new(path).exists());
        std::fs::copy(failing.unwrap(), dir.path().join("slipway-monitor")).unwrap();
        let error = MonitorBinaries::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("exit status: 1"), "{error}");
    }

    #[test]
    fn another_version_is_refused_and_both_are_named() {
        let dir = tempfile::tempdir().unwrap();
        // The kernel starts a script's interpreter with a path to the copy
        // that is closed by then: it prints nothing, which is no version.
        script(
            dir.path(),
            "slipway-monitor",
            "#!/bin/echo slipway-monitor 0.0.0 protocol 9\n",
        );
        let error = MonitorBinaries::load(dir.path()).unwrap_err();
        assert!(matches!(
            error,
            BinariesError::Version { .. } | BinariesError::Run { .. }
        ));
        if let BinariesError::Version { wanted, .. } = error {
            assert_eq!(wanted, version_line("slipway-monitor"));
        }
    }
}
