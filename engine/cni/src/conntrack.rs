//! Connections that the kernel tracks.
//!
//! Owns nothing. A tracked UDP flow keeps going where it went before a port was
//! mapped; once forgotten, its next packet meets the new rules.

use rustix::io::Errno;

use crate::netlink::{Attribute, Message, NetlinkError, attributes, with_netfilter};
use crate::sysctl;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// `struct nfgenmsg` before the attributes.
const FIXED: usize = 4;
const TUPLE_ORIGINAL: u16 = 1;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_DESTINATION: u16 = 3;
/// A filter looks at these of a flow's original direction.
const FILTER_PROTOCOL: u32 = 1 << 3;
const FILTER_DESTINATION: u32 = 1 << 5;
const UDP: u8 = 17;
/// How many are deleted in one send.
const CHUNK: usize = 256;

/// Forgets the UDP flows of a family that were sent to one of these ports. The kernel
/// looks through its whole table for that, some milliseconds however empty it is, so
/// it is asked once, and not at all where nothing is tracked.
pub(crate) fn forget_udp(v6: bool, ports: &[u16]) -> Result<(), NetlinkError> {
    let tracked = sysctl::read("net/netfilter/nf_conntrack_count");
    if ports.is_empty() || !tracked.is_ok_and(|count| count != "0") {
        return Ok(());
    }
    with_netfilter(|socket| {
        let flows = socket.dump(&list(v6, ports))?;
        let deletions: Vec<Message> = flows
            .iter()
            .filter_map(|flow| deletion(v6, flow.body.get(FIXED..)?, ports))
            .collect();
        for chunk in deletions.chunks(CHUNK) {
            let refusals = socket.exchange(chunk.to_vec())?.refusals;
            // What ended by itself meanwhile is as good.
            if let Some(refusal) = refusals.into_iter().find(|one| one.errno != Errno::NOENT) {
                return Err(NetlinkError::Refused(refusal));
            }
        }
        Ok(())
    })
}

/// Asks for the flows to a port, or to all ports where there are several. Kernels
/// before 5.8 send all flows, so that what comes is looked through again.
fn list(v6: bool, ports: &[u16]) -> Message {
    let mut message = start("list tracked connections", GET, v6);
    let mut flags = FILTER_PROTOCOL;
    message.nested(TUPLE_ORIGINAL, |tuple| {
        tuple.nested(TUPLE_PROTOCOL, |protocol| {
            protocol.u8(PROTOCOL_NUMBER, UDP);
            if let [port] = ports {
                protocol.be16(PROTOCOL_DESTINATION, *port);
                flags |= FILTER_DESTINATION;
            }
        });
    });
    message.nested(FILTER, |filter| {
        filter.u32(1, flags).u32(2, 0);
    });
    message
}

/// The request to forget a flow; `None` where it is another one.
fn deletion(v6: bool, flow: &[u8], ports: &[u16]) -> Option<Message> {
    let find = |kind| attributes(flow).find(|attribute| attribute.kind == kind);
    let tuple = find(TUPLE_ORIGINAL)?;
    let protocol = inside(&tuple, TUPLE_PROTOCOL)?;
    let is_udp = inside(&protocol, PROTOCOL_NUMBER)?.u8() == Some(UDP);
    let port = inside(&protocol, PROTOCOL_DESTINATION)?.be16()?;
    if !is_udp || !ports.contains(&port) {
        return None;
    }
    let mut message = start("forget a tracked connection", DELETE, v6);
    message.nested(TUPLE_ORIGINAL, |copy| {
        copy.raw(tuple.value);
    });
    for kind in [ID, ZONE] {
        if let Some(attribute) = find(kind) {
            message.attribute(kind, attribute.value);
        }
    }
    Some(message)
}

fn inside<'a>(attribute: &Attribute<'a>, kind: u16) -> Option<Attribute<'a>> {
    attribute.nested().find(|one| one.kind == kind)
}

fn start(what: &'static str, kind: u16, v6: bool) -> Message {
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    let mut message = Message::new(what, kind, 0);
    message.raw(&[family as u8, 0, 0, 0]);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Family, Socket};
    use crate::testing::in_new_namespace;

    const TCP: u8 = 6;
    const NEW: u16 = SUBSYSTEM;

    /// A flow from port 1000 as the kernel would track it.
    fn track(socket: &mut Socket, protocol: u8, port: u16) {
        let flags = crate::netlink::flag::CREATE | crate::netlink::flag::EXCL;
        let mut message = Message::new("track", NEW, flags);
        message.raw(&[libc::AF_INET as u8, 0, 0, 0]);
        let (one, two): ([u8; 4], [u8; 4]) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        for (kind, from, to) in [(1, (one, 1000), (two, port)), (2, (two, port), (one, 1000))] {
            message.nested(kind, |tuple| {
                tuple.nested(1, |ip| {
                    ip.attribute(1, &from.0).attribute(2, &to.0);
                });
                tuple.nested(TUPLE_PROTOCOL, |protocols| {
                    protocols.u8(1, protocol).be16(2, from.1).be16(3, to.1);
                });
            });
        }
        message.be32(7, 100);
        if protocol == TCP {
            message.nested(4, |info| {
                info.nested(1, |tcp| {
                    tcp.u8(1, 3);
                });
            });
        }
        socket.transact(vec![message]).unwrap();
    }

    fn tracked(socket: &mut Socket) -> usize {
        let message = start("list", GET, false);
        socket.dump(&message).unwrap().len()
    }

    #[test]
    fn only_udp_flows_to_the_port_are_forgotten() {
        in_new_namespace(|| {
            let mut socket = Socket::open(Family::Netfilter).unwrap();
            for (protocol, port) in [(UDP, 53), (UDP, 54), (TCP, 53)] {
                track(&mut socket, protocol, port);
            }
            assert_eq!(tracked(&mut socket), 3);
            forget_udp(true, &[53]).unwrap();
            assert_eq!(tracked(&mut socket), 3);
            forget_udp(false, &[53, 99]).unwrap();
            assert_eq!(tracked(&mut socket), 2);
            forget_udp(false, &[53]).unwrap();
            assert_eq!(tracked(&mut socket), 2);
        });
    }

    #[test]
    fn a_flow_to_another_port_is_left_even_if_the_kernel_lists_it() {
        in_new_namespace(|| {
            let mut socket = Socket::open(Family::Netfilter).unwrap();
            track(&mut socket, UDP, 53);
            let flows = socket.dump(&start("list", GET, false)).unwrap();
            let body = &flows[0].body[FIXED..];
            assert!(deletion(false, body, &[54]).is_none());
            assert!(deletion(false, body, &[54, 53]).is_some());
        });
    }
}
