//! What the tests share: network namespaces that end with the test.

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::fd::{AsRawFd, OwnedFd};

/// Runs `work` on a thread in a new network namespace.
pub(crate) fn in_new_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A network namespace with a path, for as long as this lives.
pub(crate) struct Pin {
    _file: OwnedFd,
    path: PathBuf,
}

impl Pin {
    pub(crate) fn new() -> Self {
        let file: OwnedFd =
            in_new_namespace(|| File::open("/proc/thread-self/ns/net").unwrap()).into();
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into();
        Self { _file: file, path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// A call about the container "c" in a namespace.
pub(crate) fn call<'a>(
    command: crate::Command,
    pin: &'a Pin,
    config: &'a serde_json::Value,
) -> crate::Invocation<'a> {
    crate::Invocation {
        command,
        container_id: "c",
        netns: Some(pin.path()),
        interface: "eth0",
        args: "",
        config,
        netns_will_go: false,
    }
}
