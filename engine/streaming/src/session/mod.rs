//! What a connection is for, once it speaks a protocol.
//!
//! Owns the two kinds of session and what both do around their streams: the
//! loop that writes, the watch for idleness, the farewell.
//!
//! What stalls what: a handler that does not read its input, and a port that
//! does not, hold the incoming bytes of their connection, as neither protocol
//! gives a stream a window that the Go client minds. Pings, resets and the
//! end behind held bytes wait with them; a client that hangs up is noticed all
//! the same, by its socket, within two seconds, and loses what was held. A
//! WebSocket whose pings wait is sent pongs unasked. Output goes on, from a
//! loop of its own. A client that does not read holds its own output, and its own
//! pings once the few messages of `wire` wait. Nothing holds another
//! connection, and `Options::idle` ends what is held for too long.

mod command;
mod ports;
mod sizes;

use std::future::Future;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinSet;

pub(crate) use command::{Command, Ids};
pub(crate) use ports::Ports;

use crate::socket::Line;
use crate::wire::{self, Out, QUEUE, Sink};

/// How long a client may take to close its side of a finished connection.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a session has of its connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The socket, apart from its bytes.
    pub(crate) line: Line,
    /// `Options::idle`.
    pub(crate) idle: Duration,
    /// `Options::creation`.
    pub(crate) creation: Duration,
    /// Its place among the connections of the server.
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// The loop that writes, ended with this.
struct Writer {
    task: JoinSet<std::io::Result<mpsc::Receiver<Out>>>,
}

impl Writer {
    fn start<K: Sink>(sink: K) -> (Self, mpsc::Sender<Out>) {
        let (out, queue) = mpsc::channel(QUEUE);
        let mut task = JoinSet::new();
        task.spawn(wire::write(sink, queue));
        (Self { task }, out)
    }

    /// Returns when all that was said is with the kernel, and whether it is.
    async fn close(&mut self, out: &mpsc::Sender<Out>) -> bool {
        out.send(Out::Close).await.ok();
        matches!(self.task.join_next().await, Some(Ok(Ok(_))))
    }
}

/// Runs what the server says beside what it hears, until all is said and the
/// client took its leave, or the connection is lost.
///
/// What `talk` returns is who waits to hear that all was said.
async fn converse<T, L>(connection: &Connection, out: &mpsc::Sender<Out>, talk: T, listen: L)
where
    T: Future<Output = Option<Option<oneshot::Sender<()>>>>,
    L: Future<Output = ()>,
{
    let mut listen = std::pin::pin!(listen);
    let said = tokio::select! {
        biased;
        said = talk => said,
        () = &mut listen => None,
        () = out.closed() => None,
        () = connection.line.idle(connection.idle) => None,
    };
    if let Some(waiting) = said {
        if let Some(waiting) = waiting {
            // It need not wait for it.
            waiting.send(()).ok();
        }
        // Closing with bytes unread would have the kernel reset the connection
        // and the client lose what it has not read.
        tokio::time::timeout(FAREWELL, listen).await.ok();
    }
}
