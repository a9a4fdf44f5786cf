//! The result of a plugin in any version of CNI.
//!
//! Owns the formats: `ip4`/`ip6` (0.1 and 0.2), `ips` with a version (0.3 and
//! 0.4), `ips` without (1.0 and 1.1). Inside there is only the newest.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::address::Prefix;
use crate::{Error, Invocation, config};

/// What a chain has made so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Interfaces inside and outside of the container.
    pub(crate) interfaces: Vec<Interface>,
    /// Addresses.
    pub(crate) ips: Vec<Ip>,
    /// Routes inside.
    pub(crate) routes: Vec<Route>,
    /// For the container's resolver.
    pub(crate) dns: Dns,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Interface {
    /// Its name.
    pub(crate) name: String,
    /// Its hardware address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) mac: String,
    /// Its MTU; since 1.1.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) mtu: u32,
    /// The network namespace it is in; empty outside.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) sandbox: String,
    /// Since 1.1.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) socket_path: String,
    /// Since 1.1.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub(crate) pci_id: String,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ip {
    /// Place of its interface in the list.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) interface: Option<usize>,
    /// The address with its network's prefix.
    pub(crate) address: Prefix,
    /// The network's gateway.
    #[serde(
        skip_serializing_if = "Option::is_none",
        default,
        with = "maybe_address"
    )]
    pub(crate) gateway: Option<IpAddr>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Route {
    /// Where to.
    pub(crate) dst: Prefix,
    /// Through whom.
    #[serde(
        skip_serializing_if = "Option::is_none",
        default,
        with = "maybe_address"
    )]
    pub(crate) gw: Option<IpAddr>,
    /// Its MTU.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub(crate) mtu: u32,
    /// Its largest segment.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub(crate) advmss: u32,
    /// Its metric.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub(crate) priority: u32,
    /// Its table.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) table: Option<u32>,
    /// Its scope.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) scope: Option<u8>,
}

/// Settings of a resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Dns {
    /// Addresses of servers.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) nameservers: Vec<String>,
    /// The local domain.
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) domain: String,
    /// Domains to look in.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) search: Vec<String>,
    /// Options of the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) options: Vec<String>,
}

impl Dns {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// 0.1 and 0.2: one family's address and routes.
#[derive(Debug, Serialize, Deserialize)]
struct OldIp {
    ip: Prefix,
    #[serde(
        skip_serializing_if = "Option::is_none",
        default,
        with = "maybe_address"
    )]
    gateway: Option<IpAddr>,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        default,
        deserialize_with = "nullable"
    )]
    routes: Vec<Route>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AnyVersion {
    #[serde(deserialize_with = "nullable")]
    interfaces: Vec<Interface>,
    #[serde(deserialize_with = "nullable")]
    ips: Vec<Ip>,
    #[serde(deserialize_with = "nullable")]
    routes: Vec<Route>,
    #[serde(deserialize_with = "nullable")]
    dns: Dns,
    ip4: Option<OldIp>,
    ip6: Option<OldIp>,
}

impl Outcome {
    /// Reads a result of any version.
    pub(crate) fn parse(value: &Value) -> Result<Self, Error> {
        let any = AnyVersion::deserialize(value)
            .map_err(|source| Error::because("could not parse prevResult", source))?;
        let mut outcome = Self {
            interfaces: any.interfaces,
            ips: any.ips,
            routes: any.routes,
            dns: any.dns,
        };
        for old in [any.ip4, any.ip6].into_iter().flatten() {
            outcome.ips.push(Ip {
                interface: None,
                address: old.ip,
                gateway: old.gateway,
            });
            outcome.routes.extend(old.routes);
        }
        Ok(outcome)
    }

    /// The result of the chain so far; `None` for the first plugin.
    pub(crate) fn previous(config: &Value) -> Result<Option<Self>, Error> {
        match &config["prevResult"] {
            Value::Null => Ok(None),
            value => Self::parse(value).map(Some),
        }
    }

    /// The container's interface of a call.
    pub(crate) fn inside(&self, call: &Invocation<'_>) -> Result<&Interface, Error> {
        let sandbox = crate::namespace::text(call);
        let mut interfaces = self.interfaces.iter();
        let ours = |told: &&Interface| told.name == call.interface && told.sandbox == sandbox;
        interfaces.find(ours).ok_or_else(|| {
            let name = call.interface;
            Error::internal(format!("prevResult has no interface {name} in {sandbox}"))
        })
    }

    /// The result in a version of CNI.
    pub(crate) fn render(&self, version: &str) -> Result<Value, Error> {
        if config::at_least(version, "1.0.0") {
            return Ok(self.render_new(version));
        }
        if config::at_least(version, "0.3.0") {
            return Ok(self.render_03(version));
        }
        self.render_old(version)
    }

