//! The `ptp` plugin: a veth between host and container, and nobody else on it.
//!
//! Owns what is made for one attachment: the veth with the gateway's address on
//! the host's end, and the host's route to the container. A crash leaves at most
//! those, addresses in their store and masquerading rules, which DEL finds.

use std::net::IpAddr;

use rustix::io::Errno;
use serde::Deserialize;
use serde_json::Value;

use super::{bridge, ipam};
use crate::address::{self, Prefix};
use crate::guest::{self, Detection};
use crate::masquerade::{self, Owner};
use crate::netlink::{NetlinkError, Socket};
use crate::result::{Interface, Ip, Outcome};
use crate::rtnl::link::{self, Link};
use crate::rtnl::{address as addresses, route};
use crate::veth::{self, Wanted};
use crate::{Command, Error, Invocation, config, namespace};

/// Place of the container's interface in the result.
const INSIDE: usize = 1;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    mtu: i64,
}

/// Whether the built-in does all that a configuration asks for.
pub(super) fn accepts(config: &Value) -> bool {
    let masquerade = Config::deserialize(config).is_ok_and(|config| {
        !config.ip_masq || masquerade::accepts(config.ip_masq_backend.as_deref())
    });
    masquerade && !ipam::kind(config).is_empty() && ipam::accepts(config)
}

/// Does what the invocation says.
pub(super) fn run(call: &Invocation<'_>) -> Result<Value, Error> {
    match call.command {
        Command::Add => add(call)?.render(config::version(call.config)),
        Command::Del => del(call).map(|()| Value::Null),
        Command::Check => check(call).map(|()| Value::Null),
        Command::Status => ipam::status(call).map(|()| Value::Null),
        Command::Gc => ipam::collect(call).map(|()| Value::Null),
    }
}

fn owner<'a>(call: &Invocation<'a>) -> Owner<'a> {
    Owner {
        network: config::network(call.config),
        interface: call.interface,
        container_id: call.container_id,
    }
}

fn add(call: &Invocation<'_>) -> Result<Outcome, Error> {
    let config: Config = config::decode(call.config)?;
    let dns = bridge::dns(call.config)?;
    let mut outcome = ipam::add(call)?;
    if let Err(error) = attach(call, &config, &mut outcome) {
        // The first error says more than a second one would.
        let _stays_for_del = ipam::del(call);
        return Err(error);
    }
    if let Some(dns) = dns {
        outcome.dns = dns;
    }
    Ok(outcome)
}

fn attach(call: &Invocation<'_>, config: &Config, outcome: &mut Outcome) -> Result<(), Error> {
    if outcome.ips.is_empty() {
        let msg = "IPAM plugin returned missing IP config";
        return Err(Error::internal(msg));
    }
    guest::forward(&outcome.ips)?;
    let pod = namespace::open(call)?;
    let mut socket = guest::socket()?;
    let wanted = Wanted {
        inside: call.interface,
        pod: Some(&pod),
        master: 0,
        mtu: u32::try_from(config.mtu).unwrap_or_default(),
        mac: None,
    };
    let outside = veth::add(&mut socket, &wanted)?;
    let mut finish = || {
        for ip in &mut outcome.ips {
            ip.interface = Some(INSIDE);
        }
        let inside = namespace::run(&pod, || configure_inside(call.interface, outcome))?;
        configure_outside(&mut socket, &outside, &outcome.ips)?;
        if config.ip_masq {
            let prefixes: Vec<Prefix> = outcome.ips.iter().map(|ip| ip.address).collect();
            masquerade::add(owner(call), &prefixes)?;
        }
        Ok(inside)
    };
    let finished = finish();
    match finished {
        Ok(inside) => {
            let interface = |link: &Link| Interface {
                name: link.name.clone(),
                mac: link.mac.to_string(),
                ..Interface::default()
            };
            outcome.interfaces = vec![interface(&outside), interface(&inside)];
            outcome.interfaces[INSIDE].sandbox = namespace::text(call);
            Ok(())
        }
        Err(error) => {
            let _goes_with_the_namespace = socket.transact(vec![link::delete(outside.index)]);
            Err(error)
        }
    }
}

