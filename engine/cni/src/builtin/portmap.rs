//! The `portmap` plugin: ports of the node lead to a pod.
//!
//! Owns the rules of one container in the tables that the plugin's nftables
//! backend uses: the same tables, chains, rules and comments, so that either side
//! finds what the other made. Both families are one transaction, so a crash leaves
//! all mappings of a container or none. Configurations for iptables are executed.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::netlink::{self, Message, NetlinkError, Socket, attributes, with_netfilter};
use crate::nft::{self, Expr, Family, Hook, Point, Side, Table, Transaction, Verdict};
use crate::result::Outcome;
use crate::{Command, Error, Invocation, config, conntrack, sysctl};

const V4: Table = Table {
    family: Family::Ip,
    name: "cni_hostport",
};
const V6: Table = Table {
    family: Family::Ip6,
    name: "cni_hostport",
};
const TABLE_COMMENT: &str = "CNI portmap plugin";
/// All mappings.
const HOSTPORTS: &str = "hostports";
/// Where the plugins had the mappings with an address before 1.8; they still look
/// into it.
const OLD_HOSTPORTS: &str = "hostip_hostports";
/// The way to both.
const ALL: &str = "hostports_all";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const MASQUERADING: &str = "masquerading";
/// Where `dstnat` and `srcnat` are in the order of chains.
const DESTINATION_NAT: i32 = -100;
const SOURCE_NAT: i32 = 100;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    backend: Option<String>,
    snat: Option<bool>,
    masq_all: Option<bool>,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    #[serde(rename = "conditionsV4")]
    conditions_v4: Option<Vec<String>>,
    #[serde(rename = "conditionsV6")]
    conditions_v6: Option<Vec<String>>,
    runtime_config: Option<Runtime>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Runtime {
    port_mappings: Option<Vec<Entry>>,
}

/// A mapping as it is configured.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Entry {
    host_port: i64,
    container_port: i64,
    protocol: String,
    #[serde(rename = "hostIP", with = "crate::result::maybe_address")]
    host_ip: Option<IpAddr>,
}

/// A mapping that can be carried out.
#[derive(Debug, Clone, Copy)]
struct Mapping {
    protocol: u8,
    host_ip: Option<IpAddr>,
    host_port: u16,
    container_port: u16,
}

/// What is to be mapped.
struct Plan<'a> {
    container_id: &'a str,
    snat: bool,
    mappings: Vec<Mapping>,
    /// The container's address of each family.
    addresses: Vec<IpAddr>,
}

/// Conditions are written in the languages of `nft` and `iptables`, which a
/// built-in does not speak.
pub(super) fn accepts(config: &Value) -> bool {
    let Ok(config) = Config::deserialize(config) else {
        // The plugin says best what is wrong.
        return false;
    };
    let conditional = |list: &Option<Vec<String>>| list.iter().flatten().next().is_some();
    matches!(config.backend.as_deref(), None | Some("nftables"))
        && config.external_set_mark_chain.is_none()
        // The built-in masquerades what needs it.
        && !config.masq_all.unwrap_or(false)
        && !conditional(&config.conditions_v4)
        && !conditional(&config.conditions_v6)
}

/// Does what the invocation says.
pub(super) fn run(call: &Invocation<'_>) -> Result<Value, Error> {
    let settings: Config = config::decode(call.config)?;
    let previous = Outcome::previous(call.config)?;
    let plan = plan(call, &settings, previous.as_ref())?;
    match call.command {
        Command::Add => {
            let previous =
                previous.ok_or_else(|| Error::internal("must be called as chained plugin"))?;
            if !plan.mappings.is_empty() {
                plan.add()?;
            }
            previous.render(config::version(call.config))
        }
        Command::Check => {
            if previous.is_none() {
                return Err(Error::internal("Required prevResult missing"));
            }
            plan.check().map(|()| Value::Null)
        }
        Command::Del => {
            if !plan.mappings.is_empty() {
                remove(call.container_id)?;
            }
            Ok(Value::Null)
        }
        Command::Status | Command::Gc => Ok(Value::Null),
    }
}

fn plan<'a>(
    call: &Invocation<'a>,
    settings: &Config,
    previous: Option<&Outcome>,
) -> Result<Plan<'a>, Error> {
    if !(0..=31).contains(&settings.mark_masq_bit.unwrap_or_default()) {
        return Err(Error::internal("MasqMarkBit must be between 0 and 31"));
    }
    let entries = settings.runtime_config.as_ref();
    let entries = entries.and_then(|runtime| runtime.port_mappings.as_ref());
    let mappings = entries.into_iter().flatten().map(Mapping::new);
    let addresses = previous.map(|previous| addresses(previous, call.interface));
    Ok(Plan {
        container_id: call.container_id,
        snat: settings.snat.unwrap_or(true),
        mappings: mappings.collect::<Result<_, _>>()?,
        addresses: addresses.unwrap_or_default(),
    })
}

