//! The table of configurations.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::snapshot::Snapshot;
use crate::world::{Chain, Side, World};

/// How long two worlds may take to become alike: the kernel brings links up and
/// makes IPv6 addresses in its own time.
const PATIENCE: Duration = Duration::from_secs(10);
const SIDES: [Side; 2] = [Side::Plugins, Side::Builtin];

/// Both make the same of it, both check what either made, and whoever takes it
/// away leaves the same.
fn equal(chain: &Chain) {
    let worlds = SIDES.map(|adds| SIDES.map(|deletes| (adds, deletes, World::new())));
    let worlds: Vec<_> = worlds.into_iter().flatten().collect();
    let mut results = Vec::new();
    for (adds, _, world) in &worlds {
        let result = world
            .add(*adds, chain)
            .unwrap_or_else(|error| panic!("{error}"));
        results.push(result);
    }
    alike(
        &worlds,
        |world, index| Snapshot::take(world, Some(&results[index])),
        "ADD",
    );
    if chain.version.as_str() >= "0.4.0" {
        for ((adds, _, world), result) in worlds.iter().zip(&results) {
            for checks in SIDES {
                let checked = world.check(checks, chain, result);
                checked.unwrap_or_else(|error| panic!("of what {adds:?} made: {error}"));
            }
        }
    }
    for ((adds, deletes, world), result) in worlds.iter().zip(&results) {
        for _ in 0..2 {
            let deleted = world.del(*deletes, chain, Some(result));
            deleted.unwrap_or_else(|error| panic!("of what {adds:?} made: {error}"));
        }
    }
    alike(&worlds, |world, _| Snapshot::take(world, None), "DEL");
}

/// Waits until all worlds are alike.
fn alike(worlds: &[(Side, Side, World)], look: impl Fn(&World, usize) -> Snapshot, after: &str) {
    let began = Instant::now();
    loop {
        let seen: Vec<_> = worlds
            .iter()
            .enumerate()
            .map(|(index, (.., world))| look(world, index))
            .collect();
        let settled = seen.iter().all(Snapshot::is_settled);
        let differences: Vec<_> = worlds
            .iter()
            .zip(&seen)
            .skip(1)
            .filter_map(|((adds, deletes, _), one)| {
                let difference = seen[0].difference(one)?;
                Some(format!(
                    "ADD by {adds:?}, DEL by {deletes:?}:\n{difference}"
                ))
            })
            .collect();
        if settled && differences.is_empty() {
            return;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "after {after} (- plugins alone, + the other):\n{}",
            differences.join("\n")
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn host_local(extra: &Value) -> Value {
    let mut ipam = json!({
        "type": "host-local", "dataDir": "<dir>/networks",
        "ranges": [[{"subnet": "10.5.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    merge(&mut ipam, extra);
    ipam
}

fn merge(value: &mut Value, extra: &Value) {
    for (key, item) in extra.as_object().into_iter().flatten() {
        value[key] = item.clone();
    }
}

fn bridge(extra: &Value) -> Value {
    let mut bridge = json!({
        "type": "bridge", "bridge": "br-test", "isGateway": true,
        "ipMasqBackend": "nftables", "ipam": host_local(&json!({})),
    });
    merge(&mut bridge, extra);
    bridge
}

fn ptp(extra: &Value) -> Value {
    let mut ptp = json!({
        "type": "ptp", "ipMasqBackend": "nftables", "ipam": host_local(&json!({})),
    });
    merge(&mut ptp, extra);
    ptp
}

fn dual_stack() -> Value {
    host_local(&json!({
        "ranges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd00:5::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }))
}

fn portmap(extra: &Value) -> Value {
    let mut portmap = json!({
        "type": "portmap", "backend": "nftables",
        "runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
            {"hostPort": 8132, "containerPort": 132, "protocol": "sctp"},
        ]},
    });
    merge(&mut portmap, extra);
    portmap
}

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

fn bandwidth(limits: &Value) -> Value {
    json!({"type": "bandwidth", "runtimeConfig": {"bandwidth": limits}})
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

fn firewall(extra: &Value) -> Value {
    let mut firewall = json!({"type": "firewall"});
    merge(&mut firewall, extra);
    firewall
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

#[test]
fn the_comparison_sees_what_differs() {
    let worlds = [World::new(), World::new()];
    let chains = [portmap(&json!({})), portmap(&json!({"snat": false}))]
        .map(|portmap| Chain::new([bridge(&json!({})), portmap]));
    let [one, other] = [0, 1].map(|index| {
        let (world, chain) = (&worlds[index], &chains[index]);
        world
            .add(Side::Plugins, chain)
            .unwrap_or_else(|error| panic!("{error}"));
        Snapshot::take(world, None)
    });
    let difference = one.difference(&other).expect("they differ");
    for word in ["masquerading", "route_localnet"] {
        assert!(difference.contains(word), "{difference}");
    }
}
