//! CHECK of `bridge`: whether all that ADD made is still there.

use super::config::Config;
use crate::builtin::ipam;
use crate::guest;
use crate::result::{Interface, Outcome};
use crate::rtnl::link::{self, Link};
use crate::{Error, Invocation, namespace};

/// Compares the result of ADD with what is there.
pub(super) fn run(call: &Invocation<'_>) -> Result<(), Error> {
    let config = Config::load(call)?;
    let pod = namespace::open(call)?;
    if !ipam::kind(call.config).is_empty() {
        ipam::check(call)?;
    }
    let result = Outcome::previous(call.config)?;
    let result = result.ok_or_else(|| Error::internal("Required prevResult missing"))?;
    let told = result.inside(call)?;
    let inside = namespace::run(&pod, || {
        let mut socket = guest::socket()?;
        let inside = guest::find(&mut socket, call.interface)?;
        guest::expect(&inside, told, "veth")?;
        guest::check_addresses(&mut socket, call.interface, &result.ips)?;
        guest::check_routes(&mut socket, &result.routes)?;
        Ok(inside)
    })?;
    check_host(&config, &result.interfaces, &inside)
}

fn check_host(config: &Config, told: &[Interface], inside: &Link) -> Result<(), Error> {
    let mut socket = guest::socket()?;
    let mut outside = told.iter().filter(|told| told.sandbox.is_empty());
    let bridge = guest::find(&mut socket, &config.bridge)?;
    let its = outside.clone().find(|told| told.name == config.bridge);
    let its =
        its.ok_or_else(|| Error::internal(format!("prevResult has no bridge {}", config.bridge)))?;
    guest::expect(&bridge, its, "bridge")?;
    if (bridge.promiscuity != 0) != config.promiscuous {
        let msg = format!("bridge {} has another promiscuous mode", config.bridge);
        return Err(Error::internal(msg));
    }
    let failed = |error| Error::because("failed to look up a link", error);
    let port = outside.find_map(|told| {
        let found = link::find(&mut socket, &told.name).map_err(failed);
        let found = found.transpose()?;
        let ours = |link: &Link| {
            let ends = link.index == inside.peer && link.peer == inside.index;
            ends && link.kind == "veth" && link.master == bridge.index
        };
        match found {
            Ok(link) if !ours(&link) => None,
            found => Some(found.and_then(|link| guest::expect(&link, told, "veth"))),
        }
    });
    port.unwrap_or_else(|| {
        let msg = format!("the port of bridge {} was not found", config.bridge);
        Err(Error::internal(msg))
    })
}
