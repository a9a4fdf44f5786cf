//! The `loopback` plugin: sets `lo` up.
//!
//! Owns nothing; a crash leaves `lo` up or down.

use serde_json::Value;

use crate::netlink::{Family, NetlinkError, Socket};
use crate::result::{Interface, Ip, Outcome};
use crate::rtnl::{address, link};
use crate::{Command, Error, Invocation, config, namespace};

const NAME: &str = "lo";

/// Every configuration: the plugin has no keys.
pub(super) fn accepts(_config: &Value) -> bool {
    true
}

/// Does what the invocation says.
pub(super) fn run(call: &Invocation<'_>) -> Result<Value, Error> {
    let previous = Outcome::previous(call.config)?;
    match call.command {
        Command::Add => {
            let version = config::version(call.config);
            let made = add(call)?;
            previous.unwrap_or(made).render(version)
        }
        Command::Del => del(call).map(|()| Value::Null),
        Command::Check => check(call).map(|()| Value::Null),
        Command::Status | Command::Gc => Ok(Value::Null),
    }
}

fn failed(error: NetlinkError) -> Error {
    Error::because("loopback", error)
}

fn find(socket: &mut Socket) -> Result<link::Link, Error> {
    let link = link::find(socket, NAME).map_err(failed)?;
    link.ok_or_else(|| Error::internal("there is no lo"))
}

fn add(call: &Invocation<'_>) -> Result<Outcome, Error> {
    let pod = namespace::open(call)?;
    let addresses = namespace::run(&pod, || {
        let mut socket = Socket::open(Family::Route).map_err(failed)?;
        let lo = find(&mut socket)?;
        if !lo.is_up() {
            socket
                .transact(vec![link::set_up(lo.index)])
                .map_err(failed)?;
        }
        address::list(&mut socket, lo.index).map_err(failed)
    })?;
    let mut outcome = Outcome {
        interfaces: vec![Interface {
            name: NAME.into(),
            mac: link::Mac::default().to_string(),
            sandbox: namespace::text(call),
            ..Interface::default()
        }],
        ..Outcome::default()
    };
    let mut families = [false; 2];
    for address in addresses {
        let prefix = address.prefix;
        if !prefix.address.is_loopback() {
            let msg = format!("lo has an address that is no loopback address: {prefix}");
            return Err(Error::internal(msg));
        }
        // The first address of each family is told.
        let family = &mut families[usize::from(prefix.address.is_ipv6())];
        if !std::mem::replace(family, true) {
            outcome.ips.push(Ip {
                interface: Some(0),
                address: prefix,
                gateway: None,
            });
        }
    }
    Ok(outcome)
}

fn del(call: &Invocation<'_>) -> Result<(), Error> {
    if call.netns_will_go {
        return Ok(());
    }
    let Some(pod) = namespace::open_if_there(call)? else {
        return Ok(());
    };
    namespace::run(&pod, || {
        let mut socket = Socket::open(Family::Route).map_err(failed)?;
        let lo = find(&mut socket)?;
        let down = vec![link::set_down(lo.index)];
        socket.transact(down).map(drop).map_err(failed)
    })
}

fn check(call: &Invocation<'_>) -> Result<(), Error> {
    let pod = namespace::open(call)?;
    let lo = namespace::run(&pod, || {
        let mut socket = Socket::open(Family::Route).map_err(failed)?;
        find(&mut socket)
    })?;
    if lo.is_up() {
        return Ok(());
    }
    Err(Error::internal("the loopback interface is down"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Pin, call};

    #[test]
    fn add_sets_lo_up_and_tells_its_addresses() {
        let pin = Pin::new();
        let config = json!({"cniVersion": "1.1.0", "name": "n", "type": "loopback"});
        let added = crate::run("loopback", &call(Command::Add, &pin, &config)).unwrap();
        assert_eq!(added["interfaces"][0]["name"], "lo");
        assert_eq!(added["interfaces"][0]["mac"], "00:00:00:00:00:00");
        assert_eq!(
            added["ips"][0],
            json!({"interface": 0, "address": "127.0.0.1/8"})
        );
        crate::run("loopback", &call(Command::Check, &pin, &config)).unwrap();
        crate::run("loopback", &call(Command::Del, &pin, &config)).unwrap();
        let down = crate::run("loopback", &call(Command::Check, &pin, &config)).unwrap_err();
        assert!(down.msg.contains("down"), "{down}");
    }

    #[test]
    fn a_previous_result_goes_through_and_a_missing_namespace_is_deleted_quietly() {
        let pin = Pin::new();
        let previous = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.9/24"}]});
        let config = json!({"cniVersion": "1.0.0", "name": "n", "type": "loopback",
            "prevResult": previous});
        let added = crate::run("loopback", &call(Command::Add, &pin, &config)).unwrap();
        assert_eq!(added, previous);
        let gone = std::path::Path::new("/nonexistent/netns");
        let mut del = call(Command::Del, &pin, &config);
        del.netns = Some(gone);
        crate::run("loopback", &del).unwrap();
        del.command = Command::Add;
        assert!(crate::run("loopback", &del).is_err());
    }
}
