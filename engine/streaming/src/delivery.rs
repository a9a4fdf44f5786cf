//! From the wire to the handler's ends.
//!
//! Owns the delivery of a client's bytes, which waits where the handler does not read,
//! and ends when the connection does.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::session::Connection;
use crate::wire::Out;

/// How often a client is shown life while its bytes wait.
const ALIVE: Duration = Duration::from_secs(10);

/// Returns when there will be no more output than is written already.
pub(crate) async fn finished(finishing: &mut watch::Receiver<bool>) {
    // An error is the end of the session that would say so.
    finishing.wait_for(|finishing| *finishing).await.ok();
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
pub(crate) async fn deliver(
    bytes: Bytes,
    to: &mpsc::Sender<Bytes>,
    out: &mpsc::Sender<Out>,
    connection: &Connection,
    finishing: &mut watch::Receiver<bool>,
) -> Delivered {
    tokio::select! {
        biased;
        taken = to.send(bytes) => match taken {
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
}
