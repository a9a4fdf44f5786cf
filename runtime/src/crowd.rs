//! Bounds on how many threads may be at paths of the node at once.
//!
//! A system call on a file system that does not answer, such as NFS without its server, keeps
//! its thread in the kernel, where no signal ends it. So few threads are sent to one path, to
//! one file system, and altogether, and some are kept for file systems on which no thread is.
//! The file system of a path is looked up in the text of the mount table: a stat of the path
//! could itself not return.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::procfs::{mount_table, unescape};

/// So few are nobody's trouble, wherever they are: the mount table is not read.
const FEW: usize = 16;

/// How many may be there at once.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// At one path.
    pub at_path: usize,
    /// At one file system, of those who came since it answered the last time.
    pub at_device: usize,
    /// Altogether,
    pub most: usize,
    /// and so many more where nobody is at the same file system.
    pub reserve: usize,
    /// A path where somebody has been for so long is not touched. Nor is a full file
    /// system, but for one in so long who finds out whether it answers again.
    pub patience: Duration,
}

/// There is no room at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Crowded {
    /// Others are at the same path, the first of them for so long.
    #[error("the path has not answered for {} s", .0.as_secs())]
    Path(Duration),
    /// Others are at the same file system, the first of them for so long.
    #[error("its file system has not answered for {} s", .0.as_secs())]
    Device(Duration),
    /// Others are at too many file systems.
    #[error("too many other file systems do not answer")]
    Full,
}

impl Crowded {
    /// Whether there is little hope for room, where others have waited for so long.
    #[must_use]
    pub fn lasts(&self, time: Duration) -> bool {
        match self {
            Self::Path(longest) | Self::Device(longest) => *longest >= time,
            Self::Full => true,
        }
    }
}

/// Mount points and the device of each.
type Devices = HashMap<PathBuf, String>;

/// Those who are at paths now.
#[derive(Debug)]
pub struct Crowd {
    bounds: Bounds,
    table: Mutex<Table>,
    devices: fn() -> Devices,
}

#[derive(Debug)]
struct Table {
    next: u64,
    visits: BTreeMap<u64, Visit>,
    /// When a file system answered the last time, of those that were asked for.
    answered: BTreeMap<String, Instant>,
}

#[derive(Debug)]
struct Visit {
    path: PathBuf,
    began: Instant,
    /// Its file system; not known while there are few.
    device: Option<String>,
}

/// Somebody who is at a path until this is dropped.
#[derive(Debug)]
pub struct Inside<'a> {
    crowd: &'a Crowd,
    number: u64,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut table = self.crowd.lock();
        let ended = table.visits.remove(&self.number);
        if table.visits.len() < FEW {
            table.answered.clear();
        } else if let Some(device) = ended.and_then(|visit| visit.device) {
            table.answered.insert(device, Instant::now());
        }
    }
}

impl Crowd {
    /// Nobody yet.
    #[must_use]
    pub const fn new(bounds: Bounds) -> Self {
        let table = Table {
            next: 0,
            visits: BTreeMap::new(),
            answered: BTreeMap::new(),
        };
        Self {
            bounds,
            table: Mutex::new(table),
            devices: mounted,
        }
    }

    /// Goes to a path, or tells why there is no room. Touches no file system.
    pub fn enter(&self, path: &Path) -> Result<Inside<'_>, Crowded> {
        let mut table = self.lock();
        table.room_at_path(path, &self.bounds)?;
        let mut device = None;
        if table.visits.len() >= FEW {
            drop(table);
            let devices = (self.devices)();
            table = self.lock();
            table.room_at_path(path, &self.bounds)?;
            let found = device_of(path, &devices);
            table.room_at_device(&found, &devices, &self.bounds)?;
            device = Some(found);
        }
        let number = table.next;
        table.next += 1;
        let visit = Visit {
            path: path.to_owned(),
            began: Instant::now(),
            device,
        };
        table.visits.insert(number, visit);
        let crowd = self;
        Ok(Inside { crowd, number })
    }

    /// The lock is held for memory only.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn room_at_path(&self, path: &Path, bounds: &Bounds) -> Result<(), Crowded> {
        let there = self.visits.values().filter(|visit| visit.path == path);
        let times: Vec<_> = there.map(|visit| visit.began.elapsed()).collect();
        match times.iter().max() {
            Some(longest) if *longest >= bounds.patience || times.len() >= bounds.at_path => {
                Err(Crowded::Path(*longest))
            }
            _ => Ok(()),
        }
    }

    fn room_at_device(
        &mut self,
        device: &str,
        devices: &Devices,
        bounds: &Bounds,
    ) -> Result<(), Crowded> {
        for visit in self.visits.values_mut() {
            let path = &visit.path;
            visit.device.get_or_insert_with(|| device_of(path, devices));
        }
        let answered = self.answered.get(device);
        let there = self.visits.values().filter(|visit| {
            visit.device.as_deref() == Some(device)
                && answered.is_none_or(|answered| visit.began > *answered)
        });
        let times: Vec<_> = there.map(|visit| visit.began.elapsed()).collect();
        let longest = times.iter().max().copied();
        let last = times.iter().min().copied().unwrap_or_default();
        let all = self.visits.len();
        match longest {
            Some(longest) if times.len() >= bounds.at_device && last < bounds.patience => {
                Err(Crowded::Device(longest))
            }
            Some(longest) if all >= bounds.most => Err(Crowded::Device(longest)),
            None if all >= bounds.most + bounds.reserve => Err(Crowded::Full),
            _ => Ok(()),
        }
    }
}

