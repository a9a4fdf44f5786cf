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
        |world, index| {
            Snapshot::take(
                world,
                Some(&results[index]).filter(|_| chain.compares_result),
            )
        },
        "ADD",
    );
    if chain.version.as_str() >= "0.4.0" {
        for ((adds, _, world), result) in worlds.iter().zip(&results) {
            for checks in SIDES {
                let expected = checks == Side::Builtin || chain.is_checked;
                let checked = world.check(checks, chain, result);
                assert_eq!(
                    checked.is_ok(),
                    expected,
                    "of what {adds:?} made: {checked:?}"
                );
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

#[test]
fn loopback_alone() {
    for version in ["1.0.0", "1.1.0"] {
        equal(&Chain::new([json!({"type": "loopback"})]).version(version));
    }
    // For older versions the plugin prints a result of 1.0 all the same, which they
    // do not know; the built-in's is of the version.
    for version in ["0.3.1", "0.4.0"] {
        equal(
            &Chain::new([json!({"type": "loopback"})])
                .version(version)
                .without_result(),
        );
    }
}

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
