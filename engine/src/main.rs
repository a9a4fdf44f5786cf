//! slipway: a CRI container engine for Kubernetes nodes.
//!
//! `main` reads the command line and hands over; the map of everything else is
//! ARCHITECTURE.md.

mod apparmor;
mod causes;
mod cdi;
mod cgroups;
mod cli;
mod clock;
mod config;
mod context;
mod convert;
mod failpoint;
mod ids;
mod layers;
mod metrics;
mod model;
mod network;
#[cfg(feature = "otel")]
mod otel;
mod paths;
mod pod;
mod pod_metrics;
mod regular_file;
mod rpc;
mod server;
mod spec;
mod stats;
mod status;
mod steps;
mod stream;
mod threads;
mod user_ns;
mod warnings;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
