//! Netlink: messages, sockets and network namespaces.
//!
//! Owns the wire format for the families `NETLINK_ROUTE` and
//! `NETLINK_NETFILTER`; knows no message of theirs. A socket for links is opened for a
//! piece of work and closed after it; those for rules are kept.

mod attribute;
mod lent;
mod message;
mod namespace;
mod socket;
#[cfg(test)]
mod tests;

pub use attribute::{Attribute, attributes};
pub(crate) use lent::with_netfilter;
pub use message::{Message, flag};
pub use namespace::{Namespace, NamespaceError};
pub use socket::{Answers, Family, NetlinkError, Refusal, Reply, Socket};
