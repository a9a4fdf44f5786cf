//! The `firewall` plugin: what is forwarded from and to a pod is let through.
//!
//! Owns the rules of a pod's addresses in the chains that the plugin makes with
//! `iptables` on top of nftables: the same chains, and rules that `iptables` shows
//! and deletes as its own, so that either side finds what the other made. They must
//! be in that table: a packet that another table lets through can still be dropped
//! by `FORWARD`. No program is run, none needs to be there.
//!
//! A kernel without iptables' matches gets rules that mean the same in nftables' own
//! words; there is no `iptables` for such a kernel that could mind them.
//!
//! A node whose packets go through iptables of the old kind, or through firewalld,
//! is left to the plugin, and so is a configuration that names a backend. A call is
//! one transaction; a crash leaves all of its rules or none.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use serde::Deserialize;
use serde_json::Value;

use crate::netlink::{NetlinkError, Socket, with_netfilter};
use crate::nft::{self, Expr, Family, Hook, Meta, Point, Side, Table, Transaction, Verdict};
use crate::result::Outcome;
use crate::{Command, Error, Invocation, config};

const V4: Table = Table {
    family: Family::Ip,
    name: "filter",
};
const V6: Table = Table {
    family: Family::Ip6,
    name: "filter",
};
const FIREWALLD: Table = Table {
    family: Family::Inet,
    name: "firewalld",
};
const FORWARD: &str = "FORWARD";
/// The rules of all pods.
const PODS: &str = "CNI-FORWARD";
/// The administrator's own rules, before the pods'.
const ADMIN: &str = "CNI-ADMIN";
const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";
const RULES: &str = "CNI firewall plugin rules";
const OVERRIDES: &str = "CNI firewall plugin admin overrides";
const ISOLATION: &str = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";

/// One change at a time: an exact one starts again whenever there was another.
static TURN: Mutex<()> = Mutex::new(());

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    backend: Option<String>,
    iptables_admin_chain_name: Option<String>,
    ingress_policy: Option<String>,
}

/// The words that rules are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// Those that `iptables` understands, and makes itself.
    Iptables,
    /// nftables' own.
    Native,
}

/// Who may reach the pods of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Open,
    /// Pods of the same bridge, and answers.
    SameBridge,
    /// Answers only.
    Isolated,
}

impl Config {
    fn policy(&self) -> Option<Policy> {
        match self.ingress_policy.as_deref() {
            None | Some("" | "open") => Some(Policy::Open),
            Some("same-bridge") => Some(Policy::SameBridge),
            Some("isolated") => Some(Policy::Isolated),
            Some(_) => None,
        }
    }

    fn admin(&self) -> &str {
        let name = self.iptables_admin_chain_name.as_deref();
        name.filter(|name| !name.is_empty()).unwrap_or(ADMIN)
    }
}

/// Whether the rules can be in the table of `iptables` on nftables, as nothing else
/// filters what is forwarded.
pub(super) fn accepts(config: &Value) -> bool {
    let Ok(settings) = Config::deserialize(config) else {
        return false;
    };
    settings.backend.is_none_or(|backend| backend.is_empty())
        && config::at_least(config::version(config), "0.4.0")
        && Config::deserialize(config).is_ok_and(|settings| settings.policy().is_some())
        && !is_filtered_by_others()
}

fn is_filtered_by_others() -> bool {
    let old = ["ip_tables_names", "ip6_tables_names"].iter().any(|names| {
        let names = std::fs::read_to_string(format!("/proc/thread-self/net/{names}"));
        names.is_ok_and(|names| names.lines().any(|name| name == "filter"))
    });
    let firewalld = || with_netfilter(|socket| nft::has_table(socket, FIREWALLD));
    // Where nftables cannot be asked, the plugin says best what is wrong.
    old || firewalld().unwrap_or(true)
}

