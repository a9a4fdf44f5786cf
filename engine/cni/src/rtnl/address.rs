//! Addresses of links.
//!
//! Owns the messages about addresses; decides nothing.

use crate::address::{Prefix, from_octets, octets};
use crate::netlink::{Message, NetlinkError, Reply, Socket, attributes, flag};

use super::family;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const FIXED: usize = 8;

/// Not yet known to be nobody else's.
const TENTATIVE: u32 = 0x40;
/// Found to be somebody else's.
const DUPLICATE: u32 = 0x08;

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Assigned {
    /// The address with its network.
    pub(crate) prefix: Prefix,
    index: u32,
    flags: u32,
}

impl Assigned {
    /// Whether the kernel still looks for another owner of it.
    pub(crate) fn is_tentative(&self) -> bool {
        self.flags & TENTATIVE != 0
    }

    /// Whether the kernel found another owner of it.
    pub(crate) fn is_duplicate(&self) -> bool {
        self.flags & DUPLICATE != 0
    }

    fn parse(reply: &Reply) -> Option<Self> {
        let length = *reply.body.get(1)?;
        let index = u32::from_ne_bytes(reply.body.get(4..8)?.try_into().ok()?);
        let mut flags = u32::from(*reply.body.get(2)?);
        let (mut local, mut address) = (None, None);
        for attribute in attributes(reply.body.get(FIXED..)?) {
            match attribute.kind {
                IFA_LOCAL => local = from_octets(attribute.value),
                IFA_ADDRESS => address = from_octets(attribute.value),
                IFA_FLAGS => flags = attribute.u32()?,
                _ => {}
            }
        }
        let address = local.or(address)?;
        let prefix = Prefix { address, length };
        Some(Self {
            prefix,
            index,
            flags,
        })
    }
}

fn request(what: &'static str, kind: u16, index: u32, prefix: &Prefix) -> Message {
    let mut message = Message::new(what, kind, 0);
    let mut fixed = [0; FIXED];
    fixed[0] = family(prefix.address);
    fixed[1] = prefix.length;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    message.raw(&fixed);
    let bytes = octets(prefix.address);
    message.attribute(IFA_LOCAL, &bytes);
    message.attribute(IFA_ADDRESS, &bytes);
    // A network of one or two addresses has no broadcast address (RFC 3021).
    if prefix.address.is_ipv4() && prefix.length < 31 {
        message.attribute(IFA_BROADCAST, &octets(prefix.last()));
    }
    message
}

/// Gives a link an address.
pub(crate) fn add(index: u32, prefix: &Prefix) -> Message {
    let mut message = request("add an address", libc::RTM_NEWADDR, index, prefix);
    message.flags(flag::CREATE | flag::EXCL);
    message
}

/// Takes an address off a link.
pub(crate) fn remove(index: u32, prefix: &Prefix) -> Message {
    request("remove an address", libc::RTM_DELADDR, index, prefix)
}

/// The addresses of a link, IPv4 first.
pub(crate) fn list(socket: &mut Socket, index: u32) -> Result<Vec<Assigned>, NetlinkError> {
    let mut found = list_family(socket, index, false)?;
    found.extend(list_family(socket, index, true)?);
    Ok(found)
}

/// The addresses of a link in one family.
pub(crate) fn list_family(
    socket: &mut Socket,
    index: u32,
    v6: bool,
) -> Result<Vec<Assigned>, NetlinkError> {
    let mut message = Message::new("list addresses", libc::RTM_GETADDR, 0);
    let mut fixed = [0; FIXED];
    fixed[0] = family(Prefix::any(v6).address);
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    message.raw(&fixed);
    let replies = socket.dump(&message)?;
    let found = replies.iter().filter_map(Assigned::parse);
    // Kernels before 4.20 list those of all links.
    Ok(found
        .filter(|found| found.index == index && found.prefix.address.is_ipv6() == v6)
        .collect())
}