    fn render_new(&self, version: &str) -> Value {
        let mut value = Map::new();
        value.insert("cniVersion".into(), json!(version));
        let mut list = |key: &str, items: Value| {
            if items.as_array().is_some_and(|items| !items.is_empty()) {
                value.insert(key.into(), items);
            }
        };
        list("interfaces", json!(self.interfaces));
        list("ips", json!(self.ips));
        list("routes", json!(self.routes));
        if !self.dns.is_empty() {
            value.insert("dns".into(), json!(self.dns));
        }
        Value::Object(value)
    }

    fn render_03(&self, version: &str) -> Value {
        let mut value = self.render_new(version);
        let newer = ["mtu", "socketPath", "pciID"];
        for interface in value["interfaces"].as_array_mut().into_iter().flatten() {
            if let Some(interface) = interface.as_object_mut() {
                interface.retain(|key, _| !newer.contains(&key.as_str()));
            }
        }
        let ips = value["ips"].as_array_mut().into_iter().flatten();
        for (ip, ours) in ips.zip(&self.ips) {
            let family = if ours.address.address.is_ipv4() {
                "4"
            } else {
                "6"
            };
            ip["version"] = json!(family);
        }
        // These versions always had it, empty or not.
        value["dns"] = json!(self.dns);
        without_nulls(value)
    }

    fn render_old(&self, version: &str) -> Result<Value, Error> {
        let mut value = json!({"cniVersion": version, "dns": self.dns});
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let mut ips = self.ips.iter();
            let Some(ip) = ips.find(|ip| ip.address.address.is_ipv4() == v4) else {
                continue;
            };
            let routes = self.routes.iter();
            let routes = routes
                .filter(|route| route.dst.address.is_ipv4() == v4)
                .map(|route| Route::new(route.dst, route.gw))
                .collect();
            value[key] = json!(OldIp {
                ip: ip.address,
                gateway: ip.gateway,
                routes,
            });
        }
        if value.get("ip4").is_none() && value.get("ip6").is_none() {
            return Err(Error::internal("cannot convert: no valid IP addresses"));
        }
        Ok(value)
    }
}

impl Route {
    /// A route with nothing but its destination and gateway.
    pub(crate) fn new(dst: Prefix, gw: Option<IpAddr>) -> Self {
        Self {
            dst,
            gw,
            mtu: 0,
            advmss: 0,
            priority: 0,
            table: None,
            scope: None,
        }
    }
}

/// Looking into a list that is not there leaves a null behind.
fn without_nulls(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.retain(|_, item| !item.is_null());
    }
    value
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Null is as good as missing.
fn nullable<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Deserialize<'de> + Default,
    D: serde::Deserializer<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// An address whose empty text means none.
pub(crate) mod maybe_address {
    use super::{Deserialize, IpAddr};

    pub(crate) fn serialize<S: serde::Serializer>(
        address: &Option<IpAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => serializer.collect_str(address),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<IpAddr>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        let text = text.filter(|text| !text.is_empty());
        let parse = |text: String| {
            let parsed = text.parse::<IpAddr>();
            let parsed = parsed.map(|address| address.to_canonical());
            parsed.map_err(|_| serde::de::Error::custom(format!("invalid IP address: {text}")))
        };
        text.map(parse).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "br", "mac": "aa"}, {"name": "eth0", "mtu": 1400, "sandbox": "/n"}],
            "ips": [
                {"interface": 1, "address": "10.0.0.2/24", "gateway": "10.0.0.1"},
                {"interface": 1, "address": "fd00::2/64"},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1300}, {"dst": "::/0", "table": 7}],
            "dns": {"nameservers": ["1.1.1.1"]},
        })
    }

    #[test]
    fn the_newest_version_comes_back_as_it_went_in() {
        let outcome = Outcome::parse(&full()).unwrap();
        assert_eq!(outcome.render("1.1.0").unwrap(), full());
    }

    #[test]
    fn older_versions_lose_what_they_have_no_place_for() {
        let outcome = Outcome::parse(&full()).unwrap();
        let three = outcome.render("0.4.0").unwrap();
        assert_eq!(three["ips"][1]["version"], "6");
        assert_eq!(three["interfaces"][1].get("mtu"), None);
        assert_eq!(three["routes"][0]["mtu"], 1300);
        let old = outcome.render("0.2.0").unwrap();
        assert_eq!(
            old,
            json!({"cniVersion": "0.2.0", "dns": {"nameservers": ["1.1.1.1"]},
                "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1",
                    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]},
                "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "::/0"}]}})
        );
        let back = Outcome::parse(&old).unwrap();
        assert_eq!((back.ips.len(), back.routes.len()), (2, 2));
    }

    #[test]
    fn a_result_without_addresses_has_no_old_form() {
        let empty = Outcome::default();
        assert_eq!(
            empty.render("1.0.0").unwrap(),
            json!({"cniVersion": "1.0.0"})
        );
        assert_eq!(
            empty.render("0.3.1").unwrap(),
            json!({"cniVersion": "0.3.1", "dns": {}})
        );
        assert!(empty.render("0.1.0").is_err());
    }
}
