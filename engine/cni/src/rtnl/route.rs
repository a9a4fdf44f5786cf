//! Routes.
//!
//! Owns the messages about routes; decides nothing.

use std::net::IpAddr;

use crate::address::{Prefix, from_octets, octets};
use crate::netlink::{Message, NetlinkError, Reply, Socket, attributes, flag};

use super::family;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
/// Of a route to remove: any scope.
const RT_SCOPE_NOWHERE: u8 = 255;
const RTM_F_CLONED: u32 = 0x200;
const FIXED: usize = 12;

/// Only to the network itself.
pub(crate) const SCOPE_LINK: u8 = 253;
/// Only to this machine.
pub(crate) const SCOPE_HOST: u8 = 254;

/// A route to make or to take away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    /// Where to.
    pub(crate) dst: Prefix,
    /// Through whom.
    pub(crate) gateway: Option<IpAddr>,
    /// Out of which link.
    pub(crate) index: u32,
    /// From which address.
    pub(crate) source: Option<IpAddr>,
    /// Its metric; 0 = the kernel's choice.
    pub(crate) priority: u32,
    /// Its table; `None` = main.
    pub(crate) table: Option<u32>,
    /// Its scope; 0 = everywhere.
    pub(crate) scope: u8,
}

impl Path {
    /// A route out of a link.
    pub(crate) fn new(index: u32, dst: Prefix, gateway: Option<IpAddr>) -> Self {
        Self {
            dst,
            gateway,
            index,
            source: None,
            priority: 0,
            table: None,
            scope: 0,
        }
    }
}

fn request(what: &'static str, kind: u16, flags: u16, path: &Path) -> Message {
    let mut message = Message::new(what, kind, flags);
    let table = path.table.filter(|table| *table != 0);
    let table = table.unwrap_or(u32::from(RT_TABLE_MAIN));
    let mut fixed = [0; FIXED];
    fixed[0] = family(path.dst.address);
    fixed[1] = path.dst.length;
    // A table beyond a byte has its number in an attribute only.
    fixed[4] = u8::try_from(table).unwrap_or_default();
    fixed[5] = RTPROT_BOOT;
    fixed[6] = path.scope;
    fixed[7] = RTN_UNICAST;
    message.raw(&fixed);
    message.attribute(RTA_DST, &octets(path.dst.address));
    if let Some(gateway) = path.gateway {
        message.attribute(RTA_GATEWAY, &octets(gateway));
    }
    if let Some(source) = path.source {
        message.attribute(RTA_PREFSRC, &octets(source));
    }
    if path.priority > 0 {
        message.u32(RTA_PRIORITY, path.priority);
    }
    if fixed[4] == 0 {
        message.u32(RTA_TABLE, table);
    }
    message.u32(RTA_OIF, path.index);
    message
}

/// Makes a route; one more to the same place is no error.
pub(crate) fn add(path: &Path) -> Message {
    request("add a route", libc::RTM_NEWROUTE, flag::CREATE, path)
}

/// Makes a route that must not be there.
pub(crate) fn add_new(path: &Path) -> Message {
    let flags = flag::CREATE | flag::EXCL;
    request("add a route", libc::RTM_NEWROUTE, flags, path)
}

/// Takes the main table's route to a network out of a link away, whoever made it.
pub(crate) fn remove(index: u32, dst: Prefix) -> Message {
    let mut message = Message::new("remove a route", libc::RTM_DELROUTE, 0);
    let mut fixed = [0; FIXED];
    fixed[0] = family(dst.address);
    fixed[1] = dst.length;
    fixed[4] = RT_TABLE_MAIN;
    fixed[6] = RT_SCOPE_NOWHERE;
    message.raw(&fixed);
    message.attribute(RTA_DST, &octets(dst.address));
    message.u32(RTA_OIF, index);
    message
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where to.
    pub(crate) dst: Prefix,
    /// Through whom.
    pub(crate) gateway: Option<IpAddr>,
    /// In which table.
    pub(crate) table: u32,
}

impl Found {
    /// Whether it is where a route without a table of its own is.
    pub(crate) fn is_main(&self) -> bool {
        self.table == u32::from(RT_TABLE_MAIN)
    }
}

/// The routes of one family in all tables.
pub(crate) fn list(socket: &mut Socket, v6: bool) -> Result<Vec<Found>, NetlinkError> {
    let mut message = Message::new("list routes", libc::RTM_GETROUTE, 0);
    let mut fixed = [0; FIXED];
    fixed[0] = family(Prefix::any(v6).address);
    message.raw(&fixed);
    let replies = socket.dump(&message)?;
    Ok(replies.iter().filter_map(parse).collect())
}

fn parse(reply: &Reply) -> Option<Found> {
    let body = &reply.body;
    let flags = u32::from_ne_bytes(body.get(8..12)?.try_into().ok()?);
    if flags & RTM_F_CLONED != 0 {
        return None;
    }
    let v6 = i32::from(*body.first()?) == libc::AF_INET6;
    let mut found = Found {
        dst: Prefix {
            length: *body.get(1)?,
            ..Prefix::any(v6)
        },
        gateway: None,
        table: u32::from(*body.get(4)?),
    };
    for attribute in attributes(body.get(FIXED..)?) {
        match attribute.kind {
            RTA_TABLE => found.table = attribute.u32()?,
            RTA_DST => found.dst.address = from_octets(attribute.value)?,
            RTA_GATEWAY => found.gateway = from_octets(attribute.value),
            _ => {}
        }
    }
    Some(found)
}