/// Does what the invocation says.
pub(super) fn run(call: &Invocation<'_>) -> Result<Value, Error> {
    let settings: Config = config::decode(call.config)?;
    let previous = Outcome::previous(call.config)?;
    match call.command {
        Command::Add => {
            let previous = required(previous)?;
            add(&settings, &previous)?;
            previous.render(config::version(call.config))
        }
        Command::Check => check(&settings, &required(previous)?).map(|()| Value::Null),
        Command::Del => {
            // Without a result nothing is known, and the plugin does nothing either.
            if let Some(previous) = previous {
                remove(&previous)?;
            }
            Ok(Value::Null)
        }
        Command::Status | Command::Gc => Ok(Value::Null),
    }
}

fn required(previous: Option<Outcome>) -> Result<Outcome, Error> {
    previous.ok_or_else(|| Error::internal("missing prevResult from earlier plugin"))
}

fn add(settings: &Config, previous: &Outcome) -> Result<(), Error> {
    let policy = settings.policy().unwrap_or(Policy::Open);
    let bridge = match policy {
        Policy::Open => None,
        Policy::SameBridge | Policy::Isolated => Some(bridge(settings, previous)?),
    };
    let add_in = |dialect: Dialect| {
        change(|socket: &mut Socket| {
            let mut transaction = Transaction::default();
            for (table, addresses) in families(previous) {
                let mut filter = Filter::read(socket, table, dialect, &mut transaction)?;
                filter.let_through(settings.admin(), &addresses);
                if let Some(bridge) = bridge {
                    filter.isolate(bridge, policy);
                }
            }
            Ok(transaction)
        })
    };
    let done = match add_in(Dialect::Iptables) {
        // Nothing was changed: the kernel does not know a match.
        Err(error) if error.errno() == Some(Errno::NOENT) => add_in(Dialect::Native),
        done => done,
    };
    done.map_err(|source| Error::because("set up firewall rules", source))
}

fn remove(previous: &Outcome) -> Result<(), Error> {
    let build = |socket: &mut Socket| {
        let mut transaction = Transaction::default();
        for (table, addresses) in families(previous) {
            let rules = nft::rules(socket, table, Some(PODS))?;
            for wanted in addresses
                .iter()
                .flat_map(|address| of_any_dialect(*address))
            {
                if let Some(rule) = rules.iter().find(|rule| rule.expressions == wanted) {
                    transaction.delete(table, PODS, rule.handle);
                }
            }
        }
        Ok(transaction)
    };
    change(build).map_err(|source| Error::because("remove firewall rules", source))
}

fn check(settings: &Config, previous: &Outcome) -> Result<(), Error> {
    let read = |socket: &mut Socket| -> Result<Vec<_>, NetlinkError> {
        let families = families(previous);
        let rules = families.map(|(table, addresses)| {
            let rules = nft::rules(socket, table, None)?;
            Ok((table, addresses, rules))
        });
        rules.collect()
    };
    let read = with_netfilter(read);
    let read = read.map_err(|source| Error::because("list firewall rules", source))?;
    for (table, addresses, rules) in read {
        let misses = |dialect: Dialect| {
            let mut wanted = vec![
                (FORWARD, commented(dialect, RULES, jump(PODS))),
                (PODS, commented(dialect, OVERRIDES, jump(settings.admin()))),
            ];
            let pods = addresses.iter().flat_map(|address| pod(dialect, *address));
            wanted.extend(pods.map(|rule| (PODS, rule)));
            wanted.into_iter().find(|(chain, rule)| {
                let is_it = |found: &nft::Rule| found.chain == *chain && found.expressions == *rule;
                !rules.iter().any(is_it)
            })
        };
        if let (Some((chain, rule)), Some(_)) = (misses(Dialect::Iptables), misses(Dialect::Native))
        {
            let family = if table == V4 { "IPv4" } else { "IPv6" };
            let msg = format!("expected {family} rule in {chain:?} not found");
            return Err(Error::internal(msg).details(format!("{rule:?}")));
        }
    }
    Ok(())
}

fn change(
    build: impl Fn(&mut Socket) -> Result<Transaction, NetlinkError>,
) -> Result<(), NetlinkError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    nft::change_exactly(build)
}

