//! The `bandwidth` plugin: limits of what a pod receives and sends.
//!
//! Owns two queues: one at the host's end of the pod's veth, which limits what the
//! pod receives, and one of a link of its own (an ifb), through which all that the
//! pod sends is led. A crash leaves the first to the end of the veth and the second
//! to DEL, which finds it by its name.

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha512};

use crate::netlink::{NetlinkError, Socket};
use crate::result::{Interface, Outcome};
use crate::rtnl::link::{self, Link};
use crate::rtnl::traffic::{self, Bucket};
use crate::{Command, Error, Invocation, config, namespace, netlink};

/// The longest name of a link.
const NAME: usize = 15;
const PREFIX: &str = "bwp";
/// How long a packet may wait in a queue.
const LATENCY: f64 = 25_000.0;
const MICROSECONDS: f64 = 1_000_000.0;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(flatten)]
    own: Limits,
    runtime_config: Option<Runtime>,
}

#[derive(Deserialize)]
struct Runtime {
    bandwidth: Option<Limits>,
}

/// Bits per second, and bits.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Limits {
    ingress_rate: Option<u64>,
    ingress_burst: Option<u64>,
    egress_rate: Option<u64>,
    egress_burst: Option<u64>,
}

/// The queues that a configuration asks for.
#[derive(Debug, Clone, Copy)]
struct Buckets {
    /// Of what the pod receives.
    ingress: Option<Bucket>,
    /// Of what it sends.
    egress: Option<Bucket>,
}

/// The plugin refuses older versions, and says so itself.
pub(super) fn accepts(config: &Value) -> bool {
    config::at_least(config::version(config), "0.3.0") && Config::deserialize(config).is_ok()
}

/// Does what the invocation says.
pub(super) fn run(call: &Invocation<'_>) -> Result<Value, Error> {
    let settings: Config = config::decode(call.config)?;
    let buckets = settings.buckets()?;
    let previous = Outcome::previous(call.config)?;
    let version = config::version(call.config);
    match call.command {
        Command::Add => {
            let mut outcome = chained(previous)?;
            if !buckets.is_empty() {
                add(call, &buckets, &mut outcome)?;
            }
            outcome.render(version)
        }
        Command::Check => {
            let outcome = chained(previous)?;
            check(call, &buckets, &outcome).map(|()| Value::Null)
        }
        Command::Del => remove(&name(call)).map(|()| Value::Null),
        Command::Status | Command::Gc => Ok(Value::Null),
    }
}

fn chained(previous: Option<Outcome>) -> Result<Outcome, Error> {
    previous.ok_or_else(|| Error::internal("must be called as chained plugin"))
}

impl Config {
    /// The network's own limits, or else those of the pod.
    fn buckets(&self) -> Result<Buckets, Error> {
        let of_pod = self.runtime_config.as_ref();
        let of_pod = of_pod.and_then(|runtime| runtime.bandwidth);
        let limits = if self.own.is_missing() {
            of_pod.unwrap_or(self.own)
        } else {
            self.own
        };
        Ok(Buckets {
            ingress: bucket(limits.ingress_rate, limits.ingress_burst)?,
            egress: bucket(limits.egress_rate, limits.egress_burst)?,
        })
    }
}

impl Limits {
    fn is_missing(&self) -> bool {
        let all = [
            self.ingress_rate,
            self.ingress_burst,
            self.egress_rate,
            self.egress_burst,
        ];
        all.iter().all(Option::is_none)
    }
}

