//! The expressions that rules are made of.
//!
//! Owns how each looks to the kernel, in both directions; which of them a rule
//! needs, and in which order, is said where the rule is made.

use std::net::IpAddr;

use crate::address::{Prefix, octets};
use crate::netlink::{Attribute, Message};

const LIST_ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;
/// Verdicts are written to this register.
const VERDICT_REGISTER: u32 = 0;
/// Of what is known of a connection.
const CONNECTION_STATE: u32 = 0;
/// The two of the 16-byte registers that rules here use.
const FIRST: u32 = 1;
const SECOND: u32 = 2;

/// What is known of a packet without looking into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Meta {
    /// Name of the interface it came in by.
    InputName = 6,
    /// Name of the interface it leaves by.
    OutputName = 7,
    /// The family, in a table of both.
    Family = 15,
    /// The transport protocol.
    Transport = 16,
}

/// Where an offset into a packet starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Base {
    /// At the header of IPv4 or IPv6.
    Network = 1,
    /// At the header of TCP, UDP or SCTP.
    Transport = 2,
}

/// Which address of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// How a rule ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The packet may pass this chain's hook.
    Accept,
    /// The packet is dropped.
    Drop,
    /// The chain is left.
    Return,
    /// Another chain is entered, and this one gone on with.
    Jump(String),
    /// Another chain is entered instead of the rest of this one.
    Goto(String),
}

/// One expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expr {
    /// Loads what is known of the packet.
    Meta(Meta),
    /// Loads bytes of the packet.
    Payload {
        /// What the offset counts from.
        base: Base,
        /// Where they start.
        offset: u32,
        /// How many.
        length: u32,
    },
    /// Keeps only these bits of what was loaded.
    Mask(Vec<u8>),
    /// The rule goes on only where what was loaded is (`true`), or is not, this.
    Is(bool, Vec<u8>),
    /// Loads the kind of the destination address (`local` and others).
    DestinationKind,
    /// Loads what is known of the packet's connection: a bit for each state.
    ConnectionState,
    /// Counts packets; how many is not part of what a rule is.
    Counter,
    /// A match of iptables in iptables' own form.
    Match {
        /// Its name.
        name: String,
        /// Which form of the data.
        revision: u32,
        /// The data.
        info: Vec<u8>,
    },
    /// The packet goes to another address and port.
    Dnat(IpAddr, u16),
    /// The packet leaves with the address of the interface it leaves by.
    Masquerade,
    /// The end.
    Verdict(Verdict),
    /// Something that no rule from here has.
    Foreign,
}

/// Appends the expressions of a rule to its message.
pub(super) fn write(message: &mut Message, expressions: &[Expr]) {
    for expression in expressions {
        if let Expr::Dnat(address, port) = expression {
            element(message, "immediate", |data| {
                data.be32(1, FIRST);
                value(data, 2, &octets(*address));
            });
            element(message, "immediate", |data| {
                data.be32(1, SECOND);
                value(data, 2, &port.to_be_bytes());
            });
        }
        element(message, expression.name(), |data| expression.write(data));
    }
}

fn element(message: &mut Message, name: &str, data: impl FnOnce(&mut Message)) {
    message.nested(LIST_ELEMENT, |element| {
        element.text(NAME, name).nested(DATA, data);
    });
}

fn value(data: &mut Message, kind: u16, bytes: &[u8]) {
    data.nested(kind, |nested| {
        nested.attribute(VALUE, bytes);
    });
}

