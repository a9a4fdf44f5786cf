//! Reads what monitoring asks of a cgroup beside [`Stats`]: what cAdvisor shows.
//!
//! Only reads; a crash leaves nothing. A figure that the kernel does not count is absent,
//! and [`Counted`] says beforehand which those are: series of a container without a value
//! would look like a container that is broken.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::detect::{Layout, Tree};
use super::file::{self, Dir};
use super::stats::{Places, V1_UNLIMITED, number, text};
use super::{Cgroup, CgroupError, Hierarchies, Stats, Version};

/// What a cgroup and its children use, in full.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// What CRI's own statistics say.
    pub stats: Stats,
    /// CPU time so far in programs, and that in the kernel on their behalf.
    pub cpu_user_ns: Option<u64>,
    /// See `cpu_user_ns`.
    pub cpu_system_ns: Option<u64>,
    /// How often the CPU quota ended.
    pub throttling: Option<Throttling>,
    /// Memory by kinds.
    pub memory: Option<Memory>,
    /// Processes that were killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Huge pages, by their size.
    pub huge_pages: Vec<HugePages>,
    /// What was read from and written to block devices; empty so long as nothing was.
    pub devices: Option<Vec<DeviceUse>>,
    /// Tasks; `None` where they are not counted.
    pub tasks: Option<u64>,
    /// Tasks that there may be; `None` where that is not limited.
    pub tasks_limit: Option<u64>,
}

/// What the CPU quota did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods in which something ran.
    pub periods: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// Time that tasks were kept from running.
    pub throttled_ns: u64,
}

/// Memory by kinds, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Page cache.
    pub cache: u64,
    /// Page cache that is mapped.
    pub mapped_file: u64,
    /// Page cache that was used lately.
    pub active_file: u64,
    /// Page cache that was not.
    pub inactive_file: u64,
    /// The kernel's own on behalf of the cgroup.
    pub kernel: Option<u64>,
    /// The most that was ever charged at once.
    pub peak: Option<u64>,
    /// How often the limit was reached.
    pub limit_hits: Option<u64>,
    /// What is left to the cgroup when memory is short; 0: nothing is promised.
    pub reservation: u64,
    /// Page faults of the cgroup without its children, where the kernel tells those apart.
    pub own_page_faults: u64,
    /// Such faults that read from a device.
    pub own_major_page_faults: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugePages {
    /// As the kernel writes it: "2MB".
    pub size: String,
    /// Bytes in use.
    pub used: u64,
    /// The most that was in use at once.
    pub peak: Option<u64>,
}

/// What one block device did for a cgroup, by the kernel's names of operations: "Read",
/// "Write", and on v1 "Sync", "Async", "Discard" and "Total", too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceUse {
    /// Its number.
    pub major: u32,
    /// Its number, the other half.
    pub minor: u32,
    /// Bytes by operation.
    pub bytes: BTreeMap<String, u64>,
    /// Requests by operation.
    pub requests: BTreeMap<String, u64>,
}

/// Which of [`Figures`] there are for every cgroup of a container on this machine.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a question to the kernel of its own"
)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// CPU time as a whole.
    pub cpu: bool,
    /// CPU time in programs and in the kernel.
    pub cpu_times: bool,
    /// Periods of the CPU quota.
    pub throttling: bool,
    /// Memory at all.
    pub memory: bool,
    /// [`Memory::kernel`].
    pub kernel_memory: bool,
    /// [`Memory::peak`].
    pub memory_peak: bool,
    /// Swap.
    pub swap: bool,
    /// Kills for want of memory.
    pub oom_kills: bool,
    /// Huge pages.
    pub huge_pages: bool,
    /// [`HugePages::peak`].
    pub huge_pages_peak: bool,
    /// Block devices.
    pub devices: bool,
    /// Tasks.
    pub tasks: bool,
    /// Pressure stall information.
    pub pressure: bool,
}

