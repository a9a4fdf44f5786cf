//! The `static` address management: addresses as the configuration says.
//!
//! Owns nothing: there is nothing to reserve or to give back.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::address::Prefix;
use crate::config::{arguments, at_least, decode, version};
use crate::result::{Dns, Ip, Outcome, Route, maybe_address};
use crate::{Command, Error, Invocation, code};

#[derive(Deserialize)]
struct Raw {
    ipam: Option<RawIpam>,
    #[serde(rename = "runtimeConfig")]
    runtime: Option<RawIps>,
    args: Option<RawArgs>,
}

#[derive(Deserialize)]
struct RawIpam {
    routes: Option<Vec<Route>>,
    addresses: Option<Vec<RawAddress>>,
    dns: Option<Dns>,
}

#[derive(Clone, Copy, Deserialize)]
struct RawAddress {
    address: Prefix,
    #[serde(default, with = "maybe_address")]
    gateway: Option<IpAddr>,
}

#[derive(Deserialize)]
struct RawArgs {
    cni: Option<RawIps>,
}

#[derive(Deserialize)]
struct RawIps {
    ips: Option<Vec<Prefix>>,
}

/// Every configuration.
pub(super) fn accepts(_config: &Value) -> bool {
    true
}

/// Does what the invocation says, as a plugin of its own.
pub(super) fn run(call: &Invocation<'_>) -> Result<Value, Error> {
    match call.command {
        Command::Add => add(call)?.render(version(call.config)),
        Command::Check => check(call).map(|()| Value::Null),
        Command::Status => status(call).map(|()| Value::Null),
        Command::Del | Command::Gc => Ok(Value::Null),
    }
}

/// The addresses and routes of the configuration.
pub(super) fn add(call: &Invocation<'_>) -> Result<Outcome, Error> {
    let raw: Raw = decode(call.config)?;
    let Some(ipam) = raw.ipam else {
        return Err(Error::internal("IPAM config missing 'ipam' key"));
    };
    let mut ips: Vec<Ip> = ipam
        .addresses
        .unwrap_or_default()
        .into_iter()
        .map(ip)
        .collect();
    from_arguments(call.args, &mut ips)?;
    // What the runtime or the arguments in the configuration say replaces all.
    let in_config = raw.args.and_then(|args| args.cni?.ips);
    let by_runtime = raw.runtime.and_then(|runtime| runtime.ips);
    for given in [in_config, by_runtime].into_iter().flatten() {
        if !given.is_empty() {
            let plain = given.into_iter().map(|address| {
                ip(RawAddress {
                    address,
                    gateway: None,
                })
            });
            ips = plain.collect();
        }
    }
    let v4 = ips.iter().filter(|ip| ip.address.address.is_ipv4()).count();
    let version = version(call.config);
    if (v4 > 1 || ips.len() - v4 > 1) && !at_least(version, "0.3.0") {
        let msg = format!("CNI version {version} has room for one address of a family only");
        return Err(Error::internal(msg));
    }
    Ok(Outcome {
        interfaces: Vec::new(),
        ips,
        routes: ipam.routes.unwrap_or_default(),
        dns: ipam.dns.unwrap_or_default(),
    })
}

fn ip(raw: RawAddress) -> Ip {
    Ip {
        interface: None,
        address: raw.address,
        gateway: raw.gateway,
    }
}

/// `IP` and `GATEWAY` of `CNI_ARGS`, each a list with commas.
fn from_arguments(args: &str, ips: &mut Vec<Ip>) -> Result<(), Error> {
    let pairs = arguments(args, &["IP", "GATEWAY"])?;
    let list = |key: &str| {
        let text = pairs.get(key).copied().unwrap_or_default();
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .collect::<Vec<_>>()
    };
    for text in list("IP") {
        let address = text
            .parse()
            .map_err(|error| Error::because("the IP argument", error))?;
        ips.push(ip(RawAddress {
            address,
            gateway: None,
        }));
    }
    for text in list("GATEWAY") {
        let gateway: IpAddr = text
            .parse()
            .map_err(|error| Error::because(format!("invalid gateway address: {text}"), error))?;
        let gateway = gateway.to_canonical();
        for ip in ips.iter_mut().filter(|ip| ip.address.contains(gateway)) {
            ip.gateway = Some(gateway);
        }
    }
    Ok(())
}

/// Whether the configuration's addresses, where the result has them, have its gateways.
pub(super) fn check(call: &Invocation<'_>) -> Result<(), Error> {
    let missing = || Error::internal("Required prevResult missing");
    let result = Outcome::previous(call.config)?.ok_or_else(missing)?;
    for ours in add(call)?.ips {
        let same = |ip: &&Ip| ip.address.address == ours.address.address;
        let Some(found) = result.ips.iter().find(same) else {
            continue;
        };
        if ours.gateway.is_some() && ours.gateway != found.gateway {
            let msg = format!("static: the gateway of {} is another", ours.address);
            return Err(Error::internal(msg));
        }
    }
    Ok(())
}

/// Whether the configuration is one that ADD would take.
pub(super) fn status(call: &Invocation<'_>) -> Result<(), Error> {
    add(call).map(drop).map_err(|mut error| {
        error.code = code::NOT_AVAILABLE;
        error
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Pin, call};

    #[test]
    fn arguments_add_and_the_runtime_replaces() {
        let pin = Pin::new();
        let mut config = json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": {
            "type": "static",
            "addresses": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {"nameservers": ["1.1.1.1"]}}});
        let mut add = call(Command::Add, &pin, &config);
        add.args = "IP=10.0.0.3/24,fd00::3/64;GATEWAY=fd00::1";
        let added = run(&add).unwrap();
        assert_eq!(added["ips"][0]["gateway"], "10.0.0.1");
        assert_eq!(added["ips"][1], json!({"address": "10.0.0.3/24"}));
        assert_eq!(
            added["ips"][2],
            json!({"address": "fd00::3/64", "gateway": "fd00::1"})
        );
        add.args = "IP=10.0.0.3";
        assert!(run(&add).is_err());
        config["prevResult"] = added;
        run(&call(Command::Check, &pin, &config)).unwrap();
        config["ipam"]["addresses"][0]["gateway"] = json!("10.0.0.254");
        assert!(run(&call(Command::Check, &pin, &config)).is_err());
        config["runtimeConfig"] = json!({"ips": ["10.9.0.2/16"]});
        let added = run(&call(Command::Add, &pin, &config)).unwrap();
        assert_eq!(added["ips"], json!([{"address": "10.9.0.2/16"}]));
    }
}
