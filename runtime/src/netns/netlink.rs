//! The two rtnetlink requests that a network namespace of ours needs.
//!
//! Acts on the namespace of the calling thread; keeps nothing.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

/// Traffic counters of one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    /// Its name in the namespace.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Packets that were received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Packets that were to be sent and dropped.
    pub tx_dropped: u64,
}

// linux/netlink.h and linux/rtnetlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;
const IFINFO: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_STATS64: u16 = 23;
const IFF_UP: u32 = 1;
/// Every namespace has its loopback as the first interface.
const LOOPBACK: i32 = 1;
/// Larger than any single datagram of a dump (the kernel caps them at 32 KiB).
const BUFFER: usize = 64 * 1024;

/// Brings the loopback up; the kernel gives it its addresses then.
pub(super) fn loopback_up() -> io::Result<()> {
    let socket = open()?;
    send(
        &socket,
        RTM_NEWLINK,
        NLM_F_REQUEST | NLM_F_ACK,
        (LOOPBACK, IFF_UP),
    )?;
    receive(&socket, |_, _| {})
}

/// Counters of all interfaces.
pub(super) fn interfaces() -> io::Result<Vec<InterfaceStats>> {
    let socket = open()?;
    send(&socket, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, (0, 0))?;
    let mut found = Vec::new();
    receive(&socket, |kind, body| {
        if kind == RTM_NEWLINK {
            found.push(parse_link(body));
        }
    })?;
    Ok(found)
}

fn open() -> io::Result<OwnedFd> {
    // No protocol is protocol 0, NETLINK_ROUTE.
    Ok(socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends a link request about `index`, with `flags` set and changed.
fn send(socket: &OwnedFd, kind: u16, mode: u16, (index, flags): (i32, u32)) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER + IFINFO);
    message.extend_from_slice(&((HEADER + IFINFO) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&mode.to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence and port: one request per socket
    message.extend_from_slice(&[0; 4]); // family and device type
    message.extend_from_slice(&index.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    sendto(
        socket,
        &message,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;
    Ok(())
}

/// Reads answers until the kernel says that it is done, or why it is not.
fn receive(socket: &OwnedFd, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let (length, _) = recv(socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, body, next)) = split_message(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return acknowledged(body),
                _ => each(kind, body),
            }
            rest = next;
        }
    }
}

/// An error message with number 0 is the acknowledgement.
fn acknowledged(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(aligned(length)..).unwrap_or(&[])))
}

fn parse_link(body: &[u8]) -> InterfaceStats {
    let mut link = InterfaceStats::default();
    let mut rest = body.get(IFINFO..).unwrap_or(&[]);
    while let Some((kind, value, next)) = split_attribute(rest) {
        match kind {
            IFLA_IFNAME => {
                let name = value.split(|&byte| byte == 0).next().unwrap_or(value);
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            // Packets in and out, then bytes, errors and what was dropped.
            IFLA_STATS64 => {
                link.rx_packets = counter(value, 0);
                link.tx_packets = counter(value, 1);
                link.rx_bytes = counter(value, 2);
                link.tx_bytes = counter(value, 3);
                link.rx_errors = counter(value, 4);
                link.tx_errors = counter(value, 5);
                link.rx_dropped = counter(value, 6);
                link.tx_dropped = counter(value, 7);
            }
            _ => {}
        }
        rest = next;
    }
    link
}

fn split_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
    let value = bytes.get(4..length)?;
    Some((kind, value, bytes.get(aligned(length)..).unwrap_or(&[])))
}

fn counter(value: &[u8], index: usize) -> u64 {
    let bytes = value
        .get(index * 8..index * 8 + 8)
        .and_then(|b| b.try_into().ok());
    bytes.map_or(0, u64::from_ne_bytes)
}

/// Messages and attributes begin at multiples of four.
fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_messages_end_the_walk() {
        assert!(split_message(&[]).is_none());
        assert!(split_message(&[200, 0, 0, 0, 16, 0, 0, 0]).is_none());
        assert!(split_attribute(&[3, 0, 1, 0, 9]).is_none());
        assert_eq!(parse_link(&[0; 20]), InterfaceStats::default());
    }

    #[test]
    fn counters_are_read_in_the_kernels_order() {
        let mut body = vec![0; IFINFO];
        let mut add = |kind: u16, value: &[u8]| {
            let length = u16::try_from(4 + value.len()).unwrap();
            body.extend(length.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
            body.resize(aligned(body.len()), 0);
        };
        add(IFLA_IFNAME, b"eth0\0");
        let counters = (1..=8).flat_map(u64::to_ne_bytes).collect::<Vec<_>>();
        add(IFLA_STATS64, &counters);
        let wanted = InterfaceStats {
            name: "eth0".to_owned(),
            rx_packets: 1,
            tx_packets: 2,
            rx_bytes: 3,
            tx_bytes: 4,
            rx_errors: 5,
            tx_errors: 6,
            rx_dropped: 7,
            tx_dropped: 8,
        };
        assert_eq!(parse_link(&body), wanted);
    }

    proptest::proptest! {
        #[test]
        fn no_answer_breaks_the_parser(bytes in proptest::collection::vec(0u8..40, 0..200)) {
            let mut rest = bytes.as_slice();
            while let Some((_, body, next)) = split_message(rest) {
                parse_link(body);
                proptest::prop_assert!(next.len() < rest.len());
                rest = next;
            }
            parse_link(&bytes);
        }
    }
}
