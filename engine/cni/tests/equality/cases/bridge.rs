//! Bridges, with addresses from host-local or the configuration.

use serde_json::json;

use super::{both_refuse, bridge, dual_stack, equal, host_local};
use crate::world::{Chain, World};

#[test]
fn a_bridge_without_anything() {
    let ipam = json!({"type": "host-local", "dataDir": "<dir>/networks", "subnet": "10.5.0.0/24"});
    equal(&Chain::new([json!({"type": "bridge", "ipam": ipam})]));
}

#[test]
fn a_bridge_without_addresses() {
    let chain = Chain::new([json!({"type": "bridge", "bridge": "br-test", "ipam": {}})]);
    equal(&chain.unchecked("its CHECK wants an IPAM plugin"));
}

#[test]
fn a_bridge_as_gateway_in_every_version() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        equal(&Chain::new([bridge(&json!({}))]).version(version));
    }
}

#[test]
fn a_bridge_in_the_first_versions_of_all() {
    for version in ["0.1.0", "0.2.0"] {
        equal(&Chain::new([bridge(&json!({}))]).version(version));
    }
}

#[test]
fn a_bridge_with_hairpin_mode() {
    equal(&Chain::new([bridge(&json!({"hairpinMode": true}))]));
}

#[test]
fn a_promiscuous_bridge() {
    equal(&Chain::new([bridge(&json!({"promiscMode": true}))]));
}

#[test]
fn a_bridge_with_isolated_ports() {
    equal(&Chain::new([bridge(&json!({"portIsolation": true}))]));
}

#[test]
fn a_bridge_that_masquerades() {
    for ipam in [host_local(&json!({})), dual_stack()] {
        equal(&Chain::new([bridge(
            &json!({"ipMasq": true, "ipam": ipam}),
        )]));
    }
}

#[test]
fn a_bridge_as_default_gateway() {
    let ipam = host_local(&json!({"routes": []}));
    equal(&Chain::new([bridge(
        &json!({"isDefaultGateway": true, "ipam": ipam}),
    )]));
    let ipam = host_local(&json!({
        "ranges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd00:5::/64"}]], "routes": [],
    }));
    equal(&Chain::new([bridge(
        &json!({"isDefaultGateway": true, "ipam": ipam}),
    )]));
}

#[test]
fn a_bridge_with_both_families() {
    equal(&Chain::new([bridge(&json!({"ipam": dual_stack()}))]));
    equal(&Chain::new([bridge(
        &json!({"ipam": dual_stack(), "enabledad": true}),
    )]));
}

#[test]
fn a_bridge_with_ranges_of_their_own() {
    let ranges = json!([
        [{"subnet": "10.5.0.0/24", "rangeStart": "10.5.0.100", "rangeEnd": "10.5.0.120", "gateway": "10.5.0.254"}],
        [{"subnet": "fd00:6::/112", "rangeStart": "fd00:6::8"}, {"subnet": "fd00:7::/64"}],
    ]);
    equal(&Chain::new([bridge(
        &json!({"ipam": host_local(&json!({"ranges": ranges}))}),
    )]));
    let ranges =
        json!([[{"subnet": "10.5.0.0/24"}], [{"subnet": "10.6.0.0/16", "rangeStart": "10.6.7.8"}]]);
    let ipam = host_local(&json!({"ranges": ranges}));
    equal(&Chain::new([bridge(
        &json!({"ipam": ipam, "forceAddress": true}),
    )]));
    equal(&Chain::new([bridge(
        &json!({"ipam": ipam, "isGateway": false}),
    )]));
}

#[test]
fn a_bridge_with_routes_of_all_kinds() {
    let ipam = host_local(&json!({
        "ranges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd00:5::/64"}]],
        "routes": [
            {"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.5.0.77"},
            {"dst": "198.51.100.7/32", "gw": "10.5.0.78", "priority": 100},
            {"dst": "203.0.113.0/24", "mtu": 1300, "advmss": 1200},
            {"dst": "::/0"}, {"dst": "2001:db8::/32", "gw": "fd00:5::77"},
        ],
    }));
    for version in ["1.0.0", "1.1.0"] {
        equal(&Chain::new([bridge(&json!({"ipam": ipam.clone()}))]).version(version));
    }
}

#[test]
fn a_bridge_with_routes_in_tables_and_scopes() {
    if World::new().node_says(&["ip", "rule", "show"]).is_empty() {
        println!("SKIPPED: this kernel has one table of routes (CONFIG_IP_MULTIPLE_TABLES)");
        return;
    }
    let ipam = host_local(&json!({"routes": [
        {"dst": "192.0.2.0/24", "table": 100},
        {"dst": "198.51.100.0/24", "scope": 0, "gw": "10.5.0.77"},
    ]}));
    let chain = Chain::new([bridge(&json!({"ipam": ipam}))]).version("1.1.0");
    equal(&chain.unchecked("its CHECK looks into the main table only"));
}

