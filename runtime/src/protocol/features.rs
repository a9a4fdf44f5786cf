//! What a monitor can do beyond the first version.
//!
//! A pod keeps its monitor for as long as it lives, and the engine may be newer.
//! A field that a receiver does not know is skipped in silence, so a message that
//! would mean something else without it names what it needs: each request carries
//! a bitmap, and whoever does not know a bit of it refuses. A monitor's greeting
//! says what it can, so that the engine can refuse by name, or ask otherwise.
//! Numbers are never reused. Whoever adds a field that must not be ignored adds a
//! feature here and says in [`Features::needed_by`] which messages need it.

use super::{Body, PidMode};

/// A set of features.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    /// Logs are opened by the engine.
    pub const LOG_DESCRIPTOR: Self = Self(1);
    /// Another build can go on in the monitor's place.
    pub const UPGRADE: Self = Self(1 << 1);
    /// A process that was run can be ended.
    pub const CANCEL_EXEC: Self = Self(1 << 2);
    /// Processes that are run get the flags of the container's seccomp filter.
    pub const SECCOMP_FLAGS: Self = Self(1 << 3);
    /// PID namespaces are entered by the container that they are of.
    pub const PID_TARGET: Self = Self(1 << 4);

    /// Clients can be connected to the streams of containers and of processes that are
    /// run, and have terminals.
    pub const STREAMS: Self = Self(1 << 5);
    /// A log can be brought to rest before its next file is there.
    pub const SETTLE_LOG: Self = Self(1 << 6);
    /// Pods have user namespaces.
    pub const USER_NAMESPACES: Self = Self(1 << 7);

    /// All, with their names.
    const NAMES: [(Self, &'static str); 8] = [
        (Self::LOG_DESCRIPTOR, "logs opened by the engine"),
        (Self::UPGRADE, "upgrade in place"),
        (Self::CANCEL_EXEC, "ending a process that was run"),
        (Self::SECCOMP_FLAGS, "flags of a seccomp filter"),
        (Self::PID_TARGET, "PID namespaces by their container"),
        (Self::STREAMS, "streams of clients"),
        (Self::SETTLE_LOG, "bringing a log to rest"),
        (Self::USER_NAMESPACES, "user namespaces of pods"),
    ];

    /// What this build knows.
    #[must_use]
    pub fn known() -> Self {
        let all = Self::NAMES.iter();
        all.fold(Self(0), |set, (feature, _)| Self(set.0 | feature.0))
    }

    /// A set as it travels.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The set as it travels.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether all of another set is in this one.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// What of this set another one lacks, by name; by number what this build does
    /// not know either.
    #[must_use]
    pub fn missing_in(self, other: Self) -> Vec<String> {
        let missing = self.0 & !other.0;
        (0..u64::BITS)
            .map(|bit| 1 << bit)
            .filter(|bit| missing & bit != 0)
            .map(|bit: u64| {
                let known = Self::NAMES.iter().find(|(feature, _)| feature.0 == bit);
                known.map_or_else(
                    || format!("feature {}", bit.trailing_zeros()),
                    |(_, name)| (*name).to_owned(),
                )
            })
            .collect()
    }

    /// What a monitor must be able to do to do what a message asks for.
    #[must_use]
    pub fn needed_by(body: &Body) -> Self {
        match body {
            Body::ReopenLog(order) if order.log_fd.is_some() => Self::LOG_DESCRIPTOR,
            Body::SettleLog(_) => Self::SETTLE_LOG,
            Body::Upgrade(_) => Self::UPGRADE,
            Body::CancelExec(_) => Self::CANCEL_EXEC,
            Body::Setup(setup) if setup.userns_fd.is_some() => Self::USER_NAMESPACES,
            Body::Attach(_) => Self::STREAMS,
            Body::Exec(order) if order.streaming => Self::STREAMS,
            Body::Create(order) => {
                let flags = order.seccomp_flags != 0;
                let target = order.pids() == PidMode::Target;
                let needed = [(flags, Self::SECCOMP_FLAGS), (target, Self::PID_TARGET)];
                let needed = needed.iter().filter(|(is_asked, _)| *is_asked);
                needed.fold(Self::default(), |set, (_, feature)| Self(set.0 | feature.0))
            }
            _ => Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let newer = Features(Features::known().0 | 1 << 63);
        assert!(Features::known().has(Features::UPGRADE));
        assert!(!Features::known().has(newer));
        assert_eq!(newer.missing_in(Features::known()), ["feature 63"]);
        assert_eq!(
            Features::known().missing_in(Features::LOG_DESCRIPTOR),
            [
                "upgrade in place",
                "ending a process that was run",
                "flags of a seccomp filter",
                "PID namespaces by their container",
                "streams of clients",
                "bringing a log to rest",
                "user namespaces of pods"
            ]
        );
    }

    #[test]
    fn no_two_features_share_a_number() {
        let bits: u32 = Features::NAMES.iter().map(|(f, _)| f.0.count_ones()).sum();
        assert_eq!(Features::known().0.count_ones(), bits);
    }
}
