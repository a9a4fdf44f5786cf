//! Where an answer may send the engine: redirects, token services and the
//! addresses that manifests name.
//!
//! Whoever runs a registry chooses those places, and whoever may name an image
//! chooses the registry; the node itself and its link (the kubelet's and other
//! daemons' ports, a cloud's metadata service) answer the node only because it
//! asks. So nobody is followed to a loopback, link-local, unspecified,
//! multicast or broadcast address, however it is written and whatever a name
//! resolves to: the addresses that are checked are those that are connected to.
//! Private networks are allowed: that is where object stores of private
//! registries are.
//!
//! Two things are exempt. A registry that is itself at such an address by its
//! name in the reference or in `hosts.toml` may send to others: who set it up
//! chose that. And the registry's own host name may be anywhere, at any port.
//! Behind a proxy, names are resolved there, and only what is written out can
//! be checked here.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::OnceLock;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// A name or address that leads to the node or its link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host} is on this node or its link, and no registry elsewhere may send there")]
pub(crate) struct OffLimits {
    host: String,
}

/// Whether an address is the node's own, its link's or nobody's.
fn is_off_limits(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_off_limits_v4(v4),
        IpAddr::V6(v6) => {
            // An IPv4 address in IPv6 form: mapped, compatible, NAT64.
            let [.., a, b] = v6.segments();
            let inner = Ipv4Addr::from(u32::from(a) << 16 | u32::from(b));
            let embeds = matches!(
                v6.segments(),
                [0, 0, 0, 0, 0, 0 | 0xffff, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _]
            );
            // The metadata service of EC2, unique-local as it may be.
            let metadata = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6 == metadata
                || embeds && is_off_limits_v4(inner)
        }
    }
}

fn is_off_limits_v4(address: Ipv4Addr) -> bool {
    address.is_loopback()
        // All of 0.0.0.0/8 means this host.
        || address.octets()[0] == 0
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
}

/// Refuses an address that is written out, and names that mean this machine.
/// Other names are checked when they are resolved.
pub(crate) fn check(url: &Url) -> Result<(), OffLimits> {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = bare.trim_end_matches('.').to_ascii_lowercase();
    let off_limits = match bare.parse::<IpAddr>() {
        Ok(address) => is_off_limits(address),
        Err(_) => name.is_empty() || name == "localhost" || name.ends_with(".localhost"),
    };
    if off_limits {
        return Err(OffLimits {
            host: host.to_owned(),
        });
    }
    Ok(())
}

/// Resolves names, and leaves out the addresses that are off limits.
pub(crate) struct Resolver {
    /// A name that may be anywhere.
    own: Option<String>,
}

impl Resolver {
    /// `own` is the name of the registry itself where it shares the client.
    pub(crate) fn new(own: Option<&str>) -> Self {
        Self {
            own: own.map(str::to_owned),
        }
    }

    fn is_exempt(&self, name: &str) -> bool {
        self.own.as_deref() == Some(name) || proxies().contains(name)
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let exempt = self.is_exempt(name.as_str());
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let usable: Vec<SocketAddr> = found
                .filter(|address| exempt || !is_off_limits(address.ip()))
                .collect();
            if usable.is_empty() {
                let host = name.as_str().to_owned();
                return Err(OffLimits { host }.into());
            }
            Ok(Box::new(usable.into_iter()) as Addrs)
        })
    }
}

/// The hosts of the proxies that the environment names: connections go there
/// instead, and a proxy on the node is its owner's choice.
fn proxies() -> &'static HashSet<String> {
    static PROXIES: OnceLock<HashSet<String>> = OnceLock::new();
    PROXIES.get_or_init(|| {
        ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
            .iter()
            .flat_map(|name| [(*name).to_owned(), name.to_ascii_lowercase()])
            .filter_map(|name| std::env::var(name).ok())
            .filter_map(|proxy| {
                let url = Url::parse(&proxy).ok().filter(Url::has_host);
                let url = url.or_else(|| Url::parse(&format!("http://{proxy}")).ok())?;
                url.host_str().map(str::to_owned)
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> bool {
        check(&Url::parse(url).unwrap()).is_err()
    }

    #[test]
    fn the_node_and_its_link_are_off_limits_however_they_are_written() {
        for url in [
            "http://localhost/",
            "https://LOCALHOST:10250/",
            "https://localhost./",
            "https://a.localhost/",
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.0.0.1/",
            "http://0/",
            "http://0.1.2.3/",
            "http://169.254.169.254/latest/meta-data",
            "http://224.0.0.1/",
            "http://255.255.255.255/",
            "http://[::1]/",
            "http://[::]/",
            "http://[fe80::1]/",
            "http://[ff02::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:169.254.169.254]/",
            "http://[::127.0.0.1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[fd00:ec2::254]/",
        ] {
            assert!(refused(url), "{url}");
        }
        for url in [
            "https://example.com/",
            "https://localhost.example.com/",
            "https://127.0.0.1.example.com/",
            "http://10.1.2.3/",
            "http://192.168.0.1/",
            "http://203.0.113.7/",
            "http://[fd00::1]/",
            "http://[2001:db8::1]/",
        ] {
            assert!(!refused(url), "{url}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_to_the_node_is_refused_when_it_is_resolved() {
        let resolve = |resolver: Resolver| async move {
            let addresses = resolver.resolve("localhost".parse().unwrap()).await;
            addresses.map(Iterator::count).map_err(|e| e.to_string())
        };
        let error = resolve(Resolver::new(None)).await.unwrap_err();
        assert!(error.contains("localhost is on this node"), "{error}");
        assert!(resolve(Resolver::new(Some("localhost"))).await.unwrap() > 0);
    }
}
