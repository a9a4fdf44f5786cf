//! The host's side: the bridge, its addresses, the port.
//!
//! Owns how the bridge comes to be; two that make it at once end with one.

use std::time::Duration;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::config::{Config, Vlans};
use crate::address::Prefix;
use crate::guest;
use crate::netlink::{NetlinkError, Socket};
use crate::rtnl::address;
use crate::rtnl::link::{self, IFF_PROMISC, Link, Mac, PortMode};
use crate::veth::{self, Wanted};
use crate::{Error, sysctl};

/// How long a port may take to be up, and the pauses between two looks.
const PATIENCE: Duration = Duration::from_millis(2550);
const PAUSE: Duration = Duration::from_millis(1);

/// The bridge, which is made if it is missing, up.
pub(super) fn ensure_bridge(socket: &mut Socket, config: &Config) -> Result<Link, Error> {
    let name = config.bridge.as_str();
    let failed = |error| Error::because(format!("failed to create bridge {name:?}"), error);
    let bridge = match link::find(socket, name).map_err(failed)? {
        Some(bridge) => bridge,
        None => {
            let add = link::add_bridge(&link::Bridge {
                name,
                mtu: config.mtu,
                vlan_filtering: config.vlans.filtering,
                mac: own_address(config)?,
            });
            let answers = socket
                .exchange(vec![add, link::by_name(name)])
                .map_err(failed)?;
            match answers.refusal(0).map(|refusal| refusal.errno) {
                // Somebody was faster.
                None | Some(Errno::EXIST) => {}
                Some(_) => {
                    return answers
                        .complete()
                        .map_err(failed)
                        .and_then(|_| missing(name));
                }
            }
            let found = answers.reply(1).and_then(Link::parse);
            found.map_or_else(|| missing(name), Ok)?
        }
    };
    if bridge.kind != "bridge" {
        let msg = format!("{name:?} already exists but is not a bridge");
        return Err(Error::internal(msg));
    }
    let mut messages = Vec::new();
    if config.promiscuous && bridge.flags & IFF_PROMISC == 0 {
        messages.push(link::set_flags(bridge.index, IFF_PROMISC, IFF_PROMISC));
    }
    // The routes of this interface are ours; without IPv6 there are none.
    let _without_ipv6 = sysctl::ensure(&format!("net/ipv6/conf/{name}/accept_ra"), "0");
    if !bridge.is_up() {
        messages.push(link::set_up(bridge.index));
    }
    socket.transact(messages).map_err(failed)?;
    Ok(bridge)
}

/// A gateway keeps its address, whatever ports come and go. It gets that address at
/// once: given later, it would not count among bridges.
fn own_address(config: &Config) -> Result<Option<Mac>, Error> {
    if !config.is_gateway || config.vlans.own != 0 {
        return Ok(None);
    }
    let mut bytes = [0; 6];
    getrandom(bytes.as_mut_slice(), GetRandomFlags::empty())
        .map_err(|error| Error::because("failed to make an address for the bridge", error))?;
    Ok(Some(Mac::local(bytes)))
}

fn missing(name: &str) -> Result<Link, Error> {
    Err(Error::internal(format!("could not lookup {name:?}")))
}

/// Gives the bridge, or its interface of a VLAN, the gateways' addresses.
/// Answers the VLAN's interface where there is one.
pub(super) fn be_gateway(
    socket: &mut Socket,
    bridge: &Link,
    config: &Config,
    gateways: &[Prefix],
) -> Result<Option<Link>, Error> {
    if gateways.is_empty() {
        return Ok(None);
    }
    let vlan = match config.vlans.own {
        0 => None,
        _ => Some(ensure_vlan_interface(socket, bridge, config)?),
    };
    for gateway in gateways {
        let holder = vlan.as_ref().unwrap_or(bridge);
        ensure_address(socket, holder, gateway, config.force_address)?;
    }
    Ok(vlan)
}

fn ensure_address(
    socket: &mut Socket,
    holder: &Link,
    wanted: &Prefix,
    force: bool,
) -> Result<(), Error> {
    let name = holder.name.as_str();
    let failed = |error: NetlinkError| {
        Error::because(
            format!("could not add IP address {wanted} to {name:?}"),
            error,
        )
    };
    let v6 = wanted.address.is_ipv6();
    for found in address::list_family(socket, holder.index, v6).map_err(failed)? {
        let other = found.prefix;
        if other == *wanted {
            return Ok(());
        }
        // IPv6 may have several networks, as long as none is inside another.
        if v6 && !other.contains(wanted.address) && !wanted.contains(other.address) {
            continue;
        }
        if !force {
            let msg = format!("{name:?} already has an IP address different from {wanted}");
            return Err(Error::internal(msg));
        }
        let removed = socket
            .exchange(vec![address::remove(holder.index, &other)])
            .map_err(failed)?;
        match removed.refusal(0).map(|refusal| refusal.errno) {
            Some(Errno::ADDRNOTAVAIL) => {}
            _ => drop(removed.complete().map_err(failed)?),
        }
    }
    // Without an address of its own the bridge takes the lowest of its ports',
    // and changes it with them.
    let messages = vec![
        address::add(holder.index, wanted),
        link::set_mac(holder.index, holder.mac),
    ];
    let answers = socket.exchange(messages).map_err(failed)?;
    for refusal in answers.refusals {
        // Somebody was faster with the address.
        if refusal.index != 0 || refusal.errno != Errno::EXIST {
            return Err(failed(NetlinkError::Refused(refusal)));
        }
    }
    Ok(())
}