impl Hierarchies {
    /// Asks the kernel what it counts.
    pub fn counted(&self) -> Counted {
        let layout = &self.layout;
        // Beside v1 the v2 tree's controllers are there for who has limits of them.
        let everywhere = |tree: &&Tree| !tree.is_v2() || layout.version == Version::V2;
        let home = |controller| layout.home(controller).filter(everywhere);
        let memory = home("memory");
        let shown = |tree: Option<&Tree>, v1: &str, v2: &str| match tree {
            Some(tree) if tree.is_v2() => in_a_child(&tree.root, v2),
            Some(tree) => tree.root.join(v1).exists(),
            None => false,
        };
        let says = |tree: Option<&Tree>, v1: &str, word: &str| match tree {
            Some(tree) if tree.is_v2() => true,
            Some(tree) => fs::read_to_string(tree.root.join(v1)).is_ok_and(|t| t.contains(word)),
            None => false,
        };
        let huge_pages = home("hugetlb").filter(|_| !page_sizes().is_empty());
        Counted {
            cpu: cpu_home(layout).is_some(),
            cpu_times: cpu_home(layout).is_some(),
            throttling: says(home("cpu"), "cpu.stat", "nr_periods"),
            memory: memory.is_some(),
            kernel_memory: match memory {
                Some(tree) if tree.is_v2() => true,
                of_v1 => shown(of_v1, "memory.kmem.usage_in_bytes", ""),
            },
            memory_peak: shown(memory, "memory.max_usage_in_bytes", "memory.peak"),
            swap: shown(memory, "memory.memsw.usage_in_bytes", "memory.swap.current"),
            oom_kills: says(memory, "memory.oom_control", "oom_kill "),
            huge_pages: huge_pages.is_some(),
            huge_pages_peak: huge_pages.is_some_and(|tree| !tree.is_v2()),
            devices: match io_home(layout).filter(everywhere) {
                Some(tree) if tree.is_v2() => true,
                of_v1 => shown(of_v1, SERVICE_BYTES[1], ""),
            },
            tasks: home("pids").is_some(),
            // It exists, and cannot be read where PSI is switched off.
            pressure: layout.v2().is_some() && fs::read("/proc/pressure/cpu").is_ok(),
        }
    }
}

/// Whether a child of the root has this file: the root of a v2 tree itself has none with
/// figures of memory.
fn in_a_child(root: &Path, name: &str) -> bool {
    let Ok(children) = fs::read_dir(root) else {
        return false;
    };
    let mut children = children.filter_map(Result::ok);
    children.any(|child| child.path().join(name).exists())
}

fn cpu_home(layout: &Layout) -> Option<&Tree> {
    layout.home("cpuacct").or_else(|| layout.v2())
}

fn io_home(layout: &Layout) -> Option<&Tree> {
    layout.home("blkio").or_else(|| layout.home("io"))
}

impl Cgroup {
    /// Reads all that is counted now.
    ///
    /// # Errors
    /// The cgroup is gone, or a file of it cannot be read.
    pub fn figures(&self) -> Result<Figures, CgroupError> {
        let mut places = Places::of_cgroup(self);
        let (stats, memory) = self.stats_in(&mut places)?;
        let mut figures = Figures {
            stats,
            ..Figures::default()
        };
        let layout = &self.layout;
        if let Some(tree) = cpu_home(layout) {
            let v2 = tree.is_v2();
            let name = if v2 { "cpu.stat" } else { "cpuacct.stat" };
            let text = text(places.of(tree)?, name)?;
            (figures.cpu_user_ns, figures.cpu_system_ns) = cpu_times(&text, v2);
        }
        if let Some(tree) = layout.home("cpu") {
            figures.throttling = throttling(&text(places.of(tree)?, "cpu.stat")?);
        }
        if let Some(tree) = layout.home("memory")
            && let Some(dir) = places.of(tree)?
        {
            read_memory(dir, tree.is_v2(), &memory, &mut figures)?;
        }
        if let Some(tree) = layout.home("hugetlb")
            && let Some(dir) = places.of(tree)?
        {
            figures.huge_pages = huge_pages(dir, tree.is_v2())?;
        }
        if let Some(tree) = io_home(layout)
            && let Some(dir) = places.of(tree)?
        {
            figures.devices = devices(dir, tree.is_v2())?;
        }
        if let Some(tree) = layout.home("pids") {
            figures.tasks = Some(figures.stats.pids);
            figures.tasks_limit = number(places.of(tree)?, "pids.max")?;
        }
        Ok(figures)
    }
}

