//! Clients of the wire against a server on the loopback: a small one of SPDY,
//! with the order of frames that the Go client has, and tungstenite.

#[expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod commands;
#[expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod ports;
#[expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod refusals;
#[expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod site;
#[expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod spdy;
#[expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod web;
