//! The `firewall` plugin: what is forwarded from and to a pod is let through.
//!
//! Owns the rules of a pod's addresses in the chains that the plugin makes with
//! `iptables` on top of nftables: the same chains, and rules that `iptables` shows
//! and deletes as its own, so that either side finds what the other made. They must
//! be in that table: a packet that another table lets through can still be dropped
//! by `FORWARD`. No program is run, none needs to be there.
//!
//! A node whose packets go through iptables of the old kind, or through firewalld,
//! is left to the plugin, and so is a configuration that names a backend. A call is
//! one transaction; a crash leaves all of its rules or none.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use serde_json::Value;

use crate::address::{Prefix, width};
use crate::netlink::{NetlinkError, Socket};
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
    let firewalld = || {
        let mut socket = nft::open()?;
        nft::has_table(&mut socket, FIREWALLD)
    };
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
    let build = |socket: &mut Socket| {
        let mut transaction = Transaction::default();
        for (table, addresses) in families(previous) {
            let mut filter = Filter::read(socket, table, &mut transaction)?;
            filter.let_through(settings.admin(), &addresses);
            if let Some(bridge) = bridge {
                filter.isolate(bridge, policy);
            }
        }
        Ok(transaction)
    };
    change(build).map_err(|source| Error::because("set up firewall rules", source))
}

fn remove(previous: &Outcome) -> Result<(), Error> {
    let build = |socket: &mut Socket| {
        let mut transaction = Transaction::default();
        for (table, addresses) in families(previous) {
            let rules = nft::rules(socket, table, Some(PODS))?;
            for wanted in addresses.iter().flat_map(|address| pod(*address)) {
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
    let failed = |source| Error::because("list firewall rules", source);
    let mut socket = nft::open().map_err(failed)?;
    for (table, addresses) in families(previous) {
        let rules = nft::rules(&mut socket, table, None).map_err(failed)?;
        let mut wanted = vec![
            (FORWARD, commented(RULES, jump(PODS))),
            (PODS, commented(OVERRIDES, jump(settings.admin()))),
        ];
        let pods = addresses.iter().flat_map(|address| pod(*address));
        wanted.extend(pods.map(|rule| (PODS, rule)));
        for (chain, rule) in wanted {
            let is_it = |found: &nft::Rule| found.chain == chain && found.expressions == rule;
            if !rules.iter().any(is_it) {
                let family = if table == V4 { "IPv4" } else { "IPv6" };
                let msg = format!("expected {family} rule in {chain:?} not found");
                return Err(Error::internal(msg).details(format!("{rule:?}")));
            }
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
        transaction: &'a mut Transaction,
    ) -> Result<Self, NetlinkError> {
        let rules = nft::rules(socket, table, None)?;
        let rules = rules.into_iter().map(|rule| (rule.chain, rule.expressions));
        transaction.table(table, None);
        Ok(Self {
            table,
            rules: rules.collect(),
            transaction,
        })
    }

    fn let_through(&mut self, admin: &str, addresses: &[IpAddr]) {
        self.transaction.chain(self.table, PODS, None);
        self.transaction.chain(self.table, admin, None);
        self.forward();
        self.ensure(FORWARD, commented(RULES, jump(PODS)), Place::First);
        self.ensure(PODS, commented(OVERRIDES, jump(admin)), Place::First);
        for rule in addresses.iter().flat_map(|address| pod(*address)) {
            self.ensure(PODS, rule, Place::Last);
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
        self.transaction.chain(self.table, STAGE_1, None);
        self.transaction.chain(self.table, STAGE_2, None);
        self.ensure(FORWARD, commented(ISOLATION, jump(STAGE_1)), Place::First);
        let rule = |out: bool, comment: &str, verdict: Verdict| {
            let mut rule = nft::interface(Meta::InputName, true, bridge).to_vec();
            rule.extend(nft::interface(Meta::OutputName, out, bridge));
            rule.extend(commented(comment, verdict));
            rule
        };
        let leaves = rule(false, of_policy, jump(STAGE_2));
        self.ensure(STAGE_1, leaves, Place::First);
        if policy == Policy::Isolated {
            let stays = rule(true, of_policy, Verdict::Drop);
            self.ensure(STAGE_1, stays, Place::First);
        }
        let rest = commented(ISOLATION, Verdict::Return);
        self.ensure(STAGE_1, rest.clone(), Place::Last);
        let mut enters = nft::interface(Meta::OutputName, true, bridge).to_vec();
        enters.extend(commented(ISOLATION, Verdict::Drop));
        self.ensure(STAGE_2, enters, Place::First);
        self.ensure(STAGE_2, rest, Place::Last);
    }

    fn forward(&mut self) {
        let hook = Hook {
            kind: "filter",
            point: Point::Forward,
            priority: 0,
        };
        self.transaction.base_chain(self.table, FORWARD, hook);
    }

    /// The rule, unless the chain has it.
    fn ensure(&mut self, chain: &str, rule: Vec<Expr>, place: Place) {
        let is_there = |(of, there): &(String, Vec<Expr>)| of == chain && *there == rule;
        if self.rules.iter().any(is_there) {
            return;
        }
        match place {
            Place::First => self.transaction.insert(self.table, chain, &rule),
            Place::Last => self.transaction.append(self.table, chain, &rule, None),
        }
        self.rules.push((chain.to_owned(), rule));
    }
}

/// The two rules of a pod's address: answers to it, and all that it sends.
fn pod(address: IpAddr) -> [Vec<Expr>; 2] {
    let length = width(address);
    let prefix = Prefix { address, length };
    let mut answers = nft::network(Side::Destination, true, &prefix);
    answers.extend([related_or_established(), Expr::Counter]);
    answers.push(Expr::Verdict(Verdict::Accept));
    let mut sent = nft::network(Side::Source, true, &prefix);
    sent.extend([Expr::Counter, Expr::Verdict(Verdict::Accept)]);
    [answers, sent]
}

fn jump(chain: &str) -> Verdict {
    Verdict::Jump(chain.to_owned())
}

/// The end of a rule that has a comment of iptables.
fn commented(text: &str, verdict: Verdict) -> Vec<Expr> {
    const LENGTH: usize = 256;
    let mut info = text.as_bytes().to_vec();
    info.resize(LENGTH, 0);
    let comment = Expr::Match {
        name: "comment".into(),
        revision: 0,
        info,
    };
    vec![comment, Expr::Counter, Expr::Verdict(verdict)]
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
