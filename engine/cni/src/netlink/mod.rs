//! Netlink: messages, sockets and network namespaces.
//!
//! Owns the wire format for the families `NETLINK_ROUTE` and
//! `NETLINK_NETFILTER`; knows no message of theirs. Keeps nothing: a socket is
//! opened for a piece of work and closed after it.

mod attribute;
mod message;
mod namespace;
mod socket;
#[cfg(test)]
mod tests;

pub use attribute::{Attribute, attributes};
pub use message::{Message, flag};
pub use namespace::{Namespace, NamespaceError};
pub use socket::{Answers, Family, NetlinkError, Refusal, Reply, Socket};
