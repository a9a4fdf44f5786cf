//! Links: made, looked up, changed, deleted.
//!
//! Owns the messages about links; decides nothing.

use std::fmt;
use std::os::fd::AsRawFd;
use std::str::FromStr;

use rustix::io::Errno;

use crate::netlink::{Message, Namespace, NetlinkError, Reply, Socket, attributes, flag};

const RTM_NEWLINK: u16 = libc::RTM_NEWLINK;
const RTM_DELLINK: u16 = libc::RTM_DELLINK;
const RTM_GETLINK: u16 = libc::RTM_GETLINK;
const RTM_SETLINK: u16 = libc::RTM_SETLINK;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_TXQLEN: u16 = 13;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_PROMISCUITY: u16 = 30;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BRIDGE_FLAGS: u16 = 0;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_FLAGS_MASTER: u16 = 1;
const BRIDGE_VLAN_INFO_PVID: u16 = 1 << 1;
const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 1 << 2;
const RTEXT_FILTER_BRVLAN: u32 = 1 << 1;
const AF_BRIDGE: u8 = 7;
const IF_OPER_UP: u8 = 6;
const FIXED: usize = 16;

/// Flags of a link.
pub(crate) const IFF_UP: u32 = 0x1;
/// Receives what is not for it.
pub(crate) const IFF_PROMISC: u32 = 0x100;
/// Receives all multicast.
pub(crate) const IFF_ALLMULTI: u32 = 0x200;

/// A hardware address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl Mac {
    /// An address of this machine's own making, from random bytes.
    pub(crate) fn local(mut bytes: [u8; 6]) -> Self {
        const GROUP: u8 = 1;
        const LOCAL: u8 = 2;
        bytes[0] = (bytes[0] & !GROUP) | LOCAL;
        Self(bytes)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Why a text is no hardware address.
#[derive(Debug, thiserror::Error)]
#[error("address {0}: invalid MAC address")]
pub(crate) struct MacError(String);

impl FromStr for Mac {
    type Err = MacError;

    /// `aa:bb:..`, `aa-bb-..` or `aabb.ccdd.eeff`.
    fn from_str(text: &str) -> Result<Self, MacError> {
        let invalid = || MacError(text.to_owned());
        let (separator, width) = match text.as_bytes().get(2) {
            Some(b':') => (':', 2),
            Some(b'-') => ('-', 2),
            _ => ('.', 4),
        };
        let mut bytes = Vec::new();
        for group in text.split(separator) {
            if group.len() != width || !group.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(invalid());
            }
            let value = u16::from_str_radix(group, 16).map_err(|_| invalid())?;
            let value = value.to_be_bytes();
            bytes.extend_from_slice(&value[2 - width / 2..]);
        }
        bytes.try_into().map(Self).map_err(|_| invalid())
    }
}

/// What the kernel says of a link.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    /// Its number in its namespace.
    pub(crate) index: u32,
    /// Its name.
    pub(crate) name: String,
    /// Its hardware address.
    pub(crate) mac: Mac,
    /// Its MTU.
    pub(crate) mtu: u32,
    /// `IFF_*`.
    pub(crate) flags: u32,
    /// The bridge it is a port of; 0 = none.
    pub(crate) master: u32,
    /// The other end of a veth, in the other end's namespace.
    pub(crate) peer: u32,
    /// "veth", "bridge", ...; empty for what no driver made on request.
    pub(crate) kind: String,
    /// Packets go through it.
    pub(crate) running: bool,
    /// Length of its queue.
    pub(crate) queue: u32,
    /// How many ask for what is not for it.
    pub(crate) promiscuity: u32,
}

