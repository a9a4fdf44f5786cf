//! A client's socket.
//!
//! Owns the descriptor, plain or under TLS, and knows two things of it that
//! its bytes do not tell: when the last one passed, and whether the client
//! hung up behind bytes that nobody has read yet. Dropping its parts closes it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt as _;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::server::TlsStream;

/// How often a connection whose bytes wait is asked whether it still is one.
const LOOK: Duration = Duration::from_secs(1);
/// After how much silence the kernel asks the client's for a sign of life.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What is known of a connection apart from its bytes.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    stream: Arc<TcpStream>,
    activity: Arc<Activity>,
}

#[derive(Debug)]
struct Activity {
    begun: Instant,
    /// When the last byte passed, in milliseconds since.
    last: AtomicU64,
}

impl Activity {
    fn touch(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        // A clock alone: no other memory hangs on it.
        self.last.store(now, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

impl Line {
    /// Returns when no byte passed either way for so long.
    pub(crate) async fn idle(&self, limit: Duration) {
        loop {
            let Some(end) = self.activity.last().checked_add(limit) else {
                return std::future::pending().await;
            };
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }

    /// Returns when the client closed its side or the connection broke, though
    /// bytes of it are unread.
    pub(crate) async fn hung_up(&self) {
        // Not at once: the handler may be about to take the bytes.
        let mut ticks = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self
                .stream
                .ready(Interest::READABLE | Interest::ERROR)
                .now_or_never()
            {
                Some(Ok(ready)) if ready.is_read_closed() || ready.is_error() => return,
                Some(Err(_)) => return,
                _ => {}
            }
        }
    }
}

/// The connection's bytes below TLS.
#[derive(Debug)]
pub(crate) struct Tcp(Line);

impl Tcp {
    pub(crate) fn new(stream: TcpStream) -> Self {
        // Without these, the connection is slower to send and slower to end,
        // and nothing else.
        stream.set_nodelay(true).ok();
        sockopt::set_socket_keepalive(&stream, true).ok();
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE).ok();
        let activity = Activity {
            begun: Instant::now(),
            last: AtomicU64::new(0),
        };
        Self(Line {
            stream: Arc::new(stream),
            activity: Arc::new(activity),
        })
    }

    pub(crate) fn line(&self) -> Line {
        self.0.clone()
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let line = &self.0;
        loop {
            ready!(line.stream.poll_read_ready(context))?;
            match line.stream.try_read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    line.activity.touch();
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let line = &self.0;
        loop {
            ready!(line.stream.poll_write_ready(context))?;
            match line.stream.try_write(bytes) {
                Ok(written) => {
                    line.activity.touch();
                    return Poll::Ready(Ok(written));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = rustix::net::shutdown(&self.0.stream, rustix::net::Shutdown::Write);
        Poll::Ready(shut.map_err(io::Error::from))
    }
}

/// A connection, plain or under TLS.
#[derive(Debug)]
pub(crate) enum Socket {
    Plain(Tcp),
    Tls(Box<TlsStream<Tcp>>),
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Self::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Self::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }
}
