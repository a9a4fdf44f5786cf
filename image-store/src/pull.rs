//! Pulls: from a reference to an image in the store.
//!
//! Owns the order of the steps and who shares what: callers with the same
//! reference and credentials share one pull, and pulls from one registry with
//! the same credentials share the layers that are on their way. A layer that
//! several registries have may come from each of them at the same time, as one
//! must not decide when the others' images arrive: the first that is whole is
//! installed, and ends the others' fetches. The registry is asked at every pull, even when all
//! layers are there: whether these credentials may have the image is its to
//! say. Whoever fails or goes away leaves nothing: layers are held by those who
//! need them, and staging is thrown away by the thread that fills it. A crash
//! leaves staging.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt;
use tokio::sync::Semaphore;

use crate::auth::Auth;
use crate::db::ImageRecord;
use crate::depot::{Depot, LayerHold};
use crate::digest::{DiffId, Digest, ImageId};
use crate::error::PullError;
use crate::join::Joins;
use crate::layers::LayerFetch;
use crate::manifest::{Config, Document, Layer, Manifest};
use crate::places::Places;
use crate::platform::{Machine, Platform};
use crate::reference::Reference;
use crate::registry::{Fetched, Registry, Session};
use crate::state::NewImage;
use crate::store::blocking;
use crate::tuning::Tuning;
use crate::windows::Windows;

/// Bytes of configurations that are read to find an entry for this machine in an index
/// that does not say.
const MAX_UNSAID_BYTES: u64 = 16 << 20;
/// Bytes of a document that are read in less time than another thread takes to wake.
const AT_ONCE: usize = 64 << 10;

/// Indexes in indexes: nobody needs more.
const MAX_NESTING: usize = 4;

type Outcome<T> = Result<T, PullError>;

/// Runs pulls.
pub(crate) struct Puller {
    work: Arc<Work>,
    pulls: Joins<(Reference, Option<Auth>), Outcome<ImageId>>,
}

/// What the tasks of all pulls share.
pub(crate) struct Work {
    pub(crate) depot: Arc<Depot>,
    pub(crate) tuning: Tuning,
    registry: Registry,
    layers: Joins<Origin, Outcome<Arc<LayerHold>>>,
    /// Layers on their way in all pulls together.
    pub(crate) places: Arc<Places>,
    /// Memory for their decoders.
    pub(crate) windows: Windows,
    machine: Machine,
    /// Large documents are read one at a time.
    reading: Semaphore,
}

/// What makes two fetches of a layer one: nobody waits for what another
/// registry sends, or sends to others.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Origin {
    registry: String,
    auth: Option<Auth>,
    layer: Layer,
}

/// An image whose parts are known.
struct Plan {
    config: Config,
    layers: Vec<Layer>,
    /// What the reference named: a manifest or an index.
    top: Digest,
}

impl Puller {
    pub(crate) fn new(depot: Arc<Depot>, registry: Registry, tuning: Tuning) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let places = Arc::new(Places::for_cores(cores));
        let work = Work {
            depot,
            tuning,
            registry,
            layers: Joins::new(),
            windows: Windows::new(Arc::clone(&places)),
            places,
            machine: Machine::current(),
            reading: Semaphore::new(1),
        };
        Self {
            work: Arc::new(work),
            pulls: Joins::new(),
        }
    }

    /// Pulls, or joins the pull of the same reference with the same
    /// credentials. Dropping the future gives up this caller's part only.
    pub(crate) async fn pull(&self, reference: &str, auth: Option<Auth>) -> Outcome<ImageId> {
        let reference: Reference = reference
            .parse()
            .map_err(|source| PullError::BadReference {
                reference: reference.to_owned(),
                source,
            })?;
        let begin = || {
            let (work, reference, auth) = (Arc::clone(&self.work), reference.clone(), auth.clone());
            async move { work.pull(reference, auth).await }
        };
        let joined = self
            .pulls
            .join((reference.clone(), auth.clone()), begin)
            .await;
        joined.value.unwrap_or(Err(PullError::Cancelled))
    }
}