impl Link {
    /// Whether it is set up.
    pub(crate) fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }

    /// Reads the kernel's answer.
    pub(crate) fn parse(reply: &Reply) -> Option<Self> {
        let number = |at: usize| {
            let bytes = reply.body.get(at..at + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let mut link = Self {
            index: number(4)?,
            flags: number(8)?,
            ..Self::default()
        };
        for attribute in attributes(reply.body.get(FIXED..)?) {
            let number = attribute.u32().unwrap_or_default();
            match attribute.kind {
                IFLA_IFNAME => link.name = attribute.text()?.to_owned(),
                IFLA_ADDRESS => {
                    link.mac = attribute.value.try_into().map(Mac).unwrap_or_default();
                }
                IFLA_MTU => link.mtu = number,
                IFLA_LINK => link.peer = number,
                IFLA_MASTER => link.master = number,
                IFLA_TXQLEN => link.queue = number,
                IFLA_PROMISCUITY => link.promiscuity = number,
                IFLA_OPERSTATE => link.running = attribute.u8() == Some(IF_OPER_UP),
                IFLA_LINKINFO => {
                    let mut inside = attribute.nested();
                    let kind = inside.find(|attribute| attribute.kind == IFLA_INFO_KIND);
                    let kind = kind.and_then(|kind| kind.text().map(str::to_owned));
                    link.kind = kind.unwrap_or_default();
                }
                _ => {}
            }
        }
        Some(link)
    }
}

fn request(what: &'static str, kind: u16, flags: u16, fixed: [u8; FIXED]) -> Message {
    let mut message = Message::new(what, kind, flags);
    message.raw(&fixed);
    message
}

/// `struct ifinfomsg`; `change` of the flags become as in `flags`.
fn fixed(family: u8, index: u32, flags: u32, change: u32) -> [u8; FIXED] {
    let mut fixed = [0; FIXED];
    fixed[0] = family;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

/// Asks for a link by its name.
pub(crate) fn by_name(name: &str) -> Message {
    let mut message = request("look up a link", RTM_GETLINK, 0, fixed(0, 0, 0, 0));
    message.text(IFLA_IFNAME, name);
    message
}

/// Asks for a link by its number.
pub(crate) fn by_index(index: u32) -> Message {
    request("look up a link", RTM_GETLINK, 0, fixed(0, index, 0, 0))
}

/// A link by its name; `None` where there is none.
pub(crate) fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, NetlinkError> {
    // No link has such a name, and the kernel would refuse the question.
    if name.is_empty() || name.len() > 15 {
        return Ok(None);
    }
    let reply = socket.get(by_name(name))?;
    let parse = |reply| Link::parse(&reply).ok_or(NetlinkError::NoAnswer("look up a link"));
    reply.map(parse).transpose()
}

/// A new bridge.
pub(crate) struct Bridge<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Its MTU; 0 = the kernel's choice.
    pub(crate) mtu: u32,
    /// Whether it looks at VLANs.
    pub(crate) vlan_filtering: bool,
    /// An address that it keeps, and that it has among bridges from the start;
    /// `None` = the lowest of its ports'.
    pub(crate) mac: Option<Mac>,
}

/// Makes a bridge.
pub(crate) fn add_bridge(bridge: &Bridge<'_>) -> Message {
    let flags = flag::CREATE | flag::EXCL;
    let mut message = request("add a bridge", RTM_NEWLINK, flags, fixed(0, 0, 0, 0));
    let (mtu, vlan_filtering) = (bridge.mtu, bridge.vlan_filtering);
    message.text(IFLA_IFNAME, bridge.name);
    if let Some(mac) = bridge.mac {
        message.attribute(IFLA_ADDRESS, &mac.0);
    }
    if mtu > 0 {
        message.u32(IFLA_MTU, mtu);
    }
    message.nested(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, "bridge");
        if vlan_filtering {
            info.nested(IFLA_INFO_DATA, |data| {
                data.u8(IFLA_BR_VLAN_FILTERING, 1);
            });
        }
    });
    message
}

/// Makes a link whose incoming packets are those that others redirect to it. It has
/// no queue of its own (its length is 0), and is set up in the same go.
pub(crate) fn add_ifb(name: &str, mtu: u32) -> Message {
    let flags = flag::CREATE | flag::EXCL;
    let up = fixed(0, 0, IFF_UP, IFF_UP);
    let mut message = request("add an ifb", RTM_NEWLINK, flags, up);
    message.text(IFLA_IFNAME, name);
    if mtu > 0 {
        message.u32(IFLA_MTU, mtu);
    }
    message.u32(IFLA_TXQLEN, 0);
    message.nested(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, "ifb");
    });
    message
}

