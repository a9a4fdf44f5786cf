//! Plugins that build upon what others made, and whole chains.

use serde_json::json;

use super::{SIDES, alike, bandwidth, bridge, dual_stack, equal, firewall, portmap, ptp};
use crate::snapshot::Snapshot;
use crate::world::{Chain, Side, World};

#[test]
fn port_mappings_of_all_protocols() {
    equal(&Chain::new([bridge(&json!({})), portmap(&json!({}))]).given(1));
}

#[test]
fn port_mappings_of_both_families() {
    equal(&Chain::new([bridge(&json!({"ipam": dual_stack()})), portmap(&json!({}))]).given(1));
}

#[test]
fn port_mappings_to_addresses_of_the_node() {
    let addresses = json!({"runtimeConfig": {"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
        {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0"},
        {"hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "::1"},
        {"hostPort": 8083, "containerPort": 80, "protocol": "tcp", "hostIP": "::"},
        {"hostPort": 8084, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.7"},
    ]}});
    equal(&Chain::new([bridge(&json!({"ipam": dual_stack()})), portmap(&addresses)]).given(1));
}

#[test]
fn port_mappings_without_source_nat() {
    equal(&Chain::new([bridge(&json!({})), portmap(&json!({"snat": false}))]).given(1));
}

#[test]
fn no_port_mappings() {
    let none = json!({"runtimeConfig": {}});
    equal(&Chain::new([bridge(&json!({})), portmap(&none)]).given(1));
}

#[test]
fn a_whole_chain() {
    let limits = json!({"ingressRate": 1_000_000, "ingressBurst": 80_000,
        "egressRate": 2_000_000, "egressBurst": 160_000});
    let bridge = bridge(&json!({"ipMasq": true, "hairpinMode": true, "ipam": dual_stack()}));
    let chain = [
        bridge,
        portmap(&json!({})),
        bandwidth(&limits),
        firewall(&json!({})),
    ];
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        equal(&Chain::new(chain.clone()).version(version));
    }
}

#[test]
fn bandwidth_in_both_directions() {
    let limits = json!({
        "ingressRate": 1_000_000, "ingressBurst": 80_000,
        "egressRate": 2_000_000, "egressBurst": 160_000,
    });
    equal(&Chain::new([bridge(&json!({"mtu": 1400})), bandwidth(&limits)]).given(1));
}

#[test]
fn bandwidth_in_one_direction() {
    let ingress = json!({"ingressRate": 1_000_000, "ingressBurst": 80_000});
    let egress = json!({"egressRate": 1_000_000, "egressBurst": 80_000});
    for limits in [ingress, egress] {
        equal(
            &Chain::new([ptp(&json!({})), bandwidth(&limits)])
                .given(1)
                .version("0.3.1"),
        );
    }
}

/// The kubelet's peers send the largest burst there is with any rate.
#[test]
fn bandwidth_where_the_plugins_arithmetic_overflows() {
    for rate in [100_000_u64, 10_000_000, 40_000_000_000] {
        let burst = u32::MAX;
        let limits = json!({
            "ingressRate": rate, "ingressBurst": burst,
            "egressRate": rate, "egressBurst": burst,
        });
        equal(
            &Chain::new([bridge(&json!({})), bandwidth(&limits)])
                .given(1)
                .version("1.1.0"),
        );
    }
}

#[test]
fn no_bandwidth() {
    equal(&Chain::new([bridge(&json!({})), bandwidth(&json!({}))]).given(1));
}

#[test]
fn firewall_lets_both_families_through() {
    let bridge = bridge(&json!({"ipam": dual_stack()}));
    equal(&Chain::new([bridge, firewall(&json!({}))]).given(1));
}

#[test]
fn firewall_with_a_policy_for_the_bridge() {
    for policy in ["same-bridge", "isolated"] {
        let bridge = bridge(&json!({"ipam": dual_stack()}));
        let firewall = firewall(&json!({"ingressPolicy": policy}));
        equal(&Chain::new([bridge, firewall]).given(1));
    }
}

#[test]
fn firewall_with_another_chain_of_the_administrator() {
    let firewall = firewall(&json!({"iptablesAdminChainName": "SITE"}));
    equal(
        &Chain::new([bridge(&json!({})), firewall])
            .given(1)
            .version("0.4.0"),
    );
}

/// A node that goes from one side to the other while pods run.
#[test]
fn pods_of_both_sides_share_a_node() {
    let limits = json!({"ingressRate": 1_000_000, "ingressBurst": 80_000});
    let keys = json!({"ipMasq": true, "ipam": dual_stack()});
    let isolated = json!({"ingressPolicy": "isolated"});
    let chain = Chain::new([
        bridge(&keys),
        portmap(&json!({})),
        bandwidth(&limits),
        firewall(&isolated),
    ]);
    let done = |result: Result<(), String>| result.unwrap_or_else(|error| panic!("{error}"));
    let other = |side: Side| if side == SIDES[0] { SIDES[1] } else { SIDES[0] };
    let worlds = SIDES.map(|first| SIDES.map(|second| (first, second, World::new())));
    let mut worlds: Vec<_> = worlds.into_iter().flatten().collect();
    let mut results = Vec::new();
    for (first, second, world) in &mut worlds {
        let add = |world: &World, side| {
            world
                .add(side, &chain)
                .unwrap_or_else(|error| panic!("{error}"))
        };
        let one = add(world, *first);
        world.turn();
        results.push((one, add(world, *second)));
    }
    let both = |world: &World, index: usize| Snapshot::take(world, Some(&results[index].1));
    alike(&worlds, both, "both ADDs");
    for ((_, second, world), (_, result)) in worlds.iter_mut().zip(&results) {
        done(world.del(other(*second), &chain, Some(result)));
        world.turn();
    }
    let one = |world: &World, index: usize| Snapshot::take(world, Some(&results[index].0));
    alike(&worlds, one, "DEL of the second");
    for ((first, _, world), (result, _)) in worlds.iter_mut().zip(&results) {
        for side in SIDES {
            done(world.check(side, &chain, result));
        }
        done(world.del(other(*first), &chain, Some(result)));
    }
    alike(
        &worlds,
        |world, _| Snapshot::take(world, None),
        "DEL of both",
    );
}
