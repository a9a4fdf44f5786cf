//! Tests in folders of their own.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

struct Net {
    dir: TempDir,
    config: Value,
}

impl Net {
    fn new(ipam: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = ipam;
        ipam["type"] = json!("host-local");
        ipam["dataDir"] = json!(dir.path());
        let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": ipam});
        Self { dir, config }
    }

    fn call<'a>(&'a self, command: Command, id: &'a str) -> Invocation<'a> {
        Invocation {
            command,
            container_id: id,
            netns: Some(Path::new("/some/where")),
            interface: "eth0",
            args: "",
            config: &self.config,
            netns_will_go: false,
        }
    }

    fn add(&self, id: &str) -> Result<Vec<String>, Error> {
        let outcome = add(&self.call(Command::Add, id))?;
        Ok(outcome
            .ips
            .iter()
            .map(|ip| ip.address.to_string())
            .collect())
    }

    fn del(&self, id: &str) {
        del(&self.call(Command::Del, id)).unwrap();
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.dir.path().join("net").join(file)).unwrap()
    }

    fn addresses(&self) -> HashSet<String> {
        let entries = fs::read_dir(self.dir.path().join("net")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.parse::<IpAddr>().is_ok())
            .collect()
    }
}

/// A crash between the two steps of a reservation leaves a file without an owner.
#[test]
fn an_address_whose_file_has_no_owner_is_given_out_again() {
    let net = Net::new(json!({"subnet": "10.9.0.0/30"}));
    assert_eq!(net.add("first").unwrap(), ["10.9.0.2/30"]);
    fs::write(net.dir.path().join("net/10.9.0.2"), "").unwrap();
    assert_eq!(net.add("second").unwrap(), ["10.9.0.2/30"]);
    assert_eq!(net.read("10.9.0.2"), "second\r\neth0");
    assert!(net.add("third").is_err());
}

fn dual() -> Net {
    Net::new(json!({
        "ranges": [
            [{"subnet": "10.1.2.0/24"}, {"subnet": "10.2.2.0/24"}],
            [{"subnet": "2001:db8:1::/64"}],
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "1.1.1.1"}],
    }))
}

#[test]
fn two_families_are_reserved_in_files_of_the_plugins_form() {
    let net = dual();
    let outcome = add(&net.call(Command::Add, "dummy")).unwrap();
    let rendered = outcome.render("1.1.0").unwrap();
    assert_eq!(
        rendered,
        json!({"cniVersion": "1.1.0",
            "ips": [{"address": "10.1.2.2/24", "gateway": "10.1.2.1"},
                {"address": "2001:db8:1::2/64", "gateway": "2001:db8:1::1"}],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "1.1.1.1"}]})
    );
    assert_eq!(net.read("10.1.2.2"), "dummy\r\neth0");
    assert_eq!(net.read("2001:db8:1::2"), "dummy\r\neth0");
    assert_eq!(net.read("last_reserved_ip.0"), "10.1.2.2");
    assert_eq!(net.read("last_reserved_ip.1"), "2001:db8:1::2");
    check(&net.call(Command::Check, "dummy")).unwrap();
    assert!(check(&net.call(Command::Check, "other")).is_err());
    net.del("dummy");
    net.del("dummy");
    assert!(net.addresses().is_empty());
    // Round robin: what was just given back comes last.
    assert_eq!(net.add("b").unwrap(), ["10.1.2.3/24", "2001:db8:1::3/64"]);
}

#[test]
fn an_attachment_gets_one_address_and_other_interfaces_their_own() {
    let net = dual();
    net.add("a").unwrap();
    let error = net.add("a").unwrap_err();
    assert!(error.msg.contains("already"), "{error}");
    let mut second = net.call(Command::Add, "a");
    second.interface = "eth1";
    add(&second).unwrap();
    net.del("a");
    assert_eq!(net.addresses().len(), 2);
    assert_eq!(net.read("10.1.2.3"), "a\r\neth1");
}