/// Both ends of a new veth.
pub(crate) struct Veth<'a> {
    /// The end here.
    pub(crate) name: &'a str,
    /// The bridge to be a port of; 0 = none.
    pub(crate) master: u32,
    /// The other end.
    pub(crate) peer: &'a str,
    /// Where the other end is made; `None` = here.
    pub(crate) namespace: Option<&'a Namespace>,
    /// Of both ends; 0 = the kernel's choice.
    pub(crate) mtu: u32,
    /// Of the other end; `None` = the kernel's choice.
    pub(crate) peer_mac: Option<Mac>,
}

/// Makes a veth whose other end is born where it belongs: moving it later
/// would take a grace period of the kernel under its one lock for all links.
/// The end here is set up in the same go.
pub(crate) fn add_veth(veth: &Veth<'_>) -> Message {
    // The kernel sends back what it made: asking for it would have it first look at
    // a carrier that is not there yet, which takes a grace period.
    let flags = flag::CREATE | flag::EXCL | flag::ECHO;
    let up = fixed(0, 0, IFF_UP, IFF_UP);
    let mut message = request("add a veth", RTM_NEWLINK, flags, up);
    message.text(IFLA_IFNAME, veth.name);
    if veth.mtu > 0 {
        message.u32(IFLA_MTU, veth.mtu);
    }
    if veth.master > 0 {
        message.u32(IFLA_MASTER, veth.master);
    }
    // As the plugins have it at the host's end, by the way they make a veth.
    message.u32(IFLA_TXQLEN, 0);
    one_queue(&mut message);
    message.nested(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, "veth");
        info.nested(IFLA_INFO_DATA, |data| {
            data.nested_plain(VETH_INFO_PEER, |peer| {
                peer.raw(&fixed(0, 0, 0, 0));
                peer.text(IFLA_IFNAME, veth.peer);
                one_queue(peer);
                if veth.mtu > 0 {
                    peer.u32(IFLA_MTU, veth.mtu);
                }
                if let Some(mac) = veth.peer_mac {
                    peer.attribute(IFLA_ADDRESS, &mac.0);
                }
                if let Some(namespace) = veth.namespace {
                    let fd = std::os::fd::AsFd::as_fd(namespace).as_raw_fd();
                    peer.attribute(IFLA_NET_NS_FD, &fd.to_ne_bytes());
                }
            });
        });
    });
    message
}

/// A veth is made for as many queues as there are processors, of which it uses one.
/// Said at once, the kernel need not take the others away, for which it would wait
/// twice, under its one lock for all links, until nobody sees them any more.
fn one_queue(message: &mut Message) {
    message.u32(IFLA_NUM_TX_QUEUES, 1);
    message.u32(IFLA_NUM_RX_QUEUES, 1);
}

/// Changes flags of a link.
pub(crate) fn set_flags(index: u32, flags: u32, change: u32) -> Message {
    let change = fixed(0, index, flags, change);
    request("change a link's flags", RTM_NEWLINK, 0, change)
}

/// Sets a link up.
pub(crate) fn set_up(index: u32) -> Message {
    let up = fixed(0, index, IFF_UP, IFF_UP);
    request("set a link up", RTM_NEWLINK, 0, up)
}

/// Sets a link down.
pub(crate) fn set_down(index: u32) -> Message {
    request(
        "set a link down",
        RTM_NEWLINK,
        0,
        fixed(0, index, 0, IFF_UP),
    )
}

fn set(what: &'static str, index: u32) -> Message {
    request(what, RTM_SETLINK, 0, fixed(0, index, 0, 0))
}

/// Gives a link a hardware address.
pub(crate) fn set_mac(index: u32, mac: Mac) -> Message {
    let mut message = set("set a link's hardware address", index);
    message.attribute(IFLA_ADDRESS, &mac.0);
    message
}

/// Sets the MTU of a link.
pub(crate) fn set_mtu(index: u32, mtu: u32) -> Message {
    let mut message = set("set a link's MTU", index);
    message.u32(IFLA_MTU, mtu);
    message
}

