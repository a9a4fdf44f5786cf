//! What a handler holds of a port-forward connection.
//!
//! Owns the queue of requests and the ends of their streams. Buffers and ends
//! are those of `channels`: 64 KiB each way, EOF and `BrokenPipe` after a
//! reset. One broken request leaves the others alone.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::{mpsc, oneshot};

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
    /// The connection's bytes.
    pub data: Duplex,
    /// Where to tell that it cannot be made.
    pub error: PortError,
}

/// Both directions of one connection; shutdown half-closes.
#[derive(Debug)]
pub struct Duplex {
    stream: DuplexStream,
    /// Tells the session when this is dropped.
    _hold: oneshot::Sender<()>,
}

impl Duplex {
    pub(crate) fn new(stream: DuplexStream, hold: oneshot::Sender<()>) -> Self {
        Self {
            stream,
            _hold: hold,
        }
    }
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

impl AsyncRead for Duplex {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
