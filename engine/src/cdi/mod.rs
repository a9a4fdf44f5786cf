//! Devices of vendors by the Container Device Interface: names in a request to what a
//! container needs for them, as files on the node describe it.
//!
//! The folders are read when a container asks for a device, so that what a vendor's agent
//! has just written is known, and what it has taken away is not; nothing else reads them.
//! Statuses tell what was there then, from memory. Whoever can write to the folders is
//! root: what the files name is trusted, as a plugin's configuration is, but checked.

mod apply;
mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use apply::apply;
pub(crate) use file::is_qualified;

use crate::spec::Stuck;
use file::{Device, File};

/// More files no node has.
const MAX_FILES: usize = 1000;
/// Errors of files that a message repeats.
const MAX_TOLD: usize = 3;

/// What can go wrong with devices.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CdiError {
    /// No file has the device.
    #[error("no CDI specification has the device {name}{}", told(wrong))]
    Unknown {
        /// Its name.
        name: String,
        /// Files that cannot be used.
        wrong: Vec<String>,
    },
    /// Two files of one folder have it.
    #[error("the device {name} is both in {} and in {}", first.display(), second.display())]
    Twice {
        /// Its name.
        name: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A file asks for something that no container is given.
    #[error("the CDI specification {} asks for {what}, which is not supported", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// What it asks for.
        what: String,
    },
    /// What a file asks for cannot be.
    #[error("the CDI specification {}: {what}", file.display())]
    Edit {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A path of the host does not answer.
    #[error("{}", path.display())]
    Stuck {
        /// The path.
        path: PathBuf,
        /// For how long.
        source: Stuck,
    },
}

fn told(wrong: &[String]) -> String {
    match wrong {
        [] => String::new(),
        some => format!(
            " ({} cannot be used: {})",
            some.len(),
            some.iter()
                .take(MAX_TOLD)
                .cloned()
                .collect::<Vec<_>>()
                .join("; ")
        ),
    }
}

/// The folders, and what was in them when they were last read.
pub(crate) struct Cdi {
    dirs: Vec<PathBuf>,
    last: Mutex<Seen>,
}

/// What was there, for whoever asks for the engine's status.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Seen {
    /// Names of all devices.
    devices: Vec<String>,
    /// Files that cannot be used, with the reason.
    errors: Vec<String>,
}

/// A file that can be used.
struct Source {
    path: PathBuf,
    /// The number of its folder: the later one's devices count.
    priority: usize,
    file: File,
}

/// A device that was found.
struct Found {
    source: Arc<Source>,
    /// Its place in the file.
    index: usize,
    /// Another file of the same folder that has it, too.
    also: Option<PathBuf>,
}

impl Found {
    fn device(&self) -> Option<&Device> {
        self.source.file.devices.get(self.index)
    }
}

impl Cdi {
    /// The devices that the files of some folders describe. What is in a later one goes
    /// before what is in an earlier one.
    pub(crate) fn new(dirs: Vec<PathBuf>) -> Self {
        Self {
            dirs,
            last: Mutex::default(),
        }
    }