impl Work {
    async fn pull(self: Arc<Self>, reference: Reference, auth: Option<Auth>) -> Outcome<ImageId> {
        let (work, name) = (Arc::clone(&self), reference.clone());
        // Reads files and certificates.
        let session = blocking(move || work.registry.session(&name, auth.as_ref())).await?;
        let session = Arc::new(session);
        let plan = self.plan(&session, &reference).await?;
        let holds = self.fetch(&session, &plan.layers).await?;
        let id = plan.config.id;
        let mut names = vec![reference.at(plan.top)];
        names.extend(reference.tagged());
        let manifest = Some(plan.top);
        let names = names.into_iter().map(|name| (name, manifest)).collect();
        let new = NewImage {
            id,
            record: ImageRecord {
                layers: plan.config.diff_ids,
                summary: plan.config.summary,
                ..ImageRecord::default()
            },
            config: plan.config.texts,
            names,
        };
        let depot = Arc::clone(&self.depot);
        // The layers stay held until the image holds them, even when the
        // callers go away in between.
        blocking(move || {
            let committed = depot.commit(new);
            drop(holds);
            committed
        })
        .await?;
        Ok(id)
    }

    /// Follows the reference down to layers, fetching documents only.
    async fn plan(&self, session: &Session, reference: &Reference) -> Outcome<Plan> {
        let mut fetched = session.resolve().await?;
        let top = fetched.digest;
        for _ in 0..=MAX_NESTING {
            match self.document(&fetched).await? {
                Document::Manifest(manifest) => {
                    let config = self.config(session, &manifest).await?;
                    self.check_platform(reference, &config.platform)?;
                    let layers = manifest.layers(&config)?;
                    layers
                        .iter()
                        .try_for_each(|layer| session.check_foreign(layer))?;
                    return Ok(Plan {
                        config,
                        layers,
                        top,
                    });
                }
                Document::Index(index) => {
                    let candidates = index.candidates(&self.machine);
                    let unsaid = candidates
                        .first()
                        .is_some_and(|d| d.platform.as_ref().is_none_or(Platform::is_unsaid));
                    let next = match candidates.as_slice() {
                        [] => return Err(self.no_platform(reference, index.offered())),
                        many if unsaid && many.len() > 1 => {
                            let entries = many.iter().map(|d| d.digest).collect();
                            self.first_that_runs(session, entries).await?
                        }
                        [first, ..] => Some(session.manifest(first.digest).await?),
                    };
                    fetched = next.ok_or_else(|| self.no_platform(reference, index.offered()))?;
                }
            }
        }
        Err(self.no_platform(reference, "indexes in indexes only".to_owned()))
    }

    /// Entries that do not say for which machine they are: their
    /// configurations do.
    async fn first_that_runs(
        &self,
        session: &Session,
        entries: Vec<Digest>,
    ) -> Outcome<Option<Fetched>> {
        let mut rest = MAX_UNSAID_BYTES;
        for digest in entries {
            let fetched = session.manifest(digest).await?;
            let Document::Manifest(manifest) = self.document(&fetched).await? else {
                continue;
            };
            if manifest.check().is_err() {
                continue;
            }
            let Some(left) = rest.checked_sub(manifest.config.size) else {
                break;
            };
            rest = left;
            let config = self.config(session, &manifest).await?;
            if self.machine.runs(&config.platform) {
                return Ok(Some(fetched));
            }
        }
        Ok(None)
    }

    /// Reads a document that was fetched.
    async fn document(&self, fetched: &Fetched) -> Outcome<Document> {
        let (bytes, media_type) = (fetched.bytes.clone(), fetched.media_type.clone());
        let read = move || Document::parse(&bytes, media_type.as_deref());
        self.parse(fetched.bytes.len(), read).await
    }

