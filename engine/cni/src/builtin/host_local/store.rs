//! The folder that remembers who holds which address.
//!
//! Owns the files' names and contents, which are the plugin's; whoever changes
//! them holds the lock. Nothing is synced: after a crash of the machine no
//! container is left that could hold an address.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Dir, FlockOperation, Mode, OFlags, flock, open, openat};
use rustix::io::{Errno, read};

/// How long the lock of a folder is waited for. A plugin of another program, which this
/// store shares its folders with, holds it for some milliseconds, or hangs.
const PATIENCE: Duration = Duration::from_secs(10);
const LAST: &str = "last_reserved_ip.";
const LINE_BREAK: &str = "\r\n";
/// Longer than any owner: a container's id, an interface's name of 15, and a break.
const LONGEST: usize = 1024;

/// A failure of the store, with the file it is about.
#[derive(Debug, thiserror::Error)]
#[error("{step} {}", path.display())]
pub(super) struct StoreError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Who holds an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Owner<'a> {
    pub(super) container: &'a str,
    pub(super) interface: &'a str,
}

impl Owner<'_> {
    fn text(self) -> String {
        format!("{}{LINE_BREAK}{}", self.container, self.interface)
    }
}

/// The folder of one network.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    lock: File,
}

/// The folder while nobody else may change it.
#[derive(Debug)]
pub(super) struct Held<'a> {
    store: &'a Store,
}

impl Store {
    /// Opens a network's folder, which is made where it is missing.
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        let named = |step, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError { step, path, source }
        };
        let path = folder.join("lock");
        let open_lock = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).mode(0o750);
            options.open(&path)
        };
        let lock = match open_lock() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut builder = DirBuilder::new();
                builder.recursive(true).mode(0o755);
                builder.create(folder).map_err(named("create", folder))?;
                open_lock()
            }
            opened => opened,
        };
        Ok(Self {
            lock: lock.map_err(named("open", &path))?,
            folder: folder.to_owned(),
        })
    }

    /// Waits until nobody else holds the lock, up to [`PATIENCE`].
    pub(super) fn lock(&self) -> Result<Held<'_>, StoreError> {
        self.lock_until(Instant::now() + PATIENCE)
    }

    fn lock_until(&self, until: Instant) -> Result<Held<'_>, StoreError> {
        let mut pause = Duration::from_micros(100);
        loop {
            match flock(&self.lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Held { store: self }),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if Instant::now() < until => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
                Err(error) => {
                    let step = "wait for whoever holds the lock";
                    return Err(self.failed(step, "lock", error.into()));
                }
            }
        }
    }

    fn failed(&self, step: &'static str, file: &str, source: io::Error) -> StoreError {
        let path = self.folder.join(file);
        StoreError { step, path, source }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // The lock also ends with the file, so a failure only delays others.
        let _ends_with_the_file = flock(&self.store.lock, FlockOperation::Unlock);
    }
}

