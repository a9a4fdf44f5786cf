//! Exit records: how containers ended, for an engine that was away.
//!
//! Owns the file format. A record is written to a temporary name and renamed,
//! never synced: after another boot no container lives anyway. A crash leaves
//! at most a temporary file, which readers skip.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::protocol::Exited;

/// First line of every record; the number is the format's version.
const HEADER: &str = "slipway-exit 1";
/// Last line: a record without it was not written to its end.
const FOOTER: &str = "end";
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
    /// Reads all records of a directory, if there is one. Temporary names are skipped; so
    /// is a broken record, whose name is reported as a warning.
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
                Ok(record) => records.push(record),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    report_broken(&entry.path(), &error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// Reads one record.
    ///
    /// # Errors
    /// The file cannot be read or is no complete record.
    pub fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > MAX_LENGTH {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not an exit record",
            ));
        }
        let text = io::read_to_string(file)?;
        Self::parse(&text)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a complete exit record"))
    }

    /// Writes the record below its container's id.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn write(&self, exit_dir: &Path) -> io::Result<()> {
        let temporary = exit_dir.join(format!("{TEMPORARY}{}", self.container));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(self.render().as_bytes())?;
        std::fs::rename(&temporary, exit_dir.join(&self.container))
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

    /// Unknown keys are skipped, so that a later format may add some.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.lines();
        if lines.next()? != HEADER || lines.next_back()? != FOOTER {
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
    fn second_write_replaces_the_first() {
        let dir = tempfile::tempdir().unwrap();
        record("one").write(dir.path()).unwrap();
        let second = ExitRecord {
            exit_code: 0,
            signal: None,
            ..record("one")
        };
        second.write(dir.path()).unwrap();
        assert_eq!(ExitRecord::read_dir(dir.path()).unwrap(), [second]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_text_is_answered_without_panic(text in ".{0,300}") {
            let _record = ExitRecord::parse(&text);
        }
    }
}