/// The first address of each family that is the container's own, IPv4 first.
fn addresses(previous: &Outcome, interface: &str) -> Vec<IpAddr> {
    let own = |index: Option<usize>| {
        let found = index.and_then(|index| previous.interfaces.get(index));
        found.is_none_or(|found| found.name == interface && !found.sandbox.is_empty())
    };
    let first = |v6: bool| {
        let of_family = |ip: &&crate::result::Ip| ip.address.address.is_ipv6() == v6;
        let mut ips = previous.ips.iter().filter(of_family);
        ips.find(|ip| own(ip.interface))
            .map(|ip| ip.address.address)
    };
    [false, true].into_iter().filter_map(first).collect()
}

impl Mapping {
    fn new(entry: &Entry) -> Result<Self, Error> {
        let port = |what: &str, port: i64| match u16::try_from(port) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(Error::internal(format!(
                "Invalid {what} port number: {port}"
            ))),
        };
        let protocol = match entry.protocol.as_str() {
            "tcp" => libc::IPPROTO_TCP,
            "udp" => libc::IPPROTO_UDP,
            "sctp" => libc::IPPROTO_SCTP,
            other => return Err(Error::internal(format!("unknown protocol {other:?}"))),
        };
        Ok(Self {
            container_port: port("container", entry.container_port)?,
            host_port: port("host", entry.host_port)?,
            protocol: protocol as u8,
            host_ip: entry.host_ip,
        })
    }

    /// Whether the mapping is for containers with such an address.
    fn is_for(&self, container: IpAddr) -> bool {
        let same = |host: IpAddr| host.is_ipv6() == container.is_ipv6();
        self.host_ip.is_none_or(same)
    }

    fn rule(&self, container: IpAddr) -> Vec<Expr> {
        let mut rule = Vec::new();
        // Nothing is ever sent to "any address".
        if let Some(host) = self.host_ip.filter(|host| !host.is_unspecified()) {
            rule.extend(nft::address(Side::Destination, host));
        }
        rule.extend(nft::port(self.protocol, self.host_port));
        rule.push(Expr::Dnat(container, self.container_port));
        rule
    }
}

