//! What both protocols say, apart from how they say it.
//!
//! Owns the words between the sessions and the wires, and the loop that
//! writes. At most [`QUEUE`] messages of [`PIECE`] bytes wait for a client
//! that does not read; who would add more, waits. A broken write ends the
//! loop, and with it the connection.

use std::future::Future;
use std::io;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::spdy::Headers;

/// What one message of output carries at most.
pub(crate) const PIECE: usize = 64 * 1024;
/// How many messages wait to be written.
pub(crate) const QUEUE: usize = 2;

/// How much of a handler's message is told: a page is enough, and JSON may
/// make it six times as long.
const MESSAGE: usize = 8 * 1024;

/// What of a handler's message is told.
pub(crate) fn message(text: &str) -> String {
    text.get(..text.floor_char_boundary(MESSAGE))
        .unwrap_or_default()
        .to_owned()
}

/// What a client says.
#[derive(Debug)]
pub(crate) enum Event {
    /// It wants a stream.
    Open { id: u32, headers: Headers },
    /// It sends on one.
    Data { id: u32, bytes: Bytes },
    /// It will send no more on one.
    End(u32),
    /// It wants nothing more to do with one.
    Reset(u32),
    /// It asks for an answer.
    Ping(u32),
    /// It will open no more streams.
    Leave,
}

/// What the server says.
#[derive(Debug)]
pub(crate) enum Out {
    /// A stream is accepted.
    Reply(u32),
    /// A stream is refused or broken.
    Reset(u32, Reason),
    /// Output.
    Data(u32, Bytes),
    /// No more output.
    End(u32),
    /// The answer to a ping.
    Pong(u32),
    /// A sign of life, where the protocol has one that answers nothing.
    Alive,
    /// Nothing more.
    Close,
}

/// Why a stream is reset; the numbers are SPDY's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// What its headers say makes no sense.
    Protocol = 1,
    /// There are enough, or it came too late.
    Refused = 3,
}

/// Why there is no next event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// The client is gone.
    #[error("the client is gone")]
    Closed,
    /// Reading failed.
    #[error("read from the client")]
    Read(#[source] io::Error),
    /// What it said is no protocol.
    #[error("the client broke the protocol")]
    Protocol(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The side that reads; a dropped `next` loses nothing.
pub(crate) trait Source: Send {
    fn next(&mut self) -> impl Future<Output = Result<Event, Lost>> + Send;
}

/// The side that writes.
pub(crate) trait Sink: Send + 'static {
    /// Adds a message; may wait for the client to read.
    fn put(&mut self, out: Out) -> impl Future<Output = io::Result<()>> + Send;
    /// Returns when all is with the kernel.
    fn flush(&mut self) -> impl Future<Output = io::Result<()>> + Send;
    /// Says farewell; all is with the kernel then.
    fn close(&mut self) -> impl Future<Output = io::Result<()>> + Send;
}

/// Writes until told to close.
///
/// The receiver comes back with success, so that its end is seen by the
/// senders only when writing failed.
pub(crate) async fn write<K: Sink>(
    mut sink: K,
    mut queue: mpsc::Receiver<Out>,
) -> io::Result<mpsc::Receiver<Out>> {
    while let Some(out) = queue.recv().await {
        if matches!(out, Out::Close) {
            sink.close().await?;
            break;
        }
        sink.put(out).await?;
        if queue.is_empty() {
            sink.flush().await?;
        }
    }
    Ok(queue)
}