impl Expr {
    fn name(&self) -> &'static str {
        match self {
            Self::Meta(_) => "meta",
            Self::Payload { .. } => "payload",
            Self::Mask(_) => "bitwise",
            Self::Is(..) => "cmp",
            Self::DestinationKind => "fib",
            Self::ConnectionState => "ct",
            Self::Counter => "counter",
            Self::Match { .. } => "match",
            Self::Dnat(..) => "nat",
            Self::Masquerade => "masq",
            Self::Verdict(_) => "immediate",
            Self::Foreign => "",
        }
    }

    fn write(&self, data: &mut Message) {
        match self {
            Self::Meta(key) => {
                data.be32(2, *key as u32).be32(1, FIRST);
            }
            Self::Payload {
                base,
                offset,
                length,
            } => {
                data.be32(1, FIRST).be32(2, *base as u32);
                data.be32(3, *offset).be32(4, *length);
            }
            Self::Mask(mask) => {
                data.be32(1, FIRST)
                    .be32(2, FIRST)
                    .be32(3, mask.len() as u32);
                value(data, 4, mask);
                value(data, 5, &vec![0; mask.len()]);
            }
            Self::Is(equal, bytes) => {
                data.be32(1, FIRST).be32(2, u32::from(!equal));
                value(data, 3, bytes);
            }
            Self::DestinationKind => {
                data.be32(3, fib::DESTINATION)
                    .be32(2, fib::RESULT_KIND)
                    .be32(1, FIRST);
            }
            Self::ConnectionState => {
                data.be32(2, CONNECTION_STATE).be32(1, FIRST);
            }
            Self::Counter => {
                data.be64(1, 0).be64(2, 0);
            }
            Self::Match {
                name,
                revision,
                info,
            } => {
                data.text(1, name).be32(2, *revision).attribute(3, info);
            }
            Self::Dnat(address, _) => {
                let family = if address.is_ipv4() {
                    libc::AF_INET
                } else {
                    libc::AF_INET6
                };
                data.be32(1, nat::DESTINATION).be32(2, family as u32);
                data.be32(3, FIRST).be32(5, SECOND);
            }
            Self::Masquerade | Self::Foreign => {}
            Self::Verdict(verdict) => {
                data.be32(1, VERDICT_REGISTER).nested(2, |nested| {
                    nested.nested(VERDICT, |inner| verdict.write(inner));
                });
            }
        }
    }

    /// An expression as the kernel lists it; the registers do not count.
    pub(super) fn read(element: &Attribute<'_>) -> Self {
        let mut name = None;
        let mut data = Vec::new();
        for attribute in element.nested() {
            match attribute.kind {
                NAME => name = attribute.text(),
                DATA => data = attribute.nested().collect(),
                _ => {}
            }
        }
        let fields = Fields(&data);
        name.and_then(|name| Self::understand(name, &fields))
            .unwrap_or(Self::Foreign)
    }

    fn understand(name: &str, fields: &Fields<'_>) -> Option<Self> {
        Some(match name {
            "meta" => Self::Meta(match fields.number(2)? {
                6 => Meta::InputName,
                7 => Meta::OutputName,
                15 => Meta::Family,
                16 => Meta::Transport,
                _ => return None,
            }),
            "payload" => Self::Payload {
                base: match fields.number(2)? {
                    1 => Base::Network,
                    2 => Base::Transport,
                    _ => return None,
                },
                offset: fields.number(3)?,
                length: fields.number(4)?,
            },
            "cmp" => Self::Is(
                match fields.number(2)? {
                    0 => true,
                    1 => false,
                    _ => return None,
                },
                fields.inside(3)?.value.to_vec(),
            ),
            "bitwise" if fields.is_zero(5) => Self::Mask(fields.inside(4)?.value.to_vec()),
            "fib" if fields.number(2)? == fib::RESULT_KIND => Self::DestinationKind,
            "ct" if fields.number(2)? == CONNECTION_STATE => Self::ConnectionState,
            "counter" => Self::Counter,
            "masq" if fields.0.is_empty() => Self::Masquerade,
            "match" => Self::Match {
                name: fields.find(1)?.text()?.to_owned(),
                revision: fields.number(2)?,
                info: fields.find(3)?.value.to_vec(),
            },
            "immediate" if fields.number(1)? == VERDICT_REGISTER => {
                Self::Verdict(Verdict::read(&fields.inside(2)?)?)
            }
            _ => return None,
        })
    }
}

impl Verdict {
    fn write(&self, data: &mut Message) {
        let (code, chain): (i32, _) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        data.be32(1, code as u32);
        if let Some(chain) = chain {
            data.text(2, chain);
        }
    }

    fn read(attribute: &Attribute<'_>) -> Option<Self> {
        let data: Vec<_> = attribute.nested().collect();
        let fields = Fields(&data);
        let chain = || Some(fields.find(2)?.text()?.to_owned());
        Some(match fields.number(1)? as i32 {
            0 => Self::Drop,
            1 => Self::Accept,
            -3 => Self::Jump(chain()?),
            -4 => Self::Goto(chain()?),
            -5 => Self::Return,
            _ => return None,
        })
    }
}

