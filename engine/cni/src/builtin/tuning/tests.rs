//! Tests on an interface in a namespace of its own.

use serde_json::json;

use super::*;
use crate::netlink::Namespace;
use crate::testing::{Pin, call, in_new_namespace};
use crate::veth::{self, Wanted};

/// The end of a veth in the pin.
fn interface(pin: &Pin) {
    let pod = Namespace::open(pin.path()).unwrap();
    let wanted = Wanted {
        inside: "eth0",
        pod: Some(&pod),
        master: 0,
        mtu: 0,
        mac: None,
    };
    veth::add(&mut guest::socket().unwrap(), &wanted).unwrap();
}

fn look(pin: &Pin) -> Link {
    let pod = Namespace::open(pin.path()).unwrap();
    pod.run(|| guest::find(&mut guest::socket().unwrap(), "eth0").unwrap())
        .unwrap()
}

#[test]
fn an_interface_is_tuned_checked_and_made_as_it_was() {
    in_new_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let pin = Pin::new();
        interface(&pin);
        let before = look(&pin);
        let previous = json!({"cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "mac": before.mac.to_string(), "sandbox": pin.path()}]});
        let config = json!({"cniVersion": "1.1.0", "name": "n", "type": "tuning",
            "dataDir": dir.path().join("deep"), "mac": "02:00:00:00:00:07", "mtu": 1234, "promisc": true,
            "allmulti": true, "txQLen": 77, "prevResult": previous,
            "sysctl": {"net.ipv4.conf.IFNAME.log_martians": "1", "net.core.somaxconn": "500"}});
        let added = crate::run("tuning", &call(Command::Add, &pin, &config)).unwrap();
        assert_eq!(added["interfaces"][0]["mac"], "02:00:00:00:00:07");
        let tuned = look(&pin);
        assert_eq!((tuned.mtu, tuned.queue), (1234, 77));
        assert!(tuned.flags & IFF_ALLMULTI != 0 && tuned.promiscuity == 1);
        let file = dir.path().join("deep/c_eth0.json");
        let kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(
            kept,
            json!({"mac": before.mac.to_string(), "promisc": false,
            "mtu": before.mtu, "allmulti": false, "txQLen": before.queue})
        );
        crate::run("tuning", &call(Command::Check, &pin, &config)).unwrap();
        let mut other = config.clone();
        other["sysctl"] = json!({"net.core.somaxconn": "501"});
        let error = crate::run("tuning", &call(Command::Check, &pin, &other)).unwrap_err();
        assert!(error.msg.contains("somaxconn"), "{error}");
        crate::run("tuning", &call(Command::Del, &pin, &config)).unwrap();
        let after = look(&pin);
        assert_eq!(
            (after.mac, after.mtu, after.queue),
            (before.mac, before.mtu, before.queue)
        );
        assert!(after.flags & IFF_ALLMULTI == 0 && after.promiscuity == 0 && !file.exists());
        crate::run("tuning", &call(Command::Del, &pin, &config)).unwrap();
    });
}

#[test]
fn only_parameters_of_the_network_are_set() {
    let path = |key: &str| file_of(key).map(|path| path.display().to_string());
    assert_eq!(
        path("net.ipv4.conf.IFNAME.x").unwrap(),
        "/proc/sys/net/ipv4/conf/eth0/x"
    );
    for key in [
        "kernel.panic",
        "net",
        "",
        "net/ipv4/../../kernel/panic",
        "/kernel/panic",
    ] {
        // Dots are slashes, so nothing climbs.
        let refused = path(key).map_or(true, |path| path.starts_with("/proc/sys/net/"));
        assert!(refused, "{key}");
    }
    assert!(path("kernel.panic").is_err());
}

fn file_of(key: &str) -> Result<std::path::PathBuf, Error> {
    config::file(key, "eth0")
}

#[test]
fn a_namespace_that_goes_needs_nothing_restored() {
    in_new_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let pin = Pin::new();
        interface(&pin);
        let config = json!({"cniVersion": "1.0.0", "name": "n", "type": "tuning",
            "dataDir": dir.path(), "mtu": 1234, "prevResult": {"cniVersion": "1.0.0"}});
        crate::run("tuning", &call(Command::Add, &pin, &config)).unwrap();
        let mut del = call(Command::Del, &pin, &config);
        del.netns_will_go = true;
        crate::run("tuning", &del).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut without = config.clone();
        without["prevResult"] = Value::Null;
        assert!(crate::run("tuning", &call(Command::Add, &pin, &without)).is_err());
    });
}