/// The other end is the gateway, and everything goes through it: the route to
/// the network that came with the address is replaced by one over the gateway,
/// since there is nobody else to find on the link.
fn configure_inside(name: &str, outcome: &Outcome) -> Result<Link, Error> {
    guest::configure(name, outcome, Detection::Kernel)?;
    let mut socket = guest::socket()?;
    let inside = guest::find(&mut socket, name)?;
    let mut messages = Vec::new();
    for ip in &outcome.ips {
        let gateway = gateway(ip)?;
        let network = ip.address.network();
        messages.push(route::remove(inside.index, network));
        let source = Some(ip.address.address);
        messages.push(route::add_new(&route::Path {
            scope: route::SCOPE_LINK,
            source,
            ..route::Path::new(inside.index, host(gateway), None)
        }));
        messages.push(route::add_new(&route::Path {
            source,
            ..route::Path::new(inside.index, network, Some(gateway))
        }));
    }
    let failed = |error| Error::because(format!("failed to set up routes of {name:?}"), error);
    socket.transact(messages).map_err(failed)?;
    Ok(inside)
}

fn configure_outside(socket: &mut Socket, outside: &Link, ips: &[Ip]) -> Result<(), Error> {
    let mut messages = Vec::new();
    for ip in ips {
        messages.push(addresses::add(outside.index, &host(gateway(ip)?)));
        let path = route::Path::new(outside.index, host(ip.address.address), None);
        messages.push(route::add_new(&route::Path {
            scope: route::SCOPE_HOST,
            ..path
        }));
    }
    let failed = |error| {
        let msg = format!("failed to set up the host's end {:?}", outside.name);
        Error::because(msg, error)
    };
    for refusal in socket.exchange(messages).map_err(failed)?.refusals {
        // A route, every second message, may be there already.
        if refusal.index % 2 == 0 || refusal.errno != Errno::EXIST {
            return Err(failed(NetlinkError::Refused(refusal)));
        }
    }
    Ok(())
}

fn gateway(ip: &Ip) -> Result<IpAddr, Error> {
    let missing = || Error::internal(format!("address {} has no gateway", ip.address));
    ip.gateway.ok_or_else(missing)
}

/// One address as a network.
fn host(address: IpAddr) -> Prefix {
    let length = address::width(address);
    Prefix { address, length }
}

fn del(call: &Invocation<'_>) -> Result<(), Error> {
    let config: Config = config::decode(call.config)?;
    if call.netns_will_go {
        forget_routes(call)?;
    }
    veth::delete(call)?;
    ipam::del(call)?;
    if config.ip_masq {
        masquerade::remove(owner(call))?;
    }
    Ok(())
}

/// Takes the host's routes to the addresses away. They would go with the link, but the
/// next pod with an address may be there before that, and its packets must not go here.
fn forget_routes(call: &Invocation<'_>) -> Result<(), Error> {
    let Some(previous) = Outcome::previous(call.config)? else {
        return Ok(());
    };
    let Some(outside) = previous.interfaces.first() else {
        return Ok(());
    };
    let failed = |error| {
        let msg = format!("failed to remove the routes through {:?}", outside.name);
        Error::because(msg, error)
    };
    let mut socket = guest::socket()?;
    let Some(outside) = link::find(&mut socket, &outside.name).map_err(failed)? else {
        return Ok(());
    };
    let addresses = previous.ips.iter().map(|ip| host(ip.address.address));
    let messages = addresses.map(|address| route::remove(outside.index, address));
    for refusal in socket
        .exchange(messages.collect())
        .map_err(failed)?
        .refusals
    {
        if !matches!(refusal.errno, Errno::SRCH | Errno::NODEV) {
            return Err(failed(NetlinkError::Refused(refusal)));
        }
    }
    Ok(())
}

