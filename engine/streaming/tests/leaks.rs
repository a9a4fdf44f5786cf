//! What a thousand clients leave that reset their connections: nothing.
//!
//! Alone in its process, as it counts descriptors.

#[expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is wrong"
)]
#[path = "wire/site.rs"]
mod site;
#[expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is wrong"
)]
#[expect(dead_code, reason = "the other tests use all of it")]
#[path = "wire/spdy.rs"]
mod spdy;

use std::time::Duration;

use streaming::Wants;
use tokio::io::AsyncWriteExt as _;

use crate::site::{Job, Site, soon};
use crate::spdy::{Spdy, ask, upgrade};

const ALL: Wants = Wants {
    stdin: true,
    stdout: true,
    stderr: true,
    tty: false,
};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// One client, gone at some point of its session with a TCP reset.
async fn client(site: Site, number: usize) {
    let job = [
        Job::Flood,
        Job::Deaf,
        Job::Cat(0),
        Job::Forward,
        Job::Stay,
        Job::Fail,
        Job::Sizes,
        Job::Hold,
    ][number % 8];
    let token = site.token(job, ALL);
    if job == Job::Forward {
        let request = upgrade(&format!("/portforward/{token}"), "portforward.k8s.io");
        let (_, stream) = ask(site.address, &request).await;
        stream.set_zero_linger().ok();
        let mut client = Spdy::over(stream);
        for number in 0..number % 11 {
            let port = [("port", "80"), ("requestid", &*number.to_string())];
            client
                .begin(&[port[0], port[1], ("streamtype", "error")])
                .await;
            let data = client
                .begin(&[port[0], port[1], ("streamtype", "data")])
                .await;
            client.send(data, &[0; 5000], false).await;
        }
        return;
    }
    if number.is_multiple_of(3) {
        return web(&site, &token, number).await;
    }
    let request = upgrade(&format!("/exec/{token}"), "v4.channel.k8s.io");
    let (_, stream) = ask(site.address, &request).await;
    stream.set_zero_linger().ok();
    let mut client = Spdy::over(stream);
    for kind in ["error", "stdin", "stdout", "stderr"]
        .iter()
        .take(number % 5)
    {
        client.begin(&[("streamtype", kind)]).await;
    }
    if number % 5 > 3 && number.is_multiple_of(3) {
        client
            .try_send(3, &[0; 50_000], number.is_multiple_of(2))
            .await
            .ok();
    }
}

/// A WebSocket, gone within a frame or between two.
async fn web(site: &Site, token: &str, number: usize) {
    let request = format!(
        "GET /exec/{token} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    );
    let (_, mut stream) = ask(site.address, &request).await;
    stream.set_zero_linger().ok();
    // Five bytes on stdin, masked with zeros.
    let frame = [0x82, 0x86, 0, 0, 0, 0, 0, b'h', b'e', b'l', b'l', b'o'];
    stream.write_all(&frame[..number % 13 % 12]).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_resets_leave_no_task_and_no_descriptor() {
    let mut site = Site::new().await;
    // What the runtime opens once is open now.
    client(site.clone(), 2).await;
    site.live(0).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = || metrics.num_alive_tasks() == 1;
    soon("the first client's end", until(before)).await;
    let open = descriptors();
    for batch in 0..10 {
        let clients = (0..100).map(|number| client(site.clone(), batch * 100 + number));
        soon("a batch", futures::future::join_all(clients)).await;
    }
    // Handlers that go on hold none.
    soon("the descriptors' end", until(|| descriptors() <= open)).await;
    site.go();
    site.live(0).await;
    soon("the tasks' end", until(before)).await;
    site.end();
}

/// Looks at what has no way to tell.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
