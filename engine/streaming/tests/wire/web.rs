//! Commands and ports over WebSocket.

use futures::{SinkExt as _, StreamExt as _};
use streaming::Wants;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::ports::hundred;
use crate::site::{Job, Site, soon};
use crate::spdy::Spdy;

const ALL: Wants = Wants {
    stdin: true,
    stdout: true,
    stderr: true,
    tty: false,
};
const SUCCESS: &[u8] = br#"{"metadata":{},"status":"Success"}"#;

async fn connect(site: &Site, path: &str, protocol: &str) -> WebSocketStream<TcpStream> {
    let address = site.address;
    let mut request = format!("ws://{address}{path}")
        .into_client_request()
        .unwrap();
    request
        .headers_mut()
        .insert("sec-websocket-protocol", protocol.parse().unwrap());
    // As Python's client does.
    request
        .headers_mut()
        .insert("origin", "http://node".parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, answer) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], protocol);
    client
}

async fn exec(site: &Site, job: Job, wants: Wants, protocol: &str) -> WebSocketStream<TcpStream> {
    connect(site, &format!("/exec/{}", site.token(job, wants)), protocol).await
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    Message::binary([&[channel], bytes].concat())
}

/// The channels' bytes until the server's farewell.
async fn rest(client: &mut WebSocketStream<TcpStream>) -> [Vec<u8>; 4] {
    let mut channels: [Vec<u8>; 4] = Default::default();
    loop {
        match soon("a message", client.next()).await.unwrap().unwrap() {
            Message::Binary(bytes) => channels[usize::from(bytes[0])].extend(&bytes[1..]),
            Message::Close(Some(frame)) => {
                assert_eq!(frame.code, CloseCode::Normal);
                return channels;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn version_5_ends_stdin() {
    let site = Site::new().await;
    let mut client = exec(&site, Job::Cat(7), ALL, "v5.channel.k8s.io").await;
    // The server says that it is set up.
    assert_eq!(
        soon("a message", client.next()).await.unwrap().unwrap(),
        message(1, b"")
    );
    client.send(message(0, b"hello")).await.unwrap();
    assert_eq!(
        soon("a message", client.next()).await.unwrap().unwrap(),
        message(1, b"hello")
    );
    client.send(message(255, &[0])).await.unwrap();
    let [_, stdout, stderr, error] = rest(&mut client).await;
    assert_eq!((&stdout[..], &stderr[..]), (&b""[..], &b"bye"[..]));
    let status: serde_json::Value = serde_json::from_slice(&error).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "7");
    drop(client);
    site.live(0).await;
}

#[tokio::test]
async fn version_4_has_sizes_and_a_status_but_no_end_of_stdin() {
    let site = Site::new().await;
    let wants = Wants { tty: true, ..ALL };
    let mut client = exec(&site, Job::Sizes, wants, "v4.channel.k8s.io").await;
    client
        .send(message(4, b"{\"Width\":80,\"Height\":24}\n"))
        .await
        .unwrap();
    while soon("a size", client.next()).await.unwrap().unwrap() != message(1, b"80x24\n") {}
    client.send(message(255, &[0])).await.unwrap();
    client
        .send(message(4, b"{\"Width\":90,\"Height\":30}\n"))
        .await
        .unwrap();
    let [_, stdout, _, error] = rest(&mut client).await;
    assert_eq!((&stdout[..], &error[..]), (&b"90x30\n"[..], SUCCESS));

    let mut client = exec(&site, Job::Cat(0), ALL, "v4.channel.k8s.io").await;
    client.send(message(0, b"hello")).await.unwrap();
    while soon("the echo", client.next()).await.unwrap().unwrap() != message(1, b"hello") {}
    client.close(None).await.unwrap();
    site.live(0).await;
}

#[tokio::test]
async fn base64_is_spoken_and_pings_are_answered() {
    let site = Site::new().await;
    let wants = Wants {
        stdout: true,
        ..Wants::default()
    };
    let mut client = exec(&site, Job::Stay, wants, "base64.channel.k8s.io").await;
    assert_eq!(
        soon("a message", client.next()).await.unwrap().unwrap(),
        Message::text("1")
    );
    client.send(Message::Ping("life".into())).await.unwrap();
    let pong = soon("a pong", client.next()).await.unwrap().unwrap();
    assert_eq!(pong, Message::Pong("life".into()));
    client.send(Message::text("0!")).await.unwrap();
    site.live(0).await;
}

#[tokio::test]
async fn a_message_of_2_mib_ends_the_connection() {
    let site = Site::new().await;
    let mut client = exec(&site, Job::Cat(0), ALL, "v5.channel.k8s.io").await;
    site.live(1).await;
    // It is refused by its length, so sending it whole may fail.
    client.send(message(0, &vec![0; 2 << 20])).await.ok();
    site.live(0).await;
}

#[tokio::test]
async fn ports_of_old_have_two_channels_each() {
    let site = Site::new().await;
    let token = site.token(Job::Forward, Wants::default());
    let path = format!("/portforward/{token}?port=8080,1");
    let mut client = connect(&site, &path, "v4.channel.k8s.io").await;
    client.send(message(0, b"hello")).await.unwrap();
    let mut channels: [Vec<u8>; 4] = Default::default();
    while !channels[0].ends_with(b"hello") || !channels[3].ends_with(b"refused") {
        let heard = soon("a message", client.next()).await.unwrap().unwrap();
        let Message::Binary(bytes) = heard else {
            panic!("{heard:?}")
        };
        channels[usize::from(bytes[0])].extend(&bytes[1..]);
    }
    let [first, error, second, refused] = channels;
    assert_eq!(first, b"\x90\x1fhello");
    assert_eq!(
        (&error[..], &second[..]),
        (&b"\x90\x1f"[..], &b"\x01\x00"[..])
    );
    assert_eq!(refused, b"\x01\x00connection refused");
    client.close(None).await.unwrap();
    site.live(0).await;
}

#[tokio::test]
async fn spdy_through_a_tunnel_is_spdy() {
    let site = Site::new().await;
    let path = format!(
        "/portforward/{}",
        site.token(Job::Forward, Wants::default())
    );
    let client = connect(&site, &path, "SPDY/3.1+portforward.k8s.io").await;
    let (near, far) = tokio::io::duplex(256 * 1024);
    let tunnel = tokio::spawn(async move {
        let (mut to, mut from) = client.split();
        let (mut read, mut write) = tokio::io::split(far);
        let sending = async {
            let mut space = vec![0; 1000];
            while let Ok(length @ 1..) = read.read(&mut space).await {
                to.send(Message::binary(space[..length].to_vec()))
                    .await
                    .unwrap();
            }
        };
        let receiving = async {
            while let Some(Ok(message)) = from.next().await {
                match message {
                    Message::Binary(bytes) => write.write_all(&bytes).await.unwrap(),
                    Message::Close(frame) => {
                        assert_eq!(frame.unwrap().code, CloseCode::Normal);
                        break;
                    }
                    other => panic!("{other:?}"),
                }
            }
            write.shutdown().await.unwrap();
        };
        tokio::join!(sending, receiving);
    });
    let mut client = Spdy::over(near);
    hundred(&mut client).await;
    client.leave().await;
    assert!(client.rest().await.is_empty());
    drop(client);
    soon("the tunnel", tunnel).await.unwrap();
    site.live(0).await;
}
