//! What a handler holds of a port-forward connection.
//!
//! Owns the queue of requests. Their streams are those of `channels`: EOF and
//! `BrokenPipe` after a reset. One broken request leaves the others alone.

use tokio::sync::{mpsc, oneshot};

use crate::channels::{Gone, Input, Output};
use crate::wire;

/// The requests of a client, in the order in which they were complete.
#[derive(Debug)]
pub struct PortRequests(pub(crate) mpsc::Receiver<PortRequest>);

impl PortRequests {
    /// The next one; `None` when the client is gone or will open no more.
    pub async fn next(&mut self) -> Option<PortRequest> {
        self.0.recv().await
    }
}

/// One connection that a client wants.
#[derive(Debug)]
pub struct PortRequest {
    /// The port, never 0.
    pub port: u16,
    /// What the client sends.
    pub input: Input,
    /// What it receives.
    pub output: Output,
    /// Where to tell that it cannot be made.
    pub error: PortError,
    /// Whether the client has reset the connection, or is lost: nobody hears any more what
    /// comes of it. What the client sent before may still be read from `input`.
    pub gone: Gone,
    /// The request's place among those of its client, until this is dropped.
    pub place: Place,
}

/// A place among a client's requests.
#[derive(Debug)]
pub struct Place {
    /// Tells the session when this is dropped.
    pub(crate) _hold: oneshot::Sender<()>,
}

/// Tells the client why a connection could not be made or broke.
///
/// Dropped, it says that all is well: the error stream ends empty.
#[derive(Debug)]
pub struct PortError(pub(crate) oneshot::Sender<String>);

impl PortError {
    /// Sends at most 8 KiB of the message and ends the error stream. The kubectl that reads it
    /// prints it and closes the connection's data.
    pub async fn report(self, message: &str) {
        // Nobody to hear it is no error of the caller's.
        self.0.send(wire::message(message)).ok();
    }
}
