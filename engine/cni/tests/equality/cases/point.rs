//! Links between the node and a pod alone.

use serde_json::json;

use super::{both_refuse, dual_stack, equal, host_local, ptp};
use crate::world::Chain;

#[test]
fn a_link_in_every_version() {
    for version in [
        "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
    ] {
        equal(&Chain::new([ptp(&json!({}))]).version(version));
    }
}

#[test]
fn a_link_of_both_families() {
    equal(&Chain::new([ptp(&json!({"ipam": dual_stack()}))]));
}

#[test]
fn a_link_that_masquerades() {
    let keys = json!({"ipMasq": true, "ipam": dual_stack(), "mtu": 1400});
    equal(&Chain::new([ptp(&keys)]));
}

#[test]
fn a_link_with_routes_and_a_resolver() {
    let ipam = host_local(&json!({
        "resolvConf": "<dir>/resolv.conf",
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.5.0.77"}],
    }));
    equal(&Chain::new([ptp(&json!({"ipam": ipam}))]));
    let dns = json!({"nameservers": ["10.1.1.1"]});
    equal(&Chain::new([ptp(&json!({"ipam": ipam, "dns": dns}))]));
}

#[test]
fn a_link_with_addresses_given_by_the_configuration() {
    let ipam = json!({"type": "static", "routes": [{"dst": "0.0.0.0/0"}],
        "addresses": [{"address": "10.5.0.9/24", "gateway": "10.5.0.1"}]});
    equal(&Chain::new([ptp(&json!({"ipam": ipam}))]));
}

#[test]
fn a_link_without_a_gateway_or_with_a_route_to_nowhere() {
    let ipam = json!({"type": "static", "addresses": [{"address": "10.5.0.9/24"}]});
    both_refuse(&Chain::new([ptp(&json!({"ipam": ipam}))]));
    let ipam = host_local(&json!({"routes": [{"dst": "192.0.2.0/24", "gw": "10.9.9.9"}]}));
    both_refuse(&Chain::new([ptp(&json!({"ipam": ipam}))]));
}
