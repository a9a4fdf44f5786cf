//! What the machine tells: what it is, what processes cost. Reads /proc only.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{SysconfVar, sysconf};

/// How long an engine does nothing before it is taken to have ended its work.
const REST: Duration = Duration::from_secs(1);
/// How long it may go on until then.
const RESTLESS: Duration = Duration::from_secs(15);

/// A line of `/proc/...` of the form `Key: value unit`, as a number.
fn field(path: &str, key: &str) -> Option<i64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    let value = line.get(key.len()..)?.trim_start_matches(':').trim();
    value.split_whitespace().next()?.parse().ok()
}

/// The machine in one line: processor, cores, memory, kernel, cgroups.
#[must_use]
pub fn describe() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| {
            rest.trim_start_matches(['\t', ' ', ':'])
        });
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or(0) / 1024 / 1024;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{model}, {cores} cores, {memory} GiB, Linux {}, cgroup {}",
        release.trim(),
        cgroups()
    )
}

/// Which cgroups the machine has.
#[must_use]
pub fn cgroups() -> &'static str {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let has = |kind: &str| mounts.contains(&format!(" - {kind} "));
    match (has("cgroup"), has("cgroup2")) {
        (true, true) => "v1 with a v2 tree",
        (true, false) => "v1",
        (false, true) => "v2",
        (false, false) => "not mounted",
    }
}

/// Memory that could be had without swapping, in KiB.
#[must_use]
pub fn available_memory() -> i64 {
    field("/proc/meminfo", "MemAvailable").unwrap_or(0)
}

/// A process's resident memory, in KiB.
#[must_use]
pub fn resident(pid: i32) -> Option<i64> {
    field(&format!("/proc/{pid}/status"), "VmRSS")
}

/// A process's share of the memory that it uses, in KiB.
#[must_use]
pub fn proportional(pid: i32) -> Option<i64> {
    field(&format!("/proc/{pid}/smaps_rollup"), "Pss")
}

/// A process's name, as the kernel has it.
#[must_use]
pub fn name(pid: i32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(text.trim().to_owned())
}

/// What a process has used of the processors so far.
#[must_use]
pub fn processor_time(pid: i32) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, spaces and parentheses too.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(ticks(user + system))
}

fn ticks(count: u64) -> Duration {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let per_second = u64::try_from(per_second).unwrap_or(100).max(1);
    Duration::from_millis(count * 1000 / per_second)
}

/// What all processors together have worked since the boot.
#[must_use]
pub fn busy_time() -> Duration {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let counts: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    // user nice system, then idle and iowait, then irq softirq
    let busy = counts.iter().take(3).sum::<u64>() + counts.iter().skip(5).take(2).sum::<u64>();
    ticks(busy)
}

/// What this process has used of the processors so far.
#[must_use]
pub fn own_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return Duration::ZERO;
    };
    let all = [usage.user_time(), usage.system_time()];
    all.iter()
        .map(|time| {
            let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
            Duration::from_micros(u64::try_from(micros).unwrap_or(0))
        })
        .sum()
}

/// All processes that can be seen.
#[must_use]
pub fn processes() -> HashSet<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Waits until what works behind an engine's answers has come to its end: a while in
/// which no process came or went and the daemon used no processor. An engine that
/// never rests is measured as it is after 15 s.
pub async fn settled(daemon: Option<i32>) {
    let look = || (processes(), daemon.and_then(processor_time));
    let began = Instant::now();
    let (mut seen, mut since) = (look(), began);
    while since.elapsed() < REST && began.elapsed() < RESTLESS {
        tokio::time::sleep(REST / 10).await;
        let now = look();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

/// Processes born since a picture of all was taken, and what they cost.
#[derive(Debug, Clone, Default)]
pub struct Born {
    /// Memory by the process's name: how many, and their PSS in KiB.
    pub by_name: BTreeMap<String, (usize, i64)>,
}

impl Born {
    /// Looks at what lives now and did not before; threads of the kernel, which
    /// have no memory, do not count.
    #[must_use]
    pub fn since(before: &HashSet<i32>) -> Self {
        let mut born = Self::default();
        for pid in processes().difference(before).copied() {
            let (Some(name), Some(memory)) = (name(pid), proportional(pid)) else {
                continue;
            };
            let entry = born.by_name.entry(name).or_default();
            entry.0 += 1;
            entry.1 += memory;
        }
        born
    }

    /// Their PSS together, in KiB.
    #[must_use]
    pub fn memory(&self) -> i64 {
        self.by_name.values().map(|(_, memory)| memory).sum()
    }

    /// The names of an engine's helpers: of what was born, without the containers'
    /// programs, and of the daemon's own children, which may have waited in a pool
    /// since long before.
    #[must_use]
    pub fn helpers(&self, programs: &[&str], daemon: Option<i32>) -> BTreeSet<String> {
        let children = daemon.into_iter().flat_map(children).filter_map(name);
        let names = self.by_name.keys().cloned().chain(children);
        names
            .filter(|name| !programs.contains(&name.as_str()))
            .collect()
    }
}

fn children(pid: i32) -> Vec<i32> {
    let parent = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = text.rsplit_once(") ")?;
        rest.split(' ').nth(1)?.parse::<i32>().ok()
    };
    let pids = processes().into_iter();
    pids.filter(|child| parent(*child) == Some(pid)).collect()
}

/// What all processes of these names, and one more, have used of the processors.
#[must_use]
pub fn time_of(names: &BTreeSet<String>, more: Option<i32>) -> Duration {
    let counted =
        |pid: &i32| more == Some(*pid) || name(*pid).is_some_and(|name| names.contains(&name));
    let pids = processes().into_iter().filter(counted);
    pids.filter_map(processor_time).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_has_a_name_memory_and_a_past() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        assert!(processes().contains(&own));
        assert!(name(own).is_some() && resident(own) > Some(100) && proportional(own) > Some(10));
        assert!(processor_time(own).is_some() && own_time() > Duration::ZERO);
        assert!(busy_time() >= own_time() && available_memory() > 1000);
    }

    #[test]
    fn the_head_names_kernel_and_cgroups() {
        let head = describe();
        assert!(
            head.contains("Linux ") && !head.contains("not mounted"),
            "{head}"
        );
    }
}