/// What the kernel calls a tick in its figures for programs, whatever its own is (USER_HZ).
const TICK_NS: u64 = 10_000_000;

/// CPU time in programs and in the kernel.
fn cpu_times(text: &str, v2: bool) -> (Option<u64>, Option<u64>) {
    let time = |key, unit| file::keyed(text, key).map(|value| value.saturating_mul(unit));
    if v2 {
        (time("user_usec", 1000), time("system_usec", 1000))
    } else {
        (time("user", TICK_NS), time("system", TICK_NS))
    }
}

/// v1 counts nanoseconds, v2 microseconds, each under a name of its own.
fn throttling(text: &str) -> Option<Throttling> {
    let stat = |key| file::keyed(text, key);
    let in_us = || stat("throttled_usec").map(|time| time.saturating_mul(1000));
    Some(Throttling {
        periods: stat("nr_periods")?,
        throttled_periods: stat("nr_throttled")?,
        throttled_ns: stat("throttled_time").or_else(in_us)?,
    })
}

fn read_memory(dir: &Dir, v2: bool, stat: &str, figures: &mut Figures) -> Result<(), CgroupError> {
    let mut memory = by_kind(stat, v2);
    if v2 {
        let events = dir.figures("memory.events")?.unwrap_or_default();
        memory.peak = dir.number("memory.peak")?;
        memory.limit_hits = file::keyed(&events, "max");
        memory.reservation = dir.number("memory.low")?.unwrap_or(0);
        figures.oom_kills = file::keyed(&events, "oom_kill");
    } else {
        let control = dir.figures("memory.oom_control")?.unwrap_or_default();
        let unlimited = |limit: &u64| *limit < V1_UNLIMITED;
        let reservation = dir.number("memory.soft_limit_in_bytes")?;
        memory.peak = dir.number("memory.max_usage_in_bytes")?;
        memory.limit_hits = dir.number("memory.failcnt")?;
        memory.kernel = dir.number("memory.kmem.usage_in_bytes")?;
        memory.reservation = reservation.filter(unlimited).unwrap_or(0);
        figures.oom_kills = file::keyed(&control, "oom_kill");
    }
    figures.memory = Some(memory);
    Ok(())
}

/// What `memory.stat` says. On v1 the figures with children have names of their own.
fn by_kind(text: &str, v2: bool) -> Memory {
    let stat = |key| file::keyed(text, key).unwrap_or(0);
    let memory = Memory {
        own_page_faults: stat("pgfault"),
        own_major_page_faults: stat("pgmajfault"),
        ..Memory::default()
    };
    if v2 {
        // Its sum is told since Linux 5.18, the parts of it before.
        let parts = ["kernel_stack", "pagetables", "percpu", "slab"];
        let kernel = file::keyed(text, "kernel");
        Memory {
            cache: stat("file"),
            mapped_file: stat("file_mapped"),
            active_file: stat("active_file"),
            inactive_file: stat("inactive_file"),
            kernel: Some(kernel.unwrap_or_else(|| parts.into_iter().map(stat).sum())),
            ..memory
        }
    } else {
        Memory {
            cache: stat("total_cache"),
            mapped_file: stat("total_mapped_file"),
            active_file: stat("total_active_file"),
            inactive_file: stat("total_inactive_file"),
            ..memory
        }
    }
}

fn huge_pages(dir: &Dir, v2: bool) -> Result<Vec<HugePages>, CgroupError> {
    let mut found = Vec::new();
    for size in page_sizes() {
        let file = |end: &str| format!("hugetlb.{size}.{end}");
        let (used, peak) = if v2 {
            (dir.number(&file("current"))?, None)
        } else {
            let peak = dir.number(&file("max_usage_in_bytes"))?;
            (dir.number(&file("usage_in_bytes"))?, peak)
        };
        if let Some(used) = used {
            found.push(HugePages { size, used, peak });
        }
    }
    Ok(found)
}

