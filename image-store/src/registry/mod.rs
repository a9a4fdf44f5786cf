//! The client of registries.
//!
//! Owns connections, tokens and the order in which hosts are asked; knows
//! nothing of layers or of the disk (but for `hosts.toml` and certificates).
//! Documents come out with their digest verified; blobs are streams of
//! unverified bytes, since their digest is known only at their end.

mod answer;
mod blob;
mod challenge;
mod client;
mod endpoint;
mod error;
mod foreign;
mod guard;
mod pace;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;

use answer::Patience;
pub(crate) use blob::BlobStream;
use bytes::Bytes;
pub(crate) use client::Clients;
use endpoint::{Ask, Endpoint};
pub(crate) use error::FetchError;
use foreign::Foreign;

use crate::auth::Auth;
use crate::digest::Digest;
use crate::error::PullError;
use crate::hosts::hosts_for;
use crate::manifest::{Layer, MAX_CONFIG, MAX_MANIFEST};
use crate::reference::Reference;
use crate::tuning::Tuning;

/// What stays the same for all pulls.
pub(crate) struct Registry {
    hosts_dir: PathBuf,
    clients: Clients,
    tuning: Tuning,
}

/// One pull's view of the hosts that may have an image.
pub(crate) struct Session {
    reference: Reference,
    /// Whoever pulls, as they say themselves.
    auth: Option<Auth>,
    endpoints: Vec<Endpoint>,
    /// For layers that live elsewhere.
    foreign: Foreign,
    tuning: Tuning,
}

/// A document as it came, its digest verified where one was asked for.
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    pub(crate) media_type: Option<String>,
    /// The host that gave it may also be asked for content.
    content: bool,
}

/// A small document to fetch.
struct Wanted {
    what: &'static str,
    path: String,
    digest: Option<Digest>,
    limit: u64,
}

impl Registry {
    /// Connects to nobody yet.
    pub(crate) fn new(hosts_dir: PathBuf, user_agent: String, tuning: Tuning) -> Self {
        Self {
            hosts_dir,
            clients: Clients::new(user_agent, tuning.connect),
            tuning,
        }
    }

    /// Reads the hosts of a reference and prepares connections. Blocks.
    pub(crate) fn session(
        &self,
        reference: &Reference,
        auth: Option<&Auth>,
    ) -> Result<Session, PullError> {
        let hosts = |source| PullError::Hosts {
            source: Arc::new(source),
        };
        let patience = Patience {
            first_byte: self.tuning.first_byte,
            stall: self.tuning.stall,
        };
        let registry = reference.registry();
        let mut endpoints = Vec::new();
        for host in hosts_for(&self.hosts_dir, registry).map_err(hosts)? {
            let clients = self.clients.for_host(&host).map_err(hosts)?;
            let credentials =
                auth.and_then(|a| a.for_host(registry, &host.authority(), host.origin));
            endpoints.push(Endpoint::new(host, clients, credentials, patience));
        }
        let foreign = Foreign::new(
            self.clients.guarded().map_err(hosts)?,
            self.tuning.foreign_layer_hosts.clone(),
            patience.first_byte,
        );
        let (reference, tuning) = (reference.clone(), self.tuning.clone());
        Ok(Session {
            reference,
            auth: auth.cloned(),
            endpoints,
            foreign,
            tuning,
        })
    }
}

impl Session {
    /// What is pulled.
    pub(crate) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// For whom it is pulled.
    pub(crate) fn auth(&self) -> Option<&Auth> {
        self.auth.as_ref()
    }

    /// Refuses a layer that is to come from a host that is not allowed.
    pub(crate) fn check_foreign(&self, layer: &Layer) -> Result<(), PullError> {
        if layer.urls.is_empty() || !self.foreign.allowed(&layer.urls).is_empty() {
            return Ok(());
        }
        Err(PullError::ForeignLayer {
            layer: layer.blob.0,
            url: crate::text::shown(&layer.urls[0]),
        })
    }

    /// The manifest or index that the reference names now.
    pub(crate) async fn resolve(&self) -> Result<Fetched, PullError> {
        if let Some(digest) = self.reference.digest() {
            return self.manifest(digest).await;
        }
        let tag = self.reference.tag().unwrap_or_default();
        let path = format!("manifests/{tag}");
        let wanted = Wanted {
            what: "manifest",
            path,
            digest: None,
            limit: MAX_MANIFEST,
        };
        let fetched = self.document(&wanted).await?;
        if fetched.content {
            return Ok(fetched);
        }
        self.manifest(fetched.digest).await
    }

    /// A manifest or index by its digest.
    pub(crate) async fn manifest(&self, digest: Digest) -> Result<Fetched, PullError> {
        let path = format!("manifests/{digest}");
        let wanted = Wanted {
            what: "manifest",
            path,
            digest: Some(digest),
            limit: MAX_MANIFEST,
        };
        self.document(&wanted).await
    }

    /// A configuration by its digest.
    pub(crate) async fn config(&self, digest: Digest) -> Result<Fetched, PullError> {
        let path = format!("blobs/{digest}");
        let wanted = Wanted {
            what: "configuration",
            path,
            digest: Some(digest),
            limit: MAX_CONFIG,
        };
        self.document(&wanted).await
    }

    /// Asks the hosts in order, and those that failed for the moment again
    /// after a pause. The answer of the last one, the registry itself, counts.
    async fn document(&self, wanted: &Wanted) -> Result<Fetched, PullError> {
        let mut failures: Vec<Option<FetchError>> = Vec::new();
        failures.resize_with(self.endpoints.len(), || None);
        for attempt in 0..self.tuning.attempts.max(1) {
            if attempt > 0 {
                tokio::time::sleep(self.tuning.backoff * 2u32.saturating_pow(attempt - 1)).await;
            }
            for (endpoint, failure) in self.endpoints.iter().zip(&mut failures) {
                let able = if wanted.digest.is_some() {
                    endpoint.host().pull
                } else {
                    endpoint.host().resolve
                };
                if !able || failure.as_ref().is_some_and(|f| !f.is_transient()) {
                    continue;
                }
                match self.ask(endpoint, wanted).await {
                    Ok(fetched) => return Ok(fetched),
                    Err(error) => {
                        tracing::debug!(error = %error, host = %endpoint.authority(), "a host failed");
                        *failure = Some(error);
                    }
                }
            }
            if !failures.iter().flatten().any(FetchError::is_transient) {
                break;
            }
        }
        let last = failures
            .into_iter()
            .flatten()
            .last()
            .unwrap_or_else(|| FetchError::NoHost {
                registry: self.reference.registry().to_owned(),
            });
        Err(last.into_pull(&self.reference, wanted.what))
    }

    async fn ask(&self, endpoint: &Endpoint, wanted: &Wanted) -> Result<Fetched, FetchError> {
        let ask = Ask {
            path: &wanted.path,
            manifest: wanted.what == "manifest",
            from: 0,
        };
        let response = endpoint.send(&self.reference, &ask).await?;
        let media_type = response
            .headers()
            .get(reqwest::header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned);
        let bytes = endpoint.read(response, wanted.limit).await?;
        let digest = Digest::of(&bytes);
        match wanted.digest {
            Some(want) if want != digest => Err(FetchError::Mismatch {
                host: endpoint.authority(),
                want,
                got: digest,
            }),
            _ => Ok(Fetched {
                bytes: bytes.into(),
                digest,
                media_type,
                content: endpoint.host().pull,
            }),
        }
    }
}
