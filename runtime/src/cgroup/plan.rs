//! Turns limits into file writes, in an order that the kernel accepts.
//!
//! Reads the present values where the order or a value depends on them;
//! writes nothing but `cgroup.subtree_control` of v2 parents, where a limit
//! needs a controller that was not handed down yet.

use std::fmt::Display;
use std::path::PathBuf;

use super::detect::Tree;
use super::{Cgroup, CgroupError, Resources, Version, file};

/// One file to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) path: PathBuf,
    pub(super) value: String,
    /// Whether the kernel's refusal fails the whole update.
    pub(super) required: bool,
}

/// What has to be written for one update.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) writes: Vec<Write>,
    pub(super) warnings: Vec<String>,
}

impl Plan {
    pub(super) fn new(cgroup: &Cgroup, resources: &Resources) -> Result<Self, CgroupError> {
        let mut plan = Self::default();
        plan.cpu(cgroup, resources)?;
        plan.cpuset(cgroup, resources)?;
        plan.memory(cgroup, resources)?;
        plan.pids(cgroup, resources)?;
        plan.hugepages(cgroup, resources)?;
        plan.unified(cgroup, resources)?;
        Ok(plan)
    }

    fn push(&mut self, path: PathBuf, value: impl Display) {
        self.writes.push(Write {
            path,
            value: value.to_string(),
            required: true,
        });
    }

    fn cpu(&mut self, cgroup: &Cgroup, r: &Resources) -> Result<(), CgroupError> {
        if r.cpu_shares == 0 && r.cpu_period == 0 && r.cpu_quota == 0 {
            return Ok(());
        }
        let Some(home) = self.home(cgroup, "cpu", ("cpu.shares", "cpu.weight"))? else {
            return Ok(());
        };
        if r.cpu_shares != 0 && home.v2 {
            self.push(home.file("cpu.weight"), weight_from_shares(r.cpu_shares));
        } else if r.cpu_shares != 0 {
            self.push(home.file("cpu.shares"), r.cpu_shares);
        }
        if r.cpu_period == 0 && r.cpu_quota == 0 {
            return Ok(());
        }
        if home.v2 {
            self.cpu_max(&home, r)
        } else {
            self.cfs(&home, r)
        }
    }

    fn cpu_max(&mut self, home: &Home, r: &Resources) -> Result<(), CgroupError> {
        let path = home.file("cpu.max");
        let old = file::read(&path)?;
        let (old_quota, old_period) = old.split_once(' ').unwrap_or((&old, "100000"));
        let quota = match r.cpu_quota {
            0 => old_quota.to_owned(),
            quota if quota < 0 => "max".to_owned(),
            quota => quota.to_string(),
        };
        let period = match r.cpu_period {
            0 => old_period.to_owned(),
            period => period.to_string(),
        };
        self.push(path, format!("{quota} {period}"));
        Ok(())
    }

    /// Period and quota are two files on v1, and between the two writes their
    /// ratio must not exceed the parent's: take the way over the lower ratio.
    fn cfs(&mut self, home: &Home, r: &Resources) -> Result<(), CgroupError> {
        let (period_file, quota_file) = (
            home.file("cpu.cfs_period_us"),
            home.file("cpu.cfs_quota_us"),
        );
        if r.cpu_quota == 0 {
            self.push(period_file, r.cpu_period);
            return Ok(());
        }
        let quota = r.cpu_quota.max(-1);
        if r.cpu_period == 0 {
            self.push(quota_file, quota);
            return Ok(());
        }
        let old_period: i64 = parse(&period_file)?;
        let old_quota: i64 = parse(&quota_file)?;
        // No quota counts as the lowest: the kernel never refuses it.
        let ratio = |quota: i64, period: i128| (i128::from(quota.max(0)), period.max(1));
        let period_first = ratio(old_quota, i128::from(r.cpu_period));
        let quota_first = ratio(quota, i128::from(old_period));
        if period_first.0 * quota_first.1 <= quota_first.0 * period_first.1 {
            self.push(period_file, r.cpu_period);
            self.push(quota_file, quota);
        } else {
            self.push(quota_file, quota);
            self.push(period_file, r.cpu_period);
        }
        Ok(())
    }

