//! nftables over netlink: not there yet.