#[test]
fn an_old_file_with_the_container_only_is_given_back() {
    let net = Net::new(json!({"subnet": "10.1.2.0/24"}));
    net.add("a").unwrap();
    fs::write(net.dir.path().join("net/10.1.2.2"), " a\n").unwrap();
    check(&net.call(Command::Check, "a")).unwrap();
    net.del("a");
    assert!(net.addresses().is_empty());
}

#[test]
fn a_full_range_says_so_and_gives_back_what_other_sets_gave() {
    let net = Net::new(json!({"ranges": [
        [{"subnet": "fd00::/64"}],
        [{"subnet": "10.0.0.0/29", "rangeStart": "10.0.0.4", "rangeEnd": "10.0.0.5", "gateway": "10.0.0.5"}],
    ]}));
    assert_eq!(net.add("a").unwrap(), ["fd00::2/64", "10.0.0.4/29"]);
    let error = net.add("b").unwrap_err();
    assert!(
        error.msg.contains("range 1") && error.msg.contains("10.0.0.4-10.0.0.5"),
        "{error}"
    );
    assert_eq!(net.addresses().len(), 2);
    net.del("a");
    assert_eq!(net.add("b").unwrap()[1], "10.0.0.4/29");
}

#[test]
fn requested_addresses_are_given_or_refused() {
    let mut net = Net::new(json!({"subnet": "10.0.0.0/24"}));
    let mut call = net.call(Command::Add, "a");
    call.args = "IgnoreUnknown=1;IP=10.0.0.7;FOO=x";
    assert_eq!(
        add(&call).unwrap().ips[0].address.to_string(),
        "10.0.0.7/24"
    );
    call.container_id = "b";
    assert!(add(&call).unwrap_err().msg.contains("not available"));
    call.args = "IP=10.0.0.1";
    assert!(add(&call).unwrap_err().msg.contains("gateway"));
    call.args = "IP=10.9.0.1";
    assert!(add(&call).unwrap_err().msg.contains("10.9.0.1"));
    call.args = "FOO=x";
    assert!(add(&call).unwrap_err().msg.contains("unknown args"));
    assert_eq!(net.addresses().len(), 1);
    net.config["runtimeConfig"] = json!({"ips": ["10.0.0.9/24"]});
    assert_eq!(net.add("c").unwrap(), ["10.0.0.9/24"]);
    net.config["runtimeConfig"] = json!({"ipRanges": [[{"subnet": "10.7.0.0/24"}]]});
    net.config["args"] = json!({"cni": {"ips": ["10.0.0.11"]}});
    assert_eq!(net.add("d").unwrap(), ["10.7.0.2/24", "10.0.0.11/24"]);
}

#[test]
fn broken_ranges_are_refused_with_a_reason() {
    for (ipam, word) in [
        (json!({}), "no IP ranges"),
        (json!({"ranges": [[]]}), "empty"),
        (json!({"subnet": "10.0.0.1/24"}), "host bits"),
        (json!({"subnet": "10.0.0.0/31"}), "too small"),
        (
            json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.0"}),
            "rangeStart",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}),
            "rangeEnd",
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}),
            "mixed",
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/25"}]]}),
            "overlap",
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/25"}]]}),
            "overlaps",
        ),
        (json!({"subnet": "nowhere"}), "netconf"),
    ] {
        let net = Net::new(ipam.clone());
        let error = net.add("a").expect_err(&ipam.to_string());
        assert!(error.to_string().contains(word), "{ipam}: {error}");
        let error = status(&net.call(Command::Status, "")).unwrap_err();
        assert_eq!(error.code, code::NOT_AVAILABLE);
    }
}

