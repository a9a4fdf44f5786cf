//! What a handler holds of a command's connection.
//!
//! Owns the ends of the streams that the engine reads and writes. Both hand on pieces
//! of bytes as they are: output goes straight to the queue of the loop that writes the
//! connection, at most [`PIECE`] bytes a message; of input one piece waits for its
//! reader, and its sender behind it. When the connection ends or a stream is reset, the
//! end that is left reads EOF and writes `BrokenPipe`.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::PollSender;

use crate::wire::{self, Out, PIECE};

/// How many pieces of input wait for the handler.
const WAITING: usize = 1;

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
pub struct Input {
    pieces: mpsc::Receiver<Bytes>,
    /// What is left of a piece that was read in part.
    rest: Bytes,
}

/// What a client receives: shutdown half-closes; `BrokenPipe` when the client is gone.
///
/// What is written waits in the queue of the connection until the client reads.
#[derive(Debug)]
pub struct Output {
    id: u32,
    out: PollSender<Out>,
    flow: Arc<Flow>,
}

/// What becomes of one stream of output, as its session sees it.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Nothing more is taken.
    closed: AtomicBool,
    /// The client needs no word of its end: it has been told, or reset the stream.
    told: AtomicBool,
    writer: AtomicWaker,
}

impl Flow {
    /// Takes nothing more, and wakes who waits for room.
    fn close(&self) {
        // The waker orders what is stored before with what its task loads.
        self.closed.store(true, Ordering::Release);
        self.writer.wake();
    }

    /// The client reset the stream: it is told nothing more of it.
    pub(crate) fn cut(&self) {
        self.told.store(true, Ordering::Release);
        self.close();
    }

    /// Takes nothing more; whether the client is still to be told that this is the end.
    pub(crate) fn finish(&self) -> bool {
        self.close();
        !self.told.swap(true, Ordering::AcqRel)
    }
}

impl Input {
    /// The two ends of a stream of input.
    pub(crate) fn new() -> (mpsc::Sender<Bytes>, Self) {
        let (sender, pieces) = mpsc::channel(WAITING);
        let rest = Bytes::new();
        (sender, Self { pieces, rest })
    }

    /// The next piece, as it came; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        poll_fn(|context| self.poll_piece(context)).await
    }

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        while self.rest.is_empty() {
            match ready!(self.pieces.poll_recv(context)) {
                Some(piece) => self.rest = piece,
                None => return Poll::Ready(None),
            }
        }
        Poll::Ready(Some(std::mem::take(&mut self.rest)))
    }
}

impl Output {
    /// The stream with this number, and how its session ends it.
    pub(crate) fn new(id: u32, out: mpsc::Sender<Out>) -> (Self, Arc<Flow>) {
        let flow = Arc::new(Flow::default());
        let out = PollSender::new(out);
        let output = Self {
            id,
            out,
            flow: Arc::clone(&flow),
        };
        (output, flow)
    }

    /// Hands a piece on as it is, when there is room in the connection's queue.
    ///
    /// # Errors
    /// `BrokenPipe`: the client is gone, or wants no more of this stream.
    pub async fn give(&mut self, bytes: Bytes) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        poll_fn(|context| self.poll_room(context)).await?;
        self.send(Out::Data(self.id, bytes))
    }

    /// Returns when there is room for a message.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flow.writer.register(context.waker());
        if self.flow.closed.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = ready!(self.out.poll_reserve(context));
        Poll::Ready(room.map_err(|_| io::ErrorKind::BrokenPipe.into()))
    }

    fn send(&mut self, message: Out) -> io::Result<()> {
        let sent = self.out.send_item(message);
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

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

/// Whether the connection is lost, or of a port's, reset.
#[derive(Debug, Clone)]
pub struct Gone(pub(crate) watch::Receiver<bool>);

impl Gone {
    /// Returns when it is; at once if it was before.
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
        let this = self.get_mut();
        if let Some(mut piece) = ready!(this.poll_piece(context)) {
            let length = piece.len().min(buffer.remaining());
            buffer.put_slice(piece.get(..length).unwrap_or_default());
            piece.advance(length);
            this.rest = piece;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Output {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let bytes = bytes.get(..PIECE).unwrap_or(bytes);
        if !bytes.is_empty() {
            ready!(this.poll_room(context))?;
            this.send(Out::Data(this.id, Bytes::copy_from_slice(bytes)))?;
        }
        Poll::Ready(Ok(bytes.len()))
    }

    /// Whoever writes the connection flushes it by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if ready!(this.poll_room(context)).is_ok() && this.flow.finish() {
            this.send(Out::End(this.id))?;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn kind(written: io::Result<()>) -> Option<io::ErrorKind> {
        written.err().map(|error| error.kind())
    }

    #[tokio::test]
    async fn a_writer_without_room_learns_of_a_reset() {
        let (out, mut queue) = mpsc::channel(1);
        let (mut output, flow) = Output::new(5, out);
        output.write_all(b"first").await.unwrap();
        let mut waiting = std::pin::pin!(output.write_all(b"second"));
        assert!(waiting.as_mut().now_or_never().is_none());
        flow.cut();
        assert_eq!(kind(waiting.await), Some(io::ErrorKind::BrokenPipe));
        output.shutdown().await.unwrap();
        assert!(matches!(queue.recv().await, Some(Out::Data(5, bytes)) if bytes == "first"));
        // A stream that the client reset is told no end.
        assert!(!flow.finish());
        drop(output);
        assert!(queue.recv().await.is_none());
    }

    #[tokio::test]
    async fn what_is_written_before_the_end_is_told_before_it_and_nothing_after() {
        let (out, mut queue) = mpsc::channel(8);
        let (mut output, flow) = Output::new(5, out);
        output.give(Bytes::from_static(b"all")).await.unwrap();
        output.shutdown().await.unwrap();
        let late = output.give(Bytes::from_static(b"late")).await;
        assert_eq!(kind(late), Some(io::ErrorKind::BrokenPipe));
        // It is told once.
        assert!(!flow.finish());
        drop(output);
        assert!(matches!(queue.recv().await, Some(Out::Data(5, bytes)) if bytes == "all"));
        assert!(matches!(queue.recv().await, Some(Out::End(5))));
        assert!(queue.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_piece_that_is_read_in_part_is_not_lost() {
        let (sender, mut input) = Input::new();
        sender.send(Bytes::from_static(b"hello")).await.unwrap();
        drop(sender);
        let mut two = [0; 2];
        input.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"he");
        assert_eq!(input.next().await.as_deref(), Some(&b"llo"[..]));
        assert_eq!(input.next().await, None);
        assert_eq!(input.read(&mut two).await.unwrap(), 0);
    }
}
