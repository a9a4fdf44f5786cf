//! All that can be seen of a node and its pod, in a form that two worlds share
//! when they are alike.
//!
//! What must differ is named here and nowhere else: hardware addresses are random
//! and stand for the link they are of; the host's end of a veth has a random name;
//! indexes and handles are counted by the kernel; timers run.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::world::World;

/// Fields that say nothing about how a network is set up.
const DROPPED: &[&str] = &[
    // Numbers that the kernel gives.
    "ifindex",
    "link_index",
    "link_netnsid",
    "handle",
    "index",
    "no",
    "id",
    "designated_port",
    // What a moment shows: timers and counters.
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "gc_timer",
    "hold_timer",
    "message_age_timer",
    "forward_delay_timer",
    "fdb_n_learned",
    "installed",
    "last_used",
    "bytes",
    "packets",
    "drops",
    "overlimits",
    "requeues",
    "backlog",
    "qlen",
    "stats",
    "metainfo",
    // For how many queues a veth has room; it uses one. The built-in one has room for
    // that one only, which spares two waits of the kernel.
    "num_tx_queues",
    "num_rx_queues",
    "refcnt",
    // Addresses of IPv6 made from the hardware address are compared as such; their
    // age is not.
    "preferred_life_time",
    "valid_life_time",
];

/// What was seen, line by line below headings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeMap<String, Vec<String>>);

impl Snapshot {
    /// Looks at everything.
    pub(crate) fn take(world: &World, result: Option<&Value>) -> Self {
        let mut seen = Self(BTreeMap::new());
        let names = Names::learn(world);
        for pod in [false, true] {
            seen.look(world, pod, &names);
        }
        seen.0.insert("files".into(), files(world, &names));
        if let Some(result) = result {
            let text = format!("{result:#}");
            let text = names.apply(&text);
            seen.0
                .insert("result".into(), text.lines().map(str::to_owned).collect());
        }
        seen
    }

    fn look(&mut self, world: &World, pod: bool, names: &Names) {
        let place = if pod { "pod" } else { "node" };
        let says = |command: &str| {
            let words: Vec<_> = command.split(' ').collect();
            if pod {
                world.pod_says(&words)
            } else {
                world.node_says(&words)
            }
        };
        for (what, command) in [
            ("links", "ip -j -d link show"),
            ("addresses", "ip -j -d address show"),
            ("IPv4 routes", "ip -j -d -4 route show table all"),
            ("IPv6 routes", "ip -j -d -6 route show table all"),
            ("rules", "ip -j rule show"),
            ("neighbours", "ip -j neighbour show nud permanent"),
            ("proxies", "ip -j neighbour show proxy"),
            ("queueing", "tc -j -d qdisc show"),
            ("bridge ports", "bridge -j -d link show"),
            ("vlans", "bridge -j vlan show"),
            ("nftables", "nft -j list ruleset"),
        ] {
            self.0.insert(
                format!("{place}: {what}"),
                json_lines(&says(command), names),
            );
        }
        // The JSON of older nft has no comments of tables and chains, and nothing of
        // what iptables matches.
        let lines = |text: &str| -> Vec<String> {
            let plain = text.lines().filter(|line| !line.starts_with(['#', ':']));
            let plain: Vec<_> = plain.map(|line| names.apply(line)).collect();
            // Again, tables have no order.
            let mut tables: Vec<_> = plain
                .split_inclusive(|line| line == "}" || line == "COMMIT")
                .collect();
            tables.retain(|table| table.len() > 2);
            tables.sort();
            tables.concat()
        };
        for (what, command) in [
            ("nftables as text", "nft list ruleset"),
            ("iptables", "iptables-save"),
            ("ip6tables", "ip6tables-save"),
        ] {
            self.0
                .insert(format!("{place}: {what}"), lines(&says(command)));
        }
        let mut filters = Vec::new();
        for (link, kind) in links(&says("ip -j link show")) {
            if kind != "loopback" {
                let command = format!("tc -d filter show dev {link} parent ffff:");
                filters.extend(says(&command).lines().map(|line| {
                    let line = names.apply(line);
                    format!("{}: {}", names.apply(&link), without_index(&line))
                }));
            }
        }
        self.0.insert(format!("{place}: filters"), filters);
        let sysctls = world.inside(pod, || sysctls(names));
        self.0.insert(format!("{place}: sysctls"), sysctls);
    }

