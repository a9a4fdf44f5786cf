//! Links, addresses, routes and queues: the messages of `NETLINK_ROUTE`.
//!
//! Owns their layout; every function only builds a message, or sends one on
//! the socket it is given and reads the answer.

pub(crate) mod address;
pub(crate) mod link;
pub(crate) mod route;
pub(crate) mod traffic;

/// `AF_INET` or `AF_INET6` of an address.
fn family(address: std::net::IpAddr) -> u8 {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    family as u8
}
