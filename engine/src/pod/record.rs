//! What is on disk of a pod: one file for the sandbox and one for each container.
//! Every transition adds a line, a whole record in JSON; the last whole line is true.
//!
//! Added, not renamed into place: ext4 sends a file that replaces another to the disk
//! at once, which costs a start 1 ms; and what is young enough when it is removed
//! never gets there. No sync: records survive the end of any process, and after a power loss the
//! boot_id in them is another, so that nothing of them is believed but what has
//! to be given back. A crash between two writes, or in the middle of one, leaves the
//! older record, whose intents cover everything that may have happened since.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::cgroup::CgroupPath;
use runtime::client::ExitRecord;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::machine::{Phase, State};
use super::task::exit_record_of;
use crate::ids::{ContainerId, PodId};
use crate::model::{Bytes, ContainerConfig, SandboxConfig};
use crate::network::Attachment;

/// The format that this version writes; it reads this one only.
const VERSION: u32 = 1;
/// A file of this size in bytes is written anew, with the last record alone.
const LONG: u64 = 128 << 10;
const POD_FILE: &str = "pod.json";
const CONTAINERS: &str = "containers";

/// What can go wrong with records.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// The file system refused.
    #[error("{step} {}", path.display())]
    Io {
        /// What was done.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The text is not a record.
    #[error("parse record {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A later version wrote it.
    #[error("record {} has format {found}, this version knows {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

impl RecordError {
    /// Whether the disk did not give or take it, which another time it may.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Io { .. })
    }

    fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A sandbox on disk. The parts of it that must be given back all follow from
/// the id and from this, before any of them is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) version: u32,
    pub(crate) boot_id: String,
    /// The number of the last transition that was written.
    pub(crate) transition: u64,
    pub(crate) id: PodId,
    pub(crate) handler: String,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    pub(crate) phase: Phase,
    pub(crate) config: Arc<SandboxConfig>,
    /// The cgroup of its own processes.
    pub(crate) cgroup: CgroupPath,
    /// Where its network namespace is pinned; `None` with the node's network.
    pub(crate) netns: Option<PathBuf>,
    /// The network it is or may be attached to; `None` when given back.
    pub(crate) attachment: Option<Attachment>,
    /// Addresses, first the one to show.
    pub(crate) ips: Vec<String>,
    /// PID 1 of the shared PID namespace; it ends with the monitor at the latest.
    pub(crate) init_pid: Option<i32>,
    /// Why its parts are not given back yet, if that was tried.
    #[serde(default)]
    pub(crate) trouble: Option<String>,
}

impl PodRecord {
    /// Whether a plugin may still run that was cut off, with an engine or by its
    /// deadline: of a sandbox that never was READY, and of one that a try to give
    /// it back has left.
    pub(crate) const fn may_be_adding(&self) -> bool {
        matches!(self.phase, Phase::Starting) || self.trouble.is_some()
    }
}

/// The ids the first process of a container really has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// A container on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) version: u32,
    pub(crate) boot_id: String,
    /// The number of the last transition that was written.
    pub(crate) transition: u64,
    pub(crate) id: ContainerId,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    pub(crate) state: State,
    pub(crate) config: Arc<ContainerConfig>,
    /// `sha256:` and the config digest.
    pub(crate) image_id: String,
    /// What the status answers as `image_ref`: `repository@digest`, if the image was pulled.
    pub(crate) image_ref: String,
    /// The image by a name that a person knows; empty in records of older engines.
    #[serde(default)]
    pub(crate) image_name: String,
    pub(crate) cgroup: CgroupPath,
    pub(crate) log_path: Option<PathBuf>,
    /// The signal that StopContainer sends.
    pub(crate) stop_signal: i32,
    pub(crate) user: User,
    /// Its environment, where the process below cannot say all of its bytes.
    #[serde(default)]
    pub(crate) raw_environment: Option<Arc<Vec<Bytes>>>,
    /// The process as it was launched; exec takes user, capabilities and the rest from it.
    pub(crate) process: Option<Arc<oci_spec::runtime::Process>>,
}

