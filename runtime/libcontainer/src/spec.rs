//! The spec, as libcontainer gets it.
//!
//! Owns the differences to what the engine sent: each closes a gap of
//! libcontainer or takes something over that it would do worse.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{
    Capabilities, LinuxCapabilitiesBuilder, LinuxNamespaceType, Process, Root, Spec,
};
use runtime::launcher::LaunchError;

/// Longest spec that is believed to be one: as a message of the protocol.
const MAX_SPEC: u64 = runtime::protocol::MAX_SPILLED;
/// A cgroup path that exists nowhere; see the module `cgroups`.
const NO_CGROUP: &str = "/slipway-libcontainer-makes-no-cgroups";

/// `check` refuses these before.
const NO_MOUNT_NAMESPACE: &str = "it has no mount namespace";

/// What the helper does itself, taken out of the spec.
#[derive(Debug)]
pub(crate) struct Wishes {
    /// Program and arguments.
    pub(crate) args: Vec<Vec<u8>>,
    /// Environment in order, with duplicates.
    pub(crate) env: Vec<Vec<u8>>,
    /// OOM score adjustment.
    pub(crate) oom_score_adj: Option<i32>,
    /// Owner of the streams.
    pub(crate) owner: (u32, u32),
    /// Whether new privileges are off limits.
    pub(crate) no_new_privileges: bool,
}

/// Reads the engine's spec.
pub(crate) fn read(memfd: &OwnedFd) -> Result<Spec, LaunchError> {
    let failed = |error: &dyn std::fmt::Display| LaunchError::failed("read the spec", error);
    let stat = rustix::fs::fstat(memfd).map_err(|errno| failed(&errno))?;
    let length = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if length > MAX_SPEC {
        return Err(failed(&"it is too long"));
    }
    let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
    let mut filled = 0;
    while let Some(rest) = text.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let read =
            rustix::io::retry_on_intr(|| rustix::io::pread(memfd, &mut *rest, filled as u64))
                .map_err(|errno| failed(&errno))?;
        if read == 0 {
            return Err(failed(&"it is cut"));
        }
        filled += read;
    }
    serde_json::from_slice(&text).map_err(|error| failed(&error))
}

/// Takes out what the helper does itself; closes gaps of the rest.
pub(crate) fn prepare(spec: &mut Spec, tty: bool) -> Result<Wishes, LaunchError> {
    let missing = |what: &str| LaunchError::failed("read the spec", format!("it has no {what}"));
    let process = spec
        .process_mut()
        .as_mut()
        .ok_or_else(|| missing("process"))?;
    let wishes = prepare_process(process, tty)?;
    let linux = spec.linux_mut().as_mut().ok_or_else(|| missing("linux"))?;
    // Limits are the engine's, device rules the helper's.
    linux.set_resources(None);
    linux.set_cgroups_path(Some(PathBuf::from(NO_CGROUP)));
    Ok(wishes)
}

/// Sets the root. The spec's own path is the engine's business.
pub(crate) fn set_root(spec: &mut Spec, rootfs: &Path) {
    let read_only = spec
        .root()
        .as_ref()
        .and_then(Root::readonly)
        .unwrap_or(false);
    let mut root = Root::default();
    root.set_path(rootfs.to_owned());
    root.set_readonly(Some(read_only));
    spec.set_root(Some(root));
}

/// Lets the container's processes enter a mount namespace that is prepared,
/// instead of a new one.
pub(crate) fn set_mount_namespace(spec: &mut Spec, namespace: &OwnedFd) -> Result<(), LaunchError> {
    let mut namespaces = spec
        .linux_mut()
        .iter_mut()
        .flat_map(|linux| linux.namespaces_mut().iter_mut().flatten());
    let mount = namespaces.find(|namespace| namespace.typ() == LinuxNamespaceType::Mount);
    let mount = mount.ok_or_else(|| LaunchError::failed("read the spec", NO_MOUNT_NAMESPACE))?;
    // The process that enters has the descriptor, as all that come from here.
    let path = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    mount.set_path(Some(PathBuf::from(path)));
    Ok(())
}

