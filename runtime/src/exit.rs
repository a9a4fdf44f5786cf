//! Exit records: how containers ended, for an engine that was away.
//!
//! Owns the file format, and the room for a record: a file without a byte that has a
//! block, made with the container, so that an exit can be written down on a full disk.
//! A record goes there by one write, which readers see as a whole or not at all; where
//! there is no such file it is written to a temporary name and renamed. It is never
//! synced: after another boot no container lives anyway. A crash leaves at most a
//! temporary file or part of a record, which readers skip and the next write replaces.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::protocol::Exited;

/// First line of every record; the number is the format's version.
const HEADER: &str = "slipway-exit 1";
/// Last line: a record without it was not written to its end.
const FOOTER: &str = "end";
/// Bytes of room that the longest record fits in.
const ROOM: u64 = 512;
/// Begins the names of files that are not finished.
const TEMPORARY: &str = ".tmp-";
/// Longest record that is believed to be one.
const MAX_LENGTH: u64 = 4096;

/// How a container's first process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitRecord {
    /// The container's id.
    pub container: String,
    /// Exit code; 128 + n for a signal.
    pub exit_code: i32,
    /// The signal, if one ended it.
    pub signal: Option<i32>,
    /// Whether that was the kernel, for lack of memory.
    pub oom_killed: bool,
    /// When it began, nanoseconds since 1970; 0: it never ran.
    pub started_at: i64,
    /// When it ended, nanoseconds since 1970.
    pub finished_at: i64,
}

impl ExitRecord {
    /// Makes room for the record of a container that may end on a full disk.
    ///
    /// # Errors
    /// There is no room for it now.
    pub fn reserve(exit_dir: &Path, container: &str) -> io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(exit_dir.join(container))?;
        // The length stays 0: bytes that nobody wrote would have to be told from a record.
        let allocate = || rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, ROOM);
        match rustix::io::retry_on_intr(allocate) {
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => Err(errno.into()),
            // A file system that allocates when it writes: the name at least is there.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes the record of a container, or the room for one, and what a write that was
    /// cut off has left.
    ///
    /// # Errors
    /// It stays.
    pub fn remove(exit_dir: &Path, container: &str) -> io::Result<()> {
        for path in [temporary(exit_dir, container), exit_dir.join(container)] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads all records of a directory, if there is one. Temporary names and room for
    /// records are skipped; so is a broken record, whose name is reported as a warning.
    ///
    /// # Errors
    /// The directory or one of the records cannot be read: whether it ended is not known.
    pub fn read_dir(exit_dir: &Path) -> io::Result<Vec<Self>> {
        let mut records = Vec::new();
        let entries = match std::fs::read_dir(exit_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(records),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
                continue;
            }
            match Self::read(&entry.path()) {
                Ok(Some(record)) => records.push(record),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    report_broken(&entry.path(), &error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// Reads one record; `None` where there is only room for one.
    ///
    /// # Errors
    /// The file cannot be read or is no complete record.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > MAX_LENGTH {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not an exit record",
            ));
        }
        if metadata.len() == 0 {
            return Ok(None);
        }
        let text = io::read_to_string(file)?;
        Self::parse(&text)
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a complete exit record"))
    }

    /// Writes the record below its container's id. A container ends once: a whole record
    /// that is there already stays.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn write(&self, exit_dir: &Path) -> io::Result<()> {
        let text = self.render();
        let path = exit_dir.join(&self.container);
        match Self::read(&path) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) if add(&path, text.as_bytes()).is_ok() => return Ok(()),
            Ok(None) => {}
            // None, or a broken one.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidData
                ) => {}
            // What is there is not known, and may be whole.
            Err(error) => return Err(error),
        }
        let temporary = temporary(exit_dir, &self.container);
        let placed = write_anew(&temporary, text.as_bytes())
            .and_then(|()| std::fs::rename(&temporary, &path));
        if placed.is_err() {
            // What a full disk took of it would stay for as long as the pod.
            let _may_not_be_there = std::fs::remove_file(&temporary);
        }
        placed
    }

    fn render(&self) -> String {
        format!(
            "{HEADER}\ncontainer {}\nexit_code {}\nsignal {}\noom_killed {}\nstarted_at {}\n\
             finished_at {}\n{FOOTER}\n",
            self.container,
            self.exit_code,
            self.signal.unwrap_or(0),
            u8::from(self.oom_killed),
            self.started_at,
            self.finished_at,
        )
    }

    /// Unknown keys are skipped, so that a later format may add some; so is what follows
    /// the first record, where engine and monitor have written one each.
    fn parse(text: &str) -> Option<Self> {
        let (text, _) = text.split_once(&format!("\n{FOOTER}\n"))?;
        let mut lines = text.lines();
        if lines.next()? != HEADER {
            return None;
        }
        let value = |key: &str| {
            lines
                .clone()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        };
        let container = value("container")?;
        if container.is_empty() {
            return None;
        }
        let signal: i32 = value("signal")?.parse().ok()?;
        Some(Self {
            container: container.to_owned(),
            exit_code: value("exit_code")?.parse().ok()?,
            signal: (signal != 0).then_some(signal),
            oom_killed: value("oom_killed")? == "1",
            started_at: value("started_at")?.parse().ok()?,
            finished_at: value("finished_at")?.parse().ok()?,
        })
    }
}

