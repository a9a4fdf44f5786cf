//! Putting rules in force: the v1 controller where there is one, else a program
//! on the v2 cgroup. Both before anything runs in the cgroup.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Rule, compile};
use crate::sys::bpf::{attach_device_program, load_device_program};

/// Rules that are not in force.
#[derive(Debug, thiserror::Error)]
pub enum EnforceError {
    /// There is nothing to enforce them: no container may have them.
    #[error("the container has neither a v1 devices cgroup nor a v2 cgroup")]
    NoCgroup,
    /// The kernel refused.
    #[error("{what}: {errno}")]
    Kernel {
        /// The rule, or the cgroup.
        what: String,
        /// Why.
        errno: Errno,
    },
}

/// Puts rules in force for a container by the directories of its cgroups.
///
/// # Errors
/// See [`EnforceError`].
pub fn enforce(rules: &[Rule], dirs: &[PathBuf]) -> Result<(), EnforceError> {
    let find = |file: &str| dirs.iter().find(|dir| dir.join(file).exists());
    if let Some(dir) = find("devices.allow") {
        return apply_v1(dir, rules);
    }
    if rules.iter().all(|rule| rule.allow) {
        // Everything is allowed, as it is without a program.
        return Ok(());
    }
    let dir = find("cgroup.controllers").ok_or(EnforceError::NoCgroup)?;
    apply_v2(dir, rules).map_err(|errno| EnforceError::Kernel {
        what: dir.display().to_string(),
        errno,
    })
}

fn apply_v1(dir: &Path, rules: &[Rule]) -> Result<(), EnforceError> {
    let open = |name: &str| -> Result<OwnedFd, EnforceError> {
        let path = dir.join(name);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| EnforceError::Kernel {
            what: path.display().to_string(),
            errno,
        })
    };
    let (allow, deny) = (open("devices.allow")?, open("devices.deny")?);
    for rule in rules {
        let (file, text) = (if rule.allow { &allow } else { &deny }, rule.v1_text());
        rustix::io::retry_on_intr(|| rustix::io::write(file, text.as_bytes()))
            .map_err(|errno| EnforceError::Kernel { what: text, errno })?;
    }
    Ok(())
}

fn apply_v2(dir: &Path, rules: &[Rule]) -> Result<(), Errno> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let cgroup = rustix::fs::open(dir, flags, Mode::empty())?;
    let program = load_device_program(&compile(rules))?;
    attach_device_program(cgroup.as_fd(), program.as_fd())
}
