//! A layer's bytes, whatever happens to connections on the way.
//!
//! Owns resuming (by Range at the same host, then at the next) and the least
//! speed. Delivers bytes in order, each once; whether they are the right ones
//! is seen at the end, by whoever counts and hashes them.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode, Url};

use super::Session;
use super::endpoint::Ask;
use super::error::FetchError;
use super::pace::Pace;
use crate::digest::LayerDigest;
use crate::hosts::authority;

/// Bytes that make an attempt count as progress.
const PROGRESS: u64 = 256 * 1024;

/// A blob on its way.
pub(crate) struct BlobStream {
    session: Arc<Session>,
    digest: LayerDigest,
    size: u64,
    /// Addresses outside of the registry, tried first.
    urls: Vec<Url>,
    /// The place in use: first the addresses, then the hosts.
    place: usize,
    offset: u64,
    current: Option<Current>,
    /// The place that gave the first byte.
    origin: Option<usize>,
    /// Failed attempts at this place since the last progress.
    failures: u32,
}

struct Current {
    response: Response,
    host: String,
    /// Bytes that were delivered before and come again.
    skip: u64,
    pace: Pace,
    began: u64,
}

impl BlobStream {
    /// Opens nothing yet. `first` skips places that gave wrong bytes before.
    pub(crate) fn new(
        session: Arc<Session>,
        (digest, size): (LayerDigest, u64),
        urls: &[String],
        first: usize,
    ) -> Self {
        let urls = session.foreign.allowed(urls);
        Self {
            session,
            digest,
            size,
            urls,
            place: first,
            offset: 0,
            current: None,
            origin: None,
            failures: 0,
        }
    }

    /// Where to begin anew after wrong bytes; `None` when all had their turn.
    /// Where several places gave a part, nobody knows whose was wrong, so the
    /// last one gets a chance to give all.
    pub(crate) fn after_wrong_bytes(&self) -> Option<usize> {
        if self.origin.is_some_and(|origin| origin != self.place) {
            return Some(self.place);
        }
        self.has_more_places().then_some(self.place + 1)
    }

    fn has_more_places(&self) -> bool {
        self.place + 1 < self.urls.len() + self.session.endpoints.len()
    }

    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            if self.offset >= self.size && self.current.is_none() && self.size > 0 {
                return Ok(None);
            }
            let step = match self.current.take() {
                Some(current) => self.advance(current).await,
                None => self.open().await,
            };
            match step {
                Ok(Step::Bytes(bytes)) => return Ok(Some(bytes)),
                Ok(Step::Again) => {}
                Ok(Step::End) => return Ok(None),
                Err(error) => self.failed(error).await?,
            }
        }
    }

    /// Waits for one more piece of a connection that is open.
    async fn advance(&mut self, mut current: Current) -> Result<Step, FetchError> {
        let stall = self.session.tuning.stall;
        let began = Instant::now();
        let chunk = match tokio::time::timeout(stall, current.response.chunk()).await {
            Ok(chunk) => chunk.map_err(|e| FetchError::from_reqwest(&current.host, e))?,
            Err(_) => {
                return Err(FetchError::Stalled {
                    host: current.host,
                    waited: stall,
                });
            }
        };
        let Some(mut bytes) = chunk else {
            if self.offset < self.size {
                let missing = self.size - self.offset;
                return Err(FetchError::Short {
                    host: current.host,
                    missing,
                });
            }
            return Ok(Step::End);
        };
        if !current.pace.note(began.elapsed(), bytes.len() as u64) {
            return Err(FetchError::Stalled {
                host: current.host,
                waited: stall,
            });
        }
        let known = current.skip.min(bytes.len() as u64);
        current.skip -= known;
        drop(bytes.split_to(usize::try_from(known).unwrap_or(bytes.len())));
        self.offset += bytes.len() as u64;
        if !bytes.is_empty() {
            self.origin.get_or_insert(self.place);
        }
        if self.offset - current.began >= PROGRESS {
            current.began = self.offset;
            self.failures = 0;
        }
        // One piece too many is passed on: the reader names the lie.
        let over = self.offset > self.size;
        self.current = (!over).then_some(current);
        Ok(if bytes.is_empty() {
            Step::Again
        } else {
            Step::Bytes(bytes)
        })
    }

    async fn open(&mut self) -> Result<Step, FetchError> {
        let session = Arc::clone(&self.session);
        let response = match self.urls.get(self.place) {
            Some(url) => session.foreign.get(url, self.offset).await?,
            None => {
                let Some(endpoint) = session.endpoints.get(self.place - self.urls.len()) else {
                    let registry = session.reference.registry().to_owned();
                    return Err(FetchError::NoHost { registry });
                };
                if !endpoint.host().pull {
                    return Err(FetchError::NotFound {
                        host: endpoint.authority(),
                    });
                }
                let path = format!("blobs/{}", self.digest);
                let ask = Ask {
                    path: &path,
                    manifest: false,
                    from: self.offset,
                };
                endpoint.send(&session.reference, &ask).await?
            }
        };
        let host = authority(response.url());
        let skip = self.overlap(&response, &host)?;
        let tuning = &session.tuning;
        let pace = Pace::new(tuning.stall, tuning.min_speed);
        self.current = Some(Current {
            response,
            host,
            skip,
            pace,
            began: self.offset,
        });
        Ok(Step::Again)
    }

    /// How much of an answer was delivered before: a host without Range sends
    /// everything again.
    fn overlap(&self, response: &Response, host: &str) -> Result<u64, FetchError> {
        if response.status() == StatusCode::OK {
            return Ok(self.offset);
        }
        let start = response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix("bytes "))
            .and_then(|v| v.split('-').next())
            .and_then(|v| v.parse::<u64>().ok());
        match start {
            Some(start) if start <= self.offset => Ok(self.offset - start),
            _ => Err(FetchError::Nonsense {
                host: host.to_owned(),
                reason: "another range than asked for".to_owned(),
            }),
        }
    }

    /// Decides whether to try again here, to go on at the next place, or to
    /// give up.
    async fn failed(&mut self, error: FetchError) -> Result<(), FetchError> {
        let host = self.place;
        tracing::debug!(error = %error, layer = %self.digest, offset = self.offset, host, "a layer's transfer failed");
        self.failures += 1;
        // A host that answered before is believed to come back.
        let passing =
            error.is_transient() || self.offset > 0 && matches!(error, FetchError::Connect { .. });
        if passing && self.failures < self.session.tuning.attempts {
            let backoff = self.session.tuning.backoff * 2u32.saturating_pow(self.failures - 1);
            tokio::time::sleep(backoff).await;
            return Ok(());
        }
        if self.has_more_places() {
            self.place += 1;
            self.failures = 0;
            return Ok(());
        }
        Err(error)
    }
}

enum Step {
    Bytes(Bytes),
    Again,
    End,
}
