//! Tests against the cgroups of this machine, whichever version it has. They
//! need root and leave nothing: each works below a directory of its own.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::tree::HELD_AT_ONCE;
use super::{Cgroup, CgroupError, CgroupPath, Driver, Hierarchies, Resources, Selection, Version};

const MIB: i64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// A cgroup of its own, removed with everything below it.
struct Scratch {
    hierarchies: Hierarchies,
    top: Cgroup,
}

impl Scratch {
    fn new() -> Self {
        Self::of(Selection::All)
    }

    fn of(selection: Selection) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let hierarchies = Hierarchies::detect(selection).unwrap();
        let path = format!("/slipway-test-{}-{number}", std::process::id());
        let top = hierarchies.create(&path.parse().unwrap()).unwrap();
        Self { hierarchies, top }
    }

    fn path(&self, below: &str) -> CgroupPath {
        self.top.path().join(below).unwrap()
    }

    fn child(&self, name: &str) -> Cgroup {
        self.hierarchies.create(&self.path(name)).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let gone = self.top.kill(PATIENCE).and_then(|()| self.top.remove());
        if let (Err(error), false) = (gone, std::thread::panicking()) {
            panic!("{error}");
        }
    }
}

/// A process in a cgroup; killed with the test.
struct Sleeper(Child);

impl Sleeper {
    fn start_in(cgroup: &Cgroup) -> Self {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let sleeper = Self(child);
        for file in cgroup.files_to_join() {
            fs::write(&file, sleeper.0.id().to_string())
                .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
        sleeper
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    fn was_killed(&mut self) -> bool {
        self.0.wait().unwrap().signal() == Some(libc::SIGKILL)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _dead_already = self.0.kill();
        let _reaped_already = self.0.wait();
    }
}

fn is_v2(cgroup: &Cgroup, controller: &str) -> bool {
    cgroup.layout.home(controller).unwrap().is_v2()
}

fn file(cgroup: &Cgroup, controller: &str, v1: &str, v2: &str) -> PathBuf {
    let tree = cgroup.layout.home(controller).unwrap();
    cgroup.dir(tree).join(if tree.is_v2() { v2 } else { v1 })
}

fn value(cgroup: &Cgroup, controller: &str, v1: &str, v2: &str) -> String {
    super::file::read(&file(cgroup, controller, v1, v2)).unwrap()
}

fn memory(cgroup: &Cgroup) -> String {
    value(cgroup, "memory", "memory.limit_in_bytes", "memory.max")
}

fn message(error: &CgroupError) -> String {
    let cause = std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default();
    format!("{error}: {cause}")
}

#[test]
fn create_twice_is_quiet_and_reaches_every_hierarchy() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("pod/container");
    scratch.child("pod/container");
    assert!(cgroup.dirs().iter().all(|dir| dir.is_dir()));
    assert_eq!(cgroup.files_to_join().len(), cgroup.layout.trees.len());
    assert!(cgroup.files_to_join().iter().all(|file| file.is_file()));
    assert!(cgroup.oom_file().unwrap().is_file());
    if scratch.hierarchies.version() != Version::V1 {
        assert!(cgroup.kill_file().unwrap().is_file());
    }
    assert!(scratch.hierarchies.has("memory") && !scratch.hierarchies.has("nonsense"));
}

#[test]
fn what_does_not_exist_is_empty_and_removed_but_has_no_limits() {
    let scratch = Scratch::new();
    let missing = scratch.hierarchies.open(&scratch.path("missing"));
    assert!(!missing.exists());
    assert_eq!(missing.pids().unwrap(), [0; 0]);
    missing.kill(Duration::from_secs(1)).unwrap();
    missing.remove().unwrap();
    assert!(matches!(missing.stats(), Err(CgroupError::NotFound { .. })));
    let limits = Resources {
        pids_limit: 5,
        ..Resources::default()
    };
    assert!(matches!(
        missing.apply(&limits),
        Err(CgroupError::NotFound { .. })
    ));
}

#[test]
fn processes_are_seen_measured_killed_and_gone() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("pod/container");
    let mut sleeper = Sleeper::start_in(&cgroup);
    assert_eq!(cgroup.pids().unwrap(), [sleeper.pid()]);
    let stats = cgroup.stats().unwrap();
    assert_eq!(stats.pids, 1);
    assert!(stats.timestamp > 1_700_000_000_000_000_000);
    assert!(stats.memory_working_set <= stats.memory_usage);
    assert_eq!(stats.memory_limit, None);
    let reaper = std::thread::spawn(move || sleeper.was_killed());
    cgroup.kill(PATIENCE).unwrap();
    assert!(reaper.join().unwrap());
    assert_eq!(cgroup.pids().unwrap(), [0; 0]);
    cgroup.remove().unwrap();
    assert!(!cgroup.exists());
    assert!(scratch.top.exists(), "removed more than its own");
}

