//! Pauses between tries of what failed: each twice as long as the one before, up to a
//! bound, and none exactly as long as another pod's, so that what failed for all at
//! once does not come back all at once.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// How often something failed in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Notes one more failure; answers the pause before the next try.
    pub(crate) fn pause(&mut self) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let pause = FIRST.saturating_mul(factor).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        varied(pause, dice())
    }
}

/// From three quarters to five quarters of a pause, by a byte of chance.
fn varied(pause: Duration, chance: u8) -> Duration {
    pause * 3 / 4 + pause * u32::from(chance) / 512
}

fn dice() -> u8 {
    let mut byte = [0_u8];
    // Without a byte, which only a signal in early boot could withhold, no jitter.
    let flags = rustix::rand::GetRandomFlags::NONBLOCK;
    match rustix::rand::getrandom(&mut byte, flags) {
        Ok(_) => byte[0],
        Err(_) => 128,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_vary() {
        let mut backoff = Backoff::default();
        let mut expected = FIRST;
        for _ in 0..100 {
            let pause = backoff.pause();
            assert!(
                pause >= expected * 3 / 4 && pause <= expected * 5 / 4,
                "{pause:?}"
            );
            expected = (expected * 2).min(LONGEST);
        }
        assert_eq!(varied(LONGEST, 0), LONGEST * 3 / 4);
        assert!(varied(LONGEST, 255) < LONGEST * 5 / 4);
    }
}
