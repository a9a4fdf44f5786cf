//! Reads what a cgroup uses.
//!
//! Only reads; a crash leaves nothing. Figures of a controller that is not
//! there are zero or absent, never an error. What is counted beside these is in
//! [`super::figures`].

use std::time::{SystemTime, UNIX_EPOCH};

use super::detect::Tree;
use super::file::{self, Dir};
use super::{Cgroup, CgroupError};

/// What a cgroup and its children use.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// When it was read, in nanoseconds since 1970.
    pub timestamp: i64,
    /// CPU time so far.
    pub cpu_usage_ns: u64,
    /// Whether memory is counted here at all: if not, its figures are zero.
    pub memory_counted: bool,
    /// Memory charged, page cache included.
    pub memory_usage: u64,
    /// Memory that cannot simply be reclaimed: usage without inactive files.
    pub memory_working_set: u64,
    /// Anonymous memory.
    pub memory_rss: u64,
    /// The cgroup's own memory limit, if it has one.
    pub memory_limit: Option<u64>,
    /// Page faults so far.
    pub page_faults: u64,
    /// Page faults that read from a device so far.
    pub major_page_faults: u64,
    /// Swap in use, where the kernel counts it.
    pub swap_usage: Option<u64>,
    /// Swap that may be used, if that is limited and counted.
    pub swap_limit: Option<u64>,
    /// Tasks.
    pub pids: u64,
    /// Time lost waiting for a CPU.
    pub cpu_psi: Option<Psi>,
    /// Time lost waiting for memory.
    pub memory_psi: Option<Psi>,
    /// Time lost waiting for devices.
    pub io_psi: Option<Psi>,
}

/// Pressure stall information of one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Psi {
    /// At least one task waited.
    pub some: PsiData,
    /// All tasks waited.
    pub full: PsiData,
}

/// One line of pressure figures.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PsiData {
    /// Time so far.
    pub total_ns: u64,
    /// Per cent of the last 10 seconds.
    pub avg10: f64,
    /// Per cent of the last minute.
    pub avg60: f64,
    /// Per cent of the last five minutes.
    pub avg300: f64,
}

impl Cgroup {
    /// Reads all figures now.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        self.stats_in(&mut Places::of_cgroup(self))
            .map(|(stats, _)| stats)
    }

    /// The same, and the text of `memory.stat` that some of it is from.
    pub(super) fn stats_in<'a>(
        &'a self,
        places: &mut Places<'a>,
    ) -> Result<(Stats, String), CgroupError> {
        let mut stats = Stats {
            timestamp: now(),
            ..Stats::default()
        };
        let mut memory = String::new();
        stats.cpu_usage_ns = read_cpu(places)?;
        if let Some(tree) = self.layout.home("memory") {
            stats.memory_counted = true;
            if let Some(dir) = places.of(tree)? {
                memory = text(Some(dir), "memory.stat")?;
                if tree.is_v2() {
                    read_memory_v2(dir, &memory, &mut stats)?;
                } else {
                    read_memory_v1(dir, &memory, &mut stats)?;
                }
            }
        }
        let pids = match self.layout.home("pids") {
            Some(tree) => number(places.of(tree)?, "pids.current")?,
            None => None,
        };
        if let Some(tree) = self.layout.v2()
            && let Some(dir) = places.of(tree)?
        {
            stats.cpu_psi = read_psi(dir, "cpu.pressure")?;
            stats.memory_psi = read_psi(dir, "memory.pressure")?;
            stats.io_psi = read_psi(dir, "io.pressure")?;
        }
        if places.opened.iter().all(|(_, dir)| dir.is_none()) {
            let path = self.dirs().into_iter().next().unwrap_or_default();
            return Err(CgroupError::NotFound { path });
        }
        stats.pids = match pids {
            Some(pids) => pids,
            None => self.pids()?.len() as u64,
        };
        Ok((stats, memory))
    }
}

/// A cgroup's directories, each opened once, when something in it is read.
pub(super) struct Places<'a> {
    cgroup: &'a Cgroup,
    opened: Vec<(&'a Tree, Option<Dir>)>,
}

impl<'a> Places<'a> {
    pub(super) fn of_cgroup(cgroup: &'a Cgroup) -> Self {
        Self {
            cgroup,
            opened: Vec::new(),
        }
    }

