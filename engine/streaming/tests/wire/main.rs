//! Clients of the wire against a server on the loopback: a small one of SPDY,
//! with the order of frames that the Go client has, and tungstenite.

mod commands;
mod ports;
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