    /// Reads a text of so many bytes. A large one takes a tenth of a second, in which the
    /// thread that serves calls would serve none; and one at a time, so that
    /// the others have a processor.
    async fn parse<T: Send + 'static>(
        &self,
        bytes: usize,
        read: impl FnOnce() -> Outcome<T> + Send + 'static,
    ) -> Outcome<T> {
        if bytes <= AT_ONCE {
            return read();
        }
        // Never closed.
        let _turn = self.reading.acquire().await;
        blocking(read).await
    }

    async fn config(&self, session: &Session, manifest: &Manifest) -> Outcome<Config> {
        manifest.check()?;
        let wanted = &manifest.config;
        let fetched = session.config(wanted.digest).await?;
        if fetched.bytes.len() as u64 != wanted.size {
            return Err(PullError::SizeMismatch {
                what: "configuration".to_owned(),
                digest: wanted.digest,
                declared: wanted.size,
                got: fetched.bytes.len() as u64,
            });
        }
        let id = ImageId(wanted.digest);
        let bytes = fetched.bytes;
        self.parse(bytes.len(), move || Config::parse(id, &bytes))
            .await
    }

    /// Refuses what does not run here, and warns of what is believed to.
    fn check_platform(&self, reference: &Reference, platform: &Platform) -> Outcome<()> {
        if !self.machine.runs(platform) {
            return Err(self.no_platform(reference, platform.to_string()));
        }
        if !self.machine.is_own(platform) {
            let machine = self.machine.to_string();
            tracing::warn!(image = %reference, %platform, machine, "an image for another or an unsaid machine");
        }
        Ok(())
    }

    fn no_platform(&self, reference: &Reference, offered: String) -> PullError {
        let (reference, wanted) = (reference.to_string(), self.machine.to_string());
        PullError::NoMatchingPlatform {
            reference,
            wanted,
            offered,
        }
    }

    /// Brings all layers, some at a time, the biggest first: the pull ends
    /// with the last one, so that one should not begin last.
    async fn fetch(
        self: &Arc<Self>,
        session: &Arc<Session>,
        layers: &[Layer],
    ) -> Outcome<Vec<Arc<LayerHold>>> {
        let mut seen = HashSet::new();
        let mut wanted: Vec<Layer> = layers
            .iter()
            .filter(|layer| seen.insert(layer.diff_id))
            .cloned()
            .collect();
        wanted.sort_by_key(|layer| std::cmp::Reverse(layer.size));
        let fetches = wanted.into_iter().map(|layer| {
            let (work, session) = (Arc::clone(self), Arc::clone(session));
            async move { work.layer(session, layer).await }
        });
        let mut running =
            futures::stream::iter(fetches).buffer_unordered(self.tuning.parallel.max(1));
        let mut holds = Vec::new();
        while let Some(hold) = running.next().await {
            holds.push(hold?);
        }
        Ok(holds)
    }

    /// One layer: there already, on its way for another pull, or to be fetched.
    async fn layer(
        self: Arc<Self>,
        session: Arc<Session>,
        layer: Layer,
    ) -> Outcome<Arc<LayerHold>> {
        let origin = Origin {
            registry: session.reference().registry().to_owned(),
            auth: session.auth().cloned(),
            layer: layer.clone(),
        };
        loop {
            let begin = || {
                let fetch = LayerFetch {
                    work: Arc::clone(&self),
                    session: Arc::clone(&session),
                    layer: layer.clone(),
                };
                fetch.run()
            };
            let fetched = self.layers.join(origin.clone(), begin);
            let joined = match self.first(&layer.diff_id, fetched).await {
                First::There(hold) => return Ok(hold),
                First::Fetched(joined) => joined,
            };
            match joined.value {
                Some(Ok(hold)) => return Ok(hold),
                // The other pull may have failed for reasons of its own. Try
                // again.
                _ if joined.shared => {}
                Some(Err(error)) => return Err(error),
                None => return Err(PullError::Cancelled),
            }
        }
    }

    /// The layer, if it is there or somebody else installs it; or else what came
    /// of fetching it, which is given up when it is not needed any more.
    async fn first<T>(&self, id: &DiffId, fetched: impl Future<Output = T>) -> First<T> {
        let mut fetched = std::pin::pin!(fetched);
        loop {
            // From before the look, so that none is missed.
            let arrival = self.depot.arrival();
            if let Some(hold) = self.depot.hold(id) {
                return First::There(Arc::new(hold));
            }
            tokio::select! {
                done = &mut fetched => return First::Fetched(done),
                () = arrival => {}
            }
        }
    }
}

/// Who was first to bring a layer.
enum First<T> {
    There(Arc<LayerHold>),
    Fetched(T),
}
