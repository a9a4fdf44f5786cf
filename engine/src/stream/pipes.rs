//! Pipes between a client's connection and the monitor.
//!
//! The engine's ends do not block, and no container has them. What a client does not
//! read waits in the pipe, and beyond that with whoever writes; what a container does not
//! read waits with the client.

use std::io;
use std::os::fd::OwnedFd;

use streaming::{Input, Output};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};

/// What is passed on at once.
const PIECE: usize = 32 * 1024;
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
    let mut piece = vec![0; PIECE];
    loop {
        let read = match pipe.read(&mut piece).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        let bytes = piece.get(..read).unwrap_or_default();
        if output.write_all(bytes).await.is_err() || output.flush().await.is_err() {
            break;
        }
    }
    // The client may be gone.
    let _ended = output.shutdown().await;
}

/// Reads what nobody wants: a command whose output is closed would end by it.
async fn throw_away(mut pipe: Receiver) {
    let mut piece = vec![0; PIECE];
    while matches!(pipe.read(&mut piece).await, Ok(read) if read > 0) {}
}

/// Passes on what the client writes until he ends it, or nobody reads any more.
pub(super) async fn pass_in(mut input: Input, mut pipe: Sender) {
    let mut piece = vec![0; PIECE];
    loop {
        let read = match input.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        let bytes = piece.get(..read).unwrap_or_default();
        if pipe.write_all(bytes).await.is_err() {
            return;
        }
    }
}
