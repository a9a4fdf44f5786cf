//! Reading a socket whose other end pours.
//!
//! A program that writes 4 KiB at a time wakes its reader for each of them, and the reader
//! his client. Where pieces come one after the other without a pause, the kernel is asked
//! to wake only when more is there, and what is there after a millisecond is read all the
//! same: so nothing waits for long, whatever is sent. Owns the count by which a pour is
//! told from a conversation; the socket is only borrowed.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use runtime::sys::low_water::set_low_water;
use rustix::buffer::spare_capacity;
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::pipes::PIECE;

/// What is to be there before the reader of a pour is woken.
const ENOUGH: u16 = 32 * 1024;
/// How long so much may take: the shortest time that a timer of tokio knows.
const PATIENCE: Duration = Duration::from_millis(1);
/// So many small pieces in a row, each within [`GAP`] of the one before, are a pour.
const POUR: u32 = 8;
/// No answer to what a client sends comes as fast.
const GAP: Duration = Duration::from_micros(100);

/// A socket as it is read.
pub(super) struct Source<'a> {
    stream: &'a TcpStream,
    /// Small pieces in a row that came without a pause.
    prompt: u32,
    /// Whether the kernel waits for [`ENOUGH`].
    pours: bool,
}

impl<'a> Source<'a> {
    /// One of which nothing is known yet.
    pub(super) fn new(stream: &'a TcpStream) -> Self {
        Self {
            stream,
            prompt: 0,
            pours: false,
        }
    }

    /// The next bytes; `None` at the end, or where the connection broke.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        let bytes = loop {
            let asked = Instant::now();
            if self.pours {
                match timeout(PATIENCE, self.stream.readable()).await {
                    Ok(readable) => readable.ok()?,
                    Err(_) => {
                        // The socket is readable for less from now on: what is there, too.
                        self.pour(false);
                        continue;
                    }
                }
            } else {
                self.stream.readable().await.ok()?;
            }
            match self.stream.try_io(Interest::READABLE, || read(self.stream)) {
                Ok(bytes) => {
                    self.heard(bytes.len(), asked.elapsed());
                    break bytes;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        };
        (!bytes.is_empty()).then_some(bytes)
    }

    /// A piece of so many bytes came, after such a wait.
    fn heard(&mut self, length: usize, wait: Duration) {
        if self.pours {
            return;
        }
        let prompt = length < usize::from(ENOUGH) && wait < GAP;
        self.prompt = if prompt { self.prompt + 1 } else { 0 };
        if self.prompt > POUR {
            self.pour(true);
        }
    }

    fn pour(&mut self, pours: bool) {
        let bytes = if pours { ENOUGH } else { 1 };
        // Where the kernel does not do it, it wakes for every piece.
        self.pours = set_low_water(self.stream, bytes).is_ok() && pours;
        self.prompt = 0;
    }
}

fn read(stream: &TcpStream) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(PIECE);
    rustix::net::recv(stream, spare_capacity(&mut piece), RecvFlags::DONTWAIT)?;
    Ok(Bytes::copy_from_slice(&piece))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    /// A pour that pauses, says one byte more, and ends: each is heard, and in order.
    #[tokio::test]
    async fn what_pours_loses_nothing_and_waits_for_no_more() {
        let (near, mut far) = pair().await;
        let mut source = Source::new(&near);
        source.pour(true);
        assert!(source.pours);
        far.write_all(b"little").await.unwrap();
        assert_eq!(source.next().await.as_deref(), Some(&b"little"[..]));
        assert!(!source.pours);
        source.pour(true);
        let long = vec![7; 1 << 20];
        let writes = async {
            far.write_all(&long).await.unwrap();
            far.write_all(b"x").await.unwrap();
            far.shutdown().await.unwrap();
        };
        let reads = async {
            let mut got = Vec::new();
            while let Some(bytes) = source.next().await {
                got.extend_from_slice(&bytes);
            }
            got
        };
        let ((), got) = tokio::join!(writes, reads);
        assert_eq!(got.len(), long.len() + 1);
        assert_eq!(got.last(), Some(&b'x'));
    }

    #[tokio::test]
    async fn small_pieces_without_a_pause_are_a_pour_and_others_are_not() {
        let (near, _far) = pair().await;
        let mut source = Source::new(&near);
        for _ in 0..100 {
            source.heard(4096, GAP * 2);
            source.heard(usize::from(ENOUGH), Duration::ZERO);
        }
        assert!(!source.pours);
        for _ in 0..=POUR {
            source.heard(4096, Duration::ZERO);
        }
        assert!(source.pours);
    }
}