/// The host's own interface in a VLAN of the bridge.
fn ensure_vlan_interface(
    socket: &mut Socket,
    bridge: &Link,
    config: &Config,
) -> Result<Link, Error> {
    let name = format!("{}.{}", bridge.name, config.vlans.own);
    let failed = |error| Error::because(format!("failed to create vlan gateway {name:?}"), error);
    if let Some(found) = link::find(socket, &name).map_err(failed)? {
        return Ok(found);
    }
    let wanted = Wanted {
        inside: &name,
        pod: None,
        master: bridge.index,
        mtu: bridge.mtu,
        mac: None,
    };
    let port = veth::add(socket, &wanted)?;
    let vlans = Vlans {
        own: config.vlans.own,
        keep_default: config.vlans.keep_default,
        ..Vlans::default()
    };
    set_vlans(socket, &port, &vlans)?;
    let found = guest::find(socket, &name)?;
    socket
        .transact(vec![link::set_up(found.index)])
        .map_err(failed)?;
    Ok(found)
}

/// Makes the veth and its port.
pub(super) fn add_port(
    socket: &mut Socket,
    bridge: &Link,
    config: &Config,
    wanted: &Wanted<'_>,
) -> Result<Link, Error> {
    let port = veth::add(socket, wanted)?;
    let mut set = || {
        // A new port has neither mode.
        if config.port != PortMode::default() {
            let bridge = &bridge.name;
            let set = socket.transact(vec![link::set_port(port.index, config.port)]);
            set.map_err(|error| {
                Error::because(format!("failed to set up a port of {bridge:?}"), error)
            })?;
        }
        set_vlans(socket, &port, &config.vlans)
    };
    if let Err(error) = set() {
        let _goes_with_the_namespace = socket.transact(vec![link::delete(port.index)]);
        return Err(error);
    }
    Ok(port)
}

fn set_vlans(socket: &mut Socket, port: &Link, vlans: &Vlans) -> Result<(), Error> {
    if vlans.own == 0 && vlans.trunk.is_empty() {
        return Ok(());
    }
    let failed = |error| {
        Error::because(
            format!("failed to set up vlans of interface {:?}", port.name),
            error,
        )
    };
    let mut messages = Vec::new();
    if !vlans.keep_default {
        let found = link::vlans(socket, port.index).map_err(failed)?;
        messages.extend(
            found
                .into_iter()
                .map(|id| link::remove_vlan(port.index, id)),
        );
    }
    if vlans.own != 0 {
        messages.push(link::add_vlan(port.index, vlans.own, true));
    }
    let trunk = vlans.trunk.iter();
    messages.extend(trunk.map(|id| link::add_vlan(port.index, *id, false)));
    // A trunk without a VLAN of its own has the first one as that.
    if vlans.own == 0 {
        messages.push(link::add_vlan(port.index, 1, true));
    }
    socket.transact(messages).map(drop).map_err(failed)
}

/// The port and the bridge as they are in the end. Waits until packets go
/// through the port; the kernel works on that as soon as the other end is up.
pub(super) fn look_again(
    socket: &mut Socket,
    (port, bridge): (&Link, &Link),
    may_be_down: bool,
) -> Result<(Link, Link), Error> {
    let failed = |error| Error::because("failed to look at the bridge port", error);
    let started = std::time::Instant::now();
    loop {
        let ask = vec![link::by_index(port.index), link::by_index(bridge.index)];
        let answers = socket.exchange(ask).map_err(failed)?;
        let link = |index| answers.reply(index).and_then(Link::parse);
        let (Some(now), Some(bridge)) = (link(0), link(1)) else {
            let missing = NetlinkError::NoAnswer("look up a link");
            return Err(failed(answers.complete().err().unwrap_or(missing)));
        };
        if now.running || may_be_down {
            return Ok((now, bridge));
        }
        if started.elapsed() > PATIENCE {
            return Err(Error::internal("bridge port in error state: down"));
        }
        guest::sleep(PAUSE);
    }
}
