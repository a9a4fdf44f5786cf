//! Commands over SPDY.

use std::sync::Arc;
use std::time::Duration;

use streaming::Wants;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::site::{Job, Site, soon};
use crate::spdy::{Got, Spdy, greet, upgrade};

const ALL: Wants = Wants {
    stdin: true,
    stdout: true,
    stderr: true,
    tty: false,
};
const SUCCESS: &[u8] = br#"{"metadata":{},"status":"Success"}"#;

async fn connect(site: &Site, job: Job, wants: Wants, version: &str) -> Spdy {
    let path = format!("/exec/{}", site.token(job, wants));
    Spdy::connect(site.address, &path, version).await
}

#[tokio::test]
async fn input_comes_back_until_the_client_half_closes() {
    let site = Site::new().await;
    let mut client = connect(&site, Job::Cat(3), ALL, "v4.channel.k8s.io").await;
    let mut ids = Vec::new();
    for kind in ["error", "stdin", "stdout", "stderr"] {
        ids.push(client.open(kind).await);
    }
    client.send(ids[1], b"hello ", false).await;
    assert_eq!(
        client.next().await,
        Got::Data(ids[2], b"hello ".to_vec(), false)
    );
    client.send(ids[1], b"world", true).await;
    let streams = client.rest().await;
    assert_eq!(streams[&ids[2]], (b"world".to_vec(), true));
    assert_eq!(streams[&ids[3]], (b"bye".to_vec(), true));
    assert!(ids.iter().all(|id| streams[id].1));
    let status: serde_json::Value = serde_json::from_slice(&streams[&ids[0]].0).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "3");
    drop(client);
    site.live(0).await;
}

#[tokio::test]
async fn streams_come_in_any_order_and_old_versions_say_failures_in_text() {
    let site = Site::new().await;
    for (version, code) in [("v3.channel.k8s.io", 5), ("channel.k8s.io", 0)] {
        let mut client = connect(&site, Job::Cat(code), ALL, version).await;
        let stdout = client.open("stdout").await;
        let stdin = client.open("stdin").await;
        client.send(stdin, b"early", true).await;
        client.open("stderr").await;
        let error = client.open("error").await;
        let streams = client.rest().await;
        assert_eq!(streams[&stdout].0, b"early");
        let text = String::from_utf8(streams[&error].0.clone()).unwrap();
        assert_eq!(text.ends_with(": 5"), code == 5, "{text}");
        assert_eq!(text.is_empty(), code == 0, "{text}");
    }
}

#[tokio::test]
async fn a_terminal_has_sizes_and_no_stderr() {
    let site = Site::new().await;
    let wants = Wants {
        stdin: true,
        stdout: true,
        stderr: true,
        tty: true,
    };
    let mut client = connect(&site, Job::Sizes, wants, "v4.channel.k8s.io").await;
    for kind in ["error", "stdin"] {
        client.open(kind).await;
    }
    let stdout = client.open("stdout").await;
    let resize = client.open("resize").await;
    client.send(resize, b"{\"Width\":80,\"Hei", false).await;
    client.send(resize, b"ght\":24}\n", false).await;
    assert_eq!(
        client.next().await,
        Got::Data(stdout, b"80x24\n".to_vec(), false)
    );
    client
        .send(resize, b"{\"Width\":132,\"Height\":43}\n", false)
        .await;
    assert_eq!(client.rest().await[&stdout].0, b"132x43\n");
}

#[tokio::test]
async fn failures_and_missing_outcomes_are_told() {
    let site = Site::new().await;
    for (job, want) in [
        (Job::Fail, "no such command"),
        (Job::Mute, "without an outcome"),
    ] {
        let wants = Wants {
            stdout: true,
            ..Wants::default()
        };
        let mut client = connect(&site, job, wants, "v4.channel.k8s.io").await;
        let error = client.open("error").await;
        client.open("stdout").await;
        let streams = client.rest().await;
        let status: serde_json::Value = serde_json::from_slice(&streams[&error].0).unwrap();
        assert_eq!(status["reason"], "InternalError");
        assert!(
            status["message"].as_str().unwrap().contains(want),
            "{status}"
        );
    }
}