    /// What was there when the folders were last read.
    pub(crate) fn seen(&self) -> Seen {
        let last = self.last.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where it is looked.
    pub(crate) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Reads all files; blocking.
    pub(crate) fn look(&self) {
        let (devices, errors) = self.read();
        self.remember(&devices, errors);
    }

    fn remember(&self, devices: &BTreeMap<String, Found>, errors: Vec<String>) {
        let seen = Seen {
            devices: devices.keys().cloned().collect(),
            errors,
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// The devices of these names, in their order; blocking.
    fn find(&self, names: &[String]) -> Result<Vec<Found>, CdiError> {
        let (mut devices, errors) = self.read();
        self.remember(&devices, errors.clone());
        let one = |name: &String| match devices.remove(name) {
            None => Err(CdiError::Unknown {
                name: name.clone(),
                wrong: errors.clone(),
            }),
            Some(Found {
                also: Some(second),
                source,
                ..
            }) => Err(CdiError::Twice {
                name: name.clone(),
                first: source.path.clone(),
                second,
            }),
            Some(found) => Ok(found),
        };
        names.iter().map(one).collect()
    }

    fn read(&self) -> (BTreeMap<String, Found>, Vec<String>) {
        let (mut devices, mut errors) = (BTreeMap::new(), Vec::new());
        for (priority, dir) in self.dirs.iter().enumerate() {
            for path in files(dir, &mut errors) {
                match file::read(&path) {
                    Ok(file) => take(
                        &mut devices,
                        Source {
                            path,
                            priority,
                            file,
                        },
                    ),
                    Err(error) => errors.push(format!("{}: {error}", path.display())),
                }
            }
        }
        (devices, errors)
    }
}

/// The specifications of a folder in the order of their names.
fn files(dir: &Path, errors: &mut Vec<String>) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            errors.push(format!("{}: {error}", dir.display()));
            return Vec::new();
        }
    };
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let mut files: Vec<_> = paths
        .filter(|path| {
            path.extension()
                .is_some_and(|kind| kind == "json" || kind == "yaml")
        })
        .take(MAX_FILES + 1)
        .collect();
    if files.len() > MAX_FILES {
        errors.push(format!("{}: more than {MAX_FILES} files", dir.display()));
        files.truncate(MAX_FILES);
    }
    files.sort();
    files
}

fn take(devices: &mut BTreeMap<String, Found>, source: Source) {
    let source = Arc::new(source);
    for (index, device) in source.file.devices.iter().enumerate() {
        let name = format!("{}={}", source.file.kind, device.name);
        let found = Found {
            source: Arc::clone(&source),
            index,
            also: None,
        };
        match devices.get_mut(&name) {
            Some(known) if known.source.priority == source.priority => {
                known.also = Some(source.path.clone());
            }
            _ => drop(devices.insert(name, found)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn write(dir: &Path, name: &str, kind: &str, devices: &str) {
        std::fs::create_dir_all(dir).expect("a folder");
        let text =
            format!(r#"{{ "cdiVersion": "1.0.0", "kind": "{kind}", "devices": [{devices}] }}"#);
        std::fs::write(dir.join(name), text).expect("a file");
    }

    fn device(name: &str) -> String {
        format!(r#"{{ "name": "{name}", "containerEdits": {{}} }}"#)
    }

    #[test]
    fn the_later_folder_counts_and_two_files_of_one_do_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let dirs = ["etc", "run"].map(|name| dir.path().join(name));
        write(&dirs[0], "a.json", "v.com/c", &device("x"));
        write(&dirs[1], "a.json", "v.com/c", &device("x"));
        write(&dirs[0], "b.json", "v.com/d", &device("y"));
        write(&dirs[0], "c.json", "v.com/d", &device("y"));
        std::fs::write(dirs[0].join("d.yaml"), "kind: [").expect("a file");
        std::fs::write(dirs[0].join("README"), "no specification").expect("a file");
        let cdi = Cdi::new(dirs.to_vec());
        let find = |name: &str| cdi.find(&[name.to_owned()]);
        let found = find("v.com/c=x").expect("found");
        assert!(found[0].source.path.starts_with(&dirs[1]));
        let twice = find("v.com/d=y").err().expect("ambiguous").to_string();
        assert!(
            twice.contains("b.json") && twice.contains("c.json"),
            "{twice}"
        );
        let unknown = find("v.com/c=z").err().expect("unknown").to_string();
        assert!(
            unknown.contains("v.com/c=z") && unknown.contains("d.yaml"),
            "{unknown}"
        );
        let seen = cdi.seen();
        assert_eq!(seen.devices, ["v.com/c=x", "v.com/d=y"]);
        assert_eq!(seen.errors.len(), 1, "{seen:?}");
    }

    #[test]
    fn what_is_written_later_is_found_and_what_is_removed_is_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let cdi = Cdi::new(vec![dir.path().join("later")]);
        let find = || cdi.find(&["v.com/c=x".to_owned()]);
        assert!(find().is_err());
        write(&dir.path().join("later"), "a.json", "v.com/c", &device("x"));
        assert!(find().is_ok());
        std::fs::remove_file(dir.path().join("later/a.json")).expect("removed");
        assert!(find().is_err());
        assert_eq!(cdi.seen(), Seen::default());
    }
}
