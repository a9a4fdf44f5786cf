//! Source NAT for what leaves a network (`ipMasq`).
//!
//! Owns the rules of one attachment in the table that the plugins' nftables
//! backend uses: the same table, chains, rules and comments, so that either side
//! finds what the other made. Never touches iptables. Each call is one
//! transaction, so a crash leaves the rules of an attachment whole or not at all.

use std::collections::HashSet;

use sha2::{Digest, Sha512};

use crate::Error;
use crate::address::Prefix;
use crate::netlink::{NetlinkError, Socket};
use crate::nft::{self, Expr, Family, Hook, Point, Side, Table, Transaction, Verdict};

const TABLE: Table = Table {
    family: Family::Inet,
    name: "cni_plugins_masquerade",
};
const TABLE_COMMENT: &str = "Masquerading for plugins from github.com/containernetworking/plugins";
/// The chain with a rule for every address.
const CHECKS: &str = "masq_checks";
const CHECKS_COMMENT: &str =
    "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet";
const POSTROUTING: &str = "postrouting";
/// Where `srcnat` is in the order of chains.
const SOURCE_NAT: i32 = 100;
/// The longest comment of the plugins.
const COMMENT: usize = 128;

/// Whose traffic is masqueraded: rules are named after these.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    /// Name of the network.
    pub(crate) network: &'a str,
    /// Name of the container's interface.
    pub(crate) interface: &'a str,
    /// The container.
    pub(crate) container_id: &'a str,
}

/// Whether the built-in can do what `ipMasqBackend` asks for; `None` = the key is missing.
pub(crate) fn accepts(backend: Option<&str>) -> bool {
    matches!(backend, None | Some("nftables"))
}

/// Masquerades what the addresses send out of their own networks.
pub(crate) fn add(owner: Owner<'_>, addresses: &[Prefix]) -> Result<(), Error> {
    let build = |socket: &mut Socket| {
        let rules = nft::rules(socket, TABLE, None)?;
        let mut transaction = Transaction::default();
        if !has_frame(&rules) {
            frame(&mut transaction);
        }
        let prefix = owner.prefix();
        for stale in rules.iter().filter(|rule| is_check(rule, &prefix)) {
            transaction.delete(TABLE, CHECKS, stale.handle);
        }
        let comment = owner.comment();
        for address in addresses {
            transaction.append(TABLE, CHECKS, &rule(address), Some(&comment));
        }
        Ok(transaction)
    };
    nft::change(build).map_err(|source| Error::because("set up ipMasq", source))
}

/// Takes the rules of an attachment away; none is no error.
pub(crate) fn remove(owner: Owner<'_>) -> Result<(), Error> {
    let build = |socket: &mut Socket| {
        let mut transaction = Transaction::default();
        for rule in find(socket, &owner.prefix())? {
            transaction.delete(TABLE, CHECKS, rule.handle);
        }
        Ok(transaction)
    };
    nft::change(build).map_err(|source| Error::because("tear down ipMasq", source))
}

/// Takes the rules of a network's attachments away, except of these
/// (container and interface).
pub(crate) fn collect<'a>(
    network: &'a str,
    valid: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<(), Error> {
    let owner = |(container_id, interface)| Owner {
        network,
        interface,
        container_id,
    };
    let valid: HashSet<String> = valid.into_iter().map(|one| owner(one).comment()).collect();
    let build = |socket: &mut Socket| {
        let mut transaction = Transaction::default();
        for rule in find(socket, &hash(network))? {
            if !rule.comment.is_some_and(|comment| valid.contains(&comment)) {
                transaction.delete(TABLE, CHECKS, rule.handle);
            }
        }
        Ok(transaction)
    };
    nft::change(build).map_err(|source| Error::because("collect ipMasq", source))
}

/// Whether the base chain has its rules, and so the table all its chains. Making
/// them anew would have the kernel throw the old ones away, for nothing.
fn has_frame(rules: &[nft::Rule]) -> bool {
    let there = rules.iter().filter(|rule| rule.chain == POSTROUTING);
    there.map(|rule| &rule.expressions).eq(&frame_rules())
}

/// The table with its chains. A base chain that is half made or foreign is put right.
fn frame(transaction: &mut Transaction) {
    transaction.table(TABLE, Some(TABLE_COMMENT));
    transaction.chain(TABLE, CHECKS, Some(CHECKS_COMMENT));
    let hook = Hook {
        kind: "nat",
        point: Point::Postrouting,
        priority: SOURCE_NAT,
    };
    transaction.base_chain(TABLE, POSTROUTING, hook);
    transaction.flush(TABLE, POSTROUTING);
    for rule in frame_rules() {
        transaction.append(TABLE, POSTROUTING, &rule, None);
    }
}

