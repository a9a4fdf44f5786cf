//! Connections from a client to ports of a pod.
//!
//! A socket belongs to the network in which it was made, so only that happens in the
//! pod's: on a thread of its own. Each connection is a task; one that fails is told to
//! its client and ends no other.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runtime::netns;
use streaming::{Input, Output, PortRequest, PortRequests};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::pipes::piece;
use crate::causes::with_causes;
use crate::context::Engine;
use crate::ids::PodId;
use crate::pod::error::PodError;
use crate::pod::index::Lookup;
use crate::threads::blocking;

/// How long a connection may take to be made: it goes to the pod's own loopback.
const CONNECT: Duration = Duration::from_secs(10);
/// How long what a client sent last may take to its port once the client is gone: whoever
/// listens there may neither read nor end a connection, as long as the pod lives.
const LAST: Duration = Duration::from_secs(5);

/// Connects until the client opens no more and all its connections have ended.
pub(super) async fn forward(
    engine: &Engine,
    pod: &PodId,
    allowed: &[u16],
    mut requests: PortRequests,
) {
    let netns = network_of(engine, pod).map_err(|error| with_causes(&error));
    let netns = Arc::new(netns);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            request = requests.next() => match request {
                Some(request) => {
                    let is_allowed = allowed.is_empty() || allowed.contains(&request.port);
                    let netns = Arc::clone(&netns);
                    connections.spawn(async move { connection(request, &netns, is_allowed).await });
                }
                None => break,
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
    while connections.join_next().await.is_some() {}
}

/// Where the pod's network is; `None`: the node's.
fn network_of(engine: &Engine, id: &PodId) -> Result<Option<PathBuf>, PodError> {
    match engine.index.pod(id.as_str()) {
        Lookup::Found(pod) if pod.ready => Ok(pod.netns.clone()),
        Lookup::Found(_) => Err(PodError::State {
            what: format!("sandbox {id}"),
            state: "not ready".to_owned(),
        }),
        Lookup::Unknown | Lookup::Ambiguous => Err(PodError::NoPod(id.to_string())),
    }
}

async fn connection(
    request: PortRequest,
    netns: &Result<Option<PathBuf>, String>,
    is_allowed: bool,
) {
    let PortRequest {
        port,
        input,
        output,
        error,
        gone,
        place: _place,
    } = request;
    let connected = match netns {
        Err(reason) => Err(reason.clone()),
        Ok(_) if !is_allowed => Err(format!("port {port} was not asked for")),
        Ok(netns) => connect(netns.as_deref(), port).await,
    };
    match connected {
        Ok(stream) => {
            let passing = pass_both_ways(stream, input, output);
            tokio::pin!(passing);
            tokio::select! {
                () = &mut passing => {}
                () = gone.wait() => {
                    let _ended = tokio::time::timeout(LAST, passing).await;
                }
            }
        }
        Err(reason) => {
            let message = format!("forward port {port}: {reason}");
            error.report(&message).await;
        }
    }
}

/// Passes bytes on until both sides have ended or one of them breaks. A side that has
/// said all may still be answered.
async fn pass_both_ways(mut stream: TcpStream, mut input: Input, mut output: Output) {
    let (mut from_pod, mut to_pod) = stream.split();
    let answers = async {
        while let Some(bytes) = piece(&mut from_pod).await {
            output.give(bytes).await?;
        }
        output.shutdown().await
    };
    let asks = async {
        while let Some(bytes) = input.next().await {
            to_pod.write_all(&bytes).await?;
        }
        to_pod.shutdown().await
    };
    // Both see the end by their own streams.
    let _ended = tokio::try_join!(answers, asks);
}

/// Connects to the port at the loopback of a network: what a pod listens at.
async fn connect(netns: Option<&Path>, port: u16) -> Result<TcpStream, String> {
    let mut last = String::new();
    for address in [
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ] {
        match connect_to(netns, address).await {
            Ok(stream) => return Ok(stream),
            // Of a pod that has no such address the first answer says more.
            Err(reason) if last.is_empty() => last = reason,
            Err(_) => {}
        }
    }
    Err(last)
}

async fn connect_to(netns: Option<&Path>, address: SocketAddr) -> Result<TcpStream, String> {
    let failed = |error: std::io::Error| format!("connect to {address}: {error}");
    let socket = match netns {
        None => match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }
        .map_err(failed)?,
        Some(netns) => {
            let netns = netns.to_owned();
            let made = blocking(move || {
                netns::tcp_socket(&netns, address.is_ipv6())
                    .map_err(|error| PodError::runtime("enter the pod's network", error))
            });
            let socket = made.await.map_err(|error| with_causes(&error))?;
            TcpSocket::from_std_stream(socket.into())
        }
    };
    match tokio::time::timeout(CONNECT, socket.connect(address)).await {
        Ok(connected) => connected.map_err(failed),
        Err(_) => Err(format!("connect to {address}: no answer")),
    }
}
