//! slipway: a CRI container engine for Kubernetes nodes.
//!
//! `main` reads the command line and hands over; the map of everything else is
//! ARCHITECTURE.md.

mod cgroups;
mod cli;
mod config;
mod convert;
mod engine;
mod failpoint;
mod ids;
mod layers;
mod metrics;
mod model;
mod network;
#[cfg(feature = "otel")]
mod otel;
mod pod;
mod rpc;
mod server;
mod spec;
mod stats;
mod status;
mod steps;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