/// The rules that only lead to others, by their chain.
fn leading() -> [(&'static str, Vec<Vec<Expr>>); 3] {
    let jump = |chain: &str| Expr::Verdict(Verdict::Jump(chain.to_owned()));
    let mut to_all = nft::to_this_machine().to_vec();
    to_all.push(jump(ALL));
    [
        (ALL, vec![vec![jump(OLD_HOSTPORTS)], vec![jump(HOSTPORTS)]]),
        (PREROUTING, vec![to_all.clone()]),
        (OUTPUT, vec![to_all]),
    ]
}

fn table(address: IpAddr) -> Table {
    if address.is_ipv4() { V4 } else { V6 }
}

impl Plan<'_> {
    fn add(&self) -> Result<(), Error> {
        let build = |socket: &mut Socket| {
            let mut transaction = Transaction::default();
            for address in &self.addresses {
                let table = table(*address);
                if !self.has_frame(socket, table)? {
                    self.frame(&mut transaction, table);
                }
                self.rules(&mut transaction, *address);
            }
            Ok(transaction)
        };
        nft::change(build).map_err(|source| Error::because("set up port mappings", source))?;
        for address in &self.addresses {
            self.forget_flows(*address);
            if self.snat && address.is_ipv4() {
                route_loopback_to(*address)?;
            }
        }
        Ok(())
    }

    /// Whether all chains are there, and lead to each other. Making their rules anew
    /// would have the kernel throw the old ones away, for nothing.
    fn has_frame(&self, socket: &mut Socket, table: Table) -> Result<bool, NetlinkError> {
        for (chain, wanted) in leading() {
            let there = nft::rules(socket, table, Some(chain))?;
            if !there.iter().map(|rule| &rule.expressions).eq(&wanted) {
                return Ok(false);
            }
        }
        Ok(!self.snat || nft::has_chain(socket, table, MASQUERADING)?)
    }

    /// Table and chains. One that is half made or foreign is put right.
    fn frame(&self, transaction: &mut Transaction, table: Table) {
        transaction.table(table, Some(TABLE_COMMENT));
        for chain in [HOSTPORTS, OLD_HOSTPORTS, ALL] {
            transaction.chain(table, chain, None);
        }
        for (chain, rules) in leading() {
            let point = match chain {
                PREROUTING => Some(Point::Prerouting),
                OUTPUT => Some(Point::Output),
                _ => None,
            };
            if let Some(point) = point {
                let hook = Hook {
                    kind: "nat",
                    point,
                    priority: DESTINATION_NAT,
                };
                transaction.base_chain(table, chain, hook);
            }
            transaction.flush(table, chain);
            for rule in rules {
                transaction.append(table, chain, &rule, None);
            }
        }
        if self.snat {
            let hook = Hook {
                kind: "nat",
                point: Point::Postrouting,
                priority: SOURCE_NAT,
            };
            transaction.base_chain(table, MASQUERADING, hook);
        }
    }

    fn rules(&self, transaction: &mut Transaction, container: IpAddr) {
        let (table, comment) = (table(container), Some(self.container_id));
        for mapping in self.mappings.iter().filter(|one| one.is_for(container)) {
            transaction.append(table, HOSTPORTS, &mapping.rule(container), comment);
        }
        if !self.snat {
            return;
        }
        // The container may reach itself by the node's port, and so may the node's
        // own loopback address: answers must come back to the node first.
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let sources = [container, loopback];
        for source in sources
            .iter()
            .filter(|one| one.is_ipv4() == container.is_ipv4())
        {
            let mut rule = nft::address(Side::Source, *source);
            rule.extend(nft::address(Side::Destination, container));
            rule.push(Expr::Masquerade);
            transaction.append(table, MASQUERADING, &rule, comment);
        }
    }

    fn check(&self) -> Result<(), Error> {
        if self.mappings.is_empty() {
            return Ok(());
        }
        let read = |socket: &mut Socket| {
            let tables = self.addresses.iter().map(|address| table(*address));
            tables
                .map(|table| nft::rules(socket, table, None))
                .collect()
        };
        let tables: Result<Vec<_>, _> = with_netfilter(read);
        let tables = tables.map_err(|source| Error::because("list port mappings", source))?;
        for (address, rules) in self.addresses.iter().zip(tables) {
            let mapped = self.mappings.iter().filter(|one| one.is_for(*address));
            let own = match (self.snat, address.is_ipv4()) {
                (false, _) => 0,
                (true, false) => 1,
                (true, true) => 2,
            };
            for (chain, least) in [(HOSTPORTS, mapped.count()), (MASQUERADING, own)] {
                let found = rules.iter().filter(|rule| rule.chain == chain);
                if found.filter(|rule| is_of(rule, self.container_id)).count() < least {
                    let msg = format!("missing hostport rules in {chain:?} chain");
                    return Err(Error::internal(msg));
                }
            }
        }
        Ok(())
    }

    /// UDP flows from before the mapping would go on to where they went. Failing is
    /// no reason to refuse the pod, as for the plugin.
    fn forget_flows(&self, container: IpAddr) {
        let udp = self
            .mappings
            .iter()
            .filter(|one| one.protocol == libc::IPPROTO_UDP as u8);
        let ports: Vec<u16> = udp.map(|one| one.host_port).collect();
        if let Err(error) = conntrack::forget_udp(container.is_ipv6(), &ports) {
            let container = self.container_id;
            tracing::warn!(container, %error, "old UDP flows keep their way");
        }
    }
}

fn is_of(rule: &nft::Rule, container_id: &str) -> bool {
    rule.comment.as_deref() == Some(container_id)
}

/// Takes the mappings of a container away; none is no error.
fn remove(container_id: &str) -> Result<(), Error> {
    let build = |socket: &mut Socket| {
        let mut transaction = Transaction::default();
        for table in [V4, V6] {
            for rule in nft::rules(socket, table, None)? {
                let chain = rule.chain.as_str();
                let ours = [HOSTPORTS, OLD_HOSTPORTS, MASQUERADING].contains(&chain);
                if ours && is_of(&rule, container_id) {
                    transaction.delete(table, chain, rule.handle);
                }
            }
        }
        Ok(transaction)
    };
    nft::change(build).map_err(|source| Error::because("remove port mappings", source))
}

/// Lets the node's loopback addresses reach the container: the kernel drops them
/// elsewhere. A container without a route is left alone, as by the plugin.
fn route_loopback_to(container: IpAddr) -> Result<(), Error> {
    let Ok(Some(interface)) = interface_to(container) else {
        return Ok(());
    };
    let name = format!("net/ipv4/conf/{interface}/route_localnet");
    sysctl::ensure(&name, "1")
        .map_err(|source| Error::because("unable to enable route_localnet", source))
}

