//! Exec, Attach and PortForward: sessions that a client has beside its calls.
//!
//! A call checks what is asked for and answers with a URL ([`Streams::expect`]). Its token
//! is good once, for a minute, and for nothing but what was asked for; whoever knows it
//! connects to the server whose address the URL has, which speaks SPDY and WebSocket
//! (`streaming`) and gives the session's streams to `command` or `ports`. Bytes go between
//! the client's connection and pipes that end at the monitor; no lock of a list is on the
//! way. A session ends with its client, and the engine's end ends all of them: a command
//! is ended with its client, a container is not.

mod certificates;
mod command;
mod pipes;
mod ports;
mod terminal;
mod tokens;

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use streaming::{Channels, Expected, Handler, Options, PortRequests, Wants};
use tokio::net::TcpListener;

use crate::context::Engine;
use crate::ids::{ContainerId, PodId};
pub(crate) use certificates::Certificates;
use tokens::Tokens;

/// After this long without a byte in either direction a session ends: the kubelet's
/// own bound.
const IDLE: Duration = Duration::from_secs(4 * 3600);
/// How long a client may take to open its streams.
const CREATION: Duration = Duration::from_secs(30);

/// What a URL stands for.
#[derive(Debug)]
pub(crate) enum Session {
    /// A command in a container.
    Exec {
        /// The container.
        container: ContainerId,
        /// The program and its arguments.
        words: Vec<String>,
        /// The streams that its client wants.
        wants: Wants,
    },
    /// The streams of a container itself.
    Attach {
        /// The container.
        container: ContainerId,
        /// The streams that its client wants.
        wants: Wants,
    },
    /// Connections to ports of a pod.
    Ports {
        /// The pod.
        pod: PodId,
        /// Those that may be asked for; none: all.
        ports: Vec<u16>,
    },
}

impl Session {
    /// Its name in a URL.
    fn path(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::Ports { .. } => "portforward",
        }
    }

    fn expected(&self) -> Expected {
        match self {
            Self::Exec { wants, .. } | Self::Attach { wants, .. } => Expected::Command(*wants),
            Self::Ports { .. } => Expected::Ports,
        }
    }
}

/// The sessions that clients may begin.
#[derive(Debug)]
pub(crate) struct Streams {
    tokens: Tokens,
    address: SocketAddr,
    scheme: &'static str,
}

/// There are too many of them: nobody connects to what he has asked for.
#[derive(Debug, thiserror::Error)]
#[error("{0} sessions are asked for that nobody has begun; each is kept for a minute")]
pub(crate) struct TooManySessions(usize);

impl Streams {
    /// None yet, at the server with this address.
    pub(crate) fn at(address: SocketAddr, tls: bool) -> Self {
        Self {
            tokens: Tokens::default(),
            address,
            scheme: if tls { "https" } else { "http" },
        }
    }

    /// Expects a session: answers the URL at which it begins.
    ///
    /// # Errors
    /// Too many are expected already.
    pub(crate) fn expect(&self, session: Session) -> Result<String, TooManySessions> {
        let path = session.path();
        let token = self.tokens.add(session)?;
        let Self {
            scheme, address, ..
        } = self;
        Ok(format!("{scheme}://{address}/{path}/{token}"))
    }
}

/// Serves sessions until it is dropped, under TLS with a certificate.
pub(crate) async fn serve(
    listener: TcpListener,
    certificates: Option<Certificates>,
    engine: Arc<Engine>,
) {
    let sessions = Sessions(Arc::downgrade(&engine));
    drop(engine);
    let options = Options {
        tls: certificates.as_ref().map(Certificates::shown),
        idle: IDLE,
        creation: CREATION,
    };
    let renewing = async {
        match certificates {
            Some(certificates) => certificates.renew().await,
            None => std::future::pending().await,
        }
    };
    let serving = streaming::serve(listener, sessions, options);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        // Nobody renews the certificate while the engine ends.
        () = renewing => serving.await,
    };
    if let Err(error) = ended {
        tracing::error!(%error, "exec, attach and port-forward are not served any more");
    }
}

/// Gives sessions their streams.
#[derive(Clone)]
struct Sessions(Weak<Engine>);

impl Handler for Sessions {
    type Session = Session;

    fn take(&self, token: &str) -> Option<(Expected, Session)> {
        let session = self.0.upgrade()?.streams.tokens.take(token)?;
        Some((session.expected(), session))
    }

    async fn command(&self, session: Session, channels: Channels) {
        let Some(engine) = self.0.upgrade() else {
            return;
        };
        match session {
            Session::Exec {
                container,
                words,
                wants,
            } => command::exec(&engine, &container, words, wants.tty, channels).await,
            Session::Attach { container, wants } => {
                command::attach(&engine, &container, wants.tty, channels).await;
            }
            // It has no such streams.
            Session::Ports { .. } => {}
        }
    }

    async fn ports(&self, session: Session, requests: PortRequests) {
        if let (Some(engine), Session::Ports { pod, ports }) = (self.0.upgrade(), session) {
            ports::forward(&engine, &pod, &ports, requests).await;
        }
    }
}
