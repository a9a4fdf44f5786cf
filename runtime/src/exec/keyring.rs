//! The session keyring of a container.
//!
//! Keys have no namespaces: as long as containers have the same users, nothing but the
//! session keyring tells their keys apart. Each container has one of its own name, which
//! its first process makes and what is run in it joins. Whoever knows the name can join it,
//! and others can read a container's id (`/proc/PID/cgroup` where processes are shared):
//! the name has a secret as well, which the monitor makes and keeps with the container.
//! Owns name and label; a crash leaves nothing: a keyring goes with the last process that
//! is in it.

use std::ffi::{CStr, CString, NulError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;

use crate::sys::keyring;

/// Where a process writes the SELinux label of the keys that it makes.
const LABEL: &CStr = c"/proc/thread-self/attr/keycreate";

/// Said where containers have none.
pub const NONE: &str = "containers have no session keyrings of their own: keyctl is not there \
                        or not permitted";

/// A secret for the name of a keyring: 128 bits that nobody guesses.
///
/// # Errors
/// The kernel has no random bytes.
pub fn secret() -> Result<String, Errno> {
    let mut bytes = [0; 16];
    // As few are never cut short.
    rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// A session keyring.
#[derive(Debug)]
pub struct Keyring {
    name: CString,
    label: Option<Vec<u8>>,
}

impl Keyring {
    /// That of a container, by its secret, made with this SELinux label where one is
    /// given. One that an OCI runtime makes by itself has no secret: it is empty.
    ///
    /// # Errors
    /// The id holds a NUL.
    pub fn of(container: &str, secret: &str, label: &str) -> Result<Self, NulError> {
        let point = if secret.is_empty() { "" } else { "." };
        Ok(Self {
            name: CString::new(format!("_ses.{container}{point}{secret}"))?,
            label: (!label.is_empty()).then(|| label.as_bytes().to_vec()),
        })
    }

    /// Makes it this process's own. `false`: the kernel has no keys, or a filter around
    /// this machine forbids them, so that there is nothing to read of others'.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn join(&self) -> Result<bool, Errno> {
        if let Some(label) = &self.label {
            write(label)?;
        }
        let joined = match keyring::join(&self.name) {
            Err(Errno::NOSYS | Errno::PERM) => Ok(false),
            other => other.map(|()| true),
        };
        if self.label.is_some() {
            // The label is for this keyring alone.
            write(b"")?;
        }
        joined
    }
}

fn write(label: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(LABEL, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::retry_on_intr(|| rustix::io::write(&file, label)).map(drop)
}
