//! The container's end of a veth: addresses, routes, up.
//!
//! Owns the order in which the kernel is told. Functions that take a socket or
//! a link's name act on the namespace of the socket, or of the thread.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustix::thread::{NanosleepRelativeResult, Timespec, nanosleep};

use crate::address::Prefix;
use crate::netlink::{Family, NetlinkError, Socket};
use crate::result::{Interface, Ip, Outcome, Route};
use crate::rtnl::link::{self, Link};
use crate::rtnl::{address, route};
use crate::{Error, sysctl};

/// How long IPv6 may look for another owner of an address.
const SETTLE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// What IPv6 does before it uses an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detection {
    /// As the kernel is set.
    Kernel,
    /// Look whether somebody else has it.
    On,
    /// Use it at once.
    Off,
}

/// The link of a name; its absence is an error.
pub(crate) fn find(socket: &mut Socket, name: &str) -> Result<Link, Error> {
    let found = link::find(socket, name);
    let found =
        found.map_err(|error| Error::because(format!("failed to look up {name:?}"), error))?;
    found.ok_or_else(|| Error::internal(format!("failed to look up {name:?}: Link not found")))
}

/// A socket for links, addresses and routes here.
pub(crate) fn socket() -> Result<Socket, Error> {
    Socket::open(Family::Route).map_err(|error| Error::because("netlink", error))
}

/// Sets a link up without an address.
pub(crate) fn only_up(name: &str) -> Result<(), Error> {
    let mut socket = socket()?;
    let link = find(&mut socket, name)?;
    let done = socket.transact(vec![link::set_up(link.index)]);
    done.map(drop)
        .map_err(|error| Error::because(format!("failed to set {name:?} up"), error))
}

/// Gives a link its addresses, sets it up and makes the routes.
pub(crate) fn configure(name: &str, outcome: &Outcome, detection: Detection) -> Result<(), Error> {
    let mut socket = socket()?;
    let link = find(&mut socket, name)?;
    let v6 = |ip: &Ip| ip.address.address.is_ipv6();
    set_parameters(name, detection);
    if outcome.ips.iter().any(v6) {
        enable_ipv6(name)?;
    }
    let mut messages: Vec<_> = outcome
        .ips
        .iter()
        .map(|ip| address::add(link.index, &ip.address))
        .collect();
    messages.push(link::set_up(link.index));
    let gateway = |v6: bool| {
        let gateways = outcome.ips.iter().filter_map(|ip| ip.gateway);
        gateways.into_iter().find(|gateway| gateway.is_ipv6() == v6)
    };
    let gateways = [gateway(false), gateway(true)];
    let routes = outcome
        .routes
        .iter()
        .map(|wanted| path(&link, wanted, gateways));
    if gateways[1].is_some() {
        apply(&mut socket, messages, name)?;
        settle(&mut socket, &link, SETTLE)?;
        messages = Vec::new();
    }
    messages.extend(routes.map(|path| route::add(&path)));
    apply(&mut socket, messages, name)
}

fn apply(
    socket: &mut Socket,
    messages: Vec<crate::netlink::Message>,
    name: &str,
) -> Result<(), Error> {
    let done = socket.transact(messages);
    done.map(drop)
        .map_err(|error| Error::because(format!("failed to configure {name:?}"), error))
}

fn path(link: &Link, wanted: &Route, gateways: [Option<IpAddr>; 2]) -> route::Path {
    let of_family = gateways[usize::from(wanted.dst.address.is_ipv6())];
    route::Path {
        priority: wanted.priority,
        table: wanted.table,
        scope: wanted.scope.unwrap_or_default(),
        ..route::Path::new(link.index, wanted.dst, wanted.gw.or(of_family))
    }
}

/// Parameters that make the addresses known at once. A kernel without one of
/// the families has none of its parameters.
fn set_parameters(name: &str, detection: Detection) {
    let set = |parameter: String, value: &str| {
        let _without_the_family = sysctl::write(&parameter, value);
    };
    match detection {
        Detection::Kernel => return,
        Detection::On => {
            set(format!("net/ipv6/conf/{name}/enhanced_dad"), "1");
            set(format!("net/ipv6/conf/{name}/accept_dad"), "1");
        }
        Detection::Off => set(format!("net/ipv6/conf/{name}/accept_dad"), "0"),
    }
    set(format!("net/ipv4/conf/{name}/arp_notify"), "1");
}

