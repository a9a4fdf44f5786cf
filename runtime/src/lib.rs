//! Pods, containers and the process that keeps each pod: everything of
//! Slipway that talks to the kernel.
//!
//! Owns namespaces, cgroups, mounts, seccomp filters, the protocol between
//! engine and monitor, the engine's client for it, launchers, exec, container
//! logs and exit records; the only home of unsafe code (`sys`). Never knows gRPC,
//! CRI or images. What a crash leaves is said by each module.

#[cfg(feature = "engine")]
pub mod cgroup;
#[cfg(feature = "engine")]
pub mod client;
#[cfg(feature = "engine")]
pub mod crowd;
pub mod devices;
pub mod exec;
pub mod executable;
pub mod exit;
#[cfg(feature = "engine")]
pub mod failpoint;
pub mod frozen;
pub mod joining;
pub mod launcher;
pub mod log;
#[cfg(feature = "engine")]
pub mod mount;
#[cfg(feature = "engine")]
pub mod netns;
pub mod pidfd;
#[cfg(feature = "engine")]
mod pool;
pub mod procfs;
pub mod protocol;
#[cfg(feature = "engine")]
pub mod seccomp;
pub mod shared_pipe;
#[cfg(feature = "engine")]
pub mod spec;
pub mod subtree;
pub mod sys;
pub mod terminal;
pub mod user_space;