/// Each figure of a cgroup with processes, beside whether this machine is said to have it.
fn assert_counted(scratch: &Scratch) {
    let cgroup = scratch.child("pod/counted");
    let sleeper = Sleeper::start_in(&cgroup);
    let figures = cgroup.figures().unwrap();
    let counted = scratch.hierarchies.counted();
    let memory = figures.memory;
    let pressure = figures.stats.cpu_psi.is_some();
    for (name, said, there) in [
        ("cpu", counted.cpu_times, figures.cpu_user_ns.is_some()),
        ("cpu", counted.cpu_times, figures.cpu_system_ns.is_some()),
        (
            "throttling",
            counted.throttling,
            figures.throttling.is_some(),
        ),
        ("memory", counted.memory, memory.is_some()),
        (
            "kernel",
            counted.kernel_memory,
            memory.is_some_and(|m| m.kernel.is_some()),
        ),
        (
            "peak",
            counted.memory_peak,
            memory.is_some_and(|m| m.peak.is_some()),
        ),
        (
            "failcnt",
            counted.memory,
            memory.is_some_and(|m| m.limit_hits.is_some()),
        ),
        ("swap", counted.swap, figures.stats.swap_usage.is_some()),
        ("oom_kill", counted.oom_kills, figures.oom_kills.is_some()),
        (
            "hugetlb",
            counted.huge_pages,
            !figures.huge_pages.is_empty(),
        ),
        ("devices", counted.devices, figures.devices.is_some()),
        ("tasks", counted.tasks, figures.tasks.is_some()),
        ("pressure", counted.pressure, pressure),
    ] {
        assert_eq!(said, there, "{name}: {counted:?} {figures:?}");
    }
    let processes = cgroup.processes(Some(sleeper.pid())).unwrap();
    assert_eq!(processes.count, 1);
    assert!(processes.descriptors.unwrap().open >= 3);
    assert!(processes.open_files_limit.unwrap() > 0);
    let other = cgroup.processes(Some(1)).unwrap();
    assert_eq!(
        other.open_files_limit, None,
        "of a process that is elsewhere"
    );
}

#[test]
fn what_is_said_to_be_counted_has_figures_and_nothing_else() {
    assert_counted(&Scratch::new());
    if let Some(scratch) = unified() {
        assert_counted(&scratch);
    }
}

#[test]
fn kill_and_remove_reach_below() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("container");
    let inner = scratch.child("container/inner/innermost");
    let mut sleeper = Sleeper::start_in(&inner);
    assert_eq!(cgroup.pids().unwrap(), [sleeper.pid()]);
    cgroup.kill(PATIENCE).unwrap();
    assert!(sleeper.was_killed());
    cgroup.remove().unwrap();
    assert!(!cgroup.exists() && !inner.exists());
}

#[test]
fn more_are_killed_than_are_held_at_once() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("container");
    let count = HELD_AT_ONCE + 50;
    let mut sleepers: Vec<_> = (0..count).map(|_| Sleeper::start_in(&cgroup)).collect();
    let pids = cgroup.pids().unwrap();
    assert_eq!(pids.len(), count);
    let held = cgroup.signal_all(&pids).unwrap();
    assert!(held.len() <= HELD_AT_ONCE);
    assert!(sleepers.iter_mut().all(Sleeper::was_killed));
}

#[test]
fn an_empty_child_survives_what_only_removes_the_empty() {
    let scratch = Scratch::new();
    let parent = scratch.child("pods");
    let child = scratch.child("pods/one");
    parent.remove_if_empty().unwrap();
    assert!(child.files_to_join().iter().all(|file| file.exists()));
    child.remove_if_empty().unwrap();
    parent.remove_if_empty().unwrap();
    assert!(!parent.exists());
}