/// The sizes of huge pages that this machine has, as cgroups name them.
fn page_sizes() -> Vec<String> {
    let Ok(sizes) = fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let names = sizes.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut sizes: Vec<_> = names.filter_map(|name| page_size(&name)).collect();
    sizes.sort();
    sizes
}

/// "hugepages-2048kB" is "2MB" in a cgroup.
fn page_size(name: &str) -> Option<String> {
    let kib: u64 = name
        .strip_prefix("hugepages-")?
        .strip_suffix("kB")?
        .parse()
        .ok()?;
    Some(match kib {
        0..1024 => format!("{kib}KB"),
        1024..1_048_576 => format!("{}MB", kib >> 10),
        _ => format!("{}GB", kib >> 20),
    })
}

/// The files of v1 with bytes: with children, and before Linux 4.20 without.
const SERVICE_BYTES: [&str; 2] = [
    "blkio.throttle.io_service_bytes_recursive",
    "blkio.throttle.io_service_bytes",
];
/// The same with requests.
const SERVICED: [&str; 2] = [
    "blkio.throttle.io_serviced_recursive",
    "blkio.throttle.io_serviced",
];

fn devices(dir: &Dir, v2: bool) -> Result<Option<Vec<DeviceUse>>, CgroupError> {
    if v2 {
        let text = dir.figures("io.stat")?;
        return Ok(text.map(|text| devices_v2(&text)));
    }
    let first = |names: [&str; 2]| {
        for name in names {
            if let Some(text) = dir.figures(name)? {
                return Ok(Some(text));
            }
        }
        Ok(None)
    };
    let (bytes, requests) = (first(SERVICE_BYTES)?, first(SERVICED)?);
    Ok(bytes.map(|bytes| devices_v1(&bytes, &requests.unwrap_or_default())))
}

/// Lines of "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6".
fn devices_v2(text: &str) -> Vec<DeviceUse> {
    let device = |line: &str| {
        let mut words = line.split(' ');
        let (major, minor) = device_number(words.next()?)?;
        let mut found = DeviceUse {
            major,
            minor,
            ..DeviceUse::default()
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            let (figures, operation) = match key {
                "rbytes" => (&mut found.bytes, "Read"),
                "wbytes" => (&mut found.bytes, "Write"),
                "dbytes" => (&mut found.bytes, "Discard"),
                "rios" => (&mut found.requests, "Read"),
                "wios" => (&mut found.requests, "Write"),
                "dios" => (&mut found.requests, "Discard"),
                _ => continue,
            };
            figures.insert(operation.to_owned(), value);
        }
        // A device that was throttled or had costs set is listed without figures.
        (!found.bytes.is_empty()).then_some(found)
    };
    text.lines().filter_map(device).collect()
}

/// Lines of "8:0 Read 1", and at the end the sum over all devices, which is passed over.
fn devices_v1(bytes: &str, requests: &str) -> Vec<DeviceUse> {
    let mut found: BTreeMap<(u32, u32), DeviceUse> = BTreeMap::new();
    for (text, requests) in [(bytes, false), (requests, true)] {
        for line in text.lines() {
            let mut words = line.split(' ');
            let number = words.next().and_then(device_number);
            let operation = words.next();
            let value = words.next().and_then(|value| value.parse::<u64>().ok());
            let (Some(number), Some(operation), Some(value)) = (number, operation, value) else {
                continue;
            };
            let device = found.entry(number).or_default();
            (device.major, device.minor) = number;
            let figures = if requests {
                &mut device.requests
            } else {
                &mut device.bytes
            };
            figures.insert(operation.to_owned(), value);
        }
    }
    found.into_values().collect()
}

