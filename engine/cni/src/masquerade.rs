//! Source NAT for what leaves a network (`ipMasq`).
//!
//! Owns the rules of one attachment in the table that the plugins' nftables
//! backend uses; never touches iptables.

use crate::Error;
use crate::address::Prefix;

/// Whose traffic is masqueraded: rules are named after these.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    /// Name of the network.
    pub(crate) network: &'a str,
    /// Name of the container's interface.
    pub(crate) interface: &'a str,
    /// The container.
    pub(crate) container_id: &'a str,
}

/// Whether the built-in can do what `ipMasqBackend` asks for; `None` = the key is missing.
pub(crate) fn accepts(backend: Option<&str>) -> bool {
    backend == Some("nftables")
}

/// Masquerades what the addresses send out of their own networks.
pub(crate) fn add(_owner: Owner<'_>, _addresses: &[Prefix]) -> Result<(), Error> {
    Err(Error::internal("ipMasq is not built in yet"))
}

/// Takes the rules of an attachment away; none is no error.
pub(crate) fn remove(_owner: Owner<'_>) -> Result<(), Error> {
    Ok(())
}
