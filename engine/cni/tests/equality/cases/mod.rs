//! What it means that both are equal, and the parts of the configurations.

mod bridge;
mod chained;
mod others;
mod point;
mod tuned;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::snapshot::Snapshot;
use crate::world::{Chain, Side, World};

/// How long two worlds may take to become alike: the kernel brings links up and
/// makes IPv6 addresses in its own time.
const PATIENCE: Duration = Duration::from_secs(10);
pub(crate) const SIDES: [Side; 2] = [Side::Plugins, Side::Builtin];

/// Both make the same of it, both check what either made, and whoever takes it
/// away leaves the same.
pub(crate) fn equal(chain: &Chain) {
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
                let checked = world.check(checks, chain, result);
                let must = checks == Side::Builtin || chain.is_checked;
                assert!(
                    checked.is_ok() || !must,
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

/// Neither can do it, both give it the same code, and after DEL by either the same
/// is left.
pub(crate) fn both_refuse(chain: &Chain) {
    let worlds = SIDES.map(|adds| SIDES.map(|deletes| (adds, deletes, World::new())));
    let worlds: Vec<_> = worlds.into_iter().flatten().collect();
    let (mut errors, mut deleted) = (Vec::new(), Vec::new());
    for (adds, deletes, world) in &worlds {
        errors.push(world.add(*adds, chain).expect_err("refused"));
        // What cannot be understood cannot be deleted either.
        deleted.push(world.del(*deletes, chain, None));
    }
    let as_well = deleted.iter().all(|one| one.is_ok() == deleted[0].is_ok());
    assert!(as_well, "{deleted:#?}");
    let code = |error: &String| {
        let printed = error.find('{').map(|at| &error[at..]);
        let printed = printed.and_then(|text| serde_json::from_str::<Value>(text).ok());
        printed.and_then(|value| value["code"].as_u64())
    };
    let codes: Vec<_> = errors.iter().map(code).collect();
    let same = codes.iter().all(|code| code.is_some() && *code == codes[0]);
    assert!(same, "{errors:#?}");
    let look = |world: &World, _| Snapshot::take(world, None).without_node_links();
    alike(&worlds, look, "DEL");
}

/// Waits until all worlds are alike.
pub(crate) fn alike(
    worlds: &[(Side, Side, World)],
    look: impl Fn(&World, usize) -> Snapshot,
    after: &str,
) {
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

pub(crate) fn host_local(extra: &Value) -> Value {
    let mut ipam = json!({
        "type": "host-local", "dataDir": "<dir>/networks",
        "ranges": [[{"subnet": "10.5.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    merge(&mut ipam, extra);
    ipam
}

pub(crate) fn merge(value: &mut Value, extra: &Value) {
    for (key, item) in extra.as_object().into_iter().flatten() {
        value[key] = item.clone();
    }
}

pub(crate) fn bridge(extra: &Value) -> Value {
    let mut bridge = json!({
        "type": "bridge", "bridge": "br-test", "isGateway": true,
        "ipMasqBackend": "nftables", "ipam": host_local(&json!({})),
    });
    merge(&mut bridge, extra);
    bridge
}

pub(crate) fn ptp(extra: &Value) -> Value {
    let mut ptp = json!({
        "type": "ptp", "ipMasqBackend": "nftables", "ipam": host_local(&json!({})),
    });
    merge(&mut ptp, extra);
    ptp
}

pub(crate) fn dual_stack() -> Value {
    host_local(&json!({
        "ranges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd00:5::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }))
}

pub(crate) fn portmap(extra: &Value) -> Value {
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

pub(crate) fn bandwidth(limits: &Value) -> Value {
    json!({"type": "bandwidth", "runtimeConfig": {"bandwidth": limits}})
}

pub(crate) fn firewall(extra: &Value) -> Value {
    let mut firewall = json!({"type": "firewall"});
    merge(&mut firewall, extra);
    firewall
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
