//! The wire side of Exec, Attach and PortForward.
//!
//! Owns the HTTP server behind the URLs that the engine hands out, the two
//! protocols spoken there (SPDY/3.1 and WebSocket, in the dialects of the
//! kubelet's own streaming server) and the connections until they end. Never
//! knows a container: a [`Handler`] says what a token stands for and does the
//! work behind the channels. A crash leaves nothing: connections end with
//! the process.

mod channels;
mod delivery;
mod ports;
mod request;
mod server;
mod session;
mod socket;
mod spdy;
mod status;
mod web;
mod wire;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

pub use channels::{Channels, Gone, Input, Outcome, Output, Size};
pub use ports::{Place, PortError, PortRequest, PortRequests};
pub use server::serve;

/// The streams that a command is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wants {
    /// The client sends input.
    pub stdin: bool,
    /// The client receives output.
    pub stdout: bool,
    /// The client receives errors apart from output; never with a terminal.
    pub stderr: bool,
    /// The command has a terminal: its size follows the client's, and it has
    /// no stderr of its own.
    pub tty: bool,
}

/// What a token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// A command with these streams: Exec and Attach.
    Command(Wants),
    /// Connections to ports of a pod: PortForward.
    Ports,
}

/// What the engine does behind the wire.
///
/// The futures run in a task of the connection. They go on when the client
/// is gone ([`Channels::gone`] tells, streams end), so that the handler
/// decides what then becomes of the work; they are dropped with the server.
pub trait Handler: Clone + Send + Sync + 'static {
    /// What the engine keeps for a token.
    type Session: Send + 'static;

    /// What a token stands for; each is good once. `None` is answered with
    /// 404.
    fn take(&self, token: &str) -> Option<(Expected, Self::Session)>;

    /// Runs a command with these channels. Returning without an outcome tells
    /// the client of an internal error.
    fn command(
        &self,
        session: Self::Session,
        channels: Channels,
    ) -> impl Future<Output = ()> + Send;

    /// Connects ports until there are no more requests. Returning ends the
    /// connection.
    fn ports(
        &self,
        session: Self::Session,
        requests: PortRequests,
    ) -> impl Future<Output = ()> + Send;
}

/// How the server serves.
#[derive(Debug, Clone)]
pub struct Options {
    /// With it, the server speaks TLS alone: each connection as this says when it comes,
    /// so that a certificate can be renewed.
    pub tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
    /// No byte either way for so long ends a connection; the kubelet's default
    /// is four hours.
    pub idle: Duration,
    /// How long a client may take for its request, and after that for opening
    /// its streams.
    pub creation: Duration,
}