/// Sets it at the end of the scope, after a panic too.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_parent_that_vanishes_meanwhile_is_made_again() {
    let scratch = Scratch::new();
    let parent = scratch.child("pods");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                parent.remove_if_empty().unwrap();
            }
        });
        let _stop = Stop(&stop);
        for _ in 0..50 {
            let child = scratch.child("pods/one");
            assert!(child.exists());
            child.remove_if_empty().unwrap();
        }
    });
}

#[test]
fn frozen_processes_are_killed_too() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("container");
    let mut sleeper = Sleeper::start_in(&cgroup);
    freeze(&cgroup);
    cgroup.kill(PATIENCE).unwrap();
    assert!(sleeper.was_killed());
}

/// Thawing what is above leaves a cgroup frozen that was frozen by itself.
#[test]
fn frozen_processes_below_are_killed_too() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("container");
    let inner = scratch.child("container/inner/innermost");
    let mut sleeper = Sleeper::start_in(&inner);
    freeze(&inner);
    cgroup.kill(PATIENCE).unwrap();
    assert!(sleeper.was_killed());
}

/// Whoever has no time for all of them leaves none frozen that was not.
#[test]
fn who_gives_up_freezing_leaves_nothing_frozen() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("container");
    let mut sleeper = Sleeper::start_in(&cgroup);
    let Some(tree) = cgroup.layout.home("freezer").filter(|tree| !tree.is_v2()) else {
        return;
    };
    let dir = cgroup.dir(tree);
    let gave_up = crate::frozen::kill(&dir, Instant::now() + PATIENCE, || true).unwrap_err();
    assert_eq!(gave_up.kind(), std::io::ErrorKind::TimedOut);
    let state = fs::read_to_string(dir.join(crate::frozen::STATE)).unwrap();
    assert_eq!(state.trim(), "THAWED");
    cgroup.kill(PATIENCE).unwrap();
    assert!(sleeper.was_killed());
}

/// A container may nest cgroups below its own as deep as it likes.
#[test]
fn what_is_deeper_than_any_path_is_killed_and_removed() {
    use rustix::fs::{Mode, OFlags};
    let scratch = Scratch::new();
    let cgroup = scratch.child("container");
    let mut sleeper = Sleeper::start_in(&cgroup);
    let trees = [cgroup.layout.home("freezer"), cgroup.layout.v2()];
    for tree in trees.into_iter().flatten() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = cgroup.dir(tree);
        let mut dir = rustix::fs::open(top, flags, Mode::empty()).unwrap();
        for _ in 0..2100 {
            rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
            dir = rustix::fs::openat(&dir, "d", flags, Mode::empty()).unwrap();
        }
        let procs = rustix::fs::openat(&dir, "cgroup.procs", OFlags::WRONLY, Mode::empty());
        let pid = sleeper.pid().to_string();
        rustix::io::write(procs.unwrap(), pid.as_bytes()).unwrap();
    }
    assert_eq!(cgroup.pids().unwrap(), [sleeper.pid()]);
    cgroup.kill(PATIENCE).unwrap();
    assert!(sleeper.was_killed());
    cgroup.remove().unwrap();
    assert!(!cgroup.exists());
}

fn freeze(cgroup: &Cgroup) {
    match cgroup.layout.home("freezer") {
        Some(tree) => {
            let state = cgroup.dir(tree).join("freezer.state");
            fs::write(&state, "FROZEN").unwrap();
            let until = Instant::now() + PATIENCE;
            while fs::read_to_string(&state).unwrap().trim() != "FROZEN" {
                assert!(Instant::now() < until);
                std::thread::yield_now();
            }
        }
        None => {
            let dir = cgroup.dir(cgroup.layout.v2().unwrap());
            fs::write(dir.join("cgroup.freeze"), "1").unwrap();
        }
    }
}

#[test]
fn a_busy_cgroup_is_named_when_it_cannot_be_removed() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("container");
    let _sleeper = Sleeper::start_in(&cgroup);
    let error = cgroup.remove().unwrap_err();
    assert!(matches!(error, CgroupError::Remove { .. }), "{error}");
    assert!(
        error.to_string().contains(cgroup.path().as_str()),
        "{error}"
    );
    assert!(cgroup.exists());
}