fn check(call: &Invocation<'_>) -> Result<(), Error> {
    let pod = namespace::open(call)?;
    ipam::check(call)?;
    let result = Outcome::previous(call.config)?;
    let result = result.ok_or_else(|| Error::internal("Required prevResult missing"))?;
    let told = result.inside(call)?;
    namespace::run(&pod, || {
        let mut socket = guest::socket()?;
        let inside = guest::find(&mut socket, call.interface)?;
        guest::expect(&inside, told, "veth")?;
        guest::check_addresses(&mut socket, call.interface, &result.ips)?;
        guest::check_routes(&mut socket, &result.routes)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::netlink::Namespace;
    use crate::testing::{Pin, call, in_new_namespace};

    #[test]
    fn all_goes_through_the_host_and_del_takes_it_away() {
        in_new_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let pin = Pin::new();
            let mut config = json!({"cniVersion": "1.1.0", "name": "n", "type": "ptp", "mtu": 1300,
                "ipMasq": true, "dns": {"nameservers": ["9.9.9.9"]},
                "ipam": {"type": "host-local", "dataDir": dir.path(), "subnet": "10.5.0.0/24",
                    "routes": [{"dst": "0.0.0.0/0"}]}});
            assert!(crate::is_builtin_config(&config));
            let added = crate::run("ptp", &call(Command::Add, &pin, &config)).unwrap();
            assert_eq!(
                added["ips"],
                json!([{"interface": 1, "address": "10.5.0.2/24", "gateway": "10.5.0.1"}])
            );
            assert_eq!(added["dns"], json!({"nameservers": ["9.9.9.9"]}));
            assert_eq!(added["interfaces"][1]["sandbox"], json!(pin.path()));
            let name = added["interfaces"][0]["name"].as_str().unwrap().to_owned();
            let mut socket = guest::socket().unwrap();
            let outside = link::find(&mut socket, &name).unwrap().unwrap();
            assert_eq!(outside.mtu, 1300);
            let held = addresses::list_family(&mut socket, outside.index, false).unwrap();
            assert_eq!(held[0].prefix.to_string(), "10.5.0.1/32");
            let routes = route::list(&mut socket, false).unwrap();
            assert!(
                routes
                    .iter()
                    .any(|route| route.dst.to_string() == "10.5.0.2/32")
            );
            let pod = Namespace::open(pin.path()).unwrap();
            let inside = || {
                let routes = route::list(&mut guest::socket().unwrap(), false).unwrap();
                let mut texts: Vec<_> = routes
                    .iter()
                    .filter(|route| route.is_main())
                    .map(|route| format!("{} {:?}", route.dst, route.gateway))
                    .collect();
                texts.sort();
                texts
            };
            assert_eq!(
                pod.run(inside).unwrap(),
                [
                    "0.0.0.0/0 Some(10.5.0.1)",
                    "10.5.0.0/24 Some(10.5.0.1)",
                    "10.5.0.1/32 None"
                ]
            );
            config["prevResult"] = added;
            crate::run("ptp", &call(Command::Check, &pin, &config)).unwrap();
            crate::run("ptp", &call(Command::Del, &pin, &config)).unwrap();
            assert!(link::find(&mut socket, &name).unwrap().is_none());
            assert!(crate::run("ptp", &call(Command::Check, &pin, &config)).is_err());
            crate::run("ptp", &call(Command::Del, &pin, &config)).unwrap();
        });
    }

    /// Somebody has the namespace open, so that it does not end when it is dropped.
    #[test]
    fn a_namespace_that_somebody_holds_is_cut_off_by_del_and_its_veth_can_be_deleted() {
        in_new_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let pin = Pin::new();
            let mut config = json!({"cniVersion": "1.1.0", "name": "n", "type": "ptp",
                "ipam": {"type": "host-local", "dataDir": dir.path(), "subnet": "10.5.0.0/24"}});
            let added = crate::run("ptp", &call(Command::Add, &pin, &config)).unwrap();
            config["prevResult"] = added.clone();
            let held = Namespace::open(pin.path()).unwrap();
            // udev gives links lasting addresses, some milliseconds after they were made.
            let outside = added["interfaces"][0]["name"].as_str().unwrap();
            let mut ip = std::process::Command::new("ip");
            ip.args(["link", "set", outside, "address", "02:00:00:00:00:07"]);
            assert!(ip.status().unwrap().success());
            // Its own end a container may call what it likes.
            let renamed = held.run(|| {
                let mut ip = std::process::Command::new("ip");
                ip.args(["link", "set", "eth0", "name", "other"])
                    .status()
                    .unwrap()
            });
            assert!(renamed.unwrap().success());
            let del = Invocation {
                netns_will_go: true,
                ..call(Command::Del, &pin, &config)
            };
            crate::run("ptp", &del).unwrap();
            let mut socket = guest::socket().unwrap();
            assert!(!guest::find(&mut socket, outside).unwrap().is_up());
            let routes = route::list(&mut socket, false).unwrap();
            let stale = routes
                .iter()
                .find(|route| route.dst.to_string() == "10.5.0.2/32");
            assert!(stale.is_none());
            assert!(!dir.path().join("n/10.5.0.2").exists());
            // Once more, when all of it is done.
            crate::run("ptp", &del).unwrap();
            assert_eq!(crate::delete_ends(&added).unwrap(), [outside]);
            assert!(link::find(&mut socket, outside).unwrap().is_none());
            assert!(crate::delete_ends(&added).unwrap().is_empty());
            crate::run("ptp", &del).unwrap();
        });
    }

    #[test]
    fn a_failed_add_gives_the_address_back() {
        in_new_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let pin = Pin::new();
            let config = json!({"cniVersion": "1.0.0", "name": "n", "type": "ptp",
                "ipam": {"type": "host-local", "dataDir": dir.path(), "subnet": "10.5.0.0/24",
                    "routes": [{"dst": "1.0.0.0/8", "gw": "9.9.9.9"}]}});
            crate::run("ptp", &call(Command::Add, &pin, &config)).unwrap_err();
            assert!(!dir.path().join("n/10.5.0.2").exists());
        });
    }
}
