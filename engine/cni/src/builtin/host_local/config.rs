//! The configuration of `host-local`: ranges in sets, and what is asked for.
//!
//! Owns its checks and the order in which addresses are tried.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

use crate::address::{self, Prefix};
use crate::config::{arguments, at_least, decode, network, version};
use crate::result::{Route, maybe_address};
use crate::{Error, Invocation};

const DATA_DIR: &str = "/var/lib/cni/networks";

/// A checked configuration.
#[derive(Debug)]
pub(super) struct Config {
    /// Where the network's addresses are remembered.
    pub(super) folder: PathBuf,
    /// An address is given out of each.
    pub(super) sets: Vec<RangeSet>,
    /// Addresses that were asked for.
    pub(super) requested: Vec<IpAddr>,
    /// Handed to whoever sets up the interface.
    pub(super) routes: Vec<Route>,
    /// A file with the resolver's settings.
    pub(super) resolver: Option<PathBuf>,
}

/// Ranges of one family that are used one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RangeSet(Vec<Range>);

/// Addresses of a subnet from one to another, both included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) subnet: Prefix,
    pub(super) gateway: IpAddr,
    start: IpAddr,
    end: IpAddr,
}

#[derive(Deserialize)]
struct Raw {
    ipam: Option<RawIpam>,
    #[serde(rename = "runtimeConfig", default)]
    runtime: Option<RawRuntime>,
    #[serde(default)]
    args: Option<RawArgs>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawIpam {
    #[serde(default)]
    routes: Option<Vec<Route>>,
    #[serde(default)]
    data_dir: Option<PathBuf>,
    #[serde(default)]
    resolv_conf: Option<PathBuf>,
    #[serde(default)]
    ranges: Option<Vec<Vec<RawRange>>>,
    subnet: Option<Prefix>,
    #[serde(default, with = "maybe_address")]
    range_start: Option<IpAddr>,
    #[serde(default, with = "maybe_address")]
    range_end: Option<IpAddr>,
    #[serde(default, with = "maybe_address")]
    gateway: Option<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRange {
    subnet: Prefix,
    #[serde(default, with = "maybe_address")]
    range_start: Option<IpAddr>,
    #[serde(default, with = "maybe_address")]
    range_end: Option<IpAddr>,
    #[serde(default, with = "maybe_address")]
    gateway: Option<IpAddr>,
}

#[derive(Deserialize, Default)]
struct RawRuntime {
    #[serde(rename = "ipRanges", default)]
    ip_ranges: Option<Vec<Vec<RawRange>>>,
    #[serde(default)]
    ips: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawArgs {
    cni: Option<RawCniArgs>,
}

#[derive(Deserialize)]
struct RawCniArgs {
    #[serde(default)]
    ips: Option<Vec<String>>,
}

impl Config {
    /// Reads and checks the configuration of a call.
    pub(super) fn load(call: &Invocation<'_>) -> Result<Self, Error> {
        let raw: Raw = decode(call.config)?;
        let Some(ipam) = raw.ipam else {
            return Err(Error::internal("IPAM config missing 'ipam' key"));
        };
        let runtime = raw.runtime.unwrap_or_default();
        let requested = requested(call.args, raw.args, runtime.ips)?;
        let legacy = ipam.subnet.map(|subnet| {
            vec![RawRange {
                subnet,
                range_start: ipam.range_start,
                range_end: ipam.range_end,
                gateway: ipam.gateway,
            }]
        });
        // What the runtime brings comes first, then the one range of old.
        let raw_sets = runtime.ip_ranges.unwrap_or_default().into_iter();
        let raw_sets = raw_sets
            .chain(legacy)
            .chain(ipam.ranges.unwrap_or_default());
        let mut sets = Vec::new();
        for (number, ranges) in raw_sets.enumerate() {
            let set = RangeSet::new(&ranges)
                .map_err(|problem| invalid(format!("invalid range set {number}: {problem}")))?;
            sets.push(set);
        }
        check_sets(&sets, version(call.config))?;
        let nonempty = |path: &PathBuf| !path.as_os_str().is_empty();
        let data_dir = ipam.data_dir.filter(nonempty);
        let data_dir = data_dir.unwrap_or_else(|| DATA_DIR.into());
        Ok(Self {
            folder: data_dir.join(network(call.config)),
            sets,
            requested,
            routes: ipam.routes.unwrap_or_default(),
            resolver: ipam.resolv_conf.filter(nonempty),
        })
    }
}

fn invalid(msg: impl Into<String>) -> Error {
    Error::internal(msg)
}

/// Addresses asked for in `CNI_ARGS`, in `args` and by the runtime.
fn requested(
    args: &str,
    in_config: Option<RawArgs>,
    by_runtime: Option<Vec<String>>,
) -> Result<Vec<IpAddr>, Error> {
    let mut requested = Vec::new();
    let pairs = arguments(args, &["IP"])?;
    let first = pairs.get("IP").map(|text| (*text).to_owned());
    let in_config = in_config.and_then(|args| args.cni?.ips);
    let texts = first.into_iter().chain(in_config.unwrap_or_default());
    for text in texts.chain(by_runtime.unwrap_or_default()) {
        // With a prefix or without; only the address counts.
        let parsed = match text.contains('/') {
            true => text.parse::<Prefix>().ok().map(|prefix| prefix.address),
            false => text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical()),
        };
        if text.is_empty() {
            continue;
        }
        let address = parsed.ok_or_else(|| invalid(format!("invalid IP address {text}")))?;
        if !requested.contains(&address) {
            requested.push(address);
        }
    }
    Ok(requested)
}

fn check_sets(sets: &[RangeSet], version: &str) -> Result<(), Error> {
    if sets.is_empty() {
        return Err(invalid("no IP ranges specified"));
    }
    let v4 = sets.iter().filter(|set| set.is_ipv4()).count();
    if (v4 > 1 || sets.len() - v4 > 1) && !at_least(version, "0.3.0") {
        let msg = format!("CNI version {version} has room for one address of a family only");
        return Err(invalid(msg));
    }
    for (number, set) in sets.iter().enumerate() {
        for (other, later) in sets.iter().enumerate().skip(number + 1) {
            if set.overlaps(later) {
                return Err(invalid(format!("range set {number} overlaps with {other}")));
            }
        }
    }
    Ok(())
}

impl Range {
    fn new(raw: &RawRange) -> Result<Self, String> {
        let subnet = raw.subnet;
        if subnet.length + 2 > subnet.width() {
            return Err(format!("network {subnet} is too small to allocate from"));
        }
        let network = subnet.network();
        if network != subnet {
            return Err(format!(
                "network {subnet} has host bits set; it would be {network}"
            ));
        }
        let first = address::next(subnet.address);
        let last = match subnet.last() {
            broadcast @ IpAddr::V4(_) => address::previous(broadcast),
            last => last,
        };
        let mut range = Self {
            subnet,
            gateway: raw.gateway.unwrap_or(first),
            start: first,
            end: last,
        };
        if let Some(start) = raw.range_start {
            if !subnet.contains(start) {
                return Err(format!("rangeStart {start} is not in network {subnet}"));
            }
            range.start = start;
        }
        if let Some(end) = raw.range_end {
            if !subnet.contains(end) || end < range.start {
                return Err(format!(
                    "rangeEnd {end} is not in network {subnet} after rangeStart"
                ));
            }
            range.end = end;
        }
        Ok(range)
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.subnet.contains(address) && (self.start..=self.end).contains(&address)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let has_edge = |one: &Self, two: &Self| one.contains(two.start) || one.contains(two.end);
        has_edge(self, other) || has_edge(other, self)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl RangeSet {
    fn new(raw: &[RawRange]) -> Result<Self, String> {
        let ranges: Vec<Range> = raw.iter().map(Range::new).collect::<Result<_, _>>()?;
        let Some(first) = ranges.first() else {
            return Err("empty range set".into());
        };
        let v4 = first.start.is_ipv4();
        if ranges.iter().any(|range| range.start.is_ipv4() != v4) {
            return Err("mixed address families".into());
        }
        for (number, range) in ranges.iter().enumerate() {
            for later in &ranges[number + 1..] {
                if range.overlaps(later) {
                    return Err(format!("ranges {range} and {later} overlap"));
                }
            }
        }
        Ok(Self(ranges))
    }

    fn is_ipv4(&self) -> bool {
        self.0.iter().all(|range| range.start.is_ipv4())
    }

    fn overlaps(&self, other: &Self) -> bool {
        let with = |range: &Range| other.0.iter().any(|theirs| range.overlaps(theirs));
        self.0.iter().any(with)
    }

    /// The range that an address is of.
    pub(super) fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(address))
    }

    /// All addresses but the gateways, each once, from the one after the last
    /// that was given out.
    pub(super) fn candidates(
        &self,
        last: Option<IpAddr>,
    ) -> impl Iterator<Item = (&Range, IpAddr)> {
        let place = last.and_then(|last| self.0.iter().position(|range| range.contains(last)));
        let mut next = match (place, last) {
            (Some(place), Some(last)) => self.after(place, last),
            _ => (0, self.0[0].start),
        };
        let first = next;
        let mut ended = false;
        let all = std::iter::from_fn(move || {
            if ended {
                return None;
            }
            let (place, address) = next;
            next = self.after(place, address);
            ended = next == first;
            Some((&self.0[place], address))
        });
        all.filter(|(range, address)| *address != range.gateway)
    }

    fn after(&self, place: usize, address: IpAddr) -> (usize, IpAddr) {
        if address == self.0[place].end {
            let place = (place + 1) % self.0.len();
            (place, self.0[place].start)
        } else {
            (place, address::next(address))
        }
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}
