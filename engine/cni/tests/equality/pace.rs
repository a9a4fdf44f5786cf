//! How long both sides take, in turn on one node.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::cases::{SIDES, bridge, portmap};
use crate::world::{Chain, Side, World};

const ROUNDS: usize = 60;

/// Not a test but a measurement: `cargo test --release -p cni --test equality --
/// --ignored --nocapture pace`.
#[test]
#[ignore = "a measurement"]
fn add_and_del_side_by_side() {
    let masquerade = json!({"ipMasq": true});
    let chains = [
        ("bridge + host-local", Chain::new([bridge(&json!({}))])),
        ("the same with ipMasq", Chain::new([bridge(&masquerade)])),
        (
            "the same with three ports",
            Chain::new([bridge(&masquerade), portmap(&json!({}))]),
        ),
    ];
    for (name, chain) in chains {
        let chain = chain.pod_goes();
        let mut world = World::new();
        let mut times: [[Vec<Duration>; 2]; 2] = Default::default();
        for _ in 0..ROUNDS {
            for (side, times) in SIDES.iter().zip(&mut times) {
                let began = Instant::now();
                let result = world.add(*side, &chain).expect("ADD");
                times[0].push(began.elapsed());
                let began = Instant::now();
                world.del(*side, &chain, Some(&result)).expect("DEL");
                times[1].push(began.elapsed());
                world.next_pod();
            }
        }
        for (side, times) in SIDES.iter().zip(times) {
            let [add, del] = times.map(summary);
            let side = match side {
                Side::Plugins => "plugins ",
                Side::Builtin => "built in",
            };
            println!("{name}: {side}: ADD {add}, DEL {del}");
        }
    }
}

fn summary(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |part: usize| {
        let place = (times.len() * part / 100).min(times.len() - 1);
        times[place].as_secs_f64() * 1000.0
    };
    format!("p50 {:.2} ms p99 {:.2} ms", at(50), at(99))
}