#[test]
fn limits_reach_the_files_of_either_version() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("container");
    let limits = Resources {
        cpu_period: 50_000,
        cpu_quota: 25_000,
        cpu_shares: 2048,
        memory_limit: 64 * MIB,
        memory_swap_limit: 80 * MIB,
        cpuset_cpus: "0".into(),
        cpuset_mems: "0".into(),
        pids_limit: 77,
        ..Resources::default()
    };
    let warnings = cgroup.apply(&limits).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    if is_v2(&cgroup, "cpu") {
        assert_eq!(value(&cgroup, "cpu", "", "cpu.max"), "25000 50000");
        assert_eq!(value(&cgroup, "cpu", "", "cpu.weight"), "174");
        assert_eq!(
            value(&cgroup, "memory", "", "memory.swap.max"),
            (16 * MIB).to_string()
        );
    } else {
        assert_eq!(value(&cgroup, "cpu", "cpu.cfs_period_us", ""), "50000");
        assert_eq!(value(&cgroup, "cpu", "cpu.cfs_quota_us", ""), "25000");
        assert_eq!(value(&cgroup, "cpu", "cpu.shares", ""), "2048");
        let both = value(&cgroup, "memory", "memory.memsw.limit_in_bytes", "");
        assert_eq!(both, (80 * MIB).to_string());
    }
    assert_eq!(memory(&cgroup), (64 * MIB).to_string());
    assert_eq!(value(&cgroup, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(value(&cgroup, "pids", "pids.max", "pids.max"), "77");
    let stats = cgroup.stats().unwrap();
    assert_eq!(stats.memory_limit, Some(64 << 20));
    assert_eq!(stats.swap_limit, Some(16 << 20));
    cgroup.apply(&limits).unwrap();
}

#[test]
fn zero_leaves_and_minus_one_lifts() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("container");
    let limits = Resources {
        memory_limit: 64 * MIB,
        pids_limit: 9,
        cpu_quota: 20_000,
        ..Resources::default()
    };
    cgroup.apply(&limits).unwrap();
    cgroup.apply(&Resources::default()).unwrap();
    assert_eq!(memory(&cgroup), (64 * MIB).to_string());
    let lift = Resources {
        memory_limit: -1,
        memory_swap_limit: -1,
        pids_limit: -1,
        cpu_quota: -1,
        ..Resources::default()
    };
    cgroup.apply(&lift).unwrap();
    let stats = cgroup.stats().unwrap();
    assert_eq!((stats.memory_limit, stats.swap_limit), (None, None));
    assert_eq!(value(&cgroup, "pids", "pids.max", "pids.max"), "max");
    let quota = value(&cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "-1" || quota == "max 100000", "{quota}");
}

#[test]
fn memory_and_swap_move_together_in_every_direction() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("container");
    let set = |memory: i64, both: i64| {
        let limits = Resources {
            memory_limit: memory * MIB,
            memory_swap_limit: both * MIB,
            ..Resources::default()
        };
        cgroup.apply(&limits).unwrap();
        let stats = cgroup.stats().unwrap();
        assert_eq!(stats.memory_limit, Some((memory * MIB).cast_unsigned()));
        assert_eq!(
            stats.swap_limit,
            Some(((both - memory) * MIB).cast_unsigned())
        );
    };
    for (memory, both) in [
        (64, 64),
        (128, 128),
        (32, 256),
        (256, 256),
        (16, 20),
        (16, 16),
    ] {
        set(memory, both);
    }
    // A memory limit alone may outgrow the sum that was set before.
    let limits = Resources {
        memory_limit: 512 * MIB,
        ..Resources::default()
    };
    cgroup.apply(&limits).unwrap();
    assert_eq!(memory(&cgroup), (512 * MIB).to_string());
    let limits = Resources {
        memory_limit: 64 * MIB,
        memory_swap_limit: 63 * MIB,
        ..Resources::default()
    };
    let error = cgroup.apply(&limits).unwrap_err();
    assert!(error.to_string().contains("memory_swap_limit"), "{error}");
    assert_eq!(memory(&cgroup), (512 * MIB).to_string());
}