fn enable_ipv6(name: &str) -> Result<(), Error> {
    for link in ["lo", name] {
        let parameter = format!("net/ipv6/conf/{link}/disable_ipv6");
        // A kernel without IPv6 refuses the address, and says so better.
        if sysctl::read(&parameter).is_ok_and(|value| value != "0") {
            sysctl::write(&parameter, "0").map_err(|error| {
                Error::because(format!("failed to enable IPv6 for {link:?}"), error)
            })?;
        }
    }
    let parameter = format!("net/ipv6/conf/{name}/keep_addr_on_down");
    sysctl::write(&parameter, "1").map_err(|error| {
        Error::because(
            format!("failed to keep addresses of {name:?} when it is down"),
            error,
        )
    })
}

/// Has the host forward what these addresses send.
pub(crate) fn forward(ips: &[Ip]) -> Result<(), Error> {
    for (v6, parameter) in [
        (false, "net/ipv4/ip_forward"),
        (true, "net/ipv6/conf/all/forwarding"),
    ] {
        if ips.iter().any(|ip| ip.address.address.is_ipv6() == v6) {
            sysctl::ensure(parameter, "1")
                .map_err(|error| Error::because("failed to enable forwarding", error))?;
        }
    }
    Ok(())
}

/// Waits until no IPv6 address of a link is tentative any more. There is no
/// event for it on all kernels, so it is asked for in short pauses that grow.
pub(crate) fn settle(socket: &mut Socket, link: &Link, patience: Duration) -> Result<(), Error> {
    let name = &link.name;
    let failed = |error: NetlinkError| {
        Error::because(format!("failed to settle addresses for {name:?}"), error)
    };
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let addresses = address::list_family(socket, link.index, true).map_err(failed)?;
        if let Some(duplicate) = addresses.iter().find(|address| address.is_duplicate()) {
            let msg = format!(
                "link {name} has address {} of somebody else",
                duplicate.prefix
            );
            return Err(Error::internal(msg));
        }
        if !addresses.iter().any(address::Assigned::is_tentative) {
            return Ok(());
        }
        if started.elapsed() > patience {
            // Without a carrier they stay tentative, and nobody minds.
            if !find(socket, name)?.running {
                return Ok(());
            }
            let msg = format!("link {name} still has tentative addresses after {patience:?}");
            return Err(Error::internal(msg));
        }
        sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Pauses this thread.
pub(crate) fn sleep(pause: Duration) {
    let mut left = Timespec::try_from(pause).unwrap_or_default();
    while let NanosleepRelativeResult::Interrupted(rest) = nanosleep(&left) {
        left = rest;
    }
}

/// Whether a link has the addresses of a result, each with its network's route.
pub(crate) fn check_addresses(socket: &mut Socket, name: &str, ips: &[Ip]) -> Result<(), Error> {
    let link = find(socket, name)?;
    let failed = |error| Error::because("failed to look at the container's addresses", error);
    let assigned = address::list(socket, link.index).map_err(failed)?;
    let mut routes = route::list(socket, false).map_err(failed)?;
    routes.extend(route::list(socket, true).map_err(failed)?);
    for ip in ips {
        if !assigned.iter().any(|found| found.prefix == ip.address) {
            let msg = format!("interface {name} has no address {}", ip.address);
            return Err(Error::internal(msg));
        }
        let network = ip.address.network();
        if !routes
            .iter()
            .any(|found| found.is_main() && found.dst == network)
        {
            let msg = format!("interface {name} has no route to its network {network}");
            return Err(Error::internal(msg));
        }
    }
    Ok(())
}

/// Whether there are the routes of a result, each in its table.
pub(crate) fn check_routes(socket: &mut Socket, wanted: &[Route]) -> Result<(), Error> {
    let failed = |error| Error::because("failed to look at the container's routes", error);
    let mut routes = route::list(socket, false).map_err(failed)?;
    routes.extend(route::list(socket, true).map_err(failed)?);
    for route in wanted {
        let any_gateway =
            route.gw.is_none() || route.dst == Prefix::any(route.dst.address.is_ipv6());
        let same = |found: &&route::Found| {
            let table = route
                .table
                .map_or(found.is_main(), |table| table == found.table);
            table && found.dst == route.dst && (any_gateway || found.gateway == route.gw)
        };
        if routes.iter().find(same).is_none() {
            let msg = format!("there is no route to {} any more", route.dst);
            return Err(Error::internal(msg));
        }
    }
    Ok(())
}

/// Whether a link is of a kind, with the hardware address that was told.
pub(crate) fn expect(link: &Link, told: &Interface, kind: &str) -> Result<(), Error> {
    let name = &link.name;
    if link.kind != kind {
        let msg = format!("interface {name} is not of type {kind}");
        return Err(Error::internal(msg));
    }
    let mac = link.mac.to_string();
    if !told.mac.is_empty() && told.mac != mac {
        let msg = format!("interface {name} has the MAC {mac}, not {}", told.mac);
        return Err(Error::internal(msg));
    }
    Ok(())
}
