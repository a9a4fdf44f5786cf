//! The least speed of a transfer.
//!
//! Counts only the time spent waiting for the network: a slow disk behind the
//! transfer must not end it. Pure, so that it can be tested without waiting.

use std::time::Duration;

/// Watches one connection.
#[derive(Debug)]
pub(crate) struct Pace {
    window: Duration,
    least: u64,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Demands `per_second` bytes a second, judged over each `window`.
    pub(crate) fn new(window: Duration, per_second: u64) -> Self {
        let millis = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        let least = per_second.saturating_mul(millis) / 1000;
        Self {
            window,
            least,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Notes what came after how long; false when that is too little.
    pub(crate) fn note(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.waited < self.window {
            return true;
        }
        let enough = self.bytes >= self.least;
        self.waited = Duration::ZERO;
        self.bytes = 0;
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drip_is_too_slow_and_a_pause_within_the_window_is_not() {
        let second = Duration::from_secs(1);
        let mut drip = Pace::new(30 * second, 1024);
        assert!((0..29).all(|_| drip.note(second, 10)));
        assert!(!drip.note(second, 10));
        let mut burst = Pace::new(30 * second, 1024);
        assert!(burst.note(25 * second, 0));
        assert!(burst.note(5 * second, 40_000));
    }
}