    /// What differs, for people; `None` where nothing does.
    pub(crate) fn difference(&self, other: &Self) -> Option<String> {
        let mut text = String::new();
        let headings: BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let nothing = Vec::new();
        for heading in headings {
            let ours = self.0.get(heading).unwrap_or(&nothing);
            let theirs = other.0.get(heading).unwrap_or(&nothing);
            if ours == theirs {
                continue;
            }
            text.push_str(&format!("  {heading}:\n"));
            let only = |these: &[String], those: &[String]| -> Vec<String> {
                let those: BTreeSet<_> = those.iter().collect();
                these
                    .iter()
                    .filter(|line| !those.contains(line))
                    .cloned()
                    .collect()
            };
            let (first, second) = (only(ours, theirs), only(theirs, ours));
            for (sign, lines) in [('-', &first), ('+', &second)] {
                for line in lines {
                    text.push_str(&format!("    {sign} {line}\n"));
                }
            }
            if first.is_empty() && second.is_empty() {
                text.push_str(&format!("    the order differs:\n{ours:#?}\n{theirs:#?}\n"));
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// Without what the node's links are like: a refusal comes before or after a link
    /// has had a carrier, and only then it has an address of its own.
    pub(crate) fn without_node_links(mut self) -> Self {
        self.0.retain(|heading, _| {
            let of_links = ["links", "addresses", "routes", "sysctls", "ports", "vlans"];
            heading.starts_with("pod") || !of_links.iter().any(|one| heading.ends_with(one))
        });
        self
    }

    /// Whether addresses are still being made.
    pub(crate) fn is_settled(&self) -> bool {
        let addresses = |heading: &&String| heading.ends_with("addresses");
        let mut lines = self.0.iter().filter(|(heading, _)| addresses(heading));
        !lines.any(|(_, lines)| lines.iter().any(|line| line.contains("tentative")))
    }
}

/// What stands for names and addresses that are made up anew each time.
struct Names(Vec<(String, String)>);

impl Names {
    fn learn(world: &World) -> Self {
        let mut names = Self(vec![
            (world.pod_path().display().to_string(), "<netns>".to_owned()),
            (world.dir().display().to_string(), "<dir>".to_owned()),
        ]);
        let command = ["ip", "-j", "link", "show"];
        for (place, text) in [
            ("node", world.node_says(&command)),
            ("pod", world.pod_says(&command)),
        ] {
            let list: Value = serde_json::from_str(&text).unwrap_or_default();
            let links = list.as_array().cloned().unwrap_or_default();
            names.learn_links(place, &links);
        }
        names
    }

    fn learn_links(&mut self, place: &str, links: &[Value]) {
        let field = |link: &Value, key: &str| link[key].as_str().unwrap_or_default().to_owned();
        let mut macs = Vec::new();
        let mut veths = 0;
        for link in links {
            let (name, mac) = (field(link, "ifname"), field(link, "address"));
            let mut plain = name.clone();
            if place == "node" && name.starts_with("veth") {
                // One whose other end is here has the name of that.
                plain = match link["link"].as_str() {
                    Some(other) => format!("<veth of {other}>"),
                    None => format!("<veth{veths}>"),
                };
                veths += usize::from(link["link"].is_null());
                self.0.push((name.clone(), plain.clone()));
            }
            let mut title = format!("<mac of {plain} in the {place}>");
            // A bridge without an address of its own has that of some port.
            let bridge = link["master"].as_str().unwrap_or(&name);
            let is_port = |port: &&Value| port["master"] == bridge;
            let mut ports = links.iter().filter(is_port);
            let of_bridge = links.iter().find(|one| one["ifname"] == bridge);
            if of_bridge.is_some_and(|of| ports.any(|port| port["address"] == of["address"])) {
                title = format!("<mac of a port of {bridge}>");
            }
            // All zeros is of loopback and of bridges without ports; what a case asks
            // for begins with two and stands for itself.
            let made_up = !mac.starts_with("02:00:00") && !mac.starts_with("00:00:00");
            if link["link_type"] == "ether" && made_up {
                macs.push((mac, title));
            }
        }
        for (mac, name) in macs {
            if let Some(local) = link_local(&mac) {
                self.0.push((local, format!("<link-local of {name}>")));
            }
            self.0.push((mac.clone(), name.clone()));
            // The names of bridges have it without leading zeros.
            let parts = mac.split(':');
            let short: Vec<_> = parts
                .map(|part| part.strip_prefix('0').unwrap_or(part))
                .collect();
            self.0.push((short.join(":"), name));
        }
    }

    fn apply(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (from, to) in &self.0 {
            text = text.replace(from, to);
        }
        without_counts(&without_earlier(&text))
    }
}

/// A bridge that takes the address of its first port may have made one of IPv6 from
/// the address it had before; it is of no link any more.
fn without_earlier(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("fe80::") {
        let (before, from) = rest.split_at(at);
        let ends = |letter: char| !letter.is_ascii_hexdigit() && letter != ':';
        let (address, after) = from.split_at(from.find(ends).unwrap_or(from.len()));
        let made = address.contains("ff:fe");
        text.push_str(before);
        text.push_str(if made {
            "<an earlier link-local>"
        } else {
            address
        });
        rest = after;
    }
    text + rest
}

/// How much went through a rule is not part of it.
fn without_counts(line: &str) -> String {
    let words: Vec<_> = line.split(' ').collect();
    let counts = |at: usize| {
        let is = |back: usize, what: &str| at >= back && words[at - back] == what;
        is(1, "packets") || is(1, "bytes") && is(3, "packets")
    };
    let kept = (0..words.len()).map(|at| if counts(at) { "<n>" } else { words[at] });
    kept.collect::<Vec<_>>().join(" ")
}

/// The address of IPv6 that a link has by its hardware address.
fn link_local(mac: &str) -> Option<String> {
    let bytes: Option<Vec<u8>> = mac
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    let [a, b, c, d, e, f] = *bytes? else {
        return None;
    };
    let octets = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ];
    Some(std::net::Ipv6Addr::from(octets).to_string())
}

/// The items of a JSON list, one field per line; sorted, but for rules, whose order
/// counts.
fn json_lines(text: &str, names: &Names) -> Vec<String> {
    let mut value: Value = serde_json::from_str(text).unwrap_or_default();
    if let Some(ruleset) = value.get_mut("nftables").map(Value::take) {
        let mut rules = ruleset;
        reduce(&mut rules);
        let mut rules = rules.as_array().cloned().unwrap_or_default();
        // Only the tables have no order: a plugin makes them in a random one.
        let chains = |table: &Value| {
            let mut chains = rules.iter().map(|item| &item["chain"]);
            chains
                .any(|chain| chain["family"] == table["family"] && chain["table"] == table["name"])
        };
        let empty: Vec<_> = rules
            .iter()
            .map(|item| &item["table"])
            .filter(|table| !chains(table))
            .cloned()
            .collect();
        // The plugins look for rules of iptables, and looking makes a table.
        rules.retain(|item| item["table"].is_null() || !empty.contains(&item["table"]));
        let table = |item: &Value| -> Option<(String, String)> {
            let (kind, item) = item.as_object()?.iter().next()?;
            let name = if kind == "table" { "name" } else { "table" };
            Some((item["family"].to_string(), item[name].to_string()))
        };
        rules.sort_by_key(table);
        return rules
            .iter()
            .map(|rule| names.apply(&rule.to_string()))
            .collect();
    }
    reduce(&mut value);
    let mut lines = Vec::new();
    for item in value.as_array().into_iter().flatten() {
        let keys = ["ifname", "dst", "dev", "kind", "type", "local"];
        let title: Vec<_> = keys.iter().filter_map(|key| item[key].as_str()).collect();
        flatten(&title.join(" "), item, &mut lines);
    }
    for line in &mut lines {
        *line = names.apply(line);
    }
    lines.sort();
    lines
}

fn flatten(path: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                flatten(&format!("{path} {key}"), field, lines);
            }
        }
        Value::Array(items) => {
            for item in items {
                let name = item["local"].as_str().unwrap_or_default();
                flatten(&format!("{path} {name}"), item, lines);
            }
        }
        leaf => lines.push(format!("{path} = {leaf}")),
    }
}

