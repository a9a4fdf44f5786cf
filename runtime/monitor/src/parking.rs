//! Parked processes, by the containers whose cgroups they are in.
//!
//! Owns how many there are and for how long: they count as the container's
//! processes and hold some memory. Each is a child of the monitor, reaped with
//! all others.

use std::collections::BTreeMap;

use runtime::parked::Parked;
use runtime::protocol::monotonic_now;
use rustix::io::Errno;
use rustix::process::Pid;

use crate::container::{KILL, send_signal};

/// How long one waits to be used: longer than the ten seconds that the kubelet
/// lets pass between two probes unless told otherwise.
const PATIENCE: u64 = 15_000_000_000;
/// Most of one monitor.
const MOST: usize = 4;

/// All parked processes.
#[derive(Debug, Default)]
pub(crate) struct Parking(BTreeMap<String, Place>);

#[derive(Debug)]
struct Place {
    parked: Parked,
    expires: u64,
}

impl Parking {
    /// Parks a process for a container that has none, where that is of use. Gives
    /// the one that has to go for it.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn park(
        &mut self,
        container: &str,
        cgroup_procs: &[Vec<u8>],
        seccomp: Option<&[u8]>,
    ) -> Result<Option<Pid>, Errno> {
        if self.0.contains_key(container) || !Parked::is_useful(cgroup_procs) {
            return Ok(None);
        }
        let parked = Parked::open(cgroup_procs, seccomp)?;
        let expires = monotonic_now().saturating_add(PATIENCE);
        let place = Place { parked, expires };
        self.0.insert(container.to_owned(), place);
        if self.0.len() <= MOST {
            return Ok(None);
        }
        let soonest = self.0.iter().min_by_key(|(_, place)| place.expires);
        let soonest = soonest.map(|(container, _)| container.clone());
        Ok(soonest.and_then(|container| self.end(&container)))
    }

    /// The one of a container.
    pub(crate) fn find(&self, container: &str) -> Option<&Parked> {
        self.0.get(container).map(|place| &place.parked)
    }

    /// It was used just now: it may be again.
    pub(crate) fn used(&mut self, container: &str) {
        if let Some(place) = self.0.get_mut(container) {
            place.expires = monotonic_now().saturating_add(PATIENCE);
        }
    }

    /// Ends the one of a container; gives its number until it is reaped.
    pub(crate) fn end(&mut self, container: &str) -> Option<Pid> {
        let place = self.0.remove(container)?;
        let _gone = send_signal(place.parked.pid(), KILL);
        Some(place.parked.pid())
    }

    /// Ends all whose time is up.
    pub(crate) fn end_overdue(&mut self, now: u64) -> Vec<Pid> {
        self.end_if(|place| place.expires <= now)
    }

    /// Ends all.
    pub(crate) fn end_all(&mut self) -> Vec<Pid> {
        self.end_if(|_| true)
    }

    fn end_if(&mut self, wanted: impl Fn(&Place) -> bool) -> Vec<Pid> {
        let chosen = self.0.iter().filter(|(_, place)| wanted(place));
        let chosen: Vec<String> = chosen.map(|(container, _)| container.clone()).collect();
        let ended = chosen.iter().filter_map(|container| self.end(container));
        ended.collect()
    }

    /// When the next one's time is up, monotonic nanoseconds.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.0.values().map(|place| place.expires).min()
    }

    /// Forgets one that was reaped; tells whether it was one.
    pub(crate) fn reaped(&mut self, pid: Pid) -> bool {
        let before = self.0.len();
        self.0.retain(|_, place| place.parked.pid() != pid);
        self.0.len() != before
    }
}
