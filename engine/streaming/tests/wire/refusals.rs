//! What is no request, or not one for this server.

use std::time::Duration;

use streaming::Wants;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::site::{Job, Site, soon};
use crate::spdy::{Got, Spdy, ask, upgrade};

#[tokio::test]
async fn a_token_is_good_once_and_for_its_kind() {
    let site = Site::new().await;
    let wants = Wants {
        stdout: true,
        ..Wants::default()
    };
    let path = format!("/exec/{}", site.token(Job::Stay, wants));
    // A refused protocol leaves the token alone.
    let (head, _) = ask(site.address, &upgrade(&path, "v9.channel.k8s.io")).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    let first = Spdy::connect(site.address, &path, "v4.channel.k8s.io").await;
    for path in [path, "/exec/unknown".to_owned()] {
        let (head, mut stream) = ask(site.address, &upgrade(&path, "v4.channel.k8s.io")).await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
        let mut rest = String::new();
        soon("the end", stream.read_to_string(&mut rest))
            .await
            .unwrap();
    }
    let path = format!("/exec/{}", site.token(Job::Forward, wants));
    let (head, _) = ask(site.address, &upgrade(&path, "v4.channel.k8s.io")).await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    drop(first);
}

#[tokio::test]
async fn a_long_or_slow_head_is_cut_off() {
    let site = Site::with(None, Duration::from_secs(60), Duration::from_millis(200)).await;
    let long = format!("GET /exec/a HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(17_000));
    let mut stream = TcpStream::connect(site.address).await.unwrap();
    stream.write_all(long.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    // The rest of it is not read, so a reset may come before the answer.
    if soon("the answer", stream.read_exact(&mut head))
        .await
        .is_ok()
    {
        assert_eq!(&head, b"HTTP/1.1 431");
    }
    let mut stream = TcpStream::connect(site.address).await.unwrap();
    stream.write_all(b"GET /exec/a HTTP/1.1\r\n").await.unwrap();
    let mut rest = Vec::new();
    soon("the end", stream.read_to_end(&mut rest)).await.ok();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn bytes_that_are_no_frames_end_the_session() {
    let site = Site::new().await;
    let wants = Wants {
        stdin: true,
        stdout: true,
        ..Wants::default()
    };
    for nonsense in [
        &b"GET / HTTP/1.1\r\n"[..],
        &[0x80, 2, 0, 1, 0, 0, 0, 0],
        &[0xff; 64],
    ] {
        let path = format!("/exec/{}", site.token(Job::Stay, wants));
        let mut client = Spdy::connect(site.address, &path, "v4.channel.k8s.io").await;
        for kind in ["error", "stdin", "stdout"] {
            client.open(kind).await;
        }
        client.stream.write_all(nonsense).await.unwrap();
        client.stream.shutdown().await.unwrap();
        assert!(client.rest().await.is_empty());
    }
    site.live(0).await;
}

#[tokio::test]
async fn dropping_the_server_ends_connections_and_handlers() {
    let mut site = Site::new().await;
    let wants = Wants {
        stdout: true,
        ..Wants::default()
    };
    let path = format!("/exec/{}", site.token(Job::Stay, wants));
    let mut command = Spdy::connect(site.address, &path, "v4.channel.k8s.io").await;
    command.open("error").await;
    command.open("stdout").await;
    let path = format!("/portforward/{}", site.token(Job::Forward, wants));
    let mut ports = Spdy::connect(site.address, &path, "portforward.k8s.io").await;
    site.live(2).await;
    site.end();
    site.live(0).await;
    assert_eq!(command.next().await, Got::Eof);
    assert_eq!(ports.next().await, Got::Eof);
}

#[tokio::test]
async fn a_handler_that_goes_on_holds_no_socket() {
    let site = Site::new().await;
    let wants = Wants {
        stdout: true,
        ..Wants::default()
    };
    let path = format!("/exec/{}", site.token(Job::Hold, wants));
    let mut client = Spdy::connect(site.address, &path, "v4.channel.k8s.io").await;
    client.open("error").await;
    client.open("stdout").await;
    site.live(1).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.next().await, Got::Eof);
    site.live(1).await;
    site.go();
    site.live(0).await;

    let site = Site::new().await;
    let path = format!("/portforward/{}", site.token(Job::Forward, wants));
    let mut client = Spdy::connect(site.address, &path, "portforward.k8s.io").await;
    for kind in ["error", "data"] {
        let headers = [("streamtype", kind), ("port", "2"), ("requestid", "0")];
        let id = client.begin(&headers).await;
        assert_eq!(client.next().await, Got::Reply(id));
    }
    site.live(2).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.next().await, Got::Eof);
    site.live(2).await;
    site.go();
    site.live(0).await;
}

#[tokio::test]
async fn strangers_keep_nobody_out_who_has_a_token() {
    let site = Site::with(None, Duration::from_secs(60), Duration::from_secs(60)).await;
    let wants = Wants {
        stdout: true,
        ..Wants::default()
    };
    let path = format!("/exec/{}", site.token(Job::Stay, wants));
    let mut before = Spdy::connect(site.address, &path, "v4.channel.k8s.io").await;
    let mut strangers = Vec::new();
    for _ in 0..600 {
        strangers.push(TcpStream::connect(site.address).await.unwrap());
    }
    let path = format!("/exec/{}", site.token(Job::Stay, wants));
    let after = Spdy::connect(site.address, &path, "v4.channel.k8s.io");
    let mut after = soon("a session beside them", after).await;
    // The oldest are gone, the newest may still say what they want.
    let mut rest = Vec::new();
    let ended = strangers[0].read_to_end(&mut rest);
    soon("the oldest stranger's end", ended).await.ok();
    let request = upgrade("/exec/unknown", "v4.channel.k8s.io");
    let newest = strangers.pop().unwrap();
    let (head, _) = crate::spdy::greet(newest, &request).await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    for session in [&mut before, &mut after] {
        session.ping(1).await;
        assert!(matches!(session.next().await, Got::Pong(1)));
    }
}