    fn cpuset(&mut self, cgroup: &Cgroup, r: &Resources) -> Result<(), CgroupError> {
        for (name, value) in [
            ("cpuset.cpus", &r.cpuset_cpus),
            ("cpuset.mems", &r.cpuset_mems),
        ] {
            if value.is_empty() {
                continue;
            }
            if let Some(home) = self.home(cgroup, "cpuset", (name, name))? {
                self.push(home.file(name), value);
            }
        }
        Ok(())
    }

    fn memory(&mut self, cgroup: &Cgroup, r: &Resources) -> Result<(), CgroupError> {
        if r.memory_limit == 0 && r.memory_swap_limit == 0 {
            return Ok(());
        }
        let files = ("memory.limit_in_bytes", "memory.max");
        let Some(home) = self.home(cgroup, "memory", files)? else {
            return Ok(());
        };
        let swap_file = home.file(if home.v2 { "memory.swap.max" } else { MEMSW });
        let swap_counted = swap_file.exists();
        if r.memory_swap_limit != 0 && !swap_counted {
            self.warnings.push(format!(
                "memory_swap_limit {} is not set: {} is missing, this kernel does not count swap",
                r.memory_swap_limit,
                swap_file.display()
            ));
        }
        let swap_file = swap_counted.then_some(swap_file);
        if home.v2 {
            self.memory_v2(&home, r, swap_file)
        } else {
            self.memory_v1(&home, r, swap_file)
        }
    }

    fn memory_v2(
        &mut self,
        home: &Home,
        r: &Resources,
        swap_file: Option<PathBuf>,
    ) -> Result<(), CgroupError> {
        let path = home.file("memory.max");
        if let Some(swap_file) = swap_file.filter(|_| r.memory_swap_limit != 0) {
            let memory = match r.memory_limit {
                0 => file::number(&path, &file::read(&path)?)?.map(saturate),
                limit => Some(limit).filter(|&limit| limit > 0),
            };
            let value = swap_only(r.memory_swap_limit, memory)?;
            self.push(swap_file, value);
        }
        if r.memory_limit != 0 {
            self.push(path, max_or(r.memory_limit));
        }
        Ok(())
    }

    /// The kernel holds memory+swap at or above memory at every moment, so the
    /// order depends on what is set now.
    fn memory_v1(
        &mut self,
        home: &Home,
        r: &Resources,
        swap_file: Option<PathBuf>,
    ) -> Result<(), CgroupError> {
        let path = home.file("memory.limit_in_bytes");
        let Some(swap_file) = swap_file else {
            if r.memory_limit != 0 {
                self.push(path, r.memory_limit.max(-1));
            }
            return Ok(());
        };
        let old_swap: i64 = parse(&swap_file)?;
        let memory = match r.memory_limit {
            0 => parse(&path)?,
            limit => limit,
        };
        let swap = match r.memory_swap_limit {
            // A limit that outgrows memory+swap takes that with it.
            0 => (unsigned(memory) > unsigned(old_swap)).then_some(memory),
            swap => Some(swap),
        };
        if let Some(swap) = swap.filter(|&swap| unsigned(swap) < unsigned(memory)) {
            return Err(below_memory(swap, memory));
        }
        let memory_write = (r.memory_limit != 0).then_some((path, memory));
        let swap_write = swap.map(|swap| (swap_file, swap));
        let order = if unsigned(memory) <= unsigned(old_swap) {
            [memory_write, swap_write]
        } else {
            [swap_write, memory_write]
        };
        for (path, value) in order.into_iter().flatten() {
            self.push(path, value.max(-1));
        }
        Ok(())
    }

    fn pids(&mut self, cgroup: &Cgroup, r: &Resources) -> Result<(), CgroupError> {
        if r.pids_limit == 0 {
            return Ok(());
        }
        if let Some(home) = self.home(cgroup, "pids", ("pids.max", "pids.max"))? {
            self.push(home.file("pids.max"), max_or(r.pids_limit));
        }
        Ok(())
    }

