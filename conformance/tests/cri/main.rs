//! Slipway's own CRI suite: what the field's suites do not look at, and every
//! bug that was met. Each test has an engine, a network and a mount namespace of
//! its own; the check at the end finds what any of them left.

#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod authority;
mod bad_input;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod cdi;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod cgroups;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod cgroups_v2;
mod containers;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod crash;
mod events;
mod exec;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod image_volumes;
mod images;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod joins;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod logs;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod metrics;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod network;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod observe;
mod pods;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod rig;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod security;
mod server;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod stall;
mod stats;
mod streams;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod truth;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod user_ns;
mod walk;