#[test]
fn a_quota_below_a_limited_parent_can_change_its_period() {
    let scratch = Scratch::new();
    let parent = scratch.child("pod");
    let cgroup = scratch.child("pod/container");
    let set = |cgroup: &Cgroup, quota, period| {
        let limits = Resources {
            cpu_quota: quota,
            cpu_period: period,
            ..Resources::default()
        };
        cgroup.apply(&limits).unwrap();
    };
    set(&parent, 50_000, 100_000);
    for (quota, period) in [
        (50_000, 100_000),
        (5_000, 10_000),
        (250_000, 500_000),
        (-1, 20_000),
        (10_000, 20_000),
    ] {
        set(&cgroup, quota, period);
    }
}

#[test]
fn a_refused_limit_is_named_and_the_others_are_put_back() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("container");
    let before = Resources {
        cpu_shares: 512,
        cpuset_cpus: "0".into(),
        memory_limit: 64 * MIB,
        ..Resources::default()
    };
    cgroup.apply(&before).unwrap();
    let shares = || value(&cgroup, "cpu", "cpu.shares", "cpu.weight");
    let old = shares();
    let after = Resources {
        cpu_shares: 4096,
        cpu_quota: 30_000,
        cpuset_cpus: "0".into(),
        cpuset_mems: "0-4095".into(),
        memory_limit: 32 * MIB,
        ..Resources::default()
    };
    let error = message(&cgroup.apply(&after).unwrap_err());
    assert!(
        error.contains("cpuset.mems") && error.contains("0-4095"),
        "{error}"
    );
    assert_eq!(shares(), old);
    assert_eq!(memory(&cgroup), (64 * MIB).to_string());
    let quota = value(&cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "-1" || quota == "max 100000", "{quota}");
}

#[test]
fn no_huge_pages_never_fail_but_some_do_by_name() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("container");
    let pages = |size: &str, limit| Resources {
        hugepage_limits: vec![(size.into(), limit)],
        ..Resources::default()
    };
    cgroup.apply(&pages("3MB", 0)).unwrap();
    let error = message(&cgroup.apply(&pages("3MB", 3 << 20)).unwrap_err());
    assert!(error.contains("hugetlb.3MB"), "{error}");
    let error = cgroup.apply(&pages("../2MB", 0)).unwrap_err();
    assert!(matches!(error, CgroupError::Invalid { .. }), "{error}");
    cgroup.apply(&pages("2MB", 0)).unwrap();
    if scratch.hierarchies.has("hugetlb") {
        cgroup.apply(&pages("2MB", 4 << 20)).unwrap();
        let limit = value(
            &cgroup,
            "hugetlb",
            "hugetlb.2MB.limit_in_bytes",
            "hugetlb.2MB.max",
        );
        assert_eq!(limit, (4 << 20).to_string());
    }
}

#[test]
fn raw_keys_are_for_v2_and_for_controllers_only() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("container");
    let raw = |key: &str, value: &str| {
        let limits = Resources {
            unified: [(key.to_owned(), value.to_owned())].into(),
            ..Resources::default()
        };
        cgroup.apply(&limits).map_err(|e| message(&e))
    };
    let error = raw("cgroup.procs", "1").unwrap_err();
    assert!(error.contains("cgroup.procs"), "{error}");
    if scratch.hierarchies.version() != Version::V2 {
        let error = raw("memory.high", "1000000").unwrap_err();
        assert!(
            error.contains("memory.high") && error.contains("v2"),
            "{error}"
        );
        return;
    }
    raw("memory.high", "1048576").unwrap();
    assert_eq!(value(&cgroup, "memory", "", "memory.high"), "1048576");
    assert!(raw("memory.high/../x", "1").is_err());
    let error = raw("memory.nonsense", "1").unwrap_err();
    assert!(error.contains("memory.nonsense"), "{error}");
    let error = raw("nonsense.max", "1").unwrap_err();
    assert!(error.contains("nonsense"), "{error}");
}