/// The tables of the pod's addresses, with these.
fn families(previous: &Outcome) -> impl Iterator<Item = (Table, Vec<IpAddr>)> {
    let addresses = |v6: bool| -> Vec<IpAddr> {
        let all = previous.ips.iter().map(|ip| ip.address.address);
        all.filter(|address| address.is_ipv6() == v6).collect()
    };
    let families = [(V4, addresses(false)), (V6, addresses(true))];
    families
        .into_iter()
        .filter(|(_, addresses)| !addresses.is_empty())
}

fn bridge<'a>(settings: &Config, previous: &'a Outcome) -> Result<&'a str, Error> {
    let first = previous.interfaces.first().ok_or_else(|| {
        let policy = settings.ingress_policy.as_deref().unwrap_or_default();
        Error::internal(format!(
            "interface needs to be set for ingress policy {policy:?}, make sure to chain \"firewall\" plugin with \"bridge\""
        ))
    })?;
    if first.name.is_empty() {
        return Err(Error::internal("got empty bridge name"));
    }
    Ok(&first.name)
}

/// The table of one family while it is being changed.
struct Filter<'a> {
    table: Table,
    dialect: Dialect,
    /// What is there, and what will be.
    rules: Vec<(String, Vec<Expr>)>,
    transaction: &'a mut Transaction,
}

/// Where in a chain a rule is put.
#[derive(Clone, Copy)]
enum Place {
    First,
    Last,
}

impl<'a> Filter<'a> {
    fn read(
        socket: &mut Socket,
        table: Table,
        dialect: Dialect,
        transaction: &'a mut Transaction,
    ) -> Result<Self, NetlinkError> {
        let rules = nft::rules(socket, table, None)?;
        let rules = rules.into_iter().map(|rule| (rule.chain, rule.expressions));
        Ok(Self {
            table,
            dialect,
            rules: rules.collect(),
            transaction,
        })
    }

    fn let_through(&mut self, admin: &str, addresses: &[IpAddr]) {
        let leads = self.commented(&[], (RULES, jump(PODS)));
        let overrides = self.commented(&[], (OVERRIDES, jump(admin)));
        // Where a rule leads to a chain, it is there.
        if !self.has(FORWARD, &leads) || !self.has(PODS, &overrides) {
            self.transaction.table(self.table, None);
            self.transaction.chain(self.table, PODS, None);
            self.transaction.chain(self.table, admin, None);
            self.forward();
        }
        self.ensure(FORWARD, Place::First, &[], (RULES, jump(PODS)));
        self.ensure(PODS, Place::First, &[], (OVERRIDES, jump(admin)));
        let dialect = self.dialect;
        for rule in addresses.iter().flat_map(|address| pod(dialect, *address)) {
            self.ensure_rule(PODS, Place::Last, rule, None);
        }
    }

    /// Between bridges nothing passes; between pods of an isolated bridge neither.
    /// The rules of a bridge stay when its pods go, as with the plugin.
    fn isolate(&mut self, bridge: &str, policy: Policy) {
        let of_policy = match policy {
            Policy::Isolated => "CNI firewall plugin rules (ingressPolicy: isolated)",
            Policy::SameBridge | Policy::Open => {
                "CNI firewall plugin rules (ingressPolicy: same-bridge)"
            }
        };
        let leads = self.commented(&[], (ISOLATION, jump(STAGE_1)));
        let rest = self.commented(&[], (ISOLATION, Verdict::Return));
        if !self.has(FORWARD, &leads) || !self.has(STAGE_2, &rest) {
            self.transaction.chain(self.table, STAGE_1, None);
            self.transaction.chain(self.table, STAGE_2, None);
        }
        self.ensure(FORWARD, Place::First, &[], (ISOLATION, jump(STAGE_1)));
        let enters = nft::interface(Meta::InputName, true, bridge).to_vec();
        let leaves = |equal| nft::interface(Meta::OutputName, equal, bridge).to_vec();
        let between = [enters.clone(), leaves(false)].concat();
        self.ensure(STAGE_1, Place::First, &between, (of_policy, jump(STAGE_2)));
        if policy == Policy::Isolated {
            let within = [enters, leaves(true)].concat();
            self.ensure(STAGE_1, Place::First, &within, (of_policy, Verdict::Drop));
        }
        let rest = || (ISOLATION, Verdict::Return);
        self.ensure(STAGE_1, Place::Last, &[], rest());
        self.ensure(
            STAGE_2,
            Place::First,
            &leaves(true),
            (ISOLATION, Verdict::Drop),
        );
        self.ensure(STAGE_2, Place::Last, &[], rest());
    }

