//! What a handler holds of a command's connection.
//!
//! Owns the ends of the streams that the engine reads and writes. Each
//! buffers at most [`BUFFER`] bytes: a full one holds its writer until the
//! reader takes some. When the connection ends or a stream is reset, the end
//! that is left reads EOF and writes `BrokenPipe`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::wire;

/// What one stream buffers each way.
pub(crate) const BUFFER: usize = 64 * 1024;

/// A terminal's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// The client's side of a command.
#[derive(Debug)]
pub struct Channels {
    /// What the client sends, if the token wanted it.
    pub stdin: Option<Input>,
    /// Where the command's output goes, if the token wanted it.
    pub stdout: Option<Output>,
    /// Where the command's errors go, if the token wanted them and there is no
    /// terminal.
    pub stderr: Option<Output>,
    /// Sizes of the client's terminal, the newest last; ends with the
    /// connection. Unread ones are replaced by newer ones.
    pub sizes: mpsc::Receiver<Size>,
    /// How the command ended, to be told once.
    pub outcome: Outcome,
    /// Whether the client is still there.
    pub gone: Gone,
}

/// What a client sends: EOF when it half-closed the stream or is gone.
#[derive(Debug)]
pub struct Input(pub(crate) DuplexStream);

/// What a client receives: written bytes wait in a bounded buffer; shutdown
/// half-closes; `BrokenPipe` when the client is gone.
#[derive(Debug)]
pub struct Output(pub(crate) DuplexStream);

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// With this exit code.
    Exited(i32),
    /// Not at all: what the engine says of it.
    Failed(String),
}

/// Tells the client how the command ended, and ends the connection.
#[derive(Debug)]
pub struct Outcome(pub(crate) oneshot::Sender<(Verdict, oneshot::Sender<()>)>);

impl Outcome {
    /// The command ended with this code. Returns when what was written to the
    /// outputs and the code are with the client's kernel, or the client is
    /// gone.
    pub async fn exited(self, code: i32) {
        self.tell(Verdict::Exited(code)).await;
    }

    /// The command could not be run, or what became of it is not known; at
    /// most 8 KiB of the message are told.
    /// Returns like [`Self::exited`].
    pub async fn failed(self, message: &str) {
        self.tell(Verdict::Failed(wire::message(message))).await;
    }

    async fn tell(self, verdict: Verdict) {
        let (done, told) = oneshot::channel();
        if self.0.send((verdict, done)).is_ok() {
            // An error is the connection's end, too.
            told.await.ok();
        }
    }
}

/// Whether the connection is lost.
#[derive(Debug, Clone)]
pub struct Gone(pub(crate) watch::Receiver<bool>);

impl Gone {
    /// Returns when the connection is lost; at once if it was before.
    pub async fn wait(&self) {
        // An error says that the connection's task is gone, and it with it.
        self.0.clone().wait_for(|gone| *gone).await.ok();
    }
}

impl AsyncRead for Input {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Output {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(context)
    }
}