/// The device of the mount that a path is in by its text; the folder, if none is known.
fn device_of(path: &Path, devices: &Devices) -> String {
    let mut above = path.ancestors();
    let device = above.find_map(|above| devices.get(above)).cloned();
    device.unwrap_or_else(|| {
        let folder = path.parent().unwrap_or(path);
        folder.to_string_lossy().into_owned()
    })
}

fn mounted() -> Devices {
    let table = mount_table("/proc/thread-self/mountinfo");
    let table = table
        .inspect_err(|error| tracing::warn!(%error, "no mount table"))
        .unwrap_or_default();
    // A later mount hides an earlier one at the same point.
    let entries = table.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(2);
        let device = words.next()?.to_owned();
        Some((unescape(words.nth(1)?), device))
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        at_path: 8,
        at_device: 20,
        most: 60,
        reserve: 30,
        patience: Duration::from_secs(600),
    };

    /// The root, and a hundred file systems.
    fn crowd() -> Crowd {
        Crowd {
            devices: || {
                let all = (0..100).map(|n| (PathBuf::from(format!("/m{n}")), format!("1:{n}")));
                all.chain([(PathBuf::from("/"), "0:1".to_owned())])
                    .collect()
            },
            ..Crowd::new(BOUNDS)
        }
    }

    #[test]
    fn a_file_system_that_does_not_answer_keeps_few_and_nobody_elses() {
        let crowd = crowd();
        let mut dead = Vec::new();
        for n in 0..20 {
            dead.push(crowd.enter(&PathBuf::from(format!("/m1/{n}"))).unwrap());
        }
        for n in 20..600 {
            let late = crowd.enter(&PathBuf::from(format!("/m1/{n}")));
            assert!(matches!(late, Err(Crowded::Device(_))), "{late:?}");
        }
        for n in 0..600 {
            drop(crowd.enter(&PathBuf::from(format!("/good/{n}"))).unwrap());
        }
        // It answers one of them: then there is room again.
        dead.pop();
        assert!(crowd.enter(Path::new("/m1/again")).is_ok());
        dead.clear();
        let table = crowd.lock();
        assert!(table.visits.is_empty() && table.answered.is_empty());
    }

    #[test]
    fn many_file_systems_that_do_not_answer_leave_room_for_those_that_do() {
        let crowd = crowd();
        let mut dead = Vec::new();
        for n in 0..80 {
            for file in 0..4 {
                dead.extend(crowd.enter(&PathBuf::from(format!("/m{n}/{file}"))));
            }
        }
        // Those that came first have four each, later ones one.
        assert_eq!(dead.len(), 60 + 30);
        assert!(matches!(
            crowd.enter(Path::new("/late")),
            Err(Crowded::Full)
        ));
        dead.truncate(80);
        let late = crowd.enter(Path::new("/late/a"));
        assert!(late.is_ok(), "{late:?}");
    }

    /// Links may lead from a file system that answers into one that does not.
    #[test]
    fn a_file_system_that_answers_others_is_not_taken_for_a_dead_one() {
        let crowd = crowd();
        let mut dead = Vec::new();
        for n in 0..50 {
            dead.push(crowd.enter(&PathBuf::from(format!("/link{n}/a"))).unwrap());
            drop(crowd.enter(&PathBuf::from(format!("/good{n}"))).unwrap());
        }
        assert!(crowd.enter(Path::new("/good")).is_ok());
    }

    #[test]
    fn a_path_where_somebody_waits_is_not_touched_and_few_are_at_one() {
        let crowd = crowd();
        let busy = Path::new("/busy");
        let all: Vec<_> = (0..8).map(|_| crowd.enter(busy).unwrap()).collect();
        assert!(matches!(crowd.enter(busy), Err(Crowded::Path(_))));
        drop(all);
        assert!(crowd.enter(busy).is_ok());
        let patience = Duration::ZERO;
        let crowd = Crowd::new(Bounds { patience, ..BOUNDS });
        let there = crowd.enter(busy).unwrap();
        let refused = crowd.enter(busy).unwrap_err();
        assert!(matches!(refused, Crowded::Path(_)), "{refused:?}");
        drop(there);
        assert!(crowd.enter(busy).is_ok());
    }

    #[test]
    fn the_mount_table_tells_devices() {
        let devices = mounted();
        let proc = device_of(Path::new("/proc/self/stat"), &devices);
        assert_ne!(proc, device_of(Path::new("/"), &devices));
        assert!(proc.starts_with("0:"), "{proc}");
        assert_eq!(device_of(Path::new("/a/b"), &Devices::new()), "/a");
    }
}
