//! What engine, monitor and launcher helper say to each other.
//!
//! Owns the messages, their version and their framing over `SOCK_SEQPACKET`
//! with descriptors. Never trusts a length, a slot or a version that came from
//! outside. A crash leaves nothing: messages live in socket buffers only.
//!
//! One message is one packet: an [`Envelope`] and up to [`MAX_FDS`]
//! descriptors. An envelope that is too large for a packet travels in a memfd
//! (the last descriptor) behind an envelope that only says so.

mod features;
mod messages;
mod socket;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

pub use features::Features;
pub use messages::*;
pub(crate) use socket::read_memfd;
pub use socket::{
    Fds, Incoming, MAX_FDS, MAX_INLINE, MAX_SPILLED, ProtocolError, Received, one_way_pair,
    receive, sealed_memfd, send,
};

/// The version that this build speaks.
pub const VERSION: u32 = 1;

/// Whether this build understands messages of a peer's version: the one
/// before, its own and the one after. Fields that are unknown are skipped: what
/// must not be is a feature, see [`Features`].
#[must_use]
pub fn understands(version: u32) -> bool {
    version.abs_diff(VERSION) <= 1 && version != 0
}

/// Monotonic nanoseconds: the clock of all step timestamps. The same in every
/// process of a machine.
#[must_use]
pub fn monotonic_now() -> u64 {
    u64::try_from(read(ClockId::CLOCK_MONOTONIC)).unwrap_or(0)
}

/// Wall clock nanoseconds since 1970: the clock of everything that CRI shows.
#[must_use]
pub fn wall_now() -> i64 {
    read(ClockId::CLOCK_REALTIME)
}

/// Nanoseconds of a clock, by the C library: without a system call where the kernel offers
/// that, and with one where it does not, as User-mode Linux, of which rustix would not have it.
fn read(clock: ClockId) -> i64 {
    // Every kernel has these clocks.
    let now = clock_gettime(clock).unwrap_or_else(|_| TimeSpec::new(0, 0));
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbour_versions_are_understood() {
        assert!(understands(VERSION));
        assert!(understands(VERSION + 1));
        assert!(!understands(VERSION + 2));
        assert!(!understands(0), "0 is what a missing version decodes to");
    }
}
