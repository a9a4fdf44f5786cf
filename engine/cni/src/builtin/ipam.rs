//! Address management for the plugins that make interfaces.
//!
//! Owns which types are built in; a configuration with another one is
//! executed as a whole.

use serde_json::Value;

use super::{host_local, statically};
use crate::config::{at_least, network, valid_attachments, version};
use crate::result::Outcome;
use crate::{Error, Invocation, masquerade};

/// One kind of address management.
struct Manager {
    add: fn(&Invocation<'_>) -> Result<Outcome, Error>,
    del: fn(&Invocation<'_>) -> Result<(), Error>,
    check: fn(&Invocation<'_>) -> Result<(), Error>,
    status: fn(&Invocation<'_>) -> Result<(), Error>,
    gc: fn(&Invocation<'_>) -> Result<(), Error>,
}

const HOST_LOCAL: Manager = Manager {
    add: host_local::add,
    del: host_local::del,
    check: host_local::check,
    status: host_local::status,
    gc: host_local::gc,
};

const STATIC: Manager = Manager {
    add: statically::add,
    del: |_| Ok(()),
    check: statically::check,
    status: statically::status,
    gc: |_| Ok(()),
};

/// The type of address management; empty where there is none.
pub(super) fn kind(config: &Value) -> &str {
    config["ipam"]["type"].as_str().unwrap_or_default()
}

/// Whether a configuration has none, or one that is built in.
pub(super) fn accepts(config: &Value) -> bool {
    kind(config).is_empty() || manager(config).is_ok()
}

fn manager(config: &Value) -> Result<&'static Manager, Error> {
    match kind(config) {
        "host-local" => Ok(&HOST_LOCAL),
        "static" => Ok(&STATIC),
        other => {
            let msg = format!("address management {other:?} is not built in");
            Err(Error::internal(msg))
        }
    }
}

/// Addresses and routes for a new interface.
pub(super) fn add(call: &Invocation<'_>) -> Result<Outcome, Error> {
    let outcome = (manager(call.config)?.add)(call)?;
    let version = version(call.config);
    // The plugins talk to each other in the configuration's version, and the
    // old ones have no place for everything.
    if at_least(version, "0.3.0") {
        return Ok(outcome);
    }
    Outcome::parse(&outcome.render(version)?)
}

/// Gives the addresses back.
pub(super) fn del(call: &Invocation<'_>) -> Result<(), Error> {
    (manager(call.config)?.del)(call)
}

/// Whether the addresses still are the attachment's.
pub(super) fn check(call: &Invocation<'_>) -> Result<(), Error> {
    (manager(call.config)?.check)(call)
}

/// Whether ADD could work.
pub(super) fn status(call: &Invocation<'_>) -> Result<(), Error> {
    if kind(call.config).is_empty() {
        return Ok(());
    }
    (manager(call.config)?.status)(call)
}

/// GC of a plugin that makes veths: gives back addresses and masquerading rules
/// of what is no valid attachment. Links end with their namespaces.
pub(super) fn collect(call: &Invocation<'_>) -> Result<(), Error> {
    let Some(valid) = valid_attachments(call.config)? else {
        return Ok(());
    };
    if !kind(call.config).is_empty() {
        (manager(call.config)?.gc)(call)?;
    }
    if call.config["ipMasq"] != Value::Bool(true) {
        return Ok(());
    }
    let valid = valid
        .iter()
        .map(|one| (one.container.as_str(), one.interface.as_str()));
    masquerade::collect(network(call.config), valid)
}
