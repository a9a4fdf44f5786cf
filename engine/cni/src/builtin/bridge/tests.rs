//! Tests with a namespace for the host and one for the container.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::rtnl::{address as addresses, route};
use crate::testing::{Pin, in_new_namespace};

/// A network whose "host" is the namespace of the thread that uses it.
struct Net {
    _dir: TempDir,
    config: Value,
}

impl Net {
    fn new(keys: Value, ipam: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge",
            "bridge": "br0"});
        let Value::Object(keys) = keys else {
            panic!("{keys}");
        };
        for (key, value) in keys {
            config[&key] = value;
        }
        if !ipam.is_null() {
            config["ipam"] = ipam;
            config["ipam"]["type"] = json!("host-local");
            config["ipam"]["dataDir"] = json!(dir.path());
        }
        Self { _dir: dir, config }
    }

    fn call(&self, command: Command, id: &str, netns: &Path) -> Result<Value, Error> {
        self.call_with(command, id, netns, false)
    }

    fn call_with(
        &self,
        command: Command,
        id: &str,
        netns: &Path,
        netns_will_go: bool,
    ) -> Result<Value, Error> {
        crate::run(
            "bridge",
            &Invocation {
                command,
                container_id: id,
                netns: Some(netns),
                interface: "eth0",
                args: "",
                config: &self.config,
                netns_will_go,
            },
        )
    }

    fn held(&self) -> usize {
        let dir = Path::new(self.config["ipam"]["dataDir"].as_str().unwrap()).join("net");
        let Ok(entries) = std::fs::read_dir(dir) else {
            return 0;
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
            .count()
    }
}

