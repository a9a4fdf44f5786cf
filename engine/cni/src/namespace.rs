//! The container's network namespace, as a call names it.
//!
//! Owns how its absence is told; never makes or drops one.

use std::os::linux::fs::MetadataExt;

use crate::netlink::{Namespace, NamespaceError};
use crate::{Error, Invocation, code};

/// The namespace as results name it.
pub(crate) fn text(call: &Invocation<'_>) -> String {
    let path = call.netns.map(|path| path.display().to_string());
    path.unwrap_or_default()
}

/// Opens the namespace of a call.
pub(crate) fn open(call: &Invocation<'_>) -> Result<Namespace, Error> {
    let missing = || Error::new(code::INVALID_ENVIRONMENT, "CNI_NETNS is missing");
    let path = call.netns.ok_or_else(missing)?;
    let msg = || format!("failed to open netns {:?}", path.display().to_string());
    Namespace::open(path).map_err(|error| Error::because(msg(), error))
}

/// Opens the namespace of a call that may have none any more: a pin may have lost its
/// mount and be an empty file still.
pub(crate) fn open_if_there(call: &Invocation<'_>) -> Result<Option<Namespace>, Error> {
    let Some(path) = call.netns.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(None);
    };
    match Namespace::open(path) {
        Ok(namespace) => Ok(Some(namespace)),
        Err(NamespaceError::Missing { .. } | NamespaceError::NotANamespace { .. }) => Ok(None),
        Err(error) => {
            let msg = format!("failed to open netns {:?}", path.display().to_string());
            Err(Error::because(msg, error))
        }
    }
}

/// Works in a namespace and comes back.
pub(crate) fn run<T>(
    namespace: &Namespace,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let msg = "failed to work in the container's network namespace";
    namespace
        .run(work)
        .map_err(|error| Error::because(msg, error))?
}

/// Refuses to treat the caller's own namespace as a container's.
pub(crate) fn check_foreign(call: &Invocation<'_>) -> Result<(), Error> {
    let look = |path: &std::path::Path| std::fs::metadata(path).ok();
    let theirs = call.netns.and_then(look);
    let own = look("/proc/thread-self/ns/net".as_ref());
    let same = theirs.zip(own).is_some_and(|(theirs, own)| {
        theirs.st_ino() == own.st_ino() && theirs.st_dev() == own.st_dev()
    });
    if same {
        let msg = "the network namespace of the container is that of the engine";
        return Err(Error::new(code::INVALID_NETNS, msg));
    }
    Ok(())
}