/// Sets the length of a link's queue.
pub(crate) fn set_queue(index: u32, length: u32) -> Message {
    let mut message = set("set the length of a link's queue", index);
    message.u32(IFLA_TXQLEN, length);
    message
}

/// Deletes a link. The kernel waits for a grace period in it.
pub(crate) fn delete(index: u32) -> Message {
    request("delete a link", RTM_DELLINK, 0, fixed(0, index, 0, 0))
}

/// What a bridge may do with a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PortMode {
    /// Send back through the port what came through it.
    pub(crate) hairpin: bool,
    /// Send nothing to other isolated ports.
    pub(crate) isolated: bool,
}

/// Sets the mode of a bridge's port.
pub(crate) fn set_port(index: u32, mode: PortMode) -> Message {
    let port = fixed(AF_BRIDGE, index, 0, 0);
    let mut message = request("set a bridge port's mode", RTM_SETLINK, 0, port);
    message.nested(IFLA_PROTINFO, |info| {
        info.u8(IFLA_BRPORT_MODE, u8::from(mode.hairpin));
        info.u8(IFLA_BRPORT_ISOLATED, u8::from(mode.isolated));
    });
    message
}

fn vlan(mut message: Message, vlan: u16, flags: u16) -> Message {
    message.nested(IFLA_AF_SPEC, |spec| {
        spec.u16(IFLA_BRIDGE_FLAGS, BRIDGE_FLAGS_MASTER);
        let mut info = [0; 4];
        info[..2].copy_from_slice(&flags.to_ne_bytes());
        info[2..].copy_from_slice(&vlan.to_ne_bytes());
        spec.attribute(IFLA_BRIDGE_VLAN_INFO, &info);
    });
    message
}

/// Lets a VLAN through a bridge's port: tagged, or as the port's own.
pub(crate) fn add_vlan(index: u32, id: u16, own: bool) -> Message {
    let port = fixed(AF_BRIDGE, index, 0, 0);
    let message = request("add a VLAN to a bridge port", RTM_SETLINK, 0, port);
    let flags = BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED;
    vlan(message, id, if own { flags } else { 0 })
}

/// Takes a VLAN off a bridge's port.
pub(crate) fn remove_vlan(index: u32, id: u16) -> Message {
    let port = fixed(AF_BRIDGE, index, 0, 0);
    let message = request("take a VLAN off a bridge port", RTM_DELLINK, 0, port);
    vlan(message, id, 0)
}

/// The VLANs of a bridge's port.
pub(crate) fn vlans(socket: &mut Socket, index: u32) -> Result<Vec<u16>, NetlinkError> {
    let any = fixed(AF_BRIDGE, 0, 0, 0);
    let mut message = request("list VLANs of bridge ports", RTM_GETLINK, 0, any);
    message.u32(IFLA_EXT_MASK, RTEXT_FILTER_BRVLAN);
    let ports = match socket.dump(&message) {
        Ok(ports) => ports,
        // A kernel without VLANs has none.
        Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for port in &ports {
        if Link::parse(port).is_none_or(|link| link.index != index) {
            continue;
        }
        let all = attributes(port.body.get(FIXED..).unwrap_or_default());
        for spec in all.filter(|attribute| attribute.kind == IFLA_AF_SPEC) {
            let infos = spec
                .nested()
                .filter(|info| info.kind == IFLA_BRIDGE_VLAN_INFO);
            let ids = infos.filter_map(|info| info.value.get(2..4)?.try_into().ok());
            found.extend(ids.map(u16::from_ne_bytes));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_have_three_forms() {
        for text in ["0a:1b:2c:3d:4e:5f", "0A-1B-2C-3D-4E-5F", "0a1b.2c3d.4e5f"] {
            let mac: Mac = text.parse().unwrap();
            assert_eq!(mac.to_string(), "0a:1b:2c:3d:4e:5f", "{text}");
        }
        for text in [
            "",
            "0a:1b:2c:3d:4e",
            "0a:1b:2c:3d:4e:5g",
            "0a1b2c3d4e5f",
            "+a:1b:2c:3d:4e:5f",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
