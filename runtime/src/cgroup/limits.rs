//! Applies limits, all or none.
//!
//! Keeps each file's old value until all are written and puts them back when
//! one is refused. A crash in between leaves the limits written so far;
//! applying the same resources again completes them.

use std::path::{Path, PathBuf};

use super::file::{self, errno};
use super::plan::{Plan, Write};
use super::{Cgroup, CgroupError, Resources};

impl Cgroup {
    /// Sets the limits. On an error the values before are back in place, and
    /// the error names the file and the value. Returns what could not be set
    /// but does not matter enough to fail.
    pub fn apply(&self, resources: &Resources) -> Result<Vec<String>, CgroupError> {
        let plan = Plan::new(self, resources)?;
        let mut journal = Journal::default();
        for write in plan.writes {
            if let Err(error) = journal.write(write) {
                return Err(journal.restore(error));
            }
        }
        Ok(plan.warnings)
    }
}

/// What the files held before.
#[derive(Default)]
struct Journal {
    done: Vec<Done>,
}

struct Done {
    path: PathBuf,
    old: String,
    new: String,
}

impl Journal {
    fn write(&mut self, write: Write) -> Result<(), CgroupError> {
        let Write {
            path,
            value,
            required,
        } = write;
        let old = match file::read(&path) {
            Ok(old) => old,
            Err(_) if !required => return Ok(()),
            // A few raw v2 files can only be written.
            Err(CgroupError::Read { source, .. }) if errno(&source) == libc::EACCES => {
                String::new()
            }
            Err(e) => return Err(e),
        };
        if old == value {
            return Ok(());
        }
        match file::write(&path, &value) {
            Ok(()) => {
                self.done.push(Done {
                    path,
                    old,
                    new: value,
                });
                Ok(())
            }
            Err(_) if !required => Ok(()),
            Err(source) => Err(CgroupError::Write {
                path,
                value,
                source,
            }),
        }
    }

    /// Puts the old values back, last first, and returns the error to report.
    fn restore(self, mut error: CgroupError) -> CgroupError {
        for done in self.done.into_iter().rev() {
            if restore_file(&done).is_err() {
                error = CgroupError::NotRestored {
                    path: done.path,
                    source: Box::new(error),
                };
            }
        }
        error
    }
}

fn restore_file(done: &Done) -> std::io::Result<()> {
    if done.path.file_name().is_some_and(|name| name == "io.max") {
        reset_devices(&done.path, &done.new)?;
    }
    if done.old.is_empty() {
        // An empty write is none at all; a newline empties a cpuset.
        return file::write(&done.path, "\n");
    }
    // Files with a line per device take one line at a time.
    done.old
        .lines()
        .try_for_each(|line| file::write(&done.path, line))
}

/// `io.max` lists only devices with a limit: what was added has to be lifted.
fn reset_devices(path: &Path, new: &str) -> std::io::Result<()> {
    new.lines()
        .filter_map(|line| line.split(' ').next())
        .try_for_each(|device| {
            file::write(
                path,
                &format!("{device} rbps=max wbps=max riops=max wiops=max"),
            )
        })
}