#[test]
fn a_bridge_with_an_mtu() {
    equal(&Chain::new([bridge(&json!({"mtu": 1400}))]));
    equal(&Chain::new([bridge(&json!({"mtu": 1400}))]).version("1.1.0"));
}

#[test]
fn a_bridge_with_a_resolver() {
    let ipam = host_local(&json!({"resolvConf": "<dir>/resolv.conf"}));
    equal(&Chain::new([bridge(&json!({"ipam": ipam}))]));
    let dns = json!({"nameservers": ["10.1.1.1"], "search": ["x.example"]});
    equal(&Chain::new([bridge(&json!({"dns": dns}))]));
}

#[test]
fn a_bridge_with_a_requested_address() {
    let bridge = bridge(&json!({}));
    equal(&Chain::new([bridge.clone()]).args("IgnoreUnknown=1;IP=10.5.0.77"));
    let mut by_runtime = bridge.clone();
    by_runtime["runtimeConfig"] = json!({"ips": ["10.5.0.78/24"]});
    equal(&Chain::new([by_runtime]));
    let mut by_args = bridge;
    by_args["args"] = json!({"cni": {"ips": ["10.5.0.79"]}});
    equal(&Chain::new([by_args]));
}

#[test]
fn a_bridge_with_a_requested_hardware_address() {
    let bridge = bridge(&json!({}));
    equal(&Chain::new([bridge.clone()]).args("IgnoreUnknown=1;MAC=02:00:00:00:05:01"));
    let mut by_runtime = bridge.clone();
    by_runtime["runtimeConfig"] = json!({"mac": "02:00:00:00:05:02"});
    equal(&Chain::new([by_runtime]));
    let mut by_args = bridge;
    by_args["args"] = json!({"cni": {"mac": "02:00:00:00:05:03"}});
    equal(&Chain::new([by_args]));
}

#[test]
fn a_bridge_with_addresses_given_by_the_configuration() {
    let ipam = json!({
        "type": "static",
        "addresses": [{"address": "10.5.0.9/24", "gateway": "10.5.0.1"}, {"address": "fd00:5::9/64"}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.1.1.1"]},
    });
    equal(&Chain::new([bridge(&json!({"ipam": ipam}))]));
}

/// Whether the kernel has bridges that look at VLANs; says so where it has not.
fn has_vlans() -> bool {
    let world = World::new();
    let (add, show) = (
        "link add name v type bridge vlan_filtering 1",
        "link show v",
    );
    let ip = |words: &str| {
        let words: Vec<_> = std::iter::once("ip").chain(words.split(' ')).collect();
        world.node_says(&words)
    };
    ip(add);
    let has = !ip(show).is_empty();
    if !has {
        println!("SKIPPED: this kernel has no VLANs on bridges (CONFIG_BRIDGE_VLAN_FILTERING)");
    }
    has
}

#[test]
fn a_bridge_with_a_vlan() {
    if has_vlans() {
        for own in [
            json!({"vlan": 100}),
            json!({"vlan": 100, "preserveDefaultVlan": true}),
            json!({"vlan": 100, "ipMasq": true, "ipam": dual_stack()}),
            json!({"vlan": 100, "isGateway": false}),
        ] {
            equal(&Chain::new([bridge(&own)]));
        }
    }
}

#[test]
fn a_bridge_with_a_trunk_of_vlans() {
    if has_vlans() {
        let trunk = json!([{"minID": 10, "maxID": 12}, {"id": 42}]);
        for own in [
            json!({"vlanTrunk": trunk, "isGateway": false}),
            json!({"vlanTrunk": trunk, "vlan": 7, "isGateway": false}),
            json!({"vlanTrunk": trunk, "preserveDefaultVlan": true, "isGateway": false}),
        ] {
            equal(&Chain::new([bridge(&own)]));
        }
    }
}

#[test]
fn what_neither_can_do() {
    let gateways = host_local(&json!({
        "ranges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": "10.6.0.0/24"}]],
    }));
    let unreachable = host_local(&json!({"routes": [{"dst": "192.0.2.0/24", "gw": "10.99.0.1"}]}));
    let elsewhere = bridge(&json!({}));
    for refused in [
        bridge(&json!({"ipam": gateways})),
        bridge(&json!({"ipam": unreachable})),
        bridge(&json!({"bridge": "lo"})),
        bridge(&json!({"vlan": 5000})),
        bridge(&json!({"promiscMode": true, "hairpinMode": true})),
        bridge(&json!({"ipam": {"type": "host-local", "dataDir": "<dir>/networks"}})),
        bridge(&json!({"ipam": host_local(&json!({"ranges": [[{"subnet": "10.5.0.0/31"}]]}))})),
    ] {
        both_refuse(&Chain::new([refused]));
    }
    both_refuse(&Chain::new([elsewhere]).args("IgnoreUnknown=1;IP=10.77.0.1"));
}
