//! The server behind the URLs.
//!
//! Owns the tasks of all connections: [`CONNECTIONS`] whose request was granted, more
//! wait, and [`STRANGERS`] that have shown no token yet. Local users and pods on the
//! node's network can connect as often as they like: each stranger too many ends the
//! oldest one, so that they keep nobody out who has a token. A request has
//! `Options::creation` and 16 KiB to come, TLS included; each connection serves one.
//! Dropping the server aborts its tasks, which closes their sockets and ends their
//! handlers.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, warn};

use crate::request::{self, Asked, Body, Protocol};
use crate::session::{Command, Connection, Ids, Ports};
use crate::socket::{Socket, Tcp};
use crate::spdy::{SpdySink, SpdySource};
use crate::web::{self, TunnelReader, TunnelWriter, WebSink, WebSource};
use crate::{Expected, Handler, Options, Wants};

/// How many sessions are served at a time.
const CONNECTIONS: usize = 2048;
/// How many connections may be without one.
const STRANGERS: usize = 256;
/// What a request's head may have.
const HEAD: usize = 16 * 1024;
/// How long to wait when there is no descriptor for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until dropped; dropping ends all connections.
///
/// Takes `/exec/TOKEN`, `/attach/TOKEN` and `/portforward/TOKEN`, each with
/// an upgrade to SPDY/3.1 or WebSocket as the kubelet's streaming server has
/// them. The old WebSocket protocol for ports needs them in the query of the
/// URL: `?port=80,443`.
///
/// # Errors
///
/// What makes the listener unusable, as accept(2) has it. A connection that
/// failed is none, and neither is a lack of descriptors or memory, which
/// passes.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    handler: H,
    options: Options,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut tasks = JoinSet::new();
    let mut strangers = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            Some(ended) = tasks.join_next() => {
                report(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                make_room(&mut strangers);
                let standing = Arc::new(Standing::default());
                let place = (Arc::clone(&places), Arc::clone(&standing));
                let (handler, options) = (handler.clone(), options.clone());
                let task = tasks.spawn(connection(stream, place, handler, options));
                strangers.push_back((task, standing));
            }
            Err(error) if passes(&error) => {
                warn!(%error, "a streaming connection was not accepted");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Says that a task panicked: only a handler could.
fn report(ended: Result<(), JoinError>) {
    match ended {
        Err(error) if error.is_panic() => error!(%error, "a streaming session failed"),
        _ => {}
    }
}

/// What a connection is: a stranger until its request is granted or it is sent away,
/// whichever is first.
#[derive(Default)]
struct Standing(AtomicU8);

impl Standing {
    const STRANGER: u8 = 0;
    const GRANTED: u8 = 1;
    const SENT_AWAY: u8 = 2;

    /// Whether it becomes that: it was a stranger.
    fn becomes(&self, standing: u8) -> bool {
        let order = Ordering::Relaxed;
        let was = self
            .0
            .compare_exchange(Self::STRANGER, standing, order, order);
        was.is_ok()
    }

    fn is_stranger(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::STRANGER
    }
}

/// Sends the oldest stranger away if there are too many.
fn make_room(strangers: &mut VecDeque<(AbortHandle, Arc<Standing>)>) {
    if strangers.len() < STRANGERS {
        return;
    }
    strangers.retain(|(task, standing)| standing.is_stranger() && !task.is_finished());
    while strangers.len() >= STRANGERS
        && let Some((task, standing)) = strangers.pop_front()
    {
        if standing.becomes(Standing::SENT_AWAY) {
            task.abort();
        }
    }
}

/// Whether accept(2) may work the next time: the client left, or there is no
/// room at the moment.
fn passes(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [
        Errno::CONNABORTED,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::PERM,
        Errno::PROTO,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::HOSTUNREACH,
        Errno::HOSTDOWN,
    ];
    Errno::from_io_error(error).is_some_and(|error| passing.contains(&error))
}

/// A request that was granted.
struct Granted<S> {
    protocol: Protocol,
    expected: Expected,
    session: S,
}

async fn connection<H: Handler>(
    stream: TcpStream,
    (places, standing): (Arc<Semaphore>, Arc<Standing>),
    handler: H,
    options: Options,
) {
    let tcp = Tcp::new(stream);
    let line = tcp.line();
    let greeting = greet(tcp, &handler, options.tls.as_ref());
    let (socket, begun, granted) = match tokio::time::timeout(options.creation, greeting).await {
        Ok(Ok(Some(granted))) => granted,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => {
            debug!(error = &*error, "a streaming request failed");
            return;
        }
        Err(_) => {
            debug!("a streaming request did not come in time");
            return;
        }
    };
    if !standing.becomes(Standing::GRANTED) {
        return;
    }
    // Never closed.
    let Ok(permit) = places.acquire_owned().await else {
        return;
    };
    let connection = Connection {
        line,
        idle: options.idle,
        creation: options.creation,
        _permit: permit,
    };
    // Its future holds everything of a session, which is too much to move.
    Box::pin(session(connection, socket, begun, granted, handler)).await;
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Hears one request and answers it; `None` if it was not granted.
async fn greet<H: Handler>(
    tcp: Tcp,
    handler: &H,
    tls: Option<&watch::Receiver<Arc<rustls::ServerConfig>>>,
) -> Result<Option<(Socket, BytesMut, Granted<H::Session>)>, Failure> {
    let socket = match tls {
        None => Socket::Plain(tcp),
        Some(config) => {
            let acceptor = TlsAcceptor::from(Arc::clone(&config.borrow()));
            Socket::Tls(Box::new(acceptor.accept(tcp).await?))
        }
    };
    let (grant, mut granted) = mpsc::channel(1);
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(&request, handler, &grant);
        async { Ok::<_, std::convert::Infallible>(answer) }
    });
    let parts = http1::Builder::new()
        .max_buf_size(HEAD)
        // The whole greeting has a deadline.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(socket), service)
        .without_shutdown()
        .await?;
    let mut socket = parts.io.into_inner();
    match granted.try_recv() {
        Ok(granted) => Ok(Some((socket, parts.read_buf.into(), granted))),
        Err(_) => {
            socket.shutdown().await?;
            Ok(None)
        }
    }
}

fn answer<H: Handler>(
    request: &Request<Incoming>,
    handler: &H,
    grant: &mpsc::Sender<Granted<H::Session>>,
) -> Response<Body> {
    let asked = match request::ask(request) {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    let Some((expected, session)) = handler.take(&asked.token) else {
        return request::unknown();
    };
    if !asked.fits(expected) {
        return request::unknown();
    }
    let Asked {
        protocol, answer, ..
    } = asked;
    match grant.try_send(Granted {
        protocol,
        expected,
        session,
    }) {
        Ok(()) => answer,
        // A connection serves one request.
        Err(_) => request::unknown(),
    }
}

async fn session<H: Handler>(
    connection: Connection,
    socket: Socket,
    begun: BytesMut,
    granted: Granted<H::Session>,
    handler: H,
) {
    let Granted {
        protocol,
        expected,
        session,
    } = granted;
    let wants = match expected {
        Expected::Command(wants) => wants,
        Expected::Ports => Wants::default(),
    };
    match protocol {
        Protocol::Spdy { spelling, resizes } => {
            let (reader, writer) = tokio::io::split(socket);
            let (source, sink) = (SpdySource::new(reader, begun), SpdySink::new(writer));
            let command = Command {
                wants,
                spelling,
                resizes,
                fixed: None,
            };
            command
                .run(connection, source, sink, |to| handler.command(session, to))
                .await;
        }
        Protocol::Web {
            coding,
            spelling,
            closes,
        } => {
            let (writer, reader) = web::upgraded(socket, begun).await;
            let source = WebSource::new(reader, coding, closes);
            let sink = WebSink::new(writer, coding);
            let command = Command {
                wants,
                spelling,
                resizes: true,
                fixed: Some(channels(wants)),
            };
            command
                .run(connection, source, sink, |to| handler.command(session, to))
                .await;
        }
        Protocol::PortsSpdy => {
            let (reader, writer) = tokio::io::split(socket);
            let (source, sink) = (SpdySource::new(reader, begun), SpdySink::new(writer));
            let ports = Ports::default();
            ports
                .run(connection, source, sink, |requests| {
                    handler.ports(session, requests)
                })
                .await;
        }
        Protocol::PortsTunnel => {
            let (writer, reader) = web::upgraded(socket, begun).await;
            let source = SpdySource::new(TunnelReader::new(reader), BytesMut::new());
            let sink = SpdySink::new(TunnelWriter::new(writer));
            let ports = Ports::default();
            ports
                .run(connection, source, sink, |requests| {
                    handler.ports(session, requests)
                })
                .await;
        }
        Protocol::PortsWeb { coding, ports } => {
            let (writer, reader) = web::upgraded(socket, begun).await;
            let source = WebSource::new(reader, coding, false);
            let sink = WebSink::new(writer, coding);
            let ports = Ports { fixed: ports };
            ports
                .run(connection, source, sink, |requests| {
                    handler.ports(session, requests)
                })
                .await;
        }
    }
}

/// The channels that WebSocket has for a command.
fn channels(wants: Wants) -> Ids {
    Ids {
        stdin: wants.stdin.then_some(0),
        stdout: wants.stdout.then_some(1),
        stderr: (wants.stderr && !wants.tty).then_some(2),
        error: Some(3),
        resize: Some(4),
    }
}
