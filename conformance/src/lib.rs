//! Slipway seen from outside: everything here reaches the engine through its
//! socket and its command line, as a kubelet or a person would.
//!
//! - `engine`: starts an engine in a scratch folder and ends it.
//! - `isolation`: a network and a mount namespace for engine and plugins.
//! - `image`: a tiny image, built here.
//! - `bench`: latency, throughput and cost of engines, side by side.
//! - `client`: both CRI services, and requests with sensible values.
//! - `guard`: what a pod's life costs, in counts.
//! - `host`: what a node looks like, compared before and after.
//! - `walk`: a pod's whole life, with the time of each step.

pub mod bench;
pub mod client;
pub mod engine;
pub mod guard;
pub mod host;
pub mod image;
pub mod isolation;
pub mod session;
pub mod walk;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How many times as long as on an ordinary machine things may take here: 1, or what
/// `SLIPWAY_TEST_PATIENCE` says. A guest whose machine is emulated needs it.
///
/// # Panics
/// The variable is no number above 0, so that no suite runs with other deadlines than were meant.
#[must_use]
pub fn patience() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| match std::env::var("SLIPWAY_TEST_PATIENCE") {
        Err(_) => 1,
        Ok(text) => match text.parse() {
            Ok(factor @ 1..) => factor,
            _ => panic!("SLIPWAY_TEST_PATIENCE={text:?} is no number above 0"),
        },
    })
}

/// So many seconds, times [`patience`]: the deadline of what an ordinary machine does in that time.
#[must_use]
pub fn patient(seconds: u64) -> Duration {
    Duration::from_secs(seconds) * patience()
}

/// Waits until `met` answers something; `None` past the deadline.
pub async fn eventually<T>(
    deadline: Duration,
    mut met: impl AsyncFnMut() -> Option<T>,
) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = met().await {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        // Polled: what is waited for are files and processes of others.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