#[tokio::test]
async fn megabytes_arrive_whole_before_the_status() {
    let site = Site::new().await;
    let mut client = connect(&site, Job::Cat(0), ALL, "v4.channel.k8s.io").await;
    let mut ids = Vec::new();
    for kind in ["error", "stdin", "stdout", "stderr"] {
        ids.push(client.open(kind).await);
    }
    let payload: Vec<u8> = (0..4_000_000_u32)
        .map(|at| ((at * 31) >> 3) as u8)
        .collect();
    let (read, write) = tokio::io::split(client.stream);
    let mut sending = Spdy::over(tokio::io::join(tokio::io::empty(), write));
    let sent = payload.clone();
    let (stdin, stdout) = (ids[1], ids[2]);
    let sender = tokio::spawn(async move {
        for piece in sent.chunks(32 * 1024) {
            sending.send(stdin, piece, false).await;
        }
        sending.send(stdin, &[], true).await;
        sending
    });
    let mut reading = Spdy::over(tokio::io::join(read, tokio::io::sink()));
    let streams = reading.rest().await;
    assert!(streams[&stdout].0 == payload);
    assert_eq!(streams[&ids[0]].0, SUCCESS);
    soon("the sender", sender).await.unwrap();
}

#[tokio::test]
async fn unread_input_stalls_neither_output_nor_the_end() {
    let site = Site::new().await;
    let mut client = connect(&site, Job::Deaf, ALL, "v4.channel.k8s.io").await;
    let mut ids = Vec::new();
    for kind in ["error", "stdin", "stdout", "stderr"] {
        ids.push(client.open(kind).await);
    }
    let (read, write) = tokio::io::split(client.stream);
    let mut sending = Spdy::over(tokio::io::join(tokio::io::empty(), write));
    let stdin = ids[1];
    let sender = tokio::spawn(async move {
        // Far more than sockets hold; all is taken once the command is over.
        let mut sent = 0_usize;
        while sent < 64 << 20 && sending.try_send(stdin, &[0; 65_536], false).await.is_ok() {
            sent += 65_536;
        }
        sending
    });
    let mut reading = Spdy::over(tokio::io::join(read, tokio::io::sink()));
    assert_eq!(
        reading.next().await,
        Got::Data(ids[2], b"up".to_vec(), false)
    );
    assert!(!sender.is_finished());
    site.go();
    let streams = reading.rest().await;
    assert_eq!(streams[&ids[0]].0, SUCCESS);
    let sending = soon("the sender", sender).await.unwrap();
    drop((sending, reading));
    site.live(0).await;
}

#[tokio::test]
async fn a_client_that_leaves_behind_unread_input_is_noticed() {
    let site = Site::new().await;
    let mut client = connect(&site, Job::Deaf, ALL, "v4.channel.k8s.io").await;
    let mut ids = Vec::new();
    for kind in ["error", "stdin", "stdout", "stderr"] {
        ids.push(client.open(kind).await);
    }
    let piece = client.try_send(ids[1], &[0; 8 << 20], false);
    // Not taken whole: the handler does not read.
    let stuck = tokio::time::timeout(Duration::from_millis(500), piece).await;
    assert!(stuck.is_err());
    drop(client);
    site.live(0).await;
}

#[tokio::test]
async fn unread_output_stalls_only_itself() {
    let site = Site::new().await;
    let wants = Wants {
        stdout: true,
        ..Wants::default()
    };
    let mut stuck = connect(&site, Job::Flood, wants, "v4.channel.k8s.io").await;
    stuck.open("error").await;
    stuck.open("stdout").await;
    site.live(1).await;
    let mut client = connect(&site, Job::Cat(0), ALL, "v4.channel.k8s.io").await;
    let mut ids = Vec::new();
    for kind in ["error", "stdin", "stdout", "stderr"] {
        ids.push(client.open(kind).await);
    }
    for _ in 0..100 {
        client.send(ids[1], &[1; 1000], false).await;
        let mut got = 0;
        while got < 1000 {
            let Got::Data(_, bytes, _) = client.next().await else {
                panic!("no echo")
            };
            got += bytes.len();
        }
    }
    client.send(ids[1], &[], true).await;
    assert_eq!(client.rest().await[&ids[0]].0, SUCCESS);
    site.live(1).await;
    drop(stuck);
    site.live(0).await;
}