    fn hugepages(&mut self, cgroup: &Cgroup, r: &Resources) -> Result<(), CgroupError> {
        for (size, limit) in &r.hugepage_limits {
            if !is_page_size(size) {
                return Err(CgroupError::Invalid {
                    field: "hugepage_limits".into(),
                    value: size.clone(),
                    reason: "a page size is a number and KB, MB or GB".into(),
                });
            }
            let v1 = format!("hugetlb.{size}.limit_in_bytes");
            let v2 = format!("hugetlb.{size}.max");
            let files = (v1.as_str(), v2.as_str());
            let home = match self.home(cgroup, "hugetlb", files) {
                Ok(Some(home)) => home,
                Ok(None) => continue,
                // The kubelet sends 0 for every size; a machine that cannot
                // limit huge pages must not fail every container for it.
                Err(CgroupError::NoController { .. }) if *limit == 0 => continue,
                Err(e) => return Err(e),
            };
            let name = if home.v2 { v2 } else { v1 };
            let required = *limit != 0;
            let value = limit.to_string();
            self.writes.push(Write {
                path: home.file(&name),
                value: value.clone(),
                required,
            });
            // Reserved but untouched pages are counted apart since 5.7.
            let reserved = home.file(&name.replacen(size, &format!("{size}.rsvd"), 1));
            if reserved.exists() {
                self.writes.push(Write {
                    path: reserved,
                    value,
                    required,
                });
            }
        }
        Ok(())
    }

    fn unified(&mut self, cgroup: &Cgroup, r: &Resources) -> Result<(), CgroupError> {
        for (key, value) in &r.unified {
            let refuse = |reason: &str| CgroupError::Invalid {
                field: format!("unified[{key:?}]"),
                value: value.clone(),
                reason: reason.into(),
            };
            if cgroup.layout.version != Version::V2 {
                return Err(refuse("needs cgroup v2"));
            }
            let controller = check_key(key).map_err(refuse)?;
            if let Some(home) = self.home(cgroup, controller, (key, key))? {
                self.push(home.file(key), value);
            }
        }
        Ok(())
    }

    /// Where a controller's files are; none where its limits are left out.
    fn home(
        &mut self,
        cgroup: &Cgroup,
        controller: &str,
        files: (&str, &str),
    ) -> Result<Option<Home>, CgroupError> {
        if !cgroup.layout.leaves_out(controller) {
            return Home::of(cgroup, controller, files).map(Some);
        }
        let warning = format!(
            "{controller} limits are not set: the cgroup v2 tree has no {controller} \
             controller, and no other hierarchy is used"
        );
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
        Ok(None)
    }
}

const MEMSW: &str = "memory.memsw.limit_in_bytes";

/// Where the files of a controller are.
struct Home {
    dir: PathBuf,
    v2: bool,
}

impl Home {
    /// Finds the directory and makes sure that the controller's file is there,
    /// handing the controller down on v2 where nobody did yet.
    fn of(
        cgroup: &Cgroup,
        controller: &str,
        (v1_file, v2_file): (&str, &str),
    ) -> Result<Self, CgroupError> {
        let missing = |file: &str| CgroupError::NoController {
            controller: controller.into(),
            file: file.into(),
            path: cgroup.path().clone(),
        };
        let Some(tree) = cgroup.layout.home(controller) else {
            let v2 = cgroup.layout.version == Version::V2;
            return Err(missing(if v2 { v2_file } else { v1_file }));
        };
        let name = if tree.is_v2() { v2_file } else { v1_file };
        let home = Self {
            dir: cgroup.dir(tree),
            v2: tree.is_v2(),
        };
        if home.file(name).exists() || home.hand_down(cgroup, tree, controller, name)? {
            return Ok(home);
        }
        Err(missing(name))
    }

    fn hand_down(
        &self,
        cgroup: &Cgroup,
        tree: &Tree,
        controller: &str,
        name: &str,
    ) -> Result<bool, CgroupError> {
        if !self.dir.exists() {
            return Err(CgroupError::NotFound {
                path: self.dir.clone(),
            });
        }
        if !self.v2 {
            return Ok(false);
        }
        cgroup.enable(tree, &[controller])?;
        Ok(self.file(name).exists())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// The v2 weight for v1 shares, as runc (1.3.2), crun (1.23) and the kubelet
/// convert since 2025: a curve through 2 -> 1, 1024 -> 100, 262144 -> 10000,
/// with both defaults in their right place.
pub(super) fn weight_from_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 1 << 18 {
        return 10_000;
    }
    let log = log2(shares);
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // Rounding noise above a whole number must not push it to the next one.
    let weight = (10f64.powf(exponent) - 1e-9).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the exponent lies between 0 and 4"
    )]
    let weight = weight as u64;
    weight.clamp(1, 10_000)
}