fn dual() -> Net {
    Net::new(
        json!({"isDefaultGateway": true, "mtu": 1400, "hairpinMode": true}),
        json!({"ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]]}),
    )
}

fn host_link(name: &str) -> Option<Link> {
    link::find(&mut guest::socket().unwrap(), name).unwrap()
}

fn inside<T: Send>(pin: &Pin, work: impl FnOnce(&mut Socket, Link) -> T + Send) -> T {
    let pod = Namespace::open(pin.path()).unwrap();
    pod.run(|| {
        let mut socket = guest::socket().unwrap();
        let link = guest::find(&mut socket, "eth0").unwrap();
        work(&mut socket, link)
    })
    .unwrap()
}

#[test]
fn an_attachment_has_its_addresses_routes_and_a_port_and_loses_them() {
    in_new_namespace(|| {
        let (net, pin) = (dual(), Pin::new());
        let added = net.call(Command::Add, "a", pin.path()).unwrap();
        let names: Vec<_> = added["interfaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|interface| interface["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(
            (names.len(), names[0].as_str(), names[2].as_str()),
            (3, "br0", "eth0")
        );
        assert_eq!(added["interfaces"][2]["sandbox"], json!(pin.path()));
        assert_eq!(
            added["ips"][0],
            json!({"interface": 2, "address": "10.88.0.2/16", "gateway": "10.88.0.1"})
        );
        assert_eq!(
            added["routes"],
            json!([{"dst": "0.0.0.0/0", "gw": "10.88.0.1"},
            {"dst": "::/0", "gw": "fd00:88::1"}])
        );
        let port = host_link(&names[1]).unwrap();
        let bridge = host_link("br0").unwrap();
        assert!(port.running && port.is_up() && port.mtu == 1400, "{port:?}");
        assert_eq!((port.master, bridge.mtu), (bridge.index, 1400));
        assert_eq!(added["interfaces"][0]["mac"], json!(bridge.mac.to_string()));
        assert_eq!(added["interfaces"][1]["mac"], json!(port.mac.to_string()));
        let held = addresses::list(&mut guest::socket().unwrap(), bridge.index).unwrap();
        let held: Vec<_> = held.iter().map(|held| held.prefix.to_string()).collect();
        assert!(
            held.contains(&"10.88.0.1/16".into()) && held.contains(&"fd00:88::1/64".into()),
            "{held:?}"
        );
        let hairpin =
            std::fs::read_to_string(format!("/sys/class/net/{}/brport/hairpin_mode", names[1]));
        // Another mount of sysfs may show another namespace.
        assert!(hairpin.is_err() || hairpin.unwrap().trim() == "1");
        inside(&pin, |socket, link| {
            assert!(link.is_up() && link.mtu == 1400 && link.peer == port.index);
            let mine = addresses::list(socket, link.index).unwrap();
            assert!(
                mine.iter().all(|address| !address.is_tentative()),
                "{mine:?}"
            );
            let default = route::list(socket, true).unwrap();
            let default = default.iter().find(|route| route.dst.length == 0).unwrap();
            assert_eq!(default.gateway, Some("fd00:88::1".parse().unwrap()));
            assert_eq!(sysctl_of("arp_notify"), "1");
        });
        let mut checked = Net {
            config: net.config.clone(),
            _dir: tempfile::tempdir().unwrap(),
        };
        checked.config["prevResult"] = added;
        checked.call(Command::Check, "a", pin.path()).unwrap();
        net.call(Command::Del, "a", pin.path()).unwrap();
        assert!(host_link(&names[1]).is_none() && host_link("br0").is_some());
        assert_eq!(net.held(), 0);
        assert!(checked.call(Command::Check, "a", pin.path()).is_err());
        net.call(Command::Del, "a", pin.path()).unwrap();
    });
}

fn sysctl_of(name: &str) -> String {
    crate::sysctl::read(&format!("net/ipv4/conf/eth0/{name}")).unwrap()
}

#[test]
fn a_namespace_that_is_gone_or_will_go_gives_its_addresses_back() {
    in_new_namespace(|| {
        let (net, pin) = (dual(), Pin::new());
        let added = net.call(Command::Add, "a", pin.path()).unwrap();
        let port = added["interfaces"][1]["name"].as_str().unwrap().to_owned();
        net.call_with(Command::Del, "a", pin.path(), true).unwrap();
        assert_eq!(net.held(), 0);
        assert!(host_link(&port).is_some(), "the namespace is still there");
        let other = Pin::new();
        net.call(Command::Add, "b", other.path()).unwrap();
        net.call(Command::Del, "b", Path::new("/nonexistent"))
            .unwrap();
        assert_eq!(net.held(), 0);
    });
}

#[test]
fn a_pin_without_its_mount_is_a_namespace_that_is_gone() {
    in_new_namespace(|| {
        let (net, pin) = (dual(), Pin::new());
        net.call(Command::Add, "a", pin.path()).unwrap();
        let empty = tempfile::NamedTempFile::new().unwrap();
        net.call(Command::Del, "a", empty.path()).unwrap();
        assert_eq!(net.held(), 0);
        assert!(net.call(Command::Add, "b", empty.path()).is_err());
        assert_eq!(net.held(), 0);
    });
}

#[test]
fn a_failed_add_leaves_neither_addresses_nor_a_port() {
    in_new_namespace(|| {
        let (net, pin) = (dual(), Pin::new());
        net.call(Command::Add, "a", pin.path()).unwrap();
        // The interface is there already.
        let error = net.call(Command::Add, "b", pin.path()).unwrap_err();
        assert!(error.msg.contains("eth0"), "{error}");
        assert_eq!(net.held(), 2);
        let mut wrong = dual();
        wrong.config["ipam"]["routes"] = json!([{"dst": "1.0.0.0/8", "gw": "9.9.9.9"}]);
        let fresh = Pin::new();
        let error = wrong.call(Command::Add, "c", fresh.path()).unwrap_err();
        assert_eq!(error.code, crate::code::INTERNAL);
        assert_eq!(wrong.held(), 0);
        let pod = Namespace::open(fresh.path()).unwrap();
        let left = pod.run(|| link::find(&mut guest::socket().unwrap(), "eth0").unwrap());
        assert!(left.unwrap().is_none());
    });
}

#[test]
fn another_address_of_the_bridge_is_kept_unless_forced() {
    in_new_namespace(|| {
        let keys = json!({"isGateway": true});
        let first = Net::new(keys.clone(), json!({"subnet": "10.1.0.0/16"}));
        let pin = Pin::new();
        first.call(Command::Add, "a", pin.path()).unwrap();
        let mut second = Net::new(keys, json!({"subnet": "10.2.0.0/16"}));
        let other = Pin::new();
        let error = second.call(Command::Add, "b", other.path()).unwrap_err();
        assert!(error.msg.contains("different"), "{error}");
        second.config["forceAddress"] = json!(true);
        second.call(Command::Add, "b", other.path()).unwrap();
        let bridge = host_link("br0").unwrap();
        let held =
            addresses::list_family(&mut guest::socket().unwrap(), bridge.index, false).unwrap();
        assert_eq!(held.len(), 1);
        assert_eq!(held[0].prefix.to_string(), "10.2.0.1/16");
    });
}

#[test]
fn without_address_management_the_interface_is_up_or_left_down() {
    in_new_namespace(|| {
        let net = Net::new(
            json!({"runtimeConfig": {"mac": "c2:11:22:33:44:55"}}),
            Value::Null,
        );
        let pin = Pin::new();
        let added = net.call(Command::Add, "a", pin.path()).unwrap();
        assert_eq!(added["interfaces"][2]["mac"], "c2:11:22:33:44:55");
        assert_eq!(added.get("ips"), None);
        assert!(inside(&pin, |_, link| link.is_up()));
        let net = Net::new(json!({"disableContainerInterface": true}), Value::Null);
        let other = Pin::new();
        net.call(Command::Add, "b", other.path()).unwrap();
        assert!(!inside(&other, |_, link| link.is_up()));
        let wrong = Net::new(
            json!({"disableContainerInterface": true}),
            json!({"subnet": "10.1.0.0/16"}),
        );
        assert!(wrong.call(Command::Add, "c", Pin::new().path()).is_err());
    });
}

#[test]
fn many_at_once_make_one_bridge_and_all_have_an_address() {
    in_new_namespace(|| {
        let net = dual();
        let host = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let pins: Vec<Pin> = (0..12).map(|_| Pin::new()).collect();
        std::thread::scope(|scope| {
            for (number, pin) in pins.iter().enumerate() {
                let (net, host) = (&net, &host);
                scope.spawn(move || {
                    nix::sched::setns(host, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                    net.call(Command::Add, &number.to_string(), pin.path())
                        .unwrap();
                });
            }
        });
        assert_eq!(net.held(), 24);
        for pin in &pins {
            assert!(inside(pin, |_, link| link.is_up()));
        }
    });
}

#[test]
fn configurations_that_only_the_plugin_can_do_are_not_accepted() {
    for (key, value, accepted) in [
        ("mtu", json!(1400), true),
        ("macspoofchk", json!(true), false),
        ("ipam", json!({"type": "host-local"}), true),
        ("ipam", json!({"type": "static"}), true),
        ("ipam", json!({"type": "dhcp"}), false),
        ("mtu", json!("no number"), false),
    ] {
        let mut config = json!({"type": "bridge", "name": "n"});
        config[key] = value;
        assert_eq!(crate::is_builtin_config(&config), accepted, "{config}");
    }
}

#[test]
fn wrong_vlans_are_refused() {
    for (keys, word) in [
        (json!({"vlan": 4095}), "VLAN ID"),
        (json!({"vlanTrunk": [{"minID": 5, "maxID": 4}]}), "greater"),
        (json!({"vlanTrunk": [{"minID": 5}]}), "together"),
        (json!({"vlanTrunk": [{"id": 0}]}), "between"),
        (
            json!({"hairpinMode": true, "promiscMode": true}),
            "same time",
        ),
    ] {
        let net = Net::new(keys.clone(), Value::Null);
        let error = net
            .call(Command::Add, "a", Path::new("/nonexistent"))
            .expect_err(&keys.to_string());
        assert!(error.msg.contains(word), "{keys}: {error}");
    }
}

/// Not a test but a measurement: `cargo test --release -p cni -- --ignored
/// --nocapture how_long`.
#[test]
#[ignore = "a measurement"]
fn how_long_add_and_del_take() {
    const ROUNDS: usize = 300;
    let show = |what: &str, mut times: Vec<std::time::Duration>| {
        times.sort();
        let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
        println!("{what}: p50 {:?} p90 {:?} p99 {:?}", at(50), at(90), at(99));
    };
    let rounds = |net: &Net, rounds: usize, netns_will_go: bool| {
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let (id, pin) = (round.to_string(), Pin::new());
            let started = std::time::Instant::now();
            net.call(Command::Add, &id, pin.path()).unwrap();
            adds.push(started.elapsed());
            let started = std::time::Instant::now();
            net.call_with(Command::Del, &id, pin.path(), netns_will_go)
                .unwrap();
            dels.push(started.elapsed());
        }
        (adds, dels)
    };
    in_new_namespace(|| {
        let v4 = json!([[{"subnet": "10.88.0.0/16"}]]);
        let both = json!([[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]]);
        for (number, (masquerade, ranges)) in [(false, &v4), (true, &v4), (true, &both)]
            .into_iter()
            .enumerate()
        {
            println!("ipMasq {masquerade}, {ranges}");
            let keys = json!({"isDefaultGateway": true, "ipMasq": masquerade,
                "bridge": format!("br{number}")});
            let net = Net::new(keys, json!({"ranges": ranges}));
            let (adds, dels) = rounds(&net, ROUNDS, true);
            show("bridge ADD", adds);
            show("bridge DEL, the namespace goes", dels);
            let (_, dels) = rounds(&net, 30, false);
            show("bridge DEL, the namespace stays", dels);
        }
    });
}

/// The same by several callers at once.
#[test]
#[ignore = "a measurement"]
fn how_long_add_takes_among_callers() {
    const ROUNDS: usize = 100;
    in_new_namespace(|| {
        let keys = json!({"isDefaultGateway": true, "ipMasq": true});
        let net = Net::new(keys, json!({"subnet": "10.88.0.0/16"}));
        let host = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        for callers in [1, 4, 8] {
            let started = std::time::Instant::now();
            let mut times: Vec<_> = std::thread::scope(|scope| {
                let (net, host) = (&net, &host);
                let caller = move |caller: usize| {
                    nix::sched::setns(host, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                    let attach = |round: usize| {
                        let (id, pin) = (format!("{caller}-{round}"), Pin::new());
                        let started = std::time::Instant::now();
                        net.call(Command::Add, &id, pin.path()).unwrap();
                        let added = started.elapsed();
                        net.call_with(Command::Del, &id, pin.path(), true).unwrap();
                        added
                    };
                    (0..ROUNDS).map(attach).collect::<Vec<_>>()
                };
                let threads = (0..callers).map(|number| scope.spawn(move || caller(number)));
                let threads: Vec<_> = threads.collect();
                threads
                    .into_iter()
                    .flat_map(|thread| thread.join().unwrap())
                    .collect()
            });
            let rate = times.len() as f64 / started.elapsed().as_secs_f64();
            times.sort();
            let at = |part: usize| times[times.len() * part / 100];
            let (half, most) = (at(50), at(99));
            println!("{callers} callers: ADD p50 {half:?} p99 {most:?}, {rate:.0} pods/s");
        }
    });
}
