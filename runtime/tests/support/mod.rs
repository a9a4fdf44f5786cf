//! Pods for tests, on the real monitor and launchers.
//!
//! The executables are the static ones of the release profile. The folder that
//! holds them is `SLIPWAY_MONITOR_DIR`; without it they are built by cargo, as
//! `make build` does. BusyBox is /bin/busybox if that is static, or Debian's
//! busybox-static, unpacked below the target folder.
//!
//! Everything a test makes is below a temporary folder and, in every cgroup
//! hierarchy, below `slipway-test-*`; a pod's end removes it and looks whether
//! anything is left.

mod binaries;
mod cgroup;
mod disk;
mod pod;
mod rootfs;
mod spec;

pub(crate) use binaries::{monitor_binaries, monitor_dir};
pub(crate) use cgroup::TestCgroup;
pub(crate) use disk::{FullDisk, StallingDisk};
pub(crate) use pod::{IDS, Kind, Pod, PodOptions, TestContainer, until, wait_until};
pub(crate) use rootfs::{bind_clone, detached_tmpfs};
pub(crate) use spec::{TestSpec, volume};
