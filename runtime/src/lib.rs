//! Pods, containers and the process that keeps each pod: everything of
//! Slipway that talks to the kernel.
//!
//! Owns the protocol between engine and monitor, the engine's client for it,
//! launchers, exec, container logs and exit records. Never knows gRPC, CRI or
//! images. What a crash leaves is said by each module.

#[cfg(feature = "engine")]
pub mod client;
pub mod devices;
pub mod exec;
pub mod exit;
pub mod launcher;
pub mod log;
pub mod protocol;
pub mod sys;
