//! The `tuning` plugin: parameters and settings of an interface that another
//! plugin made.
//!
//! Owns the files below `dataDir` that remember what an interface was like. A
//! crash leaves such a file, or one that nothing belongs to: DEL removes either.

mod backup;
mod config;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::Value;

use backup::Backup;
use config::Config;

use crate::netlink::Message;
use crate::result::Outcome;
use crate::rtnl::link::{self, IFF_ALLMULTI, IFF_PROMISC, Link};
use crate::{Command, Error, Invocation, guest, namespace};

/// Where an administrator may say which parameters are allowed, in regular
/// expressions of Go, which only the plugin understands exactly.
const ALLOWLIST: &str = "/etc/cni/tuning/allowlist.conf";

/// Whether the built-in does all that a configuration asks for.
pub(super) fn accepts(config: &Value) -> bool {
    config::is_readable(config) && !Path::new(ALLOWLIST).exists()
}

/// Does what the invocation says.
pub(super) fn run(call: &Invocation<'_>) -> Result<Value, Error> {
    match call.command {
        Command::Add => add(call)?.render(crate::config::version(call.config)),
        Command::Del => del(call).map(|()| Value::Null),
        Command::Check => check(call).map(|()| Value::Null),
        Command::Status | Command::Gc => Ok(Value::Null),
    }
}

fn previous(call: &Invocation<'_>) -> Result<Outcome, Error> {
    let missing = || Error::internal("Required prevResult missing");
    Outcome::previous(call.config)?.ok_or_else(missing)
}

fn add(call: &Invocation<'_>) -> Result<Outcome, Error> {
    let config = Config::load(call)?;
    let mut outcome = previous(call)?;
    let pod = namespace::open(call)?;
    let name = call.interface;
    namespace::run(&pod, || {
        for (key, value) in &config.parameters {
            let file = config::file(key, name)?;
            std::fs::write(&file, value)
                .map_err(|error| Error::because(format!("write {}", file.display()), error))?;
        }
        if !config.changes_link() {
            return Ok(());
        }
        let mut socket = guest::socket()?;
        let link = guest::find(&mut socket, name)?;
        Backup::of(&link, &config).write(&backup::file(&config, call))?;
        let changes = changes(&link, &config);
        let done = socket.transact(changes);
        done.map(drop)
            .map_err(|error| Error::because(format!("failed to tune {name:?}"), error))
    })?;
    if let Some(mac) = &config.mac {
        for interface in &mut outcome.interfaces {
            if interface.name == name {
                interface.mac.clone_from(&mac.text);
            }
        }
    }
    Ok(outcome)
}

/// What makes a link as the configuration wants it.
fn changes(link: &Link, config: &Config) -> Vec<Message> {
    let index = link.index;
    let flag = |flag: u32, on: bool| link::set_flags(index, if on { flag } else { 0 }, flag);
    let mac = config.mac.as_ref().map(|mac| link::set_mac(index, mac.mac));
    let promiscuous = config.promiscuous.then(|| flag(IFF_PROMISC, true));
    let mtu = config.mtu.map(|mtu| link::set_mtu(index, mtu));
    let all_multicast = config.all_multicast.map(|on| flag(IFF_ALLMULTI, on));
    let queue = config.queue.map(|length| link::set_queue(index, length));
    [mac, promiscuous, mtu, all_multicast, queue]
        .into_iter()
        .flatten()
        .collect()
}

/// Makes the interface as it was, as far as it is still there. As with the
/// plugin, nothing that goes wrong here keeps a container from being removed.
fn del(call: &Invocation<'_>) -> Result<(), Error> {
    let config = Config::load(call)?;
    let file = backup::file(&config, call);
    let Some(backup) = Backup::read(&file) else {
        return Ok(());
    };
    if !call.netns_will_go
        && let Ok(Some(pod)) = namespace::open_if_there(call)
    {
        let restored = namespace::run(&pod, || restore(call, &backup));
        if restored.is_err() {
            // Left for another DEL, as the plugin leaves it.
            return Ok(());
        }
    }
    let _waste = std::fs::remove_file(&file);
    Ok(())
}

fn restore(call: &Invocation<'_>, backup: &Backup) -> Result<(), Error> {
    let mut socket = guest::socket()?;
    let failed = |error| Error::because("failed to restore the interface", error);
    let Some(link) = link::find(&mut socket, call.interface).map_err(failed)? else {
        return Ok(());
    };
    let changes = backup.changes(link.index);
    socket.transact(changes).map(drop).map_err(failed)
}

fn check(call: &Invocation<'_>) -> Result<(), Error> {
    let config = Config::load(call)?;
    previous(call)?;
    let pod = namespace::open(call)?;
    let name = call.interface;
    namespace::run(&pod, || {
        for (key, value) in &config.parameters {
            let file = config::file(key, name)?;
            let now = std::fs::read_to_string(&file)
                .map_err(|error| Error::because(format!("read {}", file.display()), error))?;
            differs(
                &file.display(),
                value,
                &now.strip_suffix('\n').unwrap_or(&now),
            )?;
        }
        let link = guest::find(&mut guest::socket()?, name)?;
        if let Some(mac) = &config.mac {
            differs(&"MAC", &mac.text, &link.mac)?;
        }
        differs(&"promisc", &config.promiscuous, &(link.promiscuity != 0))?;
        if let Some(mtu) = config.mtu {
            differs(&"MTU", &mtu, &link.mtu)?;
        }
        if let Some(on) = config.all_multicast {
            differs(&"allmulti", &on, &(link.flags & IFF_ALLMULTI != 0))?;
        }
        if let Some(queue) = config.queue {
            differs(&"txQLen", &queue, &link.queue)?;
        }
        Ok(())
    })
}

/// An error where what is there is not what was asked for.
fn differs(
    what: &dyn std::fmt::Display,
    wanted: &dyn std::fmt::Display,
    now: &dyn std::fmt::Display,
) -> Result<(), Error> {
    let (wanted, now) = (wanted.to_string(), now.to_string());
    if wanted == now {
        return Ok(());
    }
    let msg = format!("{what} was set to {wanted} and is {now} now");
    Err(Error::internal(msg))
}