    fn forward(&mut self) {
        let hook = Hook {
            kind: "filter",
            point: Point::Forward,
            priority: 0,
        };
        self.transaction.base_chain(self.table, FORWARD, hook);
    }

    /// A rule with a comment, unless the chain has it.
    fn ensure(&mut self, chain: &str, place: Place, which: &[Expr], end: (&str, Verdict)) {
        let comment = (self.dialect == Dialect::Native).then_some(end.0);
        let rule = self.commented(which, end);
        self.ensure_rule(chain, place, rule, comment);
    }

    fn commented(&self, which: &[Expr], (comment, verdict): (&str, Verdict)) -> Vec<Expr> {
        let mut rule = which.to_vec();
        rule.extend(commented(self.dialect, comment, verdict));
        rule
    }

    fn has(&self, chain: &str, rule: &[Expr]) -> bool {
        let is_it = |(of, there): &(String, Vec<Expr>)| of == chain && there == rule;
        self.rules.iter().any(is_it)
    }

    fn ensure_rule(&mut self, chain: &str, place: Place, rule: Vec<Expr>, comment: Option<&str>) {
        if self.has(chain, &rule) {
            return;
        }
        match place {
            Place::First => self.transaction.insert(self.table, chain, &rule, comment),
            Place::Last => self.transaction.append(self.table, chain, &rule, comment),
        }
        self.rules.push((chain.to_owned(), rule));
    }
}

/// The two rules of a pod's address: answers to it, and all that it sends.
fn pod(dialect: Dialect, address: IpAddr) -> [Vec<Expr>; 2] {
    let mut answers = nft::address(Side::Destination, address);
    match dialect {
        Dialect::Iptables => answers.push(related_or_established()),
        Dialect::Native => answers.extend(nft::related_or_established()),
    }
    let mut sent = nft::address(Side::Source, address);
    for rule in [&mut answers, &mut sent] {
        rule.extend([Expr::Counter, Expr::Verdict(Verdict::Accept)]);
    }
    [answers, sent]
}

/// The rules of a pod's address as they may be; what only one has comes once.
fn of_any_dialect(address: IpAddr) -> Vec<Vec<Expr>> {
    let [native, _] = pod(Dialect::Native, address);
    let [answers, sent] = pod(Dialect::Iptables, address);
    vec![answers, native, sent]
}

fn jump(chain: &str) -> Verdict {
    Verdict::Jump(chain.to_owned())
}

/// The end of a rule with a comment, which iptables has among the matches.
fn commented(dialect: Dialect, text: &str, verdict: Verdict) -> Vec<Expr> {
    const LENGTH: usize = 256;
    let end = [Expr::Counter, Expr::Verdict(verdict)];
    if dialect == Dialect::Native {
        return end.into();
    }
    let mut info = text.as_bytes().to_vec();
    info.resize(LENGTH, 0);
    let comment = Expr::Match {
        name: "comment".into(),
        revision: 0,
        info,
    };
    [&[comment], &end[..]].concat()
}