#[test]
fn garbage_is_what_no_valid_attachment_holds() {
    let mut net = Net::new(json!({"subnet": "10.0.0.0/24"}));
    for id in ["a", "b", "c"] {
        net.add(id).unwrap();
    }
    fs::write(net.dir.path().join("net/10.0.0.9"), "c").unwrap();
    fs::write(net.dir.path().join("net/10.0.0.10"), "d").unwrap();
    gc(&net.call(Command::Gc, "")).unwrap();
    assert_eq!(net.addresses().len(), 5);
    net.config["cni.dev/valid-attachments"] = json!([
        {"containerID": "a", "ifname": "eth0"},
        {"containerID": "b", "ifname": "eth1"},
        {"containerID": "c", "ifname": "eth1"},
    ]);
    gc(&net.call(Command::Gc, "")).unwrap();
    let left: HashSet<String> = ["10.0.0.2", "10.0.0.9"].map(String::from).into();
    assert_eq!(net.addresses(), left);
}

#[test]
fn settings_of_the_resolver_come_from_a_file() {
    let mut net = Net::new(json!({"subnet": "10.0.0.0/24"}));
    let file = net.dir.path().join("resolv.conf");
    fs::write(&file, "nameserver 192.0.2.3").unwrap();
    net.config["ipam"]["resolvConf"] = json!(file);
    let outcome = add(&net.call(Command::Add, "a")).unwrap();
    assert_eq!(outcome.dns.nameservers, ["192.0.2.3"]);
    net.config["ipam"]["resolvConf"] = json!("/nonexistent");
    assert!(add(&net.call(Command::Add, "b")).is_err());
    assert_eq!(net.addresses().len(), 1);
}

#[test]
fn two_at_once_never_get_the_same_address() {
    let net = Net::new(json!({"subnet": "10.0.0.0/24"}));
    let given: Vec<String> = std::thread::scope(|scope| {
        let net = &net;
        let threads: Vec<_> = (0..32)
            .map(|number| scope.spawn(move || net.add(&number.to_string()).unwrap().remove(0)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let different: HashSet<_> = given.iter().collect();
    assert_eq!(different.len(), 32);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever comes and goes: no address twice, never a gateway, always in
    /// range, and a full set gives all it has.
    #[test]
    fn addresses_are_unique_and_none_is_lost(steps in prop::collection::vec((0u8..10, any::<bool>()), 1..60)) {
        let net = Net::new(json!({"ranges": [[
            {"subnet": "10.0.0.0/29"},
            {"subnet": "10.0.1.0/29", "rangeStart": "10.0.1.4", "gateway": "10.0.1.5"},
        ]]}));
        let mut held: std::collections::BTreeMap<u8, String> = Default::default();
        for (who, come) in steps {
            let id = who.to_string();
            if !come {
                net.del(&id);
                held.remove(&who);
                continue;
            }
            match net.add(&id) {
                Ok(ips) => {
                    prop_assert!(!held.contains_key(&who));
                    let address = ips[0].split('/').next().unwrap().to_owned();
                    prop_assert!(address != "10.0.0.1" && address != "10.0.1.5");
                    prop_assert!(!held.values().any(|other| *other == address));
                    held.insert(who, address);
                }
                // 5 of the first range and 2 of the second.
                Err(_) => prop_assert!(held.contains_key(&who) || held.len() == 7),
            }
            prop_assert_eq!(net.addresses(), held.values().cloned().collect::<HashSet<_>>());
        }
    }
}

/// Not a test but a measurement, like the bridge's.
#[test]
#[ignore = "a measurement"]
fn how_long_it_takes_among_many() {
    let net = Net::new(json!({"subnet": "10.0.0.0/16"}));
    for held in [0, 100, 250] {
        for id in 0..held {
            net.del(&format!("{id:064}"));
            net.add(&format!("{id:064}")).unwrap();
        }
        let mut times: Vec<_> = (0..200)
            .map(|_| {
                let started = std::time::Instant::now();
                net.add("mine").unwrap();
                let added = started.elapsed();
                net.del("mine");
                (added, started.elapsed() - added)
            })
            .collect();
        times.sort();
        println!("{held} held: p50 of ADD, and its DEL: {:?}", times[100]);
    }
}