fn prepare_process(process: &mut Process, tty: bool) -> Result<Wishes, LaunchError> {
    let bytes = |list: &Option<Vec<String>>| -> Vec<Vec<u8>> {
        list.iter()
            .flatten()
            .map(|text| text.clone().into_bytes())
            .collect()
    };
    let wishes = Wishes {
        args: bytes(process.args()),
        env: bytes(process.env()),
        oom_score_adj: process.oom_score_adj(),
        owner: (process.user().uid(), process.user().gid()),
        no_new_privileges: process.no_new_privileges() == Some(true),
    };
    process.set_terminal(Some(tty));
    // It fails for want of CAP_SYS_RESOURCE, with a bare "io error".
    process.set_oom_score_adj(None);
    // `false` is read as "some value", and the filter is loaded too late.
    if !wishes.no_new_privileges {
        process.set_no_new_privileges(None);
    }
    // Without one it asks the C library for the user's home: that would load
    // the name service modules of the image.
    with_home(process.env_mut().get_or_insert_default());
    if process.capabilities().is_none() {
        process.set_capabilities(Some(no_capabilities()?));
    }
    Ok(wishes)
}

fn with_home(env: &mut Vec<String>) {
    // The last one counts there, and an empty one is none.
    env.retain(|variable| variable != "HOME=");
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push("HOME=/".to_owned());
    }
}

/// No list at all would leave the container with all that the helper has.
fn no_capabilities() -> Result<libcontainer::oci_spec::runtime::LinuxCapabilities, LaunchError> {
    LinuxCapabilitiesBuilder::default()
        .bounding(Capabilities::new())
        .effective(Capabilities::new())
        .inheritable(Capabilities::new())
        .permitted(Capabilities::new())
        .ambient(Capabilities::new())
        .build()
        .map_err(|error| LaunchError::failed("read the spec", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(process: &serde_json::Value) -> Spec {
        let json = serde_json::json!({
            "ociVersion": "1.2.0", "process": process, "linux": { "resources": {} }
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn gaps_are_closed_and_wishes_kept() {
        let mut spec = spec(&serde_json::json!({
            "user": { "uid": 5, "gid": 6 }, "cwd": "/", "args": ["sh"],
            "env": ["A=1", "HOME=", "A=2"], "oomScoreAdj": -5, "noNewPrivileges": false,
        }));
        let wishes = prepare(&mut spec, true).unwrap();
        assert_eq!(
            wishes.env,
            [b"A=1".to_vec(), b"HOME=".to_vec(), b"A=2".to_vec()]
        );
        assert_eq!((wishes.oom_score_adj, wishes.owner), (Some(-5), (5, 6)));
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.oom_score_adj(), None);
        assert_eq!(process.no_new_privileges(), None);
        assert_eq!(process.terminal(), Some(true));
        let env = process.env().as_ref().unwrap();
        assert_eq!(env.as_slice(), ["A=1", "A=2", "HOME=/"]);
        let capabilities = process.capabilities().as_ref().unwrap();
        assert!(capabilities.bounding().as_ref().unwrap().is_empty());
        assert!(spec.linux().as_ref().unwrap().resources().is_none());
    }

    #[test]
    fn forbidding_new_privileges_stays() {
        let mut spec = spec(&serde_json::json!({
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "noNewPrivileges": true,
        }));
        assert!(prepare(&mut spec, false).unwrap().no_new_privileges);
        assert_eq!(
            spec.process().as_ref().unwrap().no_new_privileges(),
            Some(true)
        );
    }

    #[test]
    fn spec_without_process_is_refused() {
        let mut spec: Spec = serde_json::from_str(r#"{"ociVersion":"1.2.0","linux":{}}"#).unwrap();
        let error = prepare(&mut spec, false).unwrap_err();
        assert_eq!(error.to_string(), "read the spec: it has no process");
    }
}
