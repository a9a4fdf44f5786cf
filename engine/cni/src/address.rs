//! Addresses with a prefix length.
//!
//! Owns their text form and arithmetic; IPv4 in IPv6 form is IPv4, as in the
//! plugins.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address and the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Prefix {
    /// The address.
    pub(crate) address: IpAddr,
    /// Bits of the network.
    pub(crate) length: u8,
}

impl Prefix {
    /// The default route's destination of a family.
    pub(crate) fn any(v6: bool) -> Self {
        let address = if v6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        Self { address, length: 0 }
    }

    /// Bits of the address: 32 or 128.
    pub(crate) fn width(&self) -> u8 {
        width(self.address)
    }

    /// The network: host bits cleared.
    pub(crate) fn network(&self) -> Self {
        let value = number(self.address) & !self.host_mask();
        Self {
            address: from_number(value, self.address.is_ipv6()),
            length: self.length,
        }
    }

    /// The last address of the network (IPv4: broadcast).
    pub(crate) fn last(&self) -> IpAddr {
        from_number(
            number(self.address) | self.host_mask(),
            self.address.is_ipv6(),
        )
    }

    /// Whether an address is of this network.
    pub(crate) fn contains(&self, other: IpAddr) -> bool {
        let same = self.address.is_ipv4() == other.is_ipv4();
        same && (number(self.address) ^ number(other)) & !self.host_mask() == 0
    }

    fn host_mask(&self) -> u128 {
        let bits = u32::from(self.width() - self.length);
        1u128.checked_shl(bits).map_or(u128::MAX, |bit| bit - 1)
    }
}

/// Bits of an address: 32 or 128.
pub(crate) fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address as a number.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn from_number(value: u128, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::from_bits(value).into()
    } else {
        // Only the lower half of a number of this family is ever set.
        Ipv4Addr::from_bits(value as u32).into()
    }
}

/// The address after this one; wraps around at the end of the family.
pub(crate) fn next(address: IpAddr) -> IpAddr {
    from_number(number(address).wrapping_add(1), address.is_ipv6())
}

/// The address before this one; wraps around at the start of the family.
pub(crate) fn previous(address: IpAddr) -> IpAddr {
    from_number(number(address).wrapping_sub(1), address.is_ipv6())
}

/// The bytes of an address in network order.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An address from its bytes in network order.
pub(crate) fn from_octets(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(bytes));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// Why a text is no address with a prefix.
#[derive(Debug, thiserror::Error)]
#[error("invalid CIDR address: {0}")]
pub(crate) struct PrefixError(String);

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let invalid = || PrefixError(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(invalid)?;
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let address = address.to_canonical();
        let digits = length.bytes().all(|byte| byte.is_ascii_digit());
        let length: u8 = length.parse().map_err(|_| invalid())?;
        if !digits || length > width(address) {
            return Err(invalid());
        }
        Ok(Self { address, length })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn networks_know_their_edges() {
        let net = prefix("10.1.2.3/24");
        assert_eq!(net.network().to_string(), "10.1.2.0/24");
        assert_eq!(net.last().to_string(), "10.1.2.255");
        assert!(net.contains("10.1.2.200".parse().unwrap()));
        assert!(!net.contains("10.1.3.1".parse().unwrap()));
        assert!(!prefix("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert_eq!(
            prefix("::/0").last().to_string(),
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        );
        assert_eq!(next("10.0.0.255".parse().unwrap()).to_string(), "10.0.1.0");
        assert_eq!(
            previous("fd00::1:0".parse().unwrap()).to_string(),
            "fd00::ffff"
        );
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in [
            "",
            "10.0.0.1",
            "10.0.0.1/33",
            "10.0.0.1/+8",
            "x/8",
            "fd00::/129",
            "10.0.0.1/",
        ] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
        assert_eq!(prefix("fd00::1/128").to_string(), "fd00::1/128");
    }
}
