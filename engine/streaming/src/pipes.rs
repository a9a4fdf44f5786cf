//! From the handler's ends to the wire and back.
//!
//! Owns the copying of one stream. A pump waits where its client does not
//! read; a delivery waits where the handler does not. Both end when the
//! connection does, and leave the handler EOF and `BrokenPipe`.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::session::Connection;
use crate::wire::{Out, PIECE};

/// How often a client is shown life while its bytes wait.
const ALIVE: Duration = Duration::from_secs(10);

/// Returns when there will be no more output than is written already.
pub(crate) async fn finished(finishing: &mut watch::Receiver<bool>) {
    // An error is the end of the session that would say so.
    finishing.wait_for(|finishing| *finishing).await.ok();
}

/// Copies one stream of output until it ends, then says so; when finishing,
/// what is written and no more.
///
/// A `cut`, sent or dropped, ends it without a word: the client reset the
/// stream.
pub(crate) async fn pump<R: AsyncRead + Unpin>(
    mut from: R,
    id: u32,
    out: mpsc::Sender<Out>,
    mut finishing: watch::Receiver<bool>,
    mut cut: oneshot::Receiver<()>,
) {
    loop {
        let piece = tokio::select! {
            biased;
            _ = &mut cut => return,
            piece = piece(&mut from) => piece,
            () = finished(&mut finishing) => break,
        };
        let Some(bytes) = piece else {
            out.send(Out::End(id)).await.ok();
            return;
        };
        if say(&out, Out::Data(id, bytes), &mut cut).await.is_none() {
            return;
        }
    }
    // Unconstrained: a spent budget would look like an empty pipe.
    while let Some(Some(bytes)) = tokio::task::unconstrained(piece(&mut from)).now_or_never() {
        if say(&out, Out::Data(id, bytes), &mut cut).await.is_none() {
            return;
        }
    }
    out.send(Out::End(id)).await.ok();
}

/// `None` when nobody will hear it.
async fn say(out: &mpsc::Sender<Out>, message: Out, cut: &mut oneshot::Receiver<()>) -> Option<()> {
    tokio::select! {
        biased;
        _ = cut => None,
        sent = out.send(message) => sent.ok(),
    }
}

/// The next bytes; `None` at the end. Nothing is allocated while waiting.
async fn piece<R: AsyncRead + Unpin>(from: &mut R) -> Option<Bytes> {
    let piece = poll_fn(|context| {
        let mut space = [MaybeUninit::<u8>::uninit(); PIECE];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *from).poll_read(context, &mut buffer))?;
        io::Result::Ok(Bytes::copy_from_slice(buffer.filled())).into()
    });
    piece.await.ok().filter(|bytes| !bytes.is_empty())
}

/// What became of a client's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// They are the handler's.
    Taken,
    /// The handler reads no more of the stream.
    Unwanted,
    /// The client hung up while they waited.
    HungUp,
}

/// Hands bytes to the handler, however long it takes.
pub(crate) async fn deliver<W: AsyncWrite + Unpin>(
    bytes: &[u8],
    to: &mut W,
    out: &mpsc::Sender<Out>,
    connection: &Connection,
    finishing: &mut watch::Receiver<bool>,
) -> Delivered {
    tokio::select! {
        biased;
        written = to.write_all(bytes) => match written {
            Ok(()) => Delivered::Taken,
            Err(_) => Delivered::Unwanted,
        },
        () = finished(finishing) => Delivered::Unwanted,
        () = connection.line.hung_up() => Delivered::HungUp,
        never = alive(out, connection.idle) => match never {},
    }
}

/// Shows life to a client whose pings wait behind its own bytes: kubectl gives
/// up after a minute. Not longer than a connection may be idle, so that this
/// is not what keeps it.
async fn alive(out: &mpsc::Sender<Out>, idle: Duration) -> Infallible {
    let begun = Instant::now();
    while begun.elapsed() < idle {
        tokio::time::sleep(ALIVE).await;
        // What waits to be written is a sign itself.
        out.try_send(Out::Alive).ok();
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn life_is_shown_for_as_long_as_a_connection_may_be_idle() {
        let (out, mut queue) = mpsc::channel(1);
        let idle = 3 * ALIVE;
        let begun = Instant::now();
        let shown = async {
            let mut shown = 0;
            while let Ok(Some(Out::Alive)) = tokio::time::timeout(idle, queue.recv()).await {
                shown += 1;
            }
            (shown, begun.elapsed())
        };
        let (shown, took) = tokio::select! {
            never = alive(&out, idle) => match never {},
            shown = shown => shown,
        };
        assert_eq!((shown, took), (3, 2 * idle));
    }

    #[tokio::test]
    async fn finishing_takes_along_what_is_written_and_no_more() {
        let (mut handler, wire) = tokio::io::duplex(64 * 1024);
        let written = vec![7; 60_000];
        handler.write_all(&written).await.unwrap();
        let (out, mut queue) = mpsc::channel(1);
        let finishing = watch::channel(true).1;
        let (_cut, being_cut) = oneshot::channel();
        let pump = tokio::spawn(pump(wire, 5, out, finishing, being_cut));
        let mut got = Vec::new();
        while let Some(Out::Data(5, bytes)) = queue.recv().await {
            got.extend(bytes);
        }
        assert!(got == written);
        pump.await.unwrap();
        let broken = handler.write_all(b"late").await.unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
    }
}