#[test]
fn concurrent_creates_below_a_new_parent_all_get_cpus() {
    let scratch = Scratch::new();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let scratch = &scratch;
            scope.spawn(move || scratch.child(&format!("burst/pod/{number}")));
        }
    });
    for number in 0..8 {
        let cgroup = scratch.child(&format!("burst/pod/{number}"));
        if !is_v2(&cgroup, "cpuset") {
            assert!(!value(&cgroup, "cpuset", "cpuset.cpus", "").is_empty());
            assert!(!value(&cgroup, "cpuset", "cpuset.mems", "").is_empty());
        }
    }
}

#[test]
fn pressure_is_read_where_there_is_a_v2_tree() {
    let scratch = Scratch::new();
    let stats = scratch.child("container").stats().unwrap();
    let layout = &scratch.top.layout;
    let counted = layout
        .v2()
        .is_some_and(|tree| tree.root.join("cpu.pressure").exists());
    assert_eq!(stats.cpu_psi.is_some(), counted);
    assert_eq!(stats.io_psi.is_some(), counted);
}

#[test]
fn a_parent_with_processes_keeps_its_controllers_and_is_told_apart() {
    let scratch = Scratch::new();
    if scratch.hierarchies.version() != Version::V2 {
        return;
    }
    let pod = scratch.child("pod");
    let _sleeper = Sleeper::start_in(&pod);
    let cgroup = scratch.child("pod/container");
    let limits = Resources {
        memory_limit: 64 * MIB,
        ..Resources::default()
    };
    let error = cgroup.apply(&limits).unwrap_err();
    assert!(
        matches!(&error, CgroupError::NoController { controller, .. } if controller == "memory")
    );
    assert!(
        error.to_string().contains(cgroup.path().as_str()),
        "{error}"
    );
}

#[test]
fn orphaned_parents_go_only_when_v1_has_them_no_more() {
    let scratch = Scratch::new();
    let cgroup = scratch.child("kubepods/pod/container");
    let pod = scratch.hierarchies.open(&scratch.path("kubepods/pod"));
    pod.remove_orphaned().unwrap();
    assert!(pod.exists());
    cgroup.remove().unwrap();
    pod.remove_orphaned().unwrap();
    assert!(pod.dirs().iter().all(|dir| dir.exists()));
    if scratch.hierarchies.version() != Version::Hybrid {
        return;
    }
    for tree in cgroup.layout.trees.iter().filter(|tree| !tree.is_v2()) {
        fs::remove_dir(pod.dir(tree)).unwrap();
    }
    assert!(pod.exists());
    pod.remove_orphaned().unwrap();
    assert!(!pod.exists());
    assert!(scratch.child("kubepods").exists());
}

/// The v2 tree alone, where this machine has one.
fn unified() -> Option<Scratch> {
    let version = Hierarchies::detect(Selection::All).unwrap().version();
    if version == Version::V1 {
        let none = Hierarchies::detect(Selection::Unified);
        assert!(matches!(none, Err(CgroupError::NoUnified)));
        return None;
    }
    Some(Scratch::of(Selection::Unified))
}

#[test]
fn the_v2_tree_alone_is_made_joined_killed_and_removed_there_only() {
    let Some(scratch) = unified() else { return };
    assert_eq!(scratch.hierarchies.version(), Version::V2);
    let cgroup = scratch.child("pod/container");
    let everywhere = Hierarchies::detect(Selection::All).unwrap();
    let same = everywhere.open(cgroup.path());
    let made = same.dirs().into_iter().filter(|dir| dir.exists());
    assert_eq!(made.collect::<Vec<_>>(), cgroup.dirs());
    assert_eq!(cgroup.files_to_join().len(), 1);
    let mut sleeper = Sleeper::start_in(&cgroup);
    assert_eq!(cgroup.pids().unwrap(), [sleeper.pid()]);
    assert_eq!(cgroup.stats().unwrap().pids, 1);
    let killer = std::thread::spawn({
        let cgroup = cgroup.clone();
        move || cgroup.kill(PATIENCE)
    });
    assert!(sleeper.was_killed());
    killer.join().unwrap().unwrap();
    cgroup.remove().unwrap();
    assert!(!same.exists());
}