/// All that is recorded of a pod.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// The sandbox.
    pub(crate) pod: PodRecord,
    pub(crate) containers: Vec<ContainerRecord>,
    /// Containers whose records are damaged, by their ids.
    pub(crate) damaged: Vec<(String, RecordError)>,
    /// What the monitor has written down.
    pub(crate) exits: Vec<ExitRecord>,
}

/// The folder of one pod's records.
#[derive(Debug, Clone)]
pub(crate) struct PodDir(PathBuf);

impl PodDir {
    /// The folder of the pod `id`.
    pub(crate) fn new(pods: &Path, id: &PodId) -> Self {
        Self(pods.join(id.as_str()))
    }

    /// Where the monitor writes exit records.
    pub(crate) fn exits(&self) -> PathBuf {
        self.0.join("exits")
    }

    /// Where hostname, hosts and resolv.conf of the pod are.
    pub(crate) fn files(&self) -> PathBuf {
        self.0.join("files")
    }

    fn container(&self, id: &ContainerId) -> PathBuf {
        self.0.join(CONTAINERS).join(format!("{id}.json"))
    }

    /// Makes the folders of a new pod.
    pub(crate) fn create(&self) -> Result<(), RecordError> {
        for dir in [self.0.join(CONTAINERS), self.exits(), self.files()] {
            std::fs::create_dir_all(&dir).map_err(|source| RecordError::Io {
                step: "create",
                path: dir,
                source,
            })?;
        }
        Ok(())
    }

    /// Writes the sandbox's record.
    pub(crate) fn write_pod(&self, record: &PodRecord) -> Result<(), RecordError> {
        write(&self.0.join(POD_FILE), record)
    }

    /// Writes a container's record.
    pub(crate) fn write_container(&self, record: &ContainerRecord) -> Result<(), RecordError> {
        write(&self.container(&record.id), record)
    }

    /// Writes the first record of a container, and makes room for how it ends. Where there
    /// is no room for both there is neither.
    pub(crate) fn begin_container(&self, record: &ContainerRecord) -> Result<(), RecordError> {
        self.write_container(record)?;
        let exits = self.exits();
        ExitRecord::reserve(&exits, record.id.as_str()).map_err(|source| {
            // What stays of it, a restart undoes.
            let _stays = self.remove_container(&record.id);
            RecordError::Io {
                step: "make room for an exit record in",
                path: exits,
                source,
            }
        })
    }

    /// Writes down how a container ended, if it has, where its monitor would; what that
    /// has written stays.
    pub(crate) fn write_exit(&self, record: &ContainerRecord) -> Result<(), RecordError> {
        let Some(exit) = exit_record_of(record) else {
            return Ok(());
        };
        let path = self.exits();
        exit.write(&path).map_err(|source| RecordError::Io {
            step: "write an exit record in",
            path,
            source,
        })
    }

    /// Forgets a container; its exit record too.
    pub(crate) fn remove_container(&self, id: &ContainerId) -> Result<(), RecordError> {
        let record = self.container(id);
        let cut_off = record.with_extension("tmp");
        gone(std::fs::remove_file(&cut_off), &cut_off)?;
        gone(std::fs::remove_file(&record), &record)?;
        let exits = self.exits();
        gone(ExitRecord::remove(&exits, id.as_str()), &exits)
    }

    /// Forgets the pod with all its containers.
    pub(crate) fn remove(&self) -> Result<(), RecordError> {
        // The sandbox's record goes first: without it, what is left is waste.
        let pod = self.0.join(POD_FILE);
        gone(std::fs::remove_file(&pod), &pod)?;
        gone(std::fs::remove_dir_all(&self.0), &self.0)
    }

    /// The record of the sandbox; `None` where there is none for certain. A disk that
    /// does not say has one that cannot be read.
    pub(crate) fn read_pod(&self) -> Result<Option<PodRecord>, RecordError> {
        match read(&self.0.join(POD_FILE)) {
            Err(error) if error.is_not_found() => Ok(None),
            read => read.map(Some),
        }
    }

