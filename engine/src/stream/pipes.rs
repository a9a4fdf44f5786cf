//! Pipes between a client's connection and the monitor.
//!
//! The engine's ends do not block, and no container has them. What a client does not
//! read waits in the pipe, and beyond that with whoever writes; what a container does not
//! read waits with the client.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::ready;

use bytes::Bytes;
use streaming::{Input, Output};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::unix::pipe::{Receiver, Sender};

/// What is passed on at once: what a pipe holds.
const PIECE: usize = 64 * 1024;
/// What a pipe to a client of a container holds: a burst of output that finds no room
/// is lost to it.
const ROOM: usize = 256 * 1024;

/// A pipe that the engine reads, and its other end.
pub(super) fn to_read() -> io::Result<(Receiver, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((Receiver::from_owned_fd(read)?, write))
}

/// The same with much room, where that is to be had.
pub(super) fn roomy_to_read() -> io::Result<(Receiver, OwnedFd)> {
    let (receiver, write) = to_read()?;
    if let Err(error) = rustix::pipe::fcntl_setpipe_size(&write, ROOM) {
        tracing::debug!(%error, "a pipe keeps its usual size");
    }
    Ok((receiver, write))
}

/// A pipe that the engine writes to, and its other end.
pub(super) fn to_write() -> io::Result<(OwnedFd, Sender)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((read, Sender::from_owned_fd(write)?))
}

/// Passes on what comes until it ends. Who does not want it, or is gone, does not keep
/// the pipe open: whoever writes learns that nobody reads.
pub(super) async fn pass_out(mut pipe: Receiver, output: Option<Output>) {
    let Some(mut output) = output else {
        return throw_away(pipe).await;
    };
    while let Some(bytes) = piece(&mut pipe).await {
        if output.give(bytes).await.is_err() {
            break;
        }
    }
    // The client may be gone.
    let _ended = output.shutdown().await;
}

/// The next bytes of a stream; `None` at its end. Nothing is allocated while waiting: most
/// sessions are silent most of the time.
pub(super) async fn piece<R: AsyncRead + Unpin>(from: &mut R) -> Option<Bytes> {
    let piece = poll_fn(|context| {
        let mut space = [MaybeUninit::<u8>::uninit(); PIECE];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *from).poll_read(context, &mut buffer))?;
        io::Result::Ok(Bytes::copy_from_slice(buffer.filled())).into()
    });
    piece.await.ok().filter(|bytes| !bytes.is_empty())
}

/// Reads what nobody wants: a command whose output is closed would end by it.
async fn throw_away(mut pipe: Receiver) {
    while piece(&mut pipe).await.is_some() {}
}

/// Who ended what a client writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndedBy {
    /// The client, by closing it or by going away.
    Client,
    /// Whoever read it.
    Reader,
}

/// Passes on what the client writes until he ends it, or nobody reads any more.
pub(super) async fn pass_in(mut input: Input, mut pipe: Sender) -> EndedBy {
    while let Some(bytes) = input.next().await {
        if pipe.write_all(&bytes).await.is_err() {
            return EndedBy::Reader;
        }
    }
    EndedBy::Client
}