/// Multicast stays as it is; all else is looked at.
fn frame_rules() -> Vec<Vec<Expr>> {
    let multicast = ["224.0.0.0/4", "ff00::/8"].map(str::parse::<Prefix>);
    let multicast = multicast.into_iter().flatten().map(|multicast| {
        let mut rule = nft::family(multicast.address.is_ipv6()).to_vec();
        rule.extend(nft::network(Side::Destination, true, &multicast));
        rule.push(Expr::Verdict(Verdict::Return));
        rule
    });
    let checks = Expr::Verdict(Verdict::Goto(CHECKS.to_owned()));
    multicast.chain([vec![checks]]).collect()
}

fn rule(address: &Prefix) -> Vec<Expr> {
    let mut rule = nft::family(address.address.is_ipv6()).to_vec();
    rule.extend(nft::address(Side::Source, address.address));
    rule.extend(nft::network(Side::Destination, false, address));
    rule.push(Expr::Masquerade);
    rule
}

/// Rules whose comment begins like this.
fn find(socket: &mut Socket, prefix: &str) -> Result<Vec<nft::Rule>, NetlinkError> {
    let mut rules = nft::rules(socket, TABLE, Some(CHECKS))?;
    rules.retain(|rule| is_check(rule, prefix));
    Ok(rules)
}

fn is_check(rule: &nft::Rule, prefix: &str) -> bool {
    let comment = rule.comment.as_deref().unwrap_or_default();
    rule.chain == CHECKS && comment.starts_with(prefix)
}

/// The name of something in a comment: the first 16 digits of its digest.
fn hash(text: &str) -> String {
    let digest = Sha512::digest(text.as_bytes());
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl Owner<'_> {
    /// What the comments of an attachment's rules begin with.
    fn prefix(&self) -> String {
        let instance = format!("{}:{}", self.interface, self.container_id);
        format!("{}-{}", hash(self.network), hash(&instance))
    }

    /// The comment of an attachment's rules, cut off where the plugins cut it.
    fn comment(&self) -> String {
        let plain = |text: &str| text.replace('"', "");
        let mut comment = format!(
            "{}, net: {}, if: {}, id: {}",
            self.prefix(),
            plain(self.network),
            plain(self.interface),
            plain(self.container_id),
        );
        // The plugins count bytes; the kernel takes text of any form.
        let mut end = comment.len().min(COMMENT);
        while !comment.is_char_boundary(end) {
            end -= 1;
        }
        comment.truncate(end);
        comment
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_new_namespace;

    fn owner(container_id: &str) -> Owner<'_> {
        Owner {
            network: "net",
            interface: "eth0",
            container_id,
        }
    }

    fn count() -> usize {
        let mut socket = nft::open().unwrap();
        nft::rules(&mut socket, TABLE, Some(CHECKS)).unwrap().len()
    }

    fn addresses() -> [Prefix; 2] {
        [
            "10.1.0.2/24".parse().unwrap(),
            "fd00::2/64".parse().unwrap(),
        ]
    }

    #[test]
    fn the_comment_is_the_plugins_own() {
        // As the bridge plugin of containernetworking/plugins v1.9.1 wrote it.
        assert_eq!(
            owner("aaaabbbbccccdddd").comment(),
            "a4861f4ae9f7d238-a64ba18ca6ffe108, net: net, if: eth0, id: aaaabbbbccccdddd"
        );
        let long = "c".repeat(200);
        assert_eq!(owner(&long).comment().len(), COMMENT);
    }

    #[test]
    fn adding_again_replaces_and_removing_twice_is_no_error() {
        in_new_namespace(|| {
            remove(owner("a")).unwrap();
            add(owner("a"), &addresses()).unwrap();
            add(owner("b"), &addresses()).unwrap();
            add(owner("a"), &addresses()).unwrap();
            assert_eq!(count(), 4);
            remove(owner("a")).unwrap();
            remove(owner("a")).unwrap();
            assert_eq!(count(), 2);
        });
    }

    #[test]
    fn collecting_leaves_what_is_valid_and_other_networks() {
        in_new_namespace(|| {
            let other = Owner {
                network: "other",
                ..owner("a")
            };
            for owner in [owner("a"), owner("b"), other] {
                add(owner, &addresses()).unwrap();
            }
            collect("net", [("b", "eth0")]).unwrap();
            assert_eq!(count(), 4);
            collect("net", []).unwrap();
            assert_eq!(count(), 2);
        });
    }

    #[test]
    fn calls_at_the_same_time_do_not_disturb_each_other() {
        in_new_namespace(|| {
            std::thread::scope(|scope| {
                for id in ["a", "b", "c", "d"] {
                    scope.spawn(move || {
                        for _ in 0..20 {
                            add(owner(id), &addresses()).unwrap();
                            remove(owner(id)).unwrap();
                        }
                    });
                }
            });
            assert_eq!(count(), 0);
        });
    }
}