fn device_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operations(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), *value))
            .collect()
    }

    #[test]
    fn cpu_time_is_nanoseconds_whatever_the_kernel_counts_in() {
        let v2 = "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 5\nnr_throttled 2\n\
                  throttled_usec 7\nnr_bursts 0\nburst_usec 0";
        assert_eq!(cpu_times(v2, true), (Some(20_000), Some(10_000)));
        let throttled = throttling(v2).unwrap();
        assert_eq!((throttled.periods, throttled.throttled_periods), (5, 2));
        assert_eq!(throttled.throttled_ns, 7_000);
        let v1 = "user 3\nsystem 4";
        assert_eq!(cpu_times(v1, false), (Some(30_000_000), Some(40_000_000)));
        let throttled = throttling("nr_periods 5\nnr_throttled 2\nthrottled_time 7").unwrap();
        assert_eq!(throttled.throttled_ns, 7);
        // Without the controller a v2 cgroup has the times and not the periods.
        assert_eq!(
            throttling("usage_usec 30\nuser_usec 20\nsystem_usec 10"),
            None
        );
        assert_eq!(cpu_times("", true), (None, None));
    }

    #[test]
    fn memory_is_read_by_kinds() {
        let v2 = "anon 1\nfile 2\nkernel 30\nkernel_stack 4\npagetables 5\npercpu 6\nsock 7\n\
                  file_mapped 8\nslab 9\nactive_file 10\ninactive_file 11\npgfault 12\npgmajfault 13";
        let memory = by_kind(v2, true);
        let wanted = Memory {
            cache: 2,
            mapped_file: 8,
            active_file: 10,
            inactive_file: 11,
            kernel: Some(30),
            own_page_faults: 12,
            own_major_page_faults: 13,
            ..Memory::default()
        };
        assert_eq!(memory, wanted);
        let older = by_kind(&v2.replace("kernel 30\n", ""), true);
        assert_eq!(older.kernel, Some(4 + 5 + 6 + 9));
        let v1 = "cache 1\nmapped_file 2\npgfault 3\npgmajfault 4\ntotal_cache 10\n\
                  total_mapped_file 20\ntotal_pgfault 30\ntotal_active_file 50\ntotal_inactive_file 60";
        let memory = by_kind(v1, false);
        assert_eq!((memory.cache, memory.mapped_file), (10, 20));
        assert_eq!((memory.active_file, memory.inactive_file), (50, 60));
        assert_eq!(
            (memory.own_page_faults, memory.own_major_page_faults),
            (3, 4)
        );
        assert_eq!(memory.kernel, None);
    }

    #[test]
    fn devices_are_told_apart_by_their_numbers() {
        let v2 = "254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n\
                  8:16 cost.usage=3\n7:1 rbytes=x wbytes=8 rios=2 wios=1 dbytes=0 dios=0\nnonsense";
        let found = devices_v2(v2);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].major, found[0].minor), (254, 0));
        let bytes = operations(&[("Read", 4096), ("Write", 0), ("Discard", 0)]);
        assert_eq!(found[0].bytes, bytes);
        assert_eq!(found[1].bytes.get("Read"), None);
        assert_eq!(found[1].requests["Read"], 2);
        let bytes = "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\n9:1 Read 5\nTotal 35";
        let found = devices_v1(bytes, "8:0 Read 1\n8:0 Write 2\nTotal 3");
        assert_eq!(found.len(), 2);
        let all = operations(&[("Read", 10), ("Write", 20), ("Total", 30)]);
        assert_eq!(found[0].bytes, all);
        assert_eq!(found[0].requests, operations(&[("Read", 1), ("Write", 2)]));
        assert_eq!(found[1].bytes, operations(&[("Read", 5)]));
        assert_eq!(devices_v1("Total 0", ""), []);
    }

    #[test]
    fn huge_pages_have_the_names_that_cgroups_give_them() {
        let sizes = ["hugepages-64kB", "hugepages-2048kB", "hugepages-1048576kB"];
        let names = sizes.map(|name| page_size(name).unwrap());
        assert_eq!(names, ["64KB", "2MB", "1GB"]);
        assert_eq!(page_size("hugepages-kB"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_breaks_a_parser(text in "([0-9]{0,12}:?[0-9]{0,12} [a-zA-Z_=]{0,9} ?[0-9]{0,22}\n){0,4}|\\PC{0,80}") {
            let (_, _) = cpu_times(&text, true);
            throttling(&text);
            by_kind(&text, false);
            proptest::prop_assert!(devices_v2(&text).len() <= text.lines().count());
            proptest::prop_assert!(devices_v1(&text, &text).len() <= text.lines().count());
        }
    }
}