fn temporary(exit_dir: &Path, container: &str) -> PathBuf {
    exit_dir.join(format!("{TEMPORARY}{container}"))
}

/// Adds to what is there: two who write at once do not mix what they write.
fn add(path: &Path, text: &[u8]) -> io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(text)
}

fn write_anew(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text)
}

impl From<Exited> for ExitRecord {
    fn from(exited: Exited) -> Self {
        let Exited {
            id,
            exit_code,
            signal,
            oom_killed,
            started_at,
            finished_at,
        } = exited;
        Self {
            container: id,
            exit_code,
            signal,
            oom_killed,
            started_at,
            finished_at,
        }
    }
}

impl From<&ExitRecord> for Exited {
    fn from(record: &ExitRecord) -> Self {
        let ExitRecord {
            container,
            exit_code,
            signal,
            oom_killed,
            started_at,
            finished_at,
        } = record;
        Self {
            id: container.clone(),
            exit_code: *exit_code,
            signal: *signal,
            oom_killed: *oom_killed,
            started_at: *started_at,
            finished_at: *finished_at,
        }
    }
}

#[cfg(feature = "engine")]
fn report_broken(path: &Path, error: &io::Error) {
    tracing::warn!(path = %path.display(), %error, "exit record skipped");
}

#[cfg(not(feature = "engine"))]
fn report_broken(_path: &Path, _error: &io::Error) {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(container: &str) -> ExitRecord {
        ExitRecord {
            container: container.to_owned(),
            exit_code: 137,
            signal: Some(9),
            oom_killed: true,
            started_at: 1,
            finished_at: i64::MAX,
        }
    }

    #[test]
    fn records_come_back_and_broken_ones_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (
            record("one"),
            ExitRecord {
                signal: None,
                ..record("two")
            },
        );
        one.write(dir.path()).unwrap();
        two.write(dir.path()).unwrap();
        std::fs::write(dir.path().join(".tmp-three"), "half").unwrap();
        std::fs::write(dir.path().join("four"), "half").unwrap();
        std::fs::create_dir(dir.path().join("five")).unwrap();
        let mut read = ExitRecord::read_dir(dir.path()).unwrap();
        read.sort_by(|a, b| a.container.cmp(&b.container));
        assert_eq!(read, [one, two]);
    }

    #[test]
    fn room_is_no_record_and_is_written_into_once() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        ExitRecord::reserve(dir.path(), "one").unwrap();
        let path = dir.path().join("one");
        assert_eq!(ExitRecord::read(&path).unwrap(), None);
        assert_eq!(ExitRecord::read_dir(dir.path()).unwrap(), []);
        let room = std::fs::metadata(&path).unwrap().ino();
        record("one").write(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), room);
        assert_eq!(ExitRecord::read_dir(dir.path()).unwrap(), [record("one")]);
        // To make room again takes nothing away.
        ExitRecord::reserve(dir.path(), "one").unwrap();
        assert_eq!(ExitRecord::read(&path).unwrap(), Some(record("one")));
        std::fs::write(dir.path().join(".tmp-one"), "half").unwrap();
        ExitRecord::remove(dir.path(), "one").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        ExitRecord::remove(dir.path(), "one").unwrap();
    }

    #[test]
    fn part_of_a_record_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let text = record("one").render();
        std::fs::write(dir.path().join("one"), &text[..text.len() / 2]).unwrap();
        record("one").write(dir.path()).unwrap();
        assert_eq!(ExitRecord::read_dir(dir.path()).unwrap(), [record("one")]);
    }

    #[test]
    fn the_first_of_two_records_counts_and_the_longest_has_room() {
        let other = ExitRecord {
            exit_code: 0,
            ..record("abc")
        };
        let both = record("abc").render() + &other.render();
        assert_eq!(ExitRecord::parse(&both), Some(record("abc")));
        let longest = ExitRecord {
            container: "c".repeat(64),
            exit_code: i32::MIN,
            signal: Some(i32::MIN),
            oom_killed: true,
            started_at: i64::MIN,
            finished_at: i64::MIN,
        };
        assert!(longest.render().len() as u64 <= ROOM);
    }

    /// What makes a write to a temporary name fail leaves no such file.
    #[test]
    fn a_write_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("one");
        std::fs::create_dir_all(taken.join("below")).unwrap();
        record("one").write(dir.path()).unwrap_err();
        assert!(!dir.path().join(".tmp-one").exists());
    }

    #[test]
    fn every_cut_record_is_refused() {
        let whole = record("abc").render();
        assert!(ExitRecord::parse(&whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(ExitRecord::parse(&whole[..length]), None, "cut at {length}");
        }
    }

    #[test]
    fn keys_of_a_later_format_are_skipped() {
        let text = record("abc")
            .render()
            .replace("end\n", "colour blue\nend\n");
        assert_eq!(ExitRecord::parse(&text), Some(record("abc")));
    }

    #[test]
    fn the_first_whole_record_stays() {
        let dir = tempfile::tempdir().unwrap();
        record("one").write(dir.path()).unwrap();
        let second = ExitRecord {
            exit_code: 0,
            signal: None,
            ..record("one")
        };
        second.write(dir.path()).unwrap();
        assert_eq!(ExitRecord::read_dir(dir.path()).unwrap(), [record("one")]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_text_is_answered_without_panic(text in ".{0,300}") {
            let _record = ExitRecord::parse(&text);
        }
    }
}
