//! Interfaces that are tuned after they were made.

use serde_json::{Value, json};

use super::{both_refuse, bridge, equal, merge};
use crate::world::Chain;

fn tuning(keys: &Value) -> Value {
    let mut tuning = json!({"type": "tuning", "dataDir": "<dir>/tuning"});
    merge(&mut tuning, keys);
    tuning
}

fn tuned(keys: &Value) -> Chain {
    Chain::new([bridge(&json!({})), tuning(keys)])
}

#[test]
fn nothing_to_tune() {
    equal(&tuned(&json!({})));
}

#[test]
fn parameters_of_the_network() {
    let keys = json!({"sysctl": {
        "net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.log_martians": "1",
    }});
    equal(&tuned(&keys));
    let arguments =
        json!({"sysctl": {}, "args": {"cni": {"sysctl": {"net.core.somaxconn": "501"}}}});
    equal(&tuned(&arguments));
}

#[test]
fn all_of_an_interface() {
    let keys = json!({
        "mac": "c2:b0:57:49:47:f1", "mtu": 1454, "promisc": true, "allmulti": true, "txQLen": 20000,
    });
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        equal(&tuned(&keys).version(version));
    }
}

#[test]
fn a_hardware_address_from_each_side() {
    let mac = json!({"mac": "c2:b0:57:49:47:f1"});
    equal(&tuned(&json!({"runtimeConfig": mac})));
    equal(&tuned(&json!({"args": {"cni": mac}})));
    equal(&tuned(&json!({})).args("IgnoreUnknown=true;MAC=c2:b0:57:49:47:f1"));
}

#[test]
fn what_is_no_parameter_of_the_network() {
    both_refuse(&tuned(&json!({"sysctl": {"kernel.panic": "1"}})));
}