impl Held<'_> {
    /// Reserves an address; false = somebody has it.
    pub(super) fn reserve(
        &mut self,
        owner: Owner<'_>,
        address: IpAddr,
        set: usize,
    ) -> Result<bool, StoreError> {
        let name = address.to_string();
        let path = self.store.folder.join(&name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut opened = options.open(&path);
        // Whoever writes an owner holds the lock: a file without one was left by a crash.
        if opened.is_err() && fs::metadata(&path).is_ok_and(|found| found.len() == 0) {
            let _is_told_by_the_next_try = fs::remove_file(&path);
            opened = options.open(&path);
        }
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(self.store.failed("create", &name, error)),
        };
        let last = format!("{LAST}{set}");
        let written = file.write_all(owner.text().as_bytes());
        let written = written.and_then(|()| self.write_last(&last, &name));
        if let Err(error) = written {
            // An address without an owner could never be given back.
            let _stays = fs::remove_file(&path);
            return Err(self.store.failed("write", &name, error));
        }
        Ok(true)
    }

    /// Writes over what is there. Emptying the file first would give its block
    /// back, and on a file system that discards at once wait for the disk.
    fn write_last(&self, file: &str, address: &str) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(self.store.folder.join(file))?;
        file.write_all(address.as_bytes())?;
        let length = address.len() as u64;
        if file.metadata()?.len() > length {
            file.set_len(length)?;
        }
        Ok(())
    }

    /// The address that was given out last of a set. An unreadable one only
    /// costs the round.
    pub(super) fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        let path = self.store.folder.join(format!("{LAST}{set}"));
        let text = fs::read_to_string(path).ok()?;
        let address: IpAddr = text.parse().ok()?;
        Some(address.to_canonical())
    }

    /// The addresses of an owner, also those that an old plugin remembered by
    /// the container only.
    pub(super) fn of_owner(&self, owner: Owner<'_>) -> Result<Vec<IpAddr>, StoreError> {
        let text = owner.text();
        let mine = |held: &str| held == text || held == owner.container;
        let all = self.all()?.into_iter();
        Ok(all
            .filter(|(_, held)| mine(held))
            .map(|(address, _)| address)
            .collect())
    }

    /// Gives an address back.
    pub(super) fn release(&mut self, address: IpAddr) -> Result<(), StoreError> {
        let name = address.to_string();
        match fs::remove_file(self.store.folder.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.store.failed("remove", &name, error))
            }
            _ => Ok(()),
        }
    }

    /// Gives all addresses of an owner back; where there are none, those that
    /// an old plugin remembered by the container only.
    pub(super) fn release_owner(&mut self, owner: Owner<'_>) -> Result<(), StoreError> {
        let all = self.all()?;
        let text = owner.text();
        let exact = all.iter().any(|(_, held)| *held == text);
        let wanted = if exact {
            text.as_str()
        } else {
            owner.container
        };
        for (address, held) in &all {
            if held == wanted {
                self.release(*address)?;
            }
        }
        Ok(())
    }

    /// Gives every address back whose owner is not in the list.
    pub(super) fn release_others(&mut self, valid: &HashSet<Owner<'_>>) -> Result<(), StoreError> {
        let texts: HashSet<String> = valid.iter().map(|owner| owner.text()).collect();
        let containers: HashSet<&str> = valid.iter().map(|owner| owner.container).collect();
        for (address, held) in self.all()? {
            let by_container = !held.contains('\n') && containers.contains(held.as_str());
            if !texts.contains(&held) && !by_container {
                self.release(address)?;
            }
        }
        Ok(())
    }

    /// All addresses with their owners. There may be hundreds, each looked at in
    /// every ADD and DEL, so this asks the kernel as little as it can.
    fn all(&self) -> Result<Vec<(IpAddr, String)>, StoreError> {
        let failed = |error: Errno| self.store.failed("read", "", error.into());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = open(&self.store.folder, flags | OFlags::DIRECTORY, Mode::empty());
        let folder = folder.map_err(failed)?;
        let mut found = Vec::new();
        for entry in Dir::read_from(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // Other files belong to the store, or to nobody it knows.
            let name = entry.file_name();
            let Some(address) = name.to_str().ok().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let mut text = [0; LONGEST];
            let read =
                openat(&folder, name, flags, Mode::empty()).and_then(|file| read(&file, &mut text));
            // Whoever works without the lock may have removed it meanwhile.
            let Ok(length) = read else {
                continue;
            };
            let text = String::from_utf8_lossy(&text[..length]);
            found.push((address, text.trim().to_owned()));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_the_lock_keeps_nobody_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Store::open(dir.path()).unwrap();
        let (hung, store) = (open(), open());
        let held = hung.lock().unwrap();
        let error = store.lock_until(Instant::now()).unwrap_err();
        assert!(error.to_string().contains("lock"), "{error}");
        assert_eq!(error.source.kind(), io::ErrorKind::WouldBlock);
        drop(held);
        drop(store.lock().unwrap());
    }
}
