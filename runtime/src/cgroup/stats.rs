//! Reads what a cgroup uses.
//!
//! Only reads; a crash leaves nothing. Figures of a controller that is not
//! there are zero or absent, never an error.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Cgroup, CgroupError, file};

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
        let mut stats = Stats {
            timestamp: now(),
            ..Stats::default()
        };
        // Every cgroup has figures for CPU time: without them it is asked whether
        // there is one at all.
        if !self.read_cpu(&mut stats)? && !self.exists() {
            let path = self.dirs()?.into_iter().next().unwrap_or_default();
            return Err(CgroupError::NotFound { path });
        }
        if let Some((dir, v2)) = self.home_dir("memory")? {
            stats.memory_counted = true;
            if v2 {
                read_memory_v2(&dir, &mut stats)
            } else {
                read_memory_v1(&dir, &mut stats)
            }?;
        }
        self.read_pids(&mut stats)?;
        if let Some(tree) = self.layout.v2() {
            let dir = self.dir(tree)?;
            stats.cpu_psi = read_psi(&dir.join("cpu.pressure"))?;
            stats.memory_psi = read_psi(&dir.join("memory.pressure"))?;
            stats.io_psi = read_psi(&dir.join("io.pressure"))?;
        }
        Ok(stats)
    }

    fn home_dir(&self, controller: &str) -> Result<Option<(PathBuf, bool)>, CgroupError> {
        let Some(tree) = self.layout.home(controller) else {
            return Ok(None);
        };
        Ok(Some((self.dir(tree)?, tree.is_v2())))
    }

    /// Tells whether there were any.
    fn read_cpu(&self, stats: &mut Stats) -> Result<bool, CgroupError> {
        let used = if let Some((dir, _)) = self.home_dir("cpuacct")? {
            number(&dir.join("cpuacct.usage"))?
        } else if let Some(tree) = self.layout.v2() {
            // Present on every v2 cgroup, whether or not it has the controller.
            let text = text(&self.dir(tree)?.join("cpu.stat"))?;
            file::keyed(&text, "usage_usec").map(|used| used * 1000)
        } else {
            None
        };
        stats.cpu_usage_ns = used.unwrap_or(0);
        Ok(used.is_some())
    }

    fn read_pids(&self, stats: &mut Stats) -> Result<(), CgroupError> {
        let current = match self.home_dir("pids")? {
            Some((dir, _)) => number(&dir.join("pids.current"))?,
            None => None,
        };
        stats.pids = match current {
            Some(pids) => pids,
            None => self.pids()?.len() as u64,
        };
        Ok(())
    }
}

fn read_memory_v2(dir: &Path, stats: &mut Stats) -> Result<(), CgroupError> {
    let text = text(&dir.join("memory.stat"))?;
    let stat = |key| file::keyed(&text, key).unwrap_or(0);
    stats.memory_usage = number(&dir.join("memory.current"))?.unwrap_or(0);
    stats.memory_working_set = stats.memory_usage.saturating_sub(stat("inactive_file"));
    stats.memory_rss = stat("anon");
    stats.page_faults = stat("pgfault");
    stats.major_page_faults = stat("pgmajfault");
    stats.memory_limit = number(&dir.join("memory.max"))?;
    stats.swap_usage = number(&dir.join("memory.swap.current"))?;
    stats.swap_limit = number(&dir.join("memory.swap.max"))?;
    Ok(())
}

/// v1 shows an unlimited counter as the largest page-aligned number.
const V1_UNLIMITED: u64 = i64::MAX as u64 & !0xffff;

fn read_memory_v1(dir: &Path, stats: &mut Stats) -> Result<(), CgroupError> {
    let text = text(&dir.join("memory.stat"))?;
    let stat = |key| file::keyed(&text, key).unwrap_or(0);
    let limited = |limit: &u64| *limit < V1_UNLIMITED;
    stats.memory_usage = number(&dir.join("memory.usage_in_bytes"))?.unwrap_or(0);
    stats.memory_working_set = stats
        .memory_usage
        .saturating_sub(stat("total_inactive_file"));
    stats.memory_rss = stat("total_rss");
    stats.page_faults = stat("total_pgfault");
    stats.major_page_faults = stat("total_pgmajfault");
    stats.memory_limit = number(&dir.join("memory.limit_in_bytes"))?.filter(limited);
    // v1 counts memory and swap together; the parts are the difference.
    if let Some(both) = number(&dir.join("memory.memsw.usage_in_bytes"))? {
        stats.swap_usage = Some(both.saturating_sub(stats.memory_usage));
        let limit = number(&dir.join("memory.memsw.limit_in_bytes"))?.filter(limited);
        stats.swap_limit = limit
            .zip(stats.memory_limit)
            .map(|(both, m)| both.saturating_sub(m));
    }
    Ok(())
}

fn read_psi(path: &Path) -> Result<Option<Psi>, CgroupError> {
    Ok(file::read_figures(path)?.map(|text| parse_psi(&text)))
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

/// The number in a file; none for "max" and for a file that is not there.
fn number(path: &Path) -> Result<Option<u64>, CgroupError> {
    match file::read_figures(path)? {
        Some(text) => file::number(path, &text),
        None => Ok(None),
    }
}

fn text(path: &Path) -> Result<String, CgroupError> {
    Ok(file::read_figures(path)?.unwrap_or_default())
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
