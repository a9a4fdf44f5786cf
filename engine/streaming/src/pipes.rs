//! From the handler's ends to the wire and back.
//!
//! Owns the copying of one stream. A pump waits where its client does not
//! read; a delivery waits where the handler does not. Both end when the
//! connection does, and leave the handler EOF and `BrokenPipe`.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::ready;

use bytes::Bytes;
use futures::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::socket::Line;
use crate::wire::{Out, PIECE};

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
    line: &Line,
    finishing: &mut watch::Receiver<bool>,
) -> Delivered {
    tokio::select! {
        biased;
        written = to.write_all(bytes) => match written {
            Ok(()) => Delivered::Taken,
            Err(_) => Delivered::Unwanted,
        },
        () = finished(finishing) => Delivered::Unwanted,
        () = line.hung_up() => Delivered::HungUp,
    }
}