    /// The ids of all records of containers, the broken ones too.
    pub(crate) fn container_ids(&self) -> Result<Vec<String>, RecordError> {
        let path = self.0.join(CONTAINERS);
        let list = || std::fs::read_dir(&path)?.collect::<io::Result<Vec<_>>>();
        let entries = match list() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            listed => listed.map_err(|source| RecordError::Io {
                step: "list",
                path: path.clone(),
                source,
            })?,
        };
        // A crash leaves other files: of writes that were cut off.
        let id = |path: PathBuf| {
            let is_record = path.extension()? == "json";
            is_record.then_some(path.file_stem()?.to_str()?.to_owned())
        };
        let paths = entries.into_iter().map(|entry| entry.path());
        Ok(paths.filter_map(id).collect())
    }

    /// What a sandbox was asked to be whose record cannot be read as a whole.
    pub(crate) fn config_of_broken(&self) -> Option<SandboxConfig> {
        config_of(&self.0.join(POD_FILE))
    }

    /// When the folder was made or last added to, in nanoseconds since the epoch.
    pub(crate) fn age(&self) -> i64 {
        let changed = std::fs::metadata(&self.0).and_then(|found| found.modified());
        let since = changed.map(|at| at.duration_since(std::time::UNIX_EPOCH));
        let nanos = since
            .ok()
            .and_then(Result::ok)
            .map(|since| since.as_nanos());
        // CRI has no sandbox that was made at 0.
        nanos
            .and_then(|nanos| i64::try_from(nanos).ok())
            .unwrap_or(1)
    }

    /// All that is recorded; `None` where there is no record of the sandbox for certain.
    /// What is damaged for good is named; a disk that does not give something now has
    /// not given anything.
    pub(crate) fn read(&self) -> Result<Option<Recorded>, RecordError> {
        let Some(pod) = self.read_pod()? else {
            return Ok(None);
        };
        let (mut containers, mut damaged) = (Vec::new(), Vec::new());
        for id in self.container_ids()? {
            match read(&self.0.join(CONTAINERS).join(format!("{id}.json"))) {
                Ok(record) => containers.push(record),
                Err(error) if error.is_not_found() => {}
                Err(error @ RecordError::Parse { .. }) => damaged.push((id, error)),
                // A newer engine's is left to it, with its sandbox.
                Err(error) => return Err(error),
            }
        }
        let exits = self.exits();
        let exits = ExitRecord::read_dir(&exits).map_err(|source| RecordError::Io {
            step: "read",
            path: exits,
            source,
        })?;
        Ok(Some(Recorded {
            pod,
            containers,
            damaged,
            exits,
        }))
    }

    /// The record of one container.
    pub(crate) fn read_container(&self, id: &ContainerId) -> Result<ContainerRecord, RecordError> {
        read(&self.container(id))
    }

    /// What a container was asked to be whose record cannot be read as a whole.
    pub(crate) fn container_config_of_broken(&self, id: &ContainerId) -> Option<ContainerConfig> {
        config_of(&self.container(id))
    }
}

/// The number that a record of this version carries.
pub(crate) const fn version() -> u32 {
    VERSION
}

