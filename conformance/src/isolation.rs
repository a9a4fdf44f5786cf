//! A network and a mount namespace for the calling thread and all that it
//! starts: bridges, rules and mounts of engine and plugins vanish with the last
//! of them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Enters new namespaces, with loopback up.
///
/// The mounts are made private first, so that nothing reaches the node, and
/// shared again, as a node's are: mount propagation needs a shared root.
///
/// # Errors
/// Not root, or `ip` is not installed.
pub fn enter() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("unshare the mount and network namespaces (are you root?)")?;
    for flags in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            flags | MsFlags::MS_REC,
            None::<&str>,
        )
        .context("change the propagation of all mounts")?;
    }
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    ensure!(up.context("run ip")?.success(), "ip link set lo up failed");
    Ok(())
}

/// A bridge network with ports of the host, as a file in `dir`.
///
/// # Errors
/// The folder cannot be written.
pub fn write_bridge_network(dir: &Path, cache: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let list = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "scratch",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "scratch0",
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": cache.join("host-local"),
                    "ranges": [[{"subnet": "10.88.0.0/16"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    let path = dir.join("10-scratch.conflist");
    std::fs::write(&path, list.to_string()).with_context(|| format!("write {}", path.display()))
}
