//! The engine's allocations, through a library that is preloaded into it.
//!
//! Chosen over a counting allocator in a build of its own, since that would not be
//! the program that is shipped, and over valgrind, under which a pod's life takes
//! minutes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

const SOURCE: &str = include_str!("allocations.c");

/// A library and the file that it counts in.
#[derive(Debug)]
pub struct Counter {
    library: PathBuf,
    counts: PathBuf,
}

/// What was counted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocated {
    /// Calls of the allocator, except those that give back.
    pub calls: u64,
    /// Bytes asked for.
    pub bytes: u64,
}

impl Counter {
    /// Compiles the library into a folder.
    ///
    /// # Errors
    /// There is no C compiler, or the folder cannot be written.
    pub fn prepare(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let (source, library) = (dir.join("allocations.c"), dir.join("allocations.so"));
        std::fs::write(&source, SOURCE)?;
        let compiled = Command::new("gcc")
            .args(["-O2", "-shared", "-fPIC", "-fno-builtin", "-o"])
            .args([&library, &source])
            .output()
            .context("run gcc")?;
        let said = String::from_utf8_lossy(&compiled.stderr);
        ensure!(compiled.status.success(), "gcc: {said}");
        let counts = dir.join("counts");
        std::fs::write(&counts, [0; 4096])?;
        Ok(Self { library, counts })
    }

    /// What the counted program has to find in its environment.
    #[must_use]
    pub fn environment(&self) -> [(String, String); 2] {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        [
            ("LD_PRELOAD".to_owned(), text(&self.library)),
            ("GUARD_ALLOCATIONS".to_owned(), text(&self.counts)),
        ]
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// The file is gone, or nothing was ever counted in it.
    pub fn read(&self) -> anyhow::Result<Allocated> {
        let bytes = std::fs::read(&self.counts).context("read the allocations")?;
        let number = |at: usize| {
            let bytes = bytes.get(at..at + 8)?;
            bytes.try_into().ok().map(u64::from_ne_bytes)
        };
        let (calls, bytes) = (number(0).unwrap_or(0), number(8).unwrap_or(0));
        ensure!(calls > 0, "no allocation was counted; is slipway static?");
        Ok(Allocated { calls, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_allocations_are_counted() {
        let dir = tempfile::tempdir().expect("a folder");
        let counter = Counter::prepare(dir.path()).expect("a library");
        assert!(counter.read().is_err(), "nothing ran yet");
        let mut command = Command::new("ls");
        command.arg("/").envs(counter.environment());
        assert!(command.output().expect("ls").status.success());
        let counted = counter.read().expect("counted");
        assert!(counted.calls > 3 && counted.bytes > 100, "{counted:?}");
    }
}
