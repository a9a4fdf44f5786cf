//! A container's terminal, by its master side.
//!
//! The process that opens the terminal sends it here by a socket. It does not block: what
//! a client does not read waits in the terminal, and then with whoever writes there.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use runtime::sys::async_fd::watch;
use runtime::terminal;
use rustix::buffer::spare_capacity;
use streaming::{Input, Output, Size};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::pipes::EndedBy;

/// What is passed on at once: what a terminal gives at once is less.
const PIECE: usize = 8 * 1024;
/// The most that is read once nobody has the terminal that is waited for: it holds less,
/// so that more can only come from who still writes.
const REST: usize = 1 << 20;

/// Where a terminal arrives.
pub(super) struct Expected(AsyncFd<OwnedFd>);

/// A terminal's master side.
#[derive(Clone)]
pub(super) struct Terminal(Arc<AsyncFd<OwnedFd>>);

/// Makes the socket: where the terminal arrives, and what to send it to.
pub(super) fn expect() -> io::Result<(Expected, OwnedFd)> {
    let (receives, sends) = terminal::pair()?;
    Ok((Expected(watch(receives)?), sends))
}

impl Expected {
    /// Waits for it. An error: whoever was to send it did not.
    pub(super) async fn arrives(&self) -> io::Result<Terminal> {
        loop {
            let mut ready = self.0.readable().await?;
            let received = ready.try_io(|socket| Ok(terminal::receive(socket.as_fd())?));
            match received {
                Ok(master) => return Terminal::new(master?),
                Err(_not_yet) => {}
            }
        }
    }

    /// The one that has arrived by now, if any.
    pub(super) fn arrived(&self) -> Option<Terminal> {
        let master = terminal::receive(self.0.as_fd()).ok()?;
        Terminal::new(master).ok()
    }
}

impl Terminal {
    fn new(master: OwnedFd) -> io::Result<Self> {
        Ok(Self(Arc::new(watch(master)?)))
    }

    /// Passes on what is written there, until the command has ended that it was opened
    /// for; answers how. What was read is passed on whole, however slow the client.
    pub(super) async fn pass_out<T>(
        &self,
        output: &mut Option<Output>,
        mut command: impl Future<Output = T> + Unpin,
    ) -> T {
        loop {
            let ready = tokio::select! {
                ready = self.0.readable() => ready,
                end = &mut command => {
                    self.pass_rest(output).await;
                    return end;
                }
            };
            let Ok(mut ready) = ready else {
                return command.await;
            };
            match ready.try_io(|master| read(master.get_ref())) {
                Ok(Ok(bytes)) if !bytes.is_empty() => give(output, bytes).await,
                // EIO: the last who had it is gone.
                Ok(Ok(_) | Err(_)) => return command.await,
                Err(_nothing_yet) => {}
            }
        }
    }

    /// Passes on what is there now.
    async fn pass_rest(&self, output: &mut Option<Output>) {
        let mut rest = REST;
        while rest > 0
            && let Ok(bytes) = read(self.0.get_ref())
            && !bytes.is_empty()
        {
            rest = rest.saturating_sub(bytes.len());
            give(output, bytes).await;
        }
    }

    /// Passes on what the client writes, until he ends it or the terminal is gone.
    pub(super) async fn pass_in(&self, mut input: Input) -> EndedBy {
        while let Some(bytes) = input.next().await {
            if self.write_all(&bytes).await.is_err() {
                return EndedBy::Reader;
            }
        }
        EndedBy::Client
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|master| Ok(rustix::io::write(master, bytes)?)) {
                Ok(written) => bytes = bytes.get(written?..).unwrap_or_default(),
                Err(_no_room_yet) => {}
            }
        }
        Ok(())
    }

    /// Gives it the sizes that the client's has.
    pub(super) async fn follow(&self, mut sizes: mpsc::Receiver<Size>) {
        while let Some(Size { columns, rows }) = sizes.recv().await {
            if let Err(error) = terminal::resize(self.0.as_fd(), rows, columns) {
                tracing::debug!(%error, "a terminal keeps its size");
            }
        }
    }
}

/// What one read of a terminal's master side gives.
fn read(master: &OwnedFd) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(PIECE);
    rustix::io::read(master, spare_capacity(&mut piece))?;
    Ok(Bytes::copy_from_slice(&piece))
}

/// Gives the client a piece; one that is gone is given no more.
async fn give(output: &mut Option<Output>, bytes: Bytes) {
    if let Some(client) = output
        && client.give(bytes).await.is_err()
    {
        *output = None;
    }
}
