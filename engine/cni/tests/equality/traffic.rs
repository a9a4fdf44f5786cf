//! The rules do what they are for: packets of a pod with the whole chain.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cases::{bridge, firewall, portmap};
use crate::world::{Chain, Side, World};

const PATIENCE: Duration = Duration::from_secs(5);

/// Serves one connection: says who called.
fn serve(listener: &TcpListener) {
    let (mut stream, caller) = listener.accept().expect("a connection");
    stream
        .write_all(caller.ip().to_string().as_bytes())
        .expect("an answer");
}

/// Whom the server at the address took the caller for.
fn ask(address: &str) -> Result<IpAddr, std::io::Error> {
    let address: SocketAddr = address.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    text.parse().map_err(std::io::Error::other)
}

/// A node with a pod, and a neighbour of the node at 192.0.2.2.
fn world() -> World {
    let world = World::new();
    let chain = Chain::new([
        bridge(&json!({"ipMasq": true, "hairpinMode": true})),
        portmap(&json!({})),
        firewall(&json!({})),
    ]);
    world
        .add(Side::Builtin, &chain)
        .unwrap_or_else(|error| panic!("{error}"));
    world
}

#[test]
fn a_mapped_port_leads_to_the_pod_from_everywhere() {
    let world = world();
    let neighbour = World::new();
    world.join(&neighbour);
    let listener = world
        .inside(true, || TcpListener::bind("0.0.0.0:80"))
        .expect("a port");
    std::thread::scope(|scope| {
        scope.spawn(|| (0..4).for_each(|_| serve(&listener)));
        let from_node = |address: &str| world.inside(false, || ask(address));
        let caller = |result: Result<IpAddr, std::io::Error>| {
            result.unwrap_or_else(|error| panic!("{error}")).to_string()
        };
        // The node's loopback address is masqueraded: the pod could not answer it.
        assert_eq!(caller(from_node("127.0.0.1:8080")), "10.5.0.1");
        assert_eq!(caller(from_node("10.5.0.1:8080")), "10.5.0.1");
        // The pod calls itself by the node's port.
        assert_eq!(
            caller(world.inside(true, || ask("10.5.0.1:8080"))),
            "10.5.0.1"
        );
        let outside = neighbour.inside(false, || ask("192.0.2.1:8080"));
        assert_eq!(caller(outside), "192.0.2.2");
    });
}

#[test]
fn what_the_pod_sends_out_is_the_nodes() {
    let world = world();
    let neighbour = World::new();
    world.join(&neighbour);
    let listener = neighbour
        .inside(false, || TcpListener::bind("0.0.0.0:90"))
        .expect("a port");
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&listener));
        let seen = world.inside(true, || ask("192.0.2.2:90"));
        assert_eq!(
            seen.unwrap_or_else(|error| panic!("{error}")).to_string(),
            "192.0.2.1"
        );
    });
}

/// A node that forwards nothing by itself, as with other container engines on it.
#[test]
fn the_firewall_opens_a_closed_node() {
    let world = World::new();
    let neighbour = World::new();
    world.join(&neighbour);
    let listener = neighbour
        .inside(false, || TcpListener::bind("0.0.0.0:90"))
        .expect("a port");
    world.node_says(&["iptables", "-P", "FORWARD", "DROP"]);
    let chain = Chain::new([bridge(&json!({"ipMasq": true})), firewall(&json!({}))]);
    let open = Chain::new([bridge(&json!({"ipMasq": true}))]);
    let result = world
        .add(Side::Builtin, &open)
        .unwrap_or_else(|error| panic!("{error}"));
    let connect = || {
        let address: SocketAddr = "192.0.2.2:90".parse().expect("an address");
        TcpStream::connect_timeout(&address, Duration::from_millis(300))
    };
    world.inside(true, connect).expect_err("the node is closed");
    world
        .add_last(Side::Builtin, &chain, &result)
        .unwrap_or_else(|error| panic!("{error}"));
    world.inside(true, connect).expect("the node is open");
    drop(listener);
}

/// A client that never stops would keep its flow, and so its way, for ever.
#[test]
fn a_udp_client_from_before_the_mapping_reaches_the_pod() {
    let world = World::new();
    let neighbour = World::new();
    world.join(&neighbour);
    let first = bridge(&json!({"ipMasq": true}));
    let chain = Chain::new([first.clone(), portmap(&json!({}))]);
    // The masquerading rules have the kernel track flows.
    world
        .add(Side::Builtin, &Chain::new([first]))
        .unwrap_or_else(|error| panic!("{error}"));
    let client = neighbour
        .inside(false, || UdpSocket::bind("192.0.2.2:999"))
        .expect("a port");
    client.connect("192.0.2.1:8053").expect("an address");
    client
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("a socket");
    // Nobody is there: the answer is a refusal.
    client.send(b"early").expect("sent");
    client.recv(&mut [0; 8]).expect_err("nobody");
    let result = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.5.0.2/24"}]});
    world
        .add_last(Side::Builtin, &chain, &result)
        .unwrap_or_else(|error| panic!("{error}"));
    let server = world
        .inside(true, || UdpSocket::bind("0.0.0.0:53"))
        .expect("a port");
    server
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("a socket");
    let began = Instant::now();
    while server.recv(&mut [0; 8]).is_err() {
        assert!(began.elapsed() < PATIENCE, "the flow keeps its way");
        let _refused_earlier = client.send(b"late");
    }
}