/// `-m conntrack --ctstate RELATED,ESTABLISHED`, as `struct xt_conntrack_mtinfo3`.
fn related_or_established() -> Expr {
    const LENGTH: usize = 168;
    const MATCH_FLAGS: usize = 146;
    const STATE_MASK: usize = 150;
    const BY_STATE: u16 = 1;
    const ESTABLISHED: u16 = 1 << 1;
    const RELATED: u16 = 1 << 2;
    let mut info = vec![0; LENGTH];
    info[MATCH_FLAGS..MATCH_FLAGS + 2].copy_from_slice(&BY_STATE.to_ne_bytes());
    let states = ESTABLISHED | RELATED;
    info[STATE_MASK..STATE_MASK + 2].copy_from_slice(&states.to_ne_bytes());
    Expr::Match {
        name: "conntrack".into(),
        revision: 3,
        info,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::testing::in_new_namespace;

    fn config(number: u8, extra: &Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "firewall",
            "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "br0"}], "ips": [
                {"address": format!("10.0.0.{number}/24")},
                {"address": format!("fd00::{number}/64")},
            ]},
        });
        for (key, value) in extra.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    fn call(command: Command, config: &Value) -> Result<Value, Error> {
        let call = Invocation {
            command,
            container_id: "a",
            netns: Some(Path::new("/proc/self/ns/net")),
            interface: "eth0",
            args: "",
            config,
            netns_will_go: false,
        };
        crate::run("firewall", &call)
    }

    fn count(chain: &str) -> usize {
        let mut socket = nft::open().unwrap();
        nft::rules(&mut socket, V4, Some(chain)).unwrap().len()
    }

    #[test]
    fn a_rule_of_all_pods_is_there_once_however_many_come_at_once() {
        in_new_namespace(|| {
            let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
            std::thread::scope(|scope| {
                for number in 2..10 {
                    let namespace = &namespace;
                    scope.spawn(move || {
                        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                        let config = config(number, &json!({"ingressPolicy": "isolated"}));
                        call(Command::Add, &config).unwrap();
                        call(Command::Add, &config).unwrap();
                        call(Command::Check, &config).unwrap();
                    });
                }
            });
            assert_eq!((count(FORWARD), count(STAGE_1), count(STAGE_2)), (2, 3, 2));
            assert_eq!(count(PODS), 1 + 8 * 2);
            for number in 2..10 {
                let config = config(number, &json!({}));
                call(Command::Del, &config).unwrap();
                call(Command::Del, &config).unwrap();
                assert!(call(Command::Check, &config).is_err());
            }
            assert_eq!(count(PODS), 1);
        });
    }

    #[test]
    fn what_others_filter_is_left_to_the_plugin() {
        let plain = config(2, &json!({}));
        in_new_namespace(|| {
            assert!(accepts(&plain));
            for executed in [
                json!({"backend": "iptables"}),
                json!({"backend": "firewalld"}),
                json!({"ingressPolicy": "closed"}),
                json!({"cniVersion": "0.3.1"}),
            ] {
                assert!(!accepts(&config(2, &executed)), "{executed}");
            }
            let mut transaction = Transaction::default();
            transaction.table(FIREWALLD, None);
            transaction.run(&mut nft::open().unwrap()).unwrap();
            assert!(!accepts(&plain));
        });
    }

    #[test]
    fn without_the_matches_of_iptables_the_rules_are_native() {
        in_new_namespace(|| {
            let plain = config(2, &json!({}));
            let previous = Outcome::previous(&plain).unwrap().unwrap();
            let build = |socket: &mut Socket| {
                let mut transaction = Transaction::default();
                for (table, addresses) in families(&previous) {
                    let dialect = Dialect::Native;
                    let mut filter = Filter::read(socket, table, dialect, &mut transaction)?;
                    filter.let_through(ADMIN, &addresses);
                    filter.isolate("br0", Policy::Isolated);
                }
                Ok(transaction)
            };
            for _ in 0..2 {
                change(build).unwrap();
                assert_eq!((count(FORWARD), count(PODS), count(STAGE_1)), (2, 3, 3));
            }
            call(Command::Check, &plain).unwrap();
            call(Command::Del, &plain).unwrap();
            assert_eq!(count(PODS), 1);
        });
    }

    #[test]
    fn a_policy_without_a_bridge_changes_nothing() {
        let mut config = config(2, &json!({"ingressPolicy": "same-bridge"}));
        config["prevResult"]["interfaces"] = json!([]);
        in_new_namespace(|| {
            let error = call(Command::Add, &config).unwrap_err();
            assert!(error.to_string().contains("chain \"firewall\""), "{error}");
            let mut socket = nft::open().unwrap();
            assert!(!nft::has_table(&mut socket, V4).unwrap());
        });
    }
}
