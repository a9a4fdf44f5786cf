//! nftables: transactions of tables, chains and rules, and finding rules again.
//!
//! Owns the messages; never runs a program. What a plugin call changes is one
//! transaction: the kernel takes all of it or nothing, so a crash leaves either
//! state and nothing between.

mod expr;
#[cfg(test)]
mod tests;

pub(crate) use expr::{
    Expr, Meta, Side, Verdict, address, family, interface, network, port, related_or_established,
    to_this_machine,
};

use rustix::io::Errno;

use crate::netlink::{Message, NetlinkError, Reply, Socket, attributes, flag, with_netfilter};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
/// Another call may take the same rules away between reading and deleting.
const TRIES: usize = 8;
/// Any transaction on the node gets in the way of an exact one.
const EXACT_TRIES: usize = 100;
/// `struct nfgenmsg` before the attributes.
const FIXED: usize = 4;

/// The family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Family {
    /// No table is meant.
    Any = 0,
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4.
    Ip = 2,
    /// IPv6.
    Ip6 = 10,
}

/// A table, by which rules are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    /// Of which packets.
    pub(crate) family: Family,
    /// Its name.
    pub(crate) name: &'static str,
}

/// Where the kernel begins a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hook {
    /// `nat` or `filter`.
    pub(crate) kind: &'static str,
    /// The place in a packet's way.
    pub(crate) point: Point,
    /// The order among the chains of that place.
    pub(crate) priority: i32,
}

/// A place in a packet's way through the machine.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Point {
    /// Before it is routed.
    Prerouting = 0,
    /// On its way from one interface to another.
    Forward = 2,
    /// Made on this machine, before it is routed.
    Output = 3,
    /// About to leave.
    Postrouting = 4,
}

/// A rule that is there.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// The chain it is in.
    pub(crate) chain: String,
    /// The kernel's number of it.
    pub(crate) handle: u64,
    /// Its comment.
    pub(crate) comment: Option<String>,
    /// What it is made of.
    pub(crate) expressions: Vec<Expr>,
}

/// What is to be changed, in order.
#[derive(Debug, Default)]
pub(crate) struct Transaction(Vec<Message>);

impl Transaction {
    /// Whether there is nothing to change.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A table, unless it is there.
    pub(crate) fn table(&mut self, table: Table, comment: Option<&str>) {
        let mut message = start(
            "add an nftables table",
            NEW_TABLE,
            flag::CREATE,
            table.family,
        );
        message.text(1, table.name);
        if let Some(comment) = comment {
            message.attribute(6, &user_data(comment));
        }
        self.0.push(message);
    }

    /// A chain, unless it is there.
    pub(crate) fn chain(&mut self, table: Table, name: &str, comment: Option<&str>) {
        let mut message = start(
            "add an nftables chain",
            NEW_CHAIN,
            flag::CREATE,
            table.family,
        );
        message.text(1, table.name).text(3, name);
        if let Some(comment) = comment {
            message.attribute(12, &user_data(comment));
        }
        self.0.push(message);
    }

    /// A chain at a hook, unless it is there.
    pub(crate) fn base_chain(&mut self, table: Table, name: &str, hook: Hook) {
        let mut message = start(
            "add an nftables base chain",
            NEW_CHAIN,
            flag::CREATE,
            table.family,
        );
        message.text(1, table.name).text(3, name);
        message.nested(4, |nested| {
            nested
                .be32(1, hook.point as u32)
                .be32(2, hook.priority as u32);
        });
        message.text(7, hook.kind);
        self.0.push(message);
    }

    /// Takes all rules of a chain away; the chain must be there, or be made before.
    pub(crate) fn flush(&mut self, table: Table, chain: &str) {
        let mut message = start("flush an nftables chain", DELETE_RULE, 0, table.family);
        message.text(1, table.name).text(2, chain);
        self.0.push(message);
    }

    /// A rule at the end of a chain.
    pub(crate) fn append(
        &mut self,
        table: Table,
        chain: &str,
        rule: &[Expr],
        comment: Option<&str>,
    ) {
        let flags = flag::CREATE | flag::APPEND;
        let mut message = start("add an nftables rule", NEW_RULE, flags, table.family);
        body(&mut message, table, chain, rule);
        if let Some(comment) = comment {
            message.attribute(7, &user_data(comment));
        }
        self.0.push(message);
    }

    /// A rule at the beginning of a chain.
    pub(crate) fn insert(
        &mut self,
        table: Table,
        chain: &str,
        rule: &[Expr],
        comment: Option<&str>,
    ) {
        let mut message = start(
            "insert an nftables rule",
            NEW_RULE,
            flag::CREATE,
            table.family,
        );
        body(&mut message, table, chain, rule);
        if let Some(comment) = comment {
            message.attribute(7, &user_data(comment));
        }
        self.0.push(message);
    }

    /// Takes one rule away.
    pub(crate) fn delete(&mut self, table: Table, chain: &str, handle: u64) {
        let mut message = start("delete an nftables rule", DELETE_RULE, 0, table.family);
        message.text(1, table.name).text(2, chain).be64(3, handle);
        self.0.push(message);
    }

