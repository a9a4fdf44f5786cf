//! Pods and containers as the kernel sees them.
//!
//! Owns namespaces, cgroups, mounts, seccomp filters and monitors, and is the
//! only home of unsafe code (`sys`). Knows neither CRI nor images.

#[cfg(feature = "engine")]
pub mod cgroup;
#[cfg(feature = "engine")]
pub mod mount;
#[cfg(feature = "engine")]
pub mod netns;
#[cfg(feature = "engine")]
pub mod seccomp;
mod sys;
