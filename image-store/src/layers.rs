//! One layer's way from a registry to its directory.
//!
//! Owns the bridge between the two halves of the work: an asynchronous task
//! that receives, and a blocking thread that checks and unpacks. The thread
//! owns the staging directory, so that nobody else removes it under its hands;
//! when the task is aborted, the bridge breaks and the thread clears up, and
//! with it goes the layer's place. A crash leaves staging.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::depot::LayerHold;
use crate::error::PullError;
use crate::layer::{LayerError, Receiving, Wanted, receive};
use crate::manifest::Layer;
use crate::places::{Place, Transfer};
use crate::pull::Work;
use crate::registry::{BlobStream, FetchError, Session};

/// Pieces on the bridge; each is what one read of a connection gave.
const BRIDGE: usize = 32;

/// Fetches and unpacks one layer.
pub(crate) struct LayerFetch {
    pub(crate) work: Arc<Work>,
    pub(crate) session: Arc<Session>,
    pub(crate) layer: Layer,
}

/// What goes over the bridge.
enum Piece {
    Bytes(Bytes),
    End,
}

/// Why one attempt failed.
enum Failure {
    Fetch(FetchError),
    Layer(LayerError),
    Store(PullError),
}

impl LayerFetch {
    /// Fetches as soon as there is a place, and anew when the place is taken
    /// away.
    pub(crate) async fn run(self) -> Result<Arc<LayerHold>, PullError> {
        let mut tries = 0;
        loop {
            let registry = self.session.reference().registry();
            let Some(place) = self.work.places.take(registry, tries).await else {
                return Err(PullError::Cancelled);
            };
            let place = Arc::new(place);
            tokio::select! {
                fetched = self.fetch(&place) => return fetched,
                () = place.told_to_leave() => tries += 1,
            }
            tracing::debug!(layer = %self.layer.blob, "a slow layer leaves its place to others and begins anew");
        }
    }

    /// Tries one host after the other until the layer is right.
    async fn fetch(&self, place: &Arc<Place>) -> Result<Arc<LayerHold>, PullError> {
        let mut first = 0;
        loop {
            let wanted = (self.layer.blob, self.layer.size);
            let mut blob =
                BlobStream::new(Arc::clone(&self.session), wanted, &self.layer.urls, first);
            let failure = match self.attempt(&mut blob, place).await {
                Ok(hold) => return Ok(Arc::new(hold)),
                Err(failure) => failure,
            };
            // Wrong bytes are a place's fault: another may have the right ones.
            let wrong = matches!(
                failure,
                Failure::Layer(LayerError::Digest { .. } | LayerError::Size { .. })
            );
            if wrong && let Some(next) = blob.after_wrong_bytes() {
                tracing::warn!(layer = %self.layer.blob, "wrong bytes, another host is asked");
                first = next;
                continue;
            }
            return Err(self.name(failure));
        }
    }

    async fn attempt(
        &self,
        blob: &mut BlobStream,
        place: &Arc<Place>,
    ) -> Result<LayerHold, Failure> {
        let (sender, receiver) = mpsc::channel(BRIDGE);
        let stop = StopOnDrop::default();
        let unpacking = spawn_blocking({
            let (work, layer) = (Arc::clone(&self.work), self.layer.clone());
            let (stop, place) = (Arc::clone(&stop.0), Arc::clone(place));
            let bridge = Bridge {
                receiver,
                piece: Bytes::new(),
                ended: false,
            };
            // The place is held until the thread is done, also when nobody waits
            // for that.
            move || unpack(&work, &layer, bridge, (&stop, &place))
        });
        let fed = feed(blob, sender, place.transfer()).await;
        let unpacked = match unpacking.await {
            Ok(unpacked) => unpacked,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Failure::Store(PullError::Cancelled)),
            },
        };
        match (unpacked, fed) {
            // The thread saw the bridge break; why, this side knows.
            (Err(Failure::Layer(LayerError::Source(_))), Err(error)) => Err(Failure::Fetch(error)),
            (unpacked, _) => unpacked,
        }
    }

    fn name(&self, failure: Failure) -> PullError {
        match failure {
            Failure::Fetch(error) => {
                let what = format!("layer {}", self.layer.blob);
                error.into_pull(self.session.reference(), &what)
            }
            Failure::Layer(error) => {
                let dir = self.work.depot.layout.layer(&self.layer.diff_id);
                PullError::layer(self.layer.diff_id, &dir, error)
            }
            Failure::Store(error) => error,
        }
    }
}

/// Sends everything over the bridge; ends early when the other side is gone.
async fn feed(
    blob: &mut BlobStream,
    bridge: mpsc::Sender<Piece>,
    transfer: &Transfer,
) -> Result<(), FetchError> {
    while let Some(bytes) = blob.next().await? {
        transfer.arrived(bytes.len() as u64);
        transfer.busy(true);
        if bridge.send(Piece::Bytes(bytes)).await.is_err() {
            return Ok(());
        }
        transfer.busy(false);
    }
    transfer.busy(true);
    drop(bridge.send(Piece::End).await);
    Ok(())
}

/// Tells the blocking half that the other one is gone.
#[derive(Default)]
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The blocking half. Whatever goes wrong, staging is thrown away here.
fn unpack(
    work: &Work,
    layer: &Layer,
    bridge: Bridge,
    (stop, place): (&AtomicBool, &Place),
) -> Result<LayerHold, Failure> {
    let depot = &work.depot;
    let store = |e| {
        Failure::Store(PullError::io(
            "make staging below",
            depot.layout.images(),
            e,
        ))
    };
    let (staging, dir) = depot.layout.stage().map_err(store)?;
    let wanted = Wanted {
        diff_id: layer.diff_id,
        blob: Some(layer.blob),
        size: Some(layer.size),
    };
    let how = Receiving {
        limits: &work.tuning.limits,
        stop,
        budget: Some((&work.windows, place.transfer())),
    };
    let unpacked = receive(bridge, &wanted, dir, &how).map_err(Failure::Layer)?;
    depot
        .install(staging, layer.diff_id, &unpacked)
        .map_err(Failure::Store)
}

/// The reading end of the bridge.
struct Bridge {
    receiver: mpsc::Receiver<Piece>,
    piece: Bytes,
    ended: bool,
}

impl Read for Bridge {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.piece = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::from(io::ErrorKind::BrokenPipe)),
            }
        }
        let n = self.piece.len().min(buf.len());
        buf[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}
