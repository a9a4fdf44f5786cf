//! The clocks that the engine reads.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

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
    // Every kernel has this clock. The C library reads it on User-mode Linux, too.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap_or_else(|_| TimeSpec::new(0, 0));
    time.tv_sec()
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec())
}