#[tokio::test]
async fn a_reset_output_breaks_its_pipe_alone() {
    let site = Site::new().await;
    let wants = Wants {
        stdout: true,
        ..Wants::default()
    };
    let mut client = connect(&site, Job::Flood, wants, "v4.channel.k8s.io").await;
    let error = client.open("error").await;
    let stdout = client.open("stdout").await;
    client.reset(stdout).await;
    // The flood ends with the broken pipe, and its code is told.
    assert_eq!(client.rest().await[&error].0, SUCCESS);
}

#[tokio::test]
async fn pings_are_answered_and_late_streams_refused() {
    let site = Site::new().await;
    let wants = Wants {
        stdout: true,
        ..Wants::default()
    };
    let mut client = connect(&site, Job::Stay, wants, "v4.channel.k8s.io").await;
    client.ping(1).await;
    assert_eq!(client.next().await, Got::Pong(1));
    client.open("error").await;
    let nonsense = client.begin(&[("streamtype", "nonsense")]).await;
    assert_eq!(client.next().await, Got::Reset(nonsense));
    client.open("stdout").await;
    site.live(1).await;
    client.ping(3).await;
    assert_eq!(client.next().await, Got::Pong(3));
    let late = client.begin(&[("streamtype", "stdin")]).await;
    assert_eq!(client.next().await, Got::Reset(late));
    client.leave().await;
    site.live(0).await;
}

#[tokio::test]
async fn silence_and_missing_streams_end_a_connection() {
    let brief = Duration::from_millis(200);
    let site = Site::with(None, brief, Duration::from_secs(30)).await;
    let wants = Wants {
        stdout: true,
        ..Wants::default()
    };
    let mut client = connect(&site, Job::Stay, wants, "v4.channel.k8s.io").await;
    client.open("error").await;
    client.open("stdout").await;
    assert_eq!(client.next().await, Got::Eof);
    site.live(0).await;

    let site = Site::with(None, Duration::from_secs(60), brief).await;
    let mut client = connect(&site, Job::Stay, wants, "v4.channel.k8s.io").await;
    client.open("error").await;
    assert_eq!(client.next().await, Got::Eof);
}

/// A certificate for the name `node`, and what believes in it.
#[expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is wrong"
)]
fn certified() -> (Arc<rustls::ServerConfig>, tokio_rustls::TlsConnector) {
    let certified = rcgen::generate_simple_self_signed(["node".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.unwrap())
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let trust = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(trust).into())
}

#[tokio::test]
async fn tls_changes_nothing() {
    let (server, connector) = certified();
    let tls = watch::Sender::new(server);
    let brief = Duration::from_secs(30);
    let site = Site::with(Some(tls.subscribe()), Duration::from_secs(60), brief).await;

    let stream = TcpStream::connect(site.address).await.unwrap();
    let stream = connector.connect("node".try_into().unwrap(), stream);
    let stream = stream.await.unwrap();
    let path = format!("/attach/{}", site.token(Job::Cat(0), ALL));
    let (head, stream) = greet(stream, &upgrade(&path, "v4.channel.k8s.io")).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut client = Spdy::over(stream);
    let mut ids = Vec::new();
    for kind in ["error", "stdin", "stdout", "stderr"] {
        ids.push(client.open(kind).await);
    }

    // Another certificate is for those who come then; who is there stays.
    let (renewed, believer) = certified();
    tls.send_replace(renewed);
    let stream = TcpStream::connect(site.address).await.unwrap();
    let refused = connector.connect("node".try_into().unwrap(), stream).await;
    assert!(refused.is_err(), "the former certificate is shown");
    let stream = TcpStream::connect(site.address).await.unwrap();
    let taken = believer.connect("node".try_into().unwrap(), stream).await;
    drop(taken.unwrap());

    client.send(ids[1], b"secret", true).await;
    let streams = client.rest().await;
    assert_eq!(
        (&streams[&ids[2]].0[..], &streams[&ids[0]].0[..]),
        (&b"secret"[..], SUCCESS)
    );
    drop(client);
    site.live(0).await;
}
