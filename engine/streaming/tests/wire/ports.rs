//! Ports over SPDY, plain and through a tunnel.

use std::collections::HashMap;
use std::time::Duration;

use streaming::Wants;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::site::{Job, Site};
use crate::spdy::{Got, Spdy};

async fn connect(site: &Site) -> Spdy {
    let path = format!(
        "/portforward/{}",
        site.token(Job::Forward, Wants::default())
    );
    Spdy::connect(site.address, &path, "portforward.k8s.io").await
}

/// Opens the pair of a request: the data's and the error's numbers.
async fn request<S>(client: &mut Spdy<S>, port: u16, request: usize) -> (u32, u32)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (port, request) = (port.to_string(), request.to_string());
    let pair = |kind| {
        [
            ("streamtype", kind),
            ("port", &*port),
            ("requestid", &*request),
        ]
    };
    let error = client.begin(&pair("error")).await;
    client.send(error, &[], true).await;
    (client.begin(&pair("data")).await, error)
}

/// Frames until all these streams ended.
async fn ends<S>(client: &mut Spdy<S>, ids: &[u32]) -> HashMap<u32, Vec<u8>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut streams: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut open = ids.to_vec();
    while !open.is_empty() {
        match client.next().await {
            Got::Data(id, bytes, fin) => {
                streams.entry(id).or_default().extend(bytes);
                open.retain(|known| !(fin && *known == id));
            }
            Got::Reply(_) => {}
            other => panic!("{other:?}"),
        }
    }
    streams
}

/// A hundred requests at once, each with bytes of its own.
pub(crate) async fn hundred<S>(client: &mut Spdy<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut pairs = Vec::new();
    for number in 0..100 {
        pairs.push(request(client, 8000 + number, usize::from(number)).await);
    }
    for (data, _) in &pairs {
        client
            .send(*data, &data.to_be_bytes().repeat(500), false)
            .await;
    }
    for (data, _) in pairs.iter().rev() {
        client.send(*data, b"end", true).await;
    }
    let ids: Vec<u32> = pairs
        .iter()
        .flat_map(|(data, error)| [*data, *error])
        .collect();
    let streams = ends(client, &ids).await;
    for (data, error) in pairs {
        let want = [data.to_be_bytes().repeat(500), b"end".to_vec()].concat();
        assert!(streams[&data] == want);
        assert!(streams[&error].is_empty());
    }
}

#[tokio::test]
async fn a_hundred_requests_at_once_come_back() {
    let site = Site::new().await;
    let mut client = connect(&site).await;
    hundred(&mut client).await;
    site.live(1).await;
    // Their places are free again.
    hundred(&mut client).await;
    client.leave().await;
    assert!(client.rest().await.is_empty());
    drop(client);
    site.live(0).await;
}

#[tokio::test]
async fn a_broken_port_does_not_end_the_session() {
    let site = Site::new().await;
    let mut client = connect(&site).await;
    for (number, port) in [1, 3].into_iter().enumerate() {
        let (data, error) = request(&mut client, port, number).await;
        client.send(data, b"four", false).await;
        let streams = ends(&mut client, &[data, error]).await;
        assert!(streams[&error].starts_with(b"connection re"));
        // What comes late is for nobody.
        client.send(data, b"late", false).await;
    }
    let (reset, _) = request(&mut client, 80, 10).await;
    client.send(reset, b"abc", false).await;
    client.reset(reset).await;
    let (data, error) = request(&mut client, 80, 11).await;
    client.send(data, b"alive", true).await;
    assert_eq!(ends(&mut client, &[data, error]).await[&data], b"alive");
    drop(client);
    site.live(0).await;
}

#[tokio::test]
async fn there_are_places_for_128_requests() {
    let site = Site::new().await;
    let mut client = connect(&site).await;
    // A client that resets what it opened gains no place by it.
    for number in 0..64 {
        let (data, _) = request(&mut client, 2, number).await;
        client.reset(data).await;
    }
    for number in 64..128 {
        request(&mut client, 2, number).await;
    }
    let (over, _) = request(&mut client, 2, 128).await;
    loop {
        match client.next().await {
            Got::Reset(id) => {
                // Both of the pair are refused, the error's first.
                assert!(id == over || id == over - 2);
                break;
            }
            Got::Reply(id) => assert!(id < over - 2),
            Got::Data(..) => {}
            other => panic!("{other:?}"),
        }
    }
    site.go();
    drop(client);
    site.live(0).await;
}

#[tokio::test]
async fn half_a_pair_is_reset_in_time_and_nonsense_at_once() {
    let brief = Duration::from_millis(200);
    let site = Site::with(None, Duration::from_secs(60), brief).await;
    let mut client = connect(&site).await;
    for headers in [
        &[("streamtype", "data")][..],
        &[("streamtype", "data"), ("port", "0")],
        &[("streamtype", "data"), ("port", "70000")],
        &[("streamtype", "stdin"), ("port", "80")],
    ] {
        let id = client.begin(headers).await;
        assert_eq!(client.next().await, Got::Reset(id));
    }
    let half = client
        .begin(&[("streamtype", "error"), ("port", "80"), ("requestid", "1")])
        .await;
    assert_eq!(client.next().await, Got::Reply(half));
    assert_eq!(client.next().await, Got::Reset(half));
    // Clients of old name no request.
    let error = client
        .begin(&[("streamtype", "error"), ("port", "80")])
        .await;
    let data = client
        .begin(&[("streamtype", "data"), ("port", "80")])
        .await;
    client.send(data, b"old", true).await;
    assert_eq!(ends(&mut client, &[data, error]).await[&data], b"old");
    client.leave().await;
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn a_client_that_leaves_behind_an_unread_port_is_noticed() {
    let site = Site::new().await;
    let mut client = connect(&site).await;
    let (data, _) = request(&mut client, 2, 0).await;
    let (other, _) = request(&mut client, 80, 1).await;
    client.send(other, b"abc", false).await;
    site.live(3).await;
    let stuck = client.try_send(data, &[0; 8 << 20], false);
    assert!(
        tokio::time::timeout(Duration::from_millis(500), stuck)
            .await
            .is_err()
    );
    drop(client);
    // The echo ends by itself, with the connection.
    site.live(2).await;
    site.go();
    site.live(0).await;
}

#[tokio::test]
async fn a_request_hears_that_its_client_has_reset_it_or_is_gone() {
    let site = Site::new().await;
    let mut client = connect(&site).await;
    let (reset, _) = request(&mut client, 4, 0).await;
    let (ended, _) = request(&mut client, 4, 1).await;
    site.live(3).await;
    // Who sends no more may still read.
    client.send(ended, b"abc", true).await;
    client.reset(reset).await;
    site.live(2).await;
    let (data, error) = request(&mut client, 80, 2).await;
    client.send(data, b"alive", true).await;
    ends(&mut client, &[data, error]).await;
    site.live(2).await;
    drop(client);
    site.live(0).await;
}