/// The interface by which the node reaches an address.
fn interface_to(address: IpAddr) -> Result<Option<String>, NetlinkError> {
    const GET_ROUTE: u16 = 26;
    const GET_LINK: u16 = 18;
    let mut socket = Socket::open(netlink::Family::Route)?;
    let octets = crate::address::octets(address);
    let mut message = Message::new("look up a route", GET_ROUTE, 0);
    let mut fixed = [0; 12];
    fixed[0] = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    } as u8;
    fixed[1] = crate::address::width(address);
    message.raw(&fixed).attribute(1, &octets);
    let Some(route) = socket.get(message)? else {
        return Ok(None);
    };
    let mut route = attributes(route.body.get(fixed.len()..).unwrap_or_default());
    let Some(index) = route.find(|one| one.kind == 4).and_then(|one| one.u32()) else {
        return Ok(None);
    };
    let mut message = Message::new("look up a link", GET_LINK, 0);
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    message.raw(&fixed);
    let link = socket.get(message)?;
    Ok(link.and_then(|link| {
        let mut link = attributes(link.body.get(fixed.len()..)?);
        link.find(|one| one.kind == 3)?.text().map(str::to_owned)
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::in_new_namespace;

    fn config(extra: &Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "portmap",
            "runtimeConfig": {"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "0.0.0.0"},
            ]},
            "prevResult": {"cniVersion": "1.0.0", "ips": [
                {"address": "10.0.0.2/24"}, {"address": "fd00::2/64"},
            ]},
        });
        for (key, value) in extra.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    fn call(command: Command, id: &str, config: &Value) -> Result<Value, Error> {
        crate::run(
            "portmap",
            &Invocation {
                command,
                container_id: id,
                netns: Some(std::path::Path::new("/proc/self/ns/net")),
                interface: "eth0",
                args: "",
                config,
                netns_will_go: false,
            },
        )
    }

    fn count(id: &str) -> usize {
        let mut socket = nft::open().unwrap();
        let tables = [V4, V6].map(|table| nft::rules(&mut socket, table, None).unwrap());
        tables
            .iter()
            .flatten()
            .filter(|rule| is_of(rule, id))
            .count()
    }

    #[test]
    fn each_container_has_its_own_rules_and_check_misses_them() {
        in_new_namespace(|| {
            let config = config(&json!({}));
            call(Command::Del, "a", &config).unwrap();
            for id in ["a", "b"] {
                let result = call(Command::Add, id, &config).unwrap();
                assert_eq!(result, config["prevResult"]);
            }
            // TCP in both families, UDP in one, 2 + 1 for the way back.
            assert_eq!((count("a"), count("b")), (6, 6));
            call(Command::Check, "a", &config).unwrap();
            call(Command::Del, "a", &config).unwrap();
            call(Command::Del, "a", &config).unwrap();
            assert_eq!((count("a"), count("b")), (0, 6));
            let error = call(Command::Check, "a", &config).unwrap_err();
            assert_eq!(
                error.to_string(),
                r#"missing hostport rules in "hostports" chain"#
            );
        });
    }

    #[test]
    fn a_mapping_that_cannot_be_changes_nothing() {
        in_new_namespace(|| {
            for (key, value) in [("hostPort", json!(70000)), ("protocol", json!("icmp"))] {
                let mut config = config(&json!({}));
                config["runtimeConfig"]["portMappings"][1][key] = value;
                call(Command::Add, "a", &config).unwrap_err();
                assert_eq!(count("a"), 0);
            }
        });
    }

    #[test]
    fn what_needs_iptables_or_another_language_is_executed() {
        assert!(accepts(&config(&json!({}))));
        assert!(accepts(&config(
            &json!({"backend": "nftables", "conditionsV4": []})
        )));
        for executed in [
            json!({"backend": "iptables"}),
            json!({"masqAll": true}),
            json!({"backend": "ipvs"}),
            json!({"externalSetMarkChain": "KUBE-MARK-MASQ"}),
            json!({"conditionsV4": ["-d", "10.0.0.0/8"]}),
            json!({"conditionsV6": ["ip6", "daddr", "fd00::/8"]}),
        ] {
            assert!(!accepts(&config(&executed)), "{executed}");
        }
    }

    #[test]
    fn addresses_of_other_interfaces_are_not_the_containers() {
        let previous = Outcome::parse(&json!({
            "interfaces": [{"name": "br"}, {"name": "eth0", "sandbox": "/n"}],
            "ips": [
                {"interface": 0, "address": "10.0.0.1/24"},
                {"interface": 1, "address": "10.0.0.2/24"},
                {"interface": 1, "address": "10.0.0.3/24"},
            ],
        }))
        .unwrap();
        let expected: Vec<IpAddr> = vec!["10.0.0.2".parse().unwrap()];
        assert_eq!(addresses(&previous, "eth0"), expected);
    }
}