/// The attributes of an expression.
struct Fields<'a>(&'a [Attribute<'a>]);

impl<'a> Fields<'a> {
    fn find(&self, kind: u16) -> Option<&Attribute<'a>> {
        self.0.iter().find(|attribute| attribute.kind == kind)
    }

    fn number(&self, kind: u16) -> Option<u32> {
        self.find(kind)?.be32()
    }

    /// Whether all bits of a value are zero.
    fn is_zero(&self, kind: u16) -> bool {
        let value = self.inside(kind);
        value.is_some_and(|value| value.value.iter().all(|byte| *byte == 0))
    }

    /// The only attribute inside another.
    fn inside(&self, kind: u16) -> Option<Attribute<'a>> {
        self.find(kind)?.nested().next()
    }
}

mod fib {
    pub(super) const DESTINATION: u32 = 2;
    pub(super) const RESULT_KIND: u32 = 3;
    pub(super) const LOCAL: u32 = 2;
}

mod nat {
    pub(super) const DESTINATION: u32 = 1;
}

/// Only packets of this family: for tables of both.
pub(crate) fn family(v6: bool) -> [Expr; 2] {
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    [Expr::Meta(Meta::Family), Expr::Is(true, vec![family as u8])]
}

/// Only packets that came in (or leave) by this interface, or by any other. The
/// name is compared with its end, so that `b1` is not `b10`.
pub(crate) fn interface(which: Meta, equal: bool, name: &str) -> [Expr; 2] {
    let mut value = name.as_bytes().to_vec();
    value.push(0);
    [Expr::Meta(which), Expr::Is(equal, value)]
}

/// Only packets with an address in (or not in) this network. A prefix of whole
/// bytes is compared as it is, any other behind a mask.
pub(crate) fn network(side: Side, equal: bool, network: &Prefix) -> Vec<Expr> {
    let address = octets(network.network().address);
    let (whole, bits) = (usize::from(network.length) / 8, network.length % 8);
    let length = if bits == 0 && whole > 0 {
        whole
    } else {
        address.len()
    };
    let source = if address.len() == 4 { 12 } else { 8 };
    let offset = match side {
        Side::Source => source,
        Side::Destination => source + address.len() as u32,
    };
    let base = Base::Network;
    let length32 = length as u32;
    let mut expressions = vec![Expr::Payload {
        base,
        offset,
        length: length32,
    }];
    if length == address.len() && length != whole {
        let mut mask = vec![0; length];
        mask[..whole].fill(0xff);
        mask[whole] = !(0xff_u8 >> bits);
        expressions.push(Expr::Mask(mask));
    }
    expressions.push(Expr::Is(equal, address[..length].to_vec()));
    expressions
}

/// Only packets with this address.
pub(crate) fn address(side: Side, address: IpAddr) -> Vec<Expr> {
    let length = crate::address::width(address);
    network(side, true, &Prefix { address, length })
}

/// Only packets of this protocol to this port.
pub(crate) fn port(protocol: u8, port: u16) -> [Expr; 4] {
    let base = Base::Transport;
    [
        Expr::Meta(Meta::Transport),
        Expr::Is(true, vec![protocol]),
        Expr::Payload {
            base,
            offset: 2,
            length: 2,
        },
        Expr::Is(true, port.to_be_bytes().to_vec()),
    ]
}

/// Only packets of connections that have had an answer, or belong to one that has.
pub(crate) fn related_or_established() -> [Expr; 3] {
    const ESTABLISHED: u32 = 1 << 1;
    const RELATED: u32 = 1 << 2;
    [
        Expr::ConnectionState,
        Expr::Mask((ESTABLISHED | RELATED).to_ne_bytes().to_vec()),
        Expr::Is(false, vec![0; 4]),
    ]
}

/// Only packets to an address of this machine.
pub(crate) fn to_this_machine() -> [Expr; 2] {
    [
        Expr::DestinationKind,
        Expr::Is(true, fib::LOCAL.to_ne_bytes().to_vec()),
    ]
}
