//! Resource limits that every container's processes get.
//!
//! CRI has no field for them, and what the engine's own unit has is nobody's choice for
//! containers. Reads the engine's own limits once; changes nothing.

use std::sync::OnceLock;

use runtime::spec::Rlimit;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// The kernel's number of the limit of open files.
const NOFILE: u32 = 7;

/// The limit of open files, as far as this node lets it be set.
pub(super) fn open_files(wanted: u64) -> Rlimit {
    static HIGHEST: OnceLock<u64> = OnceLock::new();
    let value = wanted.min(*HIGHEST.get_or_init(highest));
    Rlimit {
        resource: NOFILE,
        soft: value,
        hard: value,
    }
}

/// The kernel's own bound for who may raise limits; for others that of this process,
/// which is that of all that it starts.
fn highest() -> u64 {
    let may_raise =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
    let kernels = || {
        std::fs::read_to_string("/proc/sys/fs/nr_open")
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let own = || getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if may_raise {
        kernels().unwrap_or_else(own)
    } else {
        own()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_wished_that_cannot_be_set() {
        for (wanted, expected) in [(1024, 1024), (u64::MAX, highest())] {
            let limit = open_files(wanted);
            assert_eq!((limit.soft, limit.hard), (expected, expected));
        }
    }
}
