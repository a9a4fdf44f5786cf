//! The `bridge` plugin: a veth whose host's end is a port of a bridge.
//!
//! Owns what is made for one attachment, and the bridge together with all
//! others on it; never takes the bridge away. A crash leaves at most a veth,
//! addresses in their store and masquerading rules, all of which DEL finds.

mod check;
mod config;
mod host;
#[cfg(test)]
mod tests;

use serde_json::Value;

use config::Config;
pub(super) use config::dns;

use super::ipam;
use crate::address::{self, Prefix};
use crate::guest::{self, Detection};
use crate::masquerade::{self, Owner};
use crate::netlink::{Namespace, Socket};
use crate::result::{Interface, Outcome, Route};
use crate::rtnl::link::{self, Link};
use crate::veth::{self, Wanted};
use crate::{Command, Error, Invocation, namespace};

/// Place of the container's interface in the result.
const INSIDE: usize = 2;

/// Whether the built-in does all that a configuration asks for.
pub(super) fn accepts(config: &Value) -> bool {
    config::accepts(config) && ipam::accepts(config)
}

/// Does what the invocation says.
pub(super) fn run(call: &Invocation<'_>) -> Result<Value, Error> {
    match call.command {
        Command::Add => add(call)?.render(crate::config::version(call.config)),
        Command::Del => del(call).map(|()| Value::Null),
        Command::Check => check::run(call).map(|()| Value::Null),
        Command::Status => ipam::status(call).map(|()| Value::Null),
        Command::Gc => ipam::collect(call).map(|()| Value::Null),
    }
}

fn owner<'a>(call: &Invocation<'a>) -> Owner<'a> {
    Owner {
        network: crate::config::network(call.config),
        interface: call.interface,
        container_id: call.container_id,
    }
}

fn add(call: &Invocation<'_>) -> Result<Outcome, Error> {
    let config = Config::load(call)?;
    let layer3 = !ipam::kind(call.config).is_empty();
    if layer3 && config.leave_down {
        let msg = "cannot use IPAM when disableContainerInterface is set";
        return Err(Error::internal(msg));
    }
    let pod = namespace::open(call)?;
    let mut socket = guest::socket()?;
    let bridge = host::ensure_bridge(&mut socket, &config)?;
    let mut outcome = Outcome::default();
    if layer3 {
        outcome = ipam::add(call)?;
    }
    let attached = attach(call, &config, (&mut socket, &bridge, &pod), &mut outcome);
    if let Err(error) = attached {
        if layer3 {
            // The first error says more than a second one would.
            let _stays_for_del = ipam::del(call);
        }
        return Err(error);
    }
    if let Some(dns) = config.dns {
        outcome.dns = dns;
    }
    Ok(outcome)
}

type Places<'a> = (&'a mut Socket, &'a Link, &'a Namespace);

fn attach(
    call: &Invocation<'_>,
    config: &Config,
    (socket, bridge, pod): Places<'_>,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let layer3 = !ipam::kind(call.config).is_empty();
    if layer3 && outcome.ips.is_empty() {
        let msg = "IPAM plugin returned missing IP config";
        return Err(Error::internal(msg));
    }
    let gateways = gateways(outcome, config);
    let vlan = host::be_gateway(socket, bridge, config, &gateways)?;
    if config.is_gateway {
        guest::forward(&outcome.ips)?;
    }
    let port = host::add_port(
        socket,
        bridge,
        config,
        &Wanted {
            inside: call.interface,
            pod: Some(pod),
            master: bridge.index,
            mtu: config.mtu,
            mac: config.mac,
        },
    )?;
    let finished = finish(call, config, (socket, bridge, pod), (&port, vlan, outcome));
    if finished.is_err() {
        let _goes_with_the_namespace = socket.transact(vec![link::delete(port.index)]);
    }
    finished
}

fn finish(
    call: &Invocation<'_>,
    config: &Config,
    (socket, bridge, pod): Places<'_>,
    (port, vlan, outcome): (&Link, Option<Link>, &mut Outcome),
) -> Result<(), Error> {
    let layer3 = !ipam::kind(call.config).is_empty();
    let detection = match config.detect_duplicates {
        true => Detection::On,
        false => Detection::Off,
    };
    let name = call.interface;
    let inside = namespace::run(pod, || {
        if layer3 {
            guest::configure(name, outcome, detection)?;
        } else if !config.leave_down {
            guest::only_up(name)?;
        }
        guest::find(&mut guest::socket()?, name)
    })?;
    if layer3 && config.masquerade {
        let prefixes: Vec<Prefix> = outcome.ips.iter().map(|ip| ip.address).collect();
        masquerade::add(owner(call), &prefixes)?;
    }
    let (port, bridge) = host::look_again(socket, (port, bridge), config.leave_down)?;
    let outside = |link: &Link| Interface {
        name: link.name.clone(),
        mac: link.mac.to_string(),
        ..Interface::default()
    };
    outcome.interfaces = vec![outside(&bridge), outside(&port), outside(&inside)];
    outcome.interfaces[INSIDE].sandbox = namespace::text(call);
    outcome.interfaces.extend(vlan.as_ref().map(outside));
    Ok(())
}

/// Fills in what address management left open, and answers the addresses that
/// the bridge needs to be the gateway.
fn gateways(outcome: &mut Outcome, config: &Config) -> Vec<Prefix> {
    let mut gateways = Vec::new();
    let mut has_default = [false; 2];
    for ip in &mut outcome.ips {
        ip.interface = Some(INSIDE);
        if !config.is_gateway {
            continue;
        }
        let first = address::next(ip.address.network().address);
        let gateway = *ip.gateway.get_or_insert(first);
        let v6 = ip.address.address.is_ipv6();
        let any = Prefix::any(v6);
        if config.is_default_gateway && !std::mem::replace(&mut has_default[usize::from(v6)], true)
        {
            let mut routes = outcome.routes.iter();
            if !routes.any(|route| route.gw.is_some() && route.dst == any) {
                outcome.routes.push(Route::new(any, Some(gateway)));
            }
        }
        gateways.push(Prefix {
            address: gateway,
            length: ip.address.length,
        });
    }
    // One family after the other, as the bridge gets them.
    gateways.sort_by_key(|gateway| gateway.address.is_ipv6());
    gateways
}

fn del(call: &Invocation<'_>) -> Result<(), Error> {
    let config = Config::load(call)?;
    let layer3 = !ipam::kind(call.config).is_empty();
    veth::delete(call)?;
    if layer3 {
        ipam::del(call)?;
        if config.masquerade {
            masquerade::remove(owner(call))?;
        }
    }
    Ok(())
}
