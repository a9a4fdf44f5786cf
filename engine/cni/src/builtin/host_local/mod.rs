//! The `host-local` plugin: addresses from ranges, remembered in a folder.
//!
//! Owns `<dataDir>/<network>`, together with the plugin of that name: files
//! named by address, the last one given out, and a lock. A crash between two
//! range sets leaves addresses that DEL or GC gives back.

mod config;
mod resolver;
mod store;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::Value;

use config::{Config, RangeSet};
use store::{Held, Owner, Store, StoreError};

use crate::address::Prefix;
use crate::config::valid_attachments;
use crate::result::{Ip, Outcome};
use crate::{Command, Error, Invocation, code};

/// Every configuration.
pub(super) fn accepts(_config: &Value) -> bool {
    true
}

/// Does what the invocation says, as a plugin of its own.
pub(super) fn run(call: &Invocation<'_>) -> Result<Value, Error> {
    match call.command {
        Command::Add => add(call)?.render(crate::config::version(call.config)),
        Command::Del => del(call).map(|()| Value::Null),
        Command::Check => check(call).map(|()| Value::Null),
        Command::Status => status(call).map(|()| Value::Null),
        Command::Gc => gc(call).map(|()| Value::Null),
    }
}

fn failed(error: StoreError) -> Error {
    Error::because("host-local", error)
}

fn owner<'a>(call: &Invocation<'a>) -> Owner<'a> {
    Owner {
        container: call.container_id.trim(),
        interface: call.interface,
    }
}

/// Reserves an address of every range set.
pub(super) fn add(call: &Invocation<'_>) -> Result<Outcome, Error> {
    let config = Config::load(call)?;
    let dns = config.resolver.as_deref().map(resolver::read).transpose()?;
    let store = Store::open(&config.folder).map_err(failed)?;
    let mut locked = store.lock().map_err(failed)?;
    let mut taken = Vec::new();
    match allocate(&config, &mut locked, owner(call), &mut taken) {
        Ok(ips) => Ok(Outcome {
            interfaces: Vec::new(),
            ips,
            routes: config.routes,
            dns: dns.unwrap_or_default(),
        }),
        Err(error) => {
            for address in taken {
                // The first error says more than a second one would.
                let _stays_for_del = locked.release(address);
            }
            Err(error)
        }
    }
}

fn allocate(
    config: &Config,
    store: &mut Held<'_>,
    owner: Owner<'_>,
    taken: &mut Vec<IpAddr>,
) -> Result<Vec<Ip>, Error> {
    let mut wanted = config.requested.clone();
    let mut ips = Vec::new();
    let before = store.of_owner(owner).map_err(failed)?;
    for (number, set) in config.sets.iter().enumerate() {
        let place = wanted
            .iter()
            .position(|address| set.range_of(*address).is_some());
        let requested = place.map(|place| wanted.remove(place));
        let ip = match requested {
            Some(address) => reserve(set, store, owner, (number, address)),
            None => next_free(set, store, owner, (number, &before)),
        }
        .map_err(|error| {
            let msg = format!("failed to allocate for range {number}: {}", error.msg);
            Error::internal(msg)
        })?;
        taken.push(ip.address.address);
        ips.push(ip);
    }
    if wanted.is_empty() {
        return Ok(ips);
    }
    let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    let msg = format!("no range has the requested addresses: {}", wanted.join(" "));
    Err(Error::internal(msg))
}

/// Reserves an address that was asked for.
fn reserve(
    set: &RangeSet,
    store: &mut Held<'_>,
    owner: Owner<'_>,
    (number, address): (usize, IpAddr),
) -> Result<Ip, Error> {
    let range = set
        .range_of(address)
        .ok_or_else(|| Error::internal(format!("{address} is not in range set {set}")))?;
    if address == range.gateway {
        let msg = format!("requested address {address} is the gateway of its subnet");
        return Err(Error::internal(msg));
    }
    if !store.reserve(owner, address, number).map_err(failed)? {
        let msg = format!("requested address {address} is not available in range set {set}");
        return Err(Error::internal(msg));
    }
    Ok(range.ip(address))
}

/// Reserves the next free address after the one given out last.
fn next_free(
    set: &RangeSet,
    store: &mut Held<'_>,
    owner: Owner<'_>,
    (number, before): (usize, &[IpAddr]),
) -> Result<Ip, Error> {
    if let Some(held) = before.iter().find(|held| set.range_of(**held).is_some()) {
        let container = owner.container;
        let msg =
            format!("{held} is allocated to {container} already, and one address is all it gets");
        return Err(Error::internal(msg));
    }
    for (range, address) in set.candidates(store.last_reserved(number)) {
        if store.reserve(owner, address, number).map_err(failed)? {
            return Ok(range.ip(address));
        }
    }
    Err(Error::internal(format!(
        "no address is free in range set {set}"
    )))
}

/// Gives back all addresses of an attachment; none is no error.
pub(super) fn del(call: &Invocation<'_>) -> Result<(), Error> {
    let config = Config::load(call)?;
    let store = Store::open(&config.folder).map_err(failed)?;
    let mut locked = store.lock().map_err(failed)?;
    locked.release_owner(owner(call)).map_err(failed)
}

/// Whether the attachment has an address, whichever it is.
pub(super) fn check(call: &Invocation<'_>) -> Result<(), Error> {
    let config = Config::load(call)?;
    let store = Store::open(&config.folder).map_err(failed)?;
    let locked = store.lock().map_err(failed)?;
    if locked.of_owner(owner(call)).map_err(failed)?.is_empty() {
        let msg = format!("host-local: container {} has no address", call.container_id);
        return Err(Error::internal(msg));
    }
    Ok(())
}

/// Whether the configuration is one that ADD would take.
pub(super) fn status(call: &Invocation<'_>) -> Result<(), Error> {
    let not_available = |mut error: Error| {
        error.code = code::NOT_AVAILABLE;
        error
    };
    Config::load(call).map(drop).map_err(not_available)
}

/// Gives back every address whose attachment is not in the list of valid ones.
pub(super) fn gc(call: &Invocation<'_>) -> Result<(), Error> {
    let Some(valid) = valid_attachments(call.config)? else {
        return Ok(());
    };
    let owners = valid.iter().map(|valid| Owner {
        container: valid.container.trim(),
        interface: &valid.interface,
    });
    let owners: HashSet<Owner<'_>> = owners.collect();
    let config = Config::load(call)?;
    let store = Store::open(&config.folder).map_err(failed)?;
    let mut locked = store.lock().map_err(failed)?;
    locked.release_others(&owners).map_err(failed)
}

impl config::Range {
    fn ip(&self, address: IpAddr) -> Ip {
        let length = self.subnet.length;
        Ip {
            interface: None,
            address: Prefix { address, length },
            gateway: Some(self.gateway),
        }
    }
}
