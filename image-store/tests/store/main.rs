//! The store as its callers see it: imports, pulls from a registry made for
//! the purpose, snapshots, removal, restarts.

mod auth;
mod crash;
mod drip;
mod h2;
mod import;
mod memory;
mod parents;
mod places;
mod pull;
mod sharing;
mod shown;
#[expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which the exception for tests misses"
)]
mod support;
mod tls;
mod volumes;