    /// The directory in a hierarchy; `None` where it is not.
    pub(super) fn of(&mut self, tree: &'a Tree) -> Result<Option<&Dir>, CgroupError> {
        let known = |(opened, _): &(&Tree, _)| std::ptr::eq(*opened, tree);
        let at = match self.opened.iter().position(known) {
            Some(at) => at,
            None => {
                let dir = Dir::open(self.cgroup.dir(tree))?;
                self.opened.push((tree, dir));
                self.opened.len() - 1
            }
        };
        Ok(self.opened.get(at).and_then(|(_, dir)| dir.as_ref()))
    }
}

fn read_cpu(places: &mut Places<'_>) -> Result<u64, CgroupError> {
    let layout = &places.cgroup.layout;
    let used = if let Some(tree) = layout.home("cpuacct") {
        number(places.of(tree)?, "cpuacct.usage")?
    } else if let Some(tree) = layout.v2() {
        // Present on every v2 cgroup, whether or not it has the controller.
        let text = text(places.of(tree)?, "cpu.stat")?;
        file::keyed(&text, "usage_usec").map(|used| used * 1000)
    } else {
        None
    };
    Ok(used.unwrap_or(0))
}

fn read_memory_v2(dir: &Dir, text: &str, stats: &mut Stats) -> Result<(), CgroupError> {
    let stat = |key| file::keyed(text, key).unwrap_or(0);
    stats.memory_usage = dir.number("memory.current")?.unwrap_or(0);
    stats.memory_working_set = stats.memory_usage.saturating_sub(stat("inactive_file"));
    stats.memory_rss = stat("anon");
    stats.page_faults = stat("pgfault");
    stats.major_page_faults = stat("pgmajfault");
    stats.memory_limit = dir.number("memory.max")?;
    stats.swap_usage = dir.number("memory.swap.current")?;
    stats.swap_limit = dir.number("memory.swap.max")?;
    Ok(())
}

/// v1 shows an unlimited counter as the largest page-aligned number.
pub(super) const V1_UNLIMITED: u64 = i64::MAX as u64 & !0xffff;

fn read_memory_v1(dir: &Dir, text: &str, stats: &mut Stats) -> Result<(), CgroupError> {
    let stat = |key| file::keyed(text, key).unwrap_or(0);
    let limited = |limit: &u64| *limit < V1_UNLIMITED;
    stats.memory_usage = dir.number("memory.usage_in_bytes")?.unwrap_or(0);
    stats.memory_working_set = stats
        .memory_usage
        .saturating_sub(stat("total_inactive_file"));
    stats.memory_rss = stat("total_rss");
    stats.page_faults = stat("total_pgfault");
    stats.major_page_faults = stat("total_pgmajfault");
    stats.memory_limit = dir.number("memory.limit_in_bytes")?.filter(limited);
    // v1 counts memory and swap together; the parts are the difference.
    if let Some(both) = dir.number("memory.memsw.usage_in_bytes")? {
        stats.swap_usage = Some(both.saturating_sub(stats.memory_usage));
        let limit = dir.number("memory.memsw.limit_in_bytes")?.filter(limited);
        stats.swap_limit = limit
            .zip(stats.memory_limit)
            .map(|(both, m)| both.saturating_sub(m));
    }
    Ok(())
}

fn read_psi(dir: &Dir, name: &str) -> Result<Option<Psi>, CgroupError> {
    Ok(dir.figures(name)?.map(|text| parse_psi(&text)))
}

fn parse_psi(text: &str) -> Psi {
    let mut psi = Psi::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let data = match words.next() {
            Some("some") => &mut psi.some,
            Some("full") => &mut psi.full,
            _ => continue,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => data.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => data.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => data.avg300 = value.parse().unwrap_or(0.0),
                // The kernel counts microseconds.
                "total" => data.total_ns = value.parse::<u64>().unwrap_or(0) * 1000,
                _ => {}
            }
        }
    }
    psi
}

pub(super) fn number(dir: Option<&Dir>, name: &str) -> Result<Option<u64>, CgroupError> {
    dir.map_or(Ok(None), |dir| dir.number(name))
}

pub(super) fn text(dir: Option<&Dir>, name: &str) -> Result<String, CgroupError> {
    let text = dir.map_or(Ok(None), |dir| dir.figures(name))?;
    Ok(text.unwrap_or_default())
}

fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_lines_are_read_in_nanoseconds() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=12\n\
                    full avg10=0.00 avg60=0.00 avg300=3.00 total=7";
        let psi = parse_psi(text);
        assert_eq!(psi.some.total_ns, 12_000);
        assert_eq!((psi.some.avg10, psi.some.avg60), (1.5, 0.25));
        assert_eq!((psi.full.avg300, psi.full.total_ns), (3.0, 7_000));
    }
}