#[test]
fn limits_that_the_v2_tree_alone_cannot_set_are_warnings_not_errors() {
    let Some(scratch) = unified() else { return };
    let cgroup = scratch.child("container");
    let limits = Resources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit: 64 * MIB,
        cpuset_cpus: "0".into(),
        pids_limit: 100,
        hugepage_limits: vec![("2MB".into(), 0)],
        unified: [("memory.high".to_owned(), "1048576".to_owned())].into(),
        ..Resources::default()
    };
    let warnings = cgroup.apply(&limits).unwrap();
    for controller in ["cpu", "cpuset", "memory", "pids"] {
        let named = |warning: &&String| warning.starts_with(&format!("{controller} limits"));
        let said = warnings.iter().filter(named).count();
        let lacks = !scratch.hierarchies.has(controller);
        assert_eq!(said, usize::from(lacks), "{controller}: {warnings:?}");
    }
    // What no kernel would take stays an error.
    let wrong = Resources {
        unified: [("cgroup.procs".to_owned(), "1".to_owned())].into(),
        ..Resources::default()
    };
    assert!(cgroup.apply(&wrong).is_err());
}

#[test]
fn orphaned_parents_in_the_v2_tree_alone_go_when_the_others_have_them_no_more() {
    let Some(scratch) = unified() else { return };
    let everywhere = Hierarchies::detect(Selection::All).unwrap();
    if everywhere.version() != Version::Hybrid {
        return;
    }
    let cgroup = scratch.child("kubepods/pod/container");
    cgroup.remove().unwrap();
    let pod = scratch.hierarchies.open(&scratch.path("kubepods/pod"));
    // Another has it, as the kubelet has its pods' before the engine's are made.
    let theirs = everywhere.create(pod.path()).unwrap();
    pod.remove_orphaned().unwrap();
    assert!(pod.exists());
    for tree in theirs.layout.trees.iter().filter(|tree| !tree.is_v2()) {
        fs::remove_dir(theirs.dir(tree)).unwrap();
    }
    pod.remove_orphaned().unwrap();
    assert!(!pod.exists());
    everywhere.open(scratch.top.path()).remove().unwrap();
}

/// What every driver does, below the parent `parent` of this test's own.
fn driver_suite(driver: &dyn Driver, parent: &CgroupPath) {
    let [pod, container] = ["1f", "2e"].map(|end| format!("{}-{end}", parent.name()));
    let of_pod = driver.pod_path(parent, &pod).unwrap();
    let of_container = driver.container_path(&of_pod, &container).unwrap();
    for path in [&of_pod, &of_container] {
        assert!(path.as_str().starts_with(&format!("{parent}/")), "{path}");
    }
    let below = format!("{of_pod}/");
    assert!(!of_container.as_str().starts_with(&below), "{of_container}");
    for id in ["", ".", "..", "a/b", "a\0"] {
        let refused = |path| matches!(path, Err(CgroupError::Path { .. }));
        assert!(refused(driver.pod_path(parent, id)), "{id:?}");
        assert!(refused(driver.container_path(&of_pod, id)), "{id:?}");
    }
    assert!(!driver.open(&of_pod).exists());
    let find = |id: &str| -> Vec<_> {
        let found = driver.find(id).unwrap();
        found.iter().map(|found| found.path().clone()).collect()
    };
    let both = [
        (driver.make_pod(&of_pod).unwrap(), pod),
        (driver.make_container(&of_container).unwrap(), container),
    ];
    driver.make_pod(&of_pod).unwrap();
    for (cgroup, id) in both {
        assert!(driver.open(cgroup.path()).exists());
        assert_eq!(find(&id), [cgroup.path().clone()]);
        let mut sleeper = Sleeper::start_in(&cgroup);
        let killed = std::thread::spawn(move || sleeper.was_killed());
        cgroup.kill(PATIENCE).unwrap();
        assert!(killed.join().unwrap());
        driver.remove(&cgroup).unwrap();
        assert!(!cgroup.exists());
        driver.remove(&cgroup).unwrap();
        assert_eq!(find(&id), []);
    }
    assert!(driver.open(parent).exists(), "removed more than its own");
}

#[test]
fn cgroupfs_is_a_driver() {
    let scratch = Scratch::new();
    driver_suite(&scratch.hierarchies, scratch.top.path());
    if let Some(scratch) = unified() {
        driver_suite(&scratch.hierarchies, scratch.top.path());
    }
}