impl Buckets {
    fn is_empty(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

/// A queue for a rate, with a burst, in bits.
fn bucket(rate: Option<u64>, burst: Option<u64>) -> Result<Option<Bucket>, Error> {
    let (rate, burst) = (rate.unwrap_or_default(), burst.unwrap_or_default());
    let refuse = |msg: &str| Err(Error::internal(msg));
    match (rate, burst) {
        (0, 0) => return Ok(None),
        (_, 0) => return refuse("if rate is set, burst must also be set"),
        (0, _) => return refuse("if burst is set, rate must also be set"),
        _ => {}
    }
    let Some(bytes) = u32::try_from(burst / 8)
        .ok()
        .filter(|bytes| *bytes < u32::MAX)
    else {
        return refuse("burst cannot be more than 4GB");
    };
    Ok(Some(shape(rate / 8, bytes, ticks_per_microsecond())))
}

/// The plugin's arithmetic, its overflows included: what lasts longer than 32 bits
/// can say starts again at zero.
fn shape(rate: u64, burst: u32, ticks: f64) -> Bucket {
    let wrapped = |number: f64| number as u64 as u32;
    let lasts = wrapped(f64::from(burst) * MICROSECONDS / rate as f64);
    Bucket {
        rate,
        limit: wrapped(rate as f64 * LATENCY / MICROSECONDS).wrapping_add(burst),
        buffer: wrapped(f64::from(lasts) * ticks),
    }
}

/// The kernel's unit of time for queues.
fn ticks_per_microsecond() -> f64 {
    const USUAL: f64 = 15.625;
    let text = std::fs::read_to_string("/proc/net/psched").unwrap_or_default();
    let numbers = text
        .split_whitespace()
        .map(|word| u32::from_str_radix(word, 16));
    let numbers: Vec<f64> = numbers.map_while(Result::ok).map(f64::from).collect();
    match numbers[..] {
        [_, per, 1_000_000_000.0, ..] if per > 0.0 => 1000.0,
        [ticks, per, clock, ..] if per > 0.0 => ticks / per * clock / MICROSECONDS,
        _ => USUAL,
    }
}

/// The name of the link that a pod's packets are led through.
fn name(call: &Invocation<'_>) -> String {
    let id = format!("{}{}", config::network(call.config), call.container_id);
    let digest = Sha512::digest(id.as_bytes());
    let digits = digest.iter().map(|byte| format!("{byte:02x}"));
    let mut name: String = PREFIX.to_owned();
    name.extend(digits.take(NAME));
    name.truncate(NAME);
    name
}

fn add(call: &Invocation<'_>, buckets: &Buckets, outcome: &mut Outcome) -> Result<(), Error> {
    let mut socket = socket()?;
    let host = host_end(call, &mut socket, outcome)?;
    let name = name(call);
    let done = limit(&mut socket, buckets, &host, &name);
    if done.is_err() {
        // All or nothing; what cannot be undone is found by DEL.
        let _left_to_del = remove(&name);
        let _left_to_the_veth = socket.exchange(traffic::remove(host.index).into());
    }
    if let Some(ifb) = done? {
        outcome.interfaces.push(Interface {
            mac: ifb.mac.to_string(),
            name,
            ..Interface::default()
        });
    }
    Ok(())
}

/// Makes the queues; answers the link for what the pod sends.
fn limit(
    socket: &mut Socket,
    buckets: &Buckets,
    host: &Link,
    name: &str,
) -> Result<Option<Link>, Error> {
    let failed = |source| Error::because("set up bandwidth limits", source);
    let mut messages = Vec::new();
    if let Some(ingress) = &buckets.ingress {
        messages.push(traffic::add_bucket(host.index, ingress));
    }
    let Some(egress) = &buckets.egress else {
        socket.transact(messages).map_err(failed)?;
        return Ok(None);
    };
    let made = vec![link::add_ifb(name, host.mtu), link::by_name(name)];
    let replies = socket.transact(made).map_err(failed)?;
    let ifb = replies.iter().rev().find_map(Link::parse);
    let missing = || failed(NetlinkError::NoAnswer("look up a link"));
    let ifb = ifb.ok_or_else(missing)?;
    messages.push(traffic::add_incoming(host.index));
    messages.push(traffic::redirect(host.index, ifb.index));
    messages.push(traffic::add_bucket(ifb.index, egress));
    socket.transact(messages).map_err(failed)?;
    Ok(Some(ifb))
}

/// Takes the link away; none is no error.
fn remove(name: &str) -> Result<(), Error> {
    let failed = |source| Error::because(format!("remove {name:?}"), source);
    let mut socket = socket()?;
    if let Some(found) = link::find(&mut socket, name).map_err(failed)? {
        // Gone meanwhile is as good.
        socket.get(link::delete(found.index)).map_err(failed)?;
    }
    Ok(())
}

fn check(call: &Invocation<'_>, buckets: &Buckets, outcome: &Outcome) -> Result<(), Error> {
    let mut socket = socket()?;
    let host = host_end(call, &mut socket, outcome)?;
    if let Some(ingress) = &buckets.ingress {
        compare(&mut socket, &host, ingress)?;
    }
    if let Some(egress) = &buckets.egress {
        let name = name(call);
        let found = link::find(&mut socket, &name);
        let found = found.map_err(|source| Error::because("get ifb device", source))?;
        let ifb = found.ok_or_else(|| Error::internal("get ifb device: Link not found"))?;
        compare(&mut socket, &ifb, egress)?;
    }
    Ok(())
}

fn compare(socket: &mut Socket, link: &Link, wanted: &Bucket) -> Result<(), Error> {
    let failed = |source| Error::because("list queues", source);
    let found = traffic::bucket(socket, link.index).map_err(failed)?;
    let problem = match found {
        None => "Failed to find qdisc",
        Some(found) if found.rate != wanted.rate => "Rate doesn't match",
        Some(found) if found.limit != wanted.limit => "Limit doesn't match",
        Some(found) if found.buffer != wanted.buffer => "Buffer doesn't match",
        Some(_) => return Ok(()),
    };
    Err(Error::internal(problem).details(link.name.clone()))
}

fn socket() -> Result<Socket, Error> {
    Socket::open(netlink::Family::Route).map_err(|source| Error::because("netlink", source))
}

/// The host's end of the pod's veth, which must be one of the chain's.
fn host_end(call: &Invocation<'_>, socket: &mut Socket, outcome: &Outcome) -> Result<Link, Error> {
    if outcome.interfaces.is_empty() {
        return Err(Error::internal("no interfaces provided"));
    }
    let interface = call.interface;
    let pod = namespace::open(call)?;
    let inside = namespace::run(&pod, || {
        let found = link::find(&mut self::socket()?, interface);
        found.map_err(|source| Error::because(format!("look up {interface:?}"), source))
    })?;
    let veth = inside.filter(|inside| inside.kind == "veth" && inside.peer > 0);
    let none = || Error::internal(format!("container interface {interface} has no veth peer"));
    let peer = veth.ok_or_else(none)?.peer;
    let reply = socket.get(link::by_index(peer));
    let reply = reply.map_err(|source| Error::because("look up the veth's peer", source))?;
    let host = reply
        .as_ref()
        .and_then(Link::parse)
        .ok_or_else(|| Error::internal(format!("veth peer with index {peer} is not in host ns")))?;
    let is_it = |one: &Interface| one.sandbox.is_empty() && one.name == host.name;
    if !outcome.interfaces.iter().any(is_it) {
        let msg = "no veth peer of container interface found in host ns";
        return Err(Error::internal(msg));
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn buckets(config: &Value) -> Result<Buckets, Error> {
        Config::deserialize(config).unwrap().buckets()
    }

    #[test]
    fn the_arithmetic_is_the_plugins_own() {
        // tc showed the same for the plugin: 1 Mbit/s with 80 kbit.
        let usual = shape(125_000, 10_000, 15.625);
        assert_eq!((usual.limit, usual.buffer), (13_125, 1_250_000));
        // The burst the kubelet's peers send, at a rate where it lasts 12 hours.
        let long = shape(12_500, 536_870_911, 15.625);
        let lasts = 536_870_911_u64 * 1_000_000 / 12_500 % (1 << 32);
        let ticks = lasts as f64 * 15.625;
        assert_eq!(u64::from(long.buffer), ticks as u64 % (1 << 32));
    }

    #[test]
    fn a_rate_needs_a_burst_and_the_networks_own_limits_come_first() {
        let one = json!({"ingressRate": 8000});
        let error = buckets(&one).unwrap_err();
        assert_eq!(error.to_string(), "if rate is set, burst must also be set");
        assert!(buckets(&json!({"egressBurst": 8})).is_err());
        let much = json!({"egressRate": 8, "egressBurst": 8_u64 << 32});
        assert!(buckets(&much).is_err());
        let runtime = json!({"bandwidth": {"ingressRate": 8000, "ingressBurst": 800}});
        let mut config = json!({"runtimeConfig": runtime});
        let rate = |config: &Value| buckets(config).unwrap().ingress.map(|one| one.rate);
        assert_eq!(rate(&config), Some(1000));
        config["egressRate"] = json!(80);
        config["egressBurst"] = json!(80);
        assert_eq!(rate(&config), None);
        assert!(buckets(&json!({})).unwrap().is_empty());
    }
}