    /// Has the kernel take all of it, or nothing.
    pub(crate) fn run(self, socket: &mut Socket) -> Result<(), NetlinkError> {
        if self.is_empty() {
            return Ok(());
        }
        socket.batch(self.0).map(drop)
    }
}

/// A socket of a test's own.
#[cfg(test)]
pub(crate) fn open() -> Result<Socket, NetlinkError> {
    Socket::open(crate::netlink::Family::Netfilter)
}

/// The rules of a chain, or of all chains, in their order; none where there is no
/// such table or chain.
pub(crate) fn rules(
    socket: &mut Socket,
    table: Table,
    chain: Option<&str>,
) -> Result<Vec<Rule>, NetlinkError> {
    let mut message = start("list nftables rules", GET_RULE, 0, table.family);
    message.text(1, table.name);
    if let Some(chain) = chain {
        message.text(2, chain);
    }
    let replies = match socket.dump(&message) {
        Err(error) if error.errno() == Some(Errno::NOENT) => return Ok(Vec::new()),
        replies => replies?,
    };
    let mut rules: Vec<Rule> = replies.iter().filter_map(rule).collect();
    rules.retain(|rule| chain.is_none_or(|chain| rule.chain == chain));
    Ok(rules)
}

/// Reads, then changes what `build` says; once more where what was read has been
/// taken away meanwhile.
pub(crate) fn change(
    build: impl Fn(&mut Socket) -> Result<Transaction, NetlinkError>,
) -> Result<(), NetlinkError> {
    with_netfilter(|socket| {
        for _ in 1..TRIES {
            match build(socket)?.run(socket) {
                Err(error) if error.errno() == Some(Errno::NOENT) => {}
                done => return done,
            }
        }
        build(socket)?.run(socket)
    })
}

/// The same for changes that are only right if nothing at all has changed since
/// reading, such as a rule that must be there once.
pub(crate) fn change_exactly(
    build: impl Fn(&mut Socket) -> Result<Transaction, NetlinkError>,
) -> Result<(), NetlinkError> {
    with_netfilter(|socket| {
        let mut tries = 1;
        loop {
            let generation = generation(socket)?;
            let transaction = build(socket)?;
            if transaction.is_empty() {
                return Ok(());
            }
            match socket.batch_on(Some(generation), transaction.0) {
                Err(error) if error.errno() == Some(Errno::RESTART) && tries < EXACT_TRIES => {
                    tries += 1;
                }
                done => return done.map(drop),
            }
        }
    })
}

/// A number that every transaction of anyone changes.
fn generation(socket: &mut Socket) -> Result<u32, NetlinkError> {
    let message = start(
        "look up the generation of nftables",
        GET_GENERATION,
        0,
        Family::Any,
    );
    let reply = socket.get(message)?;
    let body = reply.as_ref().and_then(|reply| reply.body.get(FIXED..));
    let mut fields = attributes(body.unwrap_or_default());
    let number = fields.find(|one| one.kind == 1).and_then(|one| one.be32());
    number.ok_or(NetlinkError::NoAnswer("look up the generation of nftables"))
}

/// Whether a chain is there.
pub(crate) fn has_chain(
    socket: &mut Socket,
    table: Table,
    chain: &str,
) -> Result<bool, NetlinkError> {
    let mut message = start("look up an nftables chain", GET_CHAIN, 0, table.family);
    message.text(1, table.name).text(3, chain);
    Ok(socket.get(message)?.is_some())
}

/// Whether a table is there.
pub(crate) fn has_table(socket: &mut Socket, table: Table) -> Result<bool, NetlinkError> {
    let mut message = start("look up an nftables table", GET_TABLE, 0, table.family);
    message.text(1, table.name);
    Ok(socket.get(message)?.is_some())
}

fn rule(reply: &Reply) -> Option<Rule> {
    let mut rule = Rule {
        chain: String::new(),
        handle: 0,
        comment: None,
        expressions: Vec::new(),
    };
    for attribute in attributes(reply.body.get(FIXED..)?) {
        match attribute.kind {
            2 => rule.chain = attribute.text()?.to_owned(),
            3 => rule.handle = attribute.be64()?,
            4 => rule.expressions = attribute.nested().map(|one| Expr::read(&one)).collect(),
            7 => rule.comment = comment(attribute.value),
            _ => {}
        }
    }
    Some(rule)
}

fn start(what: &'static str, kind: u16, flags: u16, family: Family) -> Message {
    let mut message = Message::new(what, kind, flags);
    message.raw(&[family as u8, 0, 0, 0]);
    message
}

fn body(message: &mut Message, table: Table, chain: &str, rule: &[Expr]) {
    message.text(1, table.name).text(2, chain);
    message.nested(4, |list| expr::write(list, rule));
}

/// Comments are kept in the form of nftables' own tools: a kind (0), a length of
/// one byte, a text with its end.
fn user_data(comment: &str) -> Vec<u8> {
    let text = &comment.as_bytes()[..comment.len().min(usize::from(u8::MAX) - 1)];
    let mut data = vec![0, text.len() as u8 + 1];
    data.extend_from_slice(text);
    data.push(0);
    data
}

fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return String::from_utf8(text.to_vec()).ok();
        }
        data = &rest[value.len()..];
    }
    None
}
