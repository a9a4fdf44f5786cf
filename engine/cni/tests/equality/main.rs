//! The built-in plugins do what the plugins of containernetworking/plugins v1.9.1
//! do: every configuration here goes through both, each in a node and a pod of its
//! own, and leaves the same links, addresses, routes, rules, files and result. Then
//! either side takes away what the other made, and CHECKs it.
//!
//! Needs root, iproute2, nft and iptables, and the plugins, which
//! conformance/cni/prepare builds.

#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod cases;
mod pace;
mod snapshot;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod traffic;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod world;
