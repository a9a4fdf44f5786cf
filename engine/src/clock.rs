//! The clocks that the engine reads.

use std::time::{SystemTime, UNIX_EPOCH};

/// The time of day in nanoseconds since 1970, as CRI and records have it. It may be set, and
/// then goes backwards.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Nanoseconds since the node was started, its sleep included: a clock that is never set.
pub(crate) fn since_boot() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec)
}