fn reduce(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(reduce),
        Value::Object(object) => {
            object.retain(|key, _| !DROPPED.contains(&key.as_str()));
            object.values_mut().for_each(reduce);
        }
        _ => {}
    }
}

/// `index 7 ref 1 bind 1` of an action is a count over all of a kernel's.
fn without_index(line: &str) -> String {
    let words: Vec<_> = line.split(' ').collect();
    let mut kept = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == "index" {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

/// Names and types of links.
fn links(text: &str) -> Vec<(String, String)> {
    let list: Value = serde_json::from_str(text).unwrap_or_default();
    let field = |link: &Value, key: &str| link[key].as_str().unwrap_or_default().to_owned();
    let links = list.as_array().into_iter().flatten();
    links
        .map(|link| (field(link, "ifname"), field(link, "link_type")))
        .collect()
}

/// The parameters of every link, and of all of them. Called in the namespace.
fn sysctls(names: &Names) -> Vec<String> {
    let mut lines = Vec::new();
    let mut read = |path: &std::path::Path| {
        if let Ok(value) = std::fs::read_to_string(path) {
            let line = format!("{} = {}", path.display(), value.trim());
            lines.push(names.apply(&line));
        }
    };
    read("/proc/sys/net/ipv4/ip_forward".as_ref());
    for family in ["ipv4", "ipv6"] {
        let links = std::fs::read_dir(format!("/proc/sys/net/{family}/conf"));
        for link in links.into_iter().flatten().flatten() {
            let files = std::fs::read_dir(link.path());
            for file in files.into_iter().flatten().flatten() {
                let name = file.file_name();
                // Random by design, and a counter.
                if name != "stable_secret" && name != "mc_forwarding" {
                    read(&file.path());
                }
            }
        }
    }
    lines.sort();
    lines
}

/// The files that plugins keep, with their content.
fn files(world: &World, names: &Names) -> Vec<String> {
    let mut lines = Vec::new();
    let mut folders = vec![world.dir().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let mode = entry.metadata().map_or(0, |meta| meta.permissions().mode());
            let name = format!("{} {mode:o}", entry.path().display());
            if entry.path().is_dir() {
                folders.push(entry.path());
                lines.push(names.apply(&name));
                continue;
            }
            let content = std::fs::read(entry.path()).unwrap_or_default();
            let content = String::from_utf8_lossy(&content).into_owned();
            // The random address that an interface had before it was tuned.
            let content: Vec<_> = content
                .split('\n')
                .map(|line| match line.trim_start().strip_prefix("\"mac\": \"") {
                    Some(rest) => {
                        line.replace(rest.split('"').next().unwrap_or_default(), "<before>")
                    }
                    None => line.to_owned(),
                })
                .collect();
            let line = format!("{name}: {:?}", content.join("\n"));
            lines.push(names.apply(&line));
        }
    }
    lines.sort();
    lines
}