fn gone(result: io::Result<()>, path: &Path) -> Result<(), RecordError> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RecordError::Io {
            step: "remove",
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

fn write(path: &Path, record: &impl Serialize) -> Result<(), RecordError> {
    let text = serde_json::to_vec(record).map_err(|source| RecordError::Parse {
        path: path.to_owned(),
        source,
    })?;
    let io = |step, path: &Path| {
        let path = path.to_owned();
        move |source| RecordError::Io { step, path, source }
    };
    // The line feed comes first: it also ends what a crash left unfinished.
    let line = [b"\n", &text[..]].concat();
    if add(path, &line).map_err(io("write", path))? {
        return Ok(());
    }
    let temporary = path.with_extension("tmp");
    let written = std::fs::write(&temporary, line).map_err(io("write", &temporary));
    let placed =
        written.and_then(|()| std::fs::rename(&temporary, path).map_err(io("rename to", path)));
    if placed.is_err() {
        // What a full disk took of it would stay for as long as the pod.
        let _may_not_be_there = std::fs::remove_file(&temporary);
    }
    placed
}

/// Adds to a file, or leaves it as it was; false where there is none or it is long.
fn add(path: &Path, line: &[u8]) -> io::Result<bool> {
    let mut file = match OpenOptions::new().append(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let before = file.metadata()?.len();
    if before > LONG {
        return Ok(false);
    }
    file.write_all(line)
        .inspect_err(|_| drop(file.set_len(before)))?;
    Ok(true)
}

/// What the last whole line says. Part of an object is never one: only a write that
/// was cut off ends in it.
fn last<'a, T>(
    text: &'a [u8],
    parse: impl Fn(&'a [u8]) -> serde_json::Result<T>,
) -> serde_json::Result<T> {
    let mut lines = text.rsplit(|byte| *byte == b'\n').map(&parse);
    let whole = lines.find(|line| !matches!(line, Err(error) if error.is_eof()));
    whole.unwrap_or_else(|| parse(text))
}

/// What of a record says what was asked for.
fn config_of<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = std::fs::read(path).ok()?;
    let value: serde_json::Value = last(&text, serde_json::from_slice).ok()?;
    serde_json::from_value(value["config"].clone()).ok()
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let parse = |source| RecordError::Parse {
        path: path.to_owned(),
        source,
    };
    let text = std::fs::read(path).map_err(|source| RecordError::Io {
        step: "read",
        path: path.to_owned(),
        source,
    })?;
    // A line that is damaged is passed over for the one before, whose intents cover
    // what may have happened since; one of another version is not.
    let mut newest = None;
    for line in text.rsplit(|byte| *byte == b'\n') {
        let parsed = match serde_json::from_slice::<Versioned>(line) {
            Ok(Versioned { version }) if version != VERSION => {
                return Err(RecordError::Version {
                    path: path.to_owned(),
                    found: version,
                });
            }
            Ok(_) => serde_json::from_slice(line),
            Err(error) => Err(error),
        };
        match parsed {
            Ok(record) => return Ok(record),
            Err(error) => drop(newest.get_or_insert(error)),
        }
    }
    let empty = || serde_json::Error::io(io::ErrorKind::UnexpectedEof.into());
    Err(parse(newest.unwrap_or_else(empty)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CgroupParent;

    fn states(path: &Path) -> Result<serde_json::Value, RecordError> {
        read(path)
    }

    #[test]
    fn the_last_whole_line_is_true() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("pod.json");
        let record = |at: u64| serde_json::json!({"version": VERSION, "at": at});
        for at in 0..3 {
            write(&path, &record(at)).expect("written");
            assert_eq!(states(&path).expect("read"), record(at));
        }
        // A write that a crash cut off, twice.
        for _ in 0..2 {
            let text = std::fs::read(&path).expect("read");
            let cut = [&text[..], b"\n{\"version\":1,\"at\":"].concat();
            std::fs::write(&path, cut).expect("written");
            assert_eq!(states(&path).expect("read"), record(2));
        }
        write(&path, &record(4)).expect("written");
        assert_eq!(states(&path).expect("read"), record(4));
        // What is damaged, or no record, is passed over.
        for damage in ["\n\0\0\0\0", "\n{\"other\":1}"] {
            let text = std::fs::read(&path).expect("read");
            std::fs::write(&path, [&text[..], damage.as_bytes()].concat()).expect("written");
            assert_eq!(states(&path).expect("read"), record(4));
        }
        let newer = serde_json::json!({"version": VERSION + 1});
        write(&path, &newer).expect("written");
        assert!(matches!(states(&path), Err(RecordError::Version { .. })));
        std::fs::write(&path, "{\"version\":1,").expect("written");
        assert!(matches!(states(&path), Err(RecordError::Parse { .. })));
    }

    /// As an engine wrote it whose cgroups were texts.
    fn pod_of_a_former_engine(id: &PodId, parent: &str, cgroup: &str) -> serde_json::Value {
        serde_json::json!({
            "version": VERSION, "boot_id": "b", "transition": 7, "id": id, "handler": "",
            "created_at": 1, "phase": "Ready", "cgroup": cgroup, "netns": null,
            "attachment": null, "ips": [], "init_pid": null, "trouble": null,
            "config": {
                "key": {"namespace": "ns", "name": "n", "uid": "u", "attempt": 0},
                "hostname": "h", "log_directory": null, "dns": null, "port_mappings": [],
                "labels": {}, "annotations": {}, "cgroup_parent": parent,
                "network": "Node", "pid": "Container", "ipc": "Pod", "sysctls": {},
                "privileged": false,
            },
        })
    }

    #[test]
    fn cgroups_in_records_are_the_texts_that_they_were() {
        let root = tempfile::tempdir().expect("folder");
        for (parent, of_pod) in [("", "/slipway"), ("/kubepods/pod1", "/kubepods/pod1")] {
            let id = PodId::random();
            let dir = PodDir::new(root.path(), &id);
            dir.create().expect("folders");
            let former = pod_of_a_former_engine(&id, parent, &format!("{of_pod}/{id}"));
            write(&dir.0.join(POD_FILE), &former).expect("written");
            let record = dir.read_pod().expect("read").expect("there");
            assert_eq!(record.cgroup.name(), id.as_str());
            let recorded = match &record.config.cgroup_parent {
                CgroupParent::Shared => CgroupPath::slipway(),
                CgroupParent::OfPod(path) => path.clone(),
            };
            assert_eq!(record.cgroup.parent(), Some(recorded));
            assert_eq!(serde_json::to_value(&record).expect("json"), former);
        }
    }

    #[test]
    fn a_record_with_a_path_that_is_no_cgroups_is_damaged_and_keeps_the_rest() {
        let root = tempfile::tempdir().expect("folder");
        let id = PodId::random();
        let dir = PodDir::new(root.path(), &id);
        dir.create().expect("folders");
        let damaged = pod_of_a_former_engine(&id, "/kubepods", "/kubepods/../id");
        write(&dir.0.join(POD_FILE), &damaged).expect("written");
        let error = dir.read_pod().expect_err("refused");
        assert!(matches!(error, RecordError::Parse { .. }) && !error.may_pass());
        assert_eq!(dir.config_of_broken().expect("its config").key.name, "n");
    }

    #[test]
    fn a_record_that_a_disk_does_not_give_is_not_one_that_is_not_there() {
        let root = tempfile::tempdir().expect("folder");
        let dir = PodDir::new(root.path(), &PodId::random());
        assert!(matches!(dir.read_pod(), Ok(None)));
        assert!(matches!(dir.container_ids(), Ok(ids) if ids.is_empty()));
        std::fs::create_dir(&dir.0).expect("folder");
        assert!(matches!(dir.read_pod(), Ok(None)));
        for name in [POD_FILE, CONTAINERS] {
            // A link to itself cannot be looked at, as a block that is damaged.
            std::os::unix::fs::symlink(name, dir.0.join(name)).expect("link");
        }
        assert!(matches!(dir.read_pod(), Err(RecordError::Io { .. })));
        assert!(matches!(dir.container_ids(), Err(RecordError::Io { .. })));
    }

    #[test]
    fn what_a_write_left_that_was_cut_off_is_no_container() {
        let root = tempfile::tempdir().expect("folder");
        let dir = PodDir::new(root.path(), &PodId::random());
        dir.create().expect("folders");
        let id = ContainerId::random();
        let cut_off = dir.container(&id).with_extension("tmp");
        std::fs::write(&cut_off, "{").expect("written");
        assert!(dir.container_ids().expect("list").is_empty());
        dir.remove_container(&id).expect("removed");
        assert!(!cut_off.exists());
        // A place where no record can be.
        let path = dir.container(&id);
        std::fs::create_dir(&path).expect("folder");
        write(&path, &serde_json::json!({})).expect_err("not written");
        assert!(!cut_off.exists());
    }

    #[test]
    fn a_long_record_is_written_anew() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("pod.json");
        let record = serde_json::json!({"version": VERSION, "text": "x".repeat(10_000)});
        let mut longest = 0;
        for _ in 0..30 {
            write(&path, &record).expect("written");
            longest = longest.max(path.metadata().expect("there").len());
        }
        assert!((LONG..LONG + 20_000).contains(&longest), "{longest}");
        assert!(path.metadata().expect("there").len() < LONG);
        assert_eq!(states(&path).expect("read"), record);
    }
}
