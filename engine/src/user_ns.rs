//! User namespaces of pods: whether they can be had here, and what belongs to one.
//!
//! A pod's is found by its network namespace, which it owns ([`runtime::netns`]). The
//! image store knows none: it is given layers as they are to be seen.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use runtime::mount::{BindOptions, IdMapping, clone_tree};
use runtime::netns::owner_of_network;

use crate::causes::with_causes;
use crate::config::Launcher;
use crate::context::Engine;
use crate::convert::BadRequest;
use crate::model::SandboxConfig;
use crate::pod::error::PodError;
use crate::pod::record::PodRecord;

/// How many user namespaces the kernel lets anybody make.
const MOST: &str = "/proc/sys/user/max_user_namespaces";
/// What is tried with.
const TRIED: IdMapping = IdMapping {
    container_id: 0,
    host_id: 65_536,
    length: 65_536,
};

/// Whether pods can have user namespaces here; otherwise why not. Tries all that takes
/// the kernel's help: a namespace, and a stack of layers of the image store at `root`
/// that is seen with its ids.
pub(crate) fn probe(root: &Path) -> Result<(), String> {
    let most = std::fs::read_to_string(MOST).unwrap_or_default();
    if most.trim() == "0" || most.is_empty() {
        return Err(format!("{MOST} allows none"));
    }
    let user = runtime::mount::user_namespace(&[TRIED], &[TRIED]);
    let user = user.map_err(|error| with_causes(&error))?;
    let stack = image_store::try_shown(root, &|layer| show(layer, &user));
    let stack = stack.map_err(|error| {
        let why = with_causes(&error);
        format!("layers cannot be seen with other ids, which takes a newer kernel: {why}")
    })?;
    let root = std::fs::metadata(format!("/proc/self/fd/{}", stack.as_raw_fd()));
    let owner = root.map(|root| std::os::unix::fs::MetadataExt::uid(&root));
    match owner {
        Ok(uid) if uid == TRIED.host_id => Ok(()),
        Ok(uid) => Err(format!(
            "layers are seen with id {uid} in the place of {}",
            TRIED.host_id
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// A directory as it is seen with the ids of a user namespace.
pub(crate) fn show(path: &Path, user: &OwnedFd) -> io::Result<OwnedFd> {
    let options = BindOptions {
        idmap: Some(user.try_clone()?),
        ..BindOptions::default()
    };
    clone_tree(path, &options).map_err(io::Error::other)
}

/// The user namespace of a pod, if it has one.
pub(crate) fn of_pod(pod: &PodRecord) -> Result<Option<Arc<OwnedFd>>, PodError> {
    let (Some(_), Some(netns)) = (pod.config.user_ids, &pod.netns) else {
        return Ok(None);
    };
    let user = owner_of_network(netns).map_err(|error| {
        let step = format!("find the user namespace that owns {}", netns.display());
        PodError::runtime(step, error)
    })?;
    Ok(Some(Arc::new(user)))
}

/// Refuses a user namespace where there can be none.
pub(crate) fn check(
    engine: &Engine,
    handler: &str,
    config: &SandboxConfig,
) -> Result<(), BadRequest> {
    if config.user_ids.is_none() {
        return Ok(());
    }
    let refused = |reason: String| BadRequest::Value {
        field: "config.linux.security_context.namespace_options.userns_options".to_owned(),
        reason,
    };
    if let Err(why) = &engine.user_namespaces {
        return Err(refused(format!("pods have none on this node: {why}")));
    }
    match engine.config.handler(handler) {
        Some(found) if found.launcher == Launcher::Native => Ok(()),
        _ => Err(refused(format!(
            "the launcher of runtime handler {:?} makes no user namespaces, native ones do",
            engine.config.handler_name(handler),
        ))),
    }
}
