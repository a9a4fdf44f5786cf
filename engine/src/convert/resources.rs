//! `LinuxContainerResources` to [`Resources`] and back.

use proto::v1;

use super::{BadRequest, wrong};
use crate::model::Resources;

/// Limits from a request; `field` is where they stand in it.
pub(crate) fn from_proto(
    field: &str,
    resources: v1::LinuxContainerResources,
) -> Result<Resources, BadRequest> {
    let v1::LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit_in_bytes,
        oom_score_adj,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits,
        unified,
        memory_swap_limit_in_bytes,
    } = resources;
    let positive = |name: &str, value: i64| {
        if value >= 0 {
            Ok(value)
        } else {
            Err(wrong(
                format!("{field}.{name}"),
                format!("{value} is negative"),
            ))
        }
    };
    if !(-1000..=1000).contains(&oom_score_adj) {
        let reason = format!("{oom_score_adj} is not between -1000 and 1000");
        return Err(wrong(format!("{field}.oom_score_adj"), reason));
    }
    Ok(Resources {
        cpu_period: positive("cpu_period", cpu_period)?,
        cpu_quota,
        cpu_shares: positive("cpu_shares", cpu_shares)?,
        memory_limit: memory_limit_in_bytes,
        memory_swap_limit: memory_swap_limit_in_bytes,
        oom_score_adj,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits: hugepage_limits
            .into_iter()
            .map(|v1::HugepageLimit { page_size, limit }| (page_size, limit))
            .collect(),
        unified: unified.into_iter().collect(),
    })
}

/// Limits as a status answers them.
pub(crate) fn to_proto(resources: &Resources) -> v1::LinuxContainerResources {
    let Resources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit,
        memory_swap_limit,
        oom_score_adj,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits,
        unified,
    } = resources.clone();
    v1::LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit_in_bytes: memory_limit,
        oom_score_adj,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits: hugepage_limits
            .into_iter()
            .map(|(page_size, limit)| v1::HugepageLimit { page_size, limit })
            .collect(),
        unified: unified.into_iter().collect(),
        memory_swap_limit_in_bytes: memory_swap_limit,
    }
}

/// What an update changes: a value that is given replaces the old one.
pub(crate) fn merge(old: &Resources, update: &Resources) -> Resources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &String, new: &String| {
        if new.is_empty() {
            old.clone()
        } else {
            new.clone()
        }
    };
    let mut unified = old.unified.clone();
    unified.extend(update.unified.clone());
    Resources {
        cpu_period: number(old.cpu_period, update.cpu_period),
        cpu_quota: number(old.cpu_quota, update.cpu_quota),
        cpu_shares: number(old.cpu_shares, update.cpu_shares),
        memory_limit: number(old.memory_limit, update.memory_limit),
        memory_swap_limit: number(old.memory_swap_limit, update.memory_swap_limit),
        oom_score_adj: old.oom_score_adj,
        cpuset_cpus: text(&old.cpuset_cpus, &update.cpuset_cpus),
        cpuset_mems: text(&old.cpuset_mems, &update.cpuset_mems),
        hugepage_limits: if update.hugepage_limits.is_empty() {
            old.hugepage_limits.clone()
        } else {
            update.hugepage_limits.clone()
        },
        unified,
    }
}

/// Limits as the cgroup module takes them.
pub(crate) fn to_runtime(resources: &Resources, pids_limit: i64) -> runtime::cgroup::Resources {
    let Resources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit,
        memory_swap_limit,
        // A property of the process, not of the cgroup.
        oom_score_adj: _,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits,
        unified,
    } = resources.clone();
    runtime::cgroup::Resources {
        cpu_period: cpu_period.unsigned_abs(),
        cpu_quota,
        cpu_shares: cpu_shares.unsigned_abs(),
        memory_limit,
        memory_swap_limit,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits,
        unified,
        pids_limit,
    }
}
