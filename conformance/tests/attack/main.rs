//! Attacks on the node, as tests: a hostile image or container in, the node unchanged.
//!
//! Each is tried with every launcher: the two made here, and runc and crun by the OCI
//! command line. Images are made byte by byte; what a container runs beside BusyBox is
//! `attacker.c`, built for the run. Needs an engine of its own.

mod keys;
mod links;
mod nodes;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod processes;
#[expect(
    clippy::expect_used,
    dead_code,
    reason = "the CRI suite's rig, of which less is used here"
)]
#[path = "../cri/rig.rs"]
mod rig;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod stage;
mod users;
mod volumes;