#[expect(clippy::cast_precision_loss, reason = "shares stay below 2^18 here")]
fn log2(shares: u64) -> f64 {
    (shares as f64).log2()
}

/// What `memory.swap.max` is: v2 counts swap alone, callers give the sum.
fn swap_only(total: i64, memory: Option<i64>) -> Result<String, CgroupError> {
    if total < 0 {
        return Ok("max".into());
    }
    let Some(memory) = memory else {
        return Err(CgroupError::Invalid {
            field: "memory_swap_limit".into(),
            value: total.to_string(),
            reason: "there is no memory limit to take it from".into(),
        });
    };
    match total.checked_sub(memory).filter(|&swap| swap >= 0) {
        Some(swap) => Ok(swap.to_string()),
        None => Err(below_memory(total, memory)),
    }
}

fn below_memory(swap: i64, memory: i64) -> CgroupError {
    CgroupError::Invalid {
        field: "memory_swap_limit".into(),
        value: swap.to_string(),
        reason: format!("memory and swap together cannot be below the memory limit {memory}"),
    }
}

fn max_or(limit: i64) -> String {
    if limit < 0 {
        "max".into()
    } else {
        limit.to_string()
    }
}

/// A limit for comparison: "no limit" is above all others. Read as unsigned,
/// -1 is; and so is the kernel's own largest value against any real size.
fn unsigned(limit: i64) -> u64 {
    limit.cast_unsigned()
}

fn saturate(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn parse(path: &std::path::Path) -> Result<i64, CgroupError> {
    let text = file::read(path)?;
    text.parse().map_err(|_| CgroupError::Content {
        path: path.into(),
        content: text,
    })
}

fn is_page_size(size: &str) -> bool {
    let number = ["KB", "MB", "GB"]
        .iter()
        .find_map(|unit| size.strip_suffix(unit));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The controller of a raw v2 key. Only its own files are open to callers:
/// `cgroup.*` would move processes or change the tree.
fn check_key(key: &str) -> Result<&str, &'static str> {
    if key.contains('/') || key.contains("..") || key.contains('\0') {
        return Err("is no file name");
    }
    match key.split_once('.') {
        Some(("cgroup", _)) => Err("core files are not limits"),
        Some((controller, file)) if !controller.is_empty() && !file.is_empty() => Ok(controller),
        _ => Err("is not of the form controller.file"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_convert_like_the_neighbours() {
        let weights = [2, 3, 10, 102, 1024, 2048, 4096, 262_144].map(weight_from_shares);
        assert_eq!((weights[0], weights[4], weights[7]), (1, 100, 10_000));
        assert!(weights.is_sorted());
        assert_eq!([0, 1, u64::MAX].map(weight_from_shares), [1, 1, 10_000]);
    }

    #[test]
    fn swap_is_what_is_left_above_memory() {
        assert_eq!(swap_only(300, Some(100)).unwrap(), "200");
        assert_eq!(swap_only(100, Some(100)).unwrap(), "0");
        assert_eq!(swap_only(-1, None).unwrap(), "max");
        assert!(swap_only(99, Some(100)).is_err());
        assert!(swap_only(100, None).is_err());
    }

    #[test]
    fn unified_keys_stay_inside_their_controller() {
        assert_eq!(check_key("memory.high"), Ok("memory"));
        assert_eq!(check_key("hugetlb.2MB.max"), Ok("hugetlb"));
        for bad in [
            "cgroup.procs",
            "cgroup.kill",
            "memory",
            ".max",
            "io.",
            "a/b.c",
            "../x.y",
            "",
        ] {
            assert!(check_key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn page_sizes_are_numbers_with_a_unit() {
        assert!(is_page_size("2MB") && is_page_size("64KB") && is_page_size("1GB"));
        assert!(!is_page_size("MB") && !is_page_size("2") && !is_page_size("../2MB"));
    }
}
