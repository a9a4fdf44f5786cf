//! Layers that their manifest says are elsewhere ("foreign").
//!
//! Owns which hosts they may come from: those that the configuration names, and
//! no other, since an image must not choose what its node asks for. No
//! credentials go there, plain HTTP is not spoken, and no redirect leads to the
//! node or its link (see [`guard`]).

use std::time::Duration;

use reqwest::header::{LOCATION, RANGE};
use reqwest::{Client, Response, StatusCode, Url};

use super::error::FetchError;
use super::guard;
use crate::hosts::authority;

const MAX_REDIRECTS: usize = 10;

/// The way to hosts that are no registry.
pub(crate) struct Foreign {
    client: Client,
    /// Hosts, with their port unless it is HTTPS's own.
    hosts: Vec<String>,
    patience: Duration,
}

impl Foreign {
    /// `client` connects to nothing that is off limits and follows no redirect.
    pub(crate) fn new(client: Client, hosts: Vec<String>, patience: Duration) -> Self {
        Self {
            client,
            hosts,
            patience,
        }
    }

    /// The addresses that may be asked.
    pub(crate) fn allowed(&self, urls: &[String]) -> Vec<Url> {
        urls.iter()
            .filter_map(|url| Url::parse(url).ok())
            .filter(|url| self.allows(url))
            .collect()
    }

    fn allows(&self, url: &Url) -> bool {
        let host = authority(url);
        url.scheme() == "https"
            && self.hosts.iter().any(|h| h.eq_ignore_ascii_case(&host))
            && guard::check(url).is_ok()
    }

    /// Asks for the bytes from `from` on.
    pub(crate) async fn get(&self, url: &Url, from: u64) -> Result<Response, FetchError> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let host = authority(&at);
            guard::check(&at).map_err(|source| FetchError::OffLimits {
                host: authority(url),
                source,
            })?;
            let mut request = self.client.get(at.clone());
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = match tokio::time::timeout(self.patience, request.send()).await {
                Ok(sent) => sent.map_err(|e| FetchError::from_reqwest(&host, e))?,
                Err(_) => {
                    let waited = self.patience;
                    return Err(FetchError::Stalled { host, waited });
                }
            };
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::NOT_FOUND => return Err(FetchError::NotFound { host }),
                status if status.is_redirection() => {
                    at = next(&at, &response).ok_or_else(|| FetchError::Redirect {
                        host,
                        reason: "no Location by https".to_owned(),
                    })?;
                }
                status => {
                    let message = String::new();
                    return Err(FetchError::Status {
                        host,
                        status,
                        message,
                    });
                }
            }
        }
        Err(FetchError::Redirect {
            host: authority(url),
            reason: format!("more than {MAX_REDIRECTS} in a row"),
        })
    }
}

fn next(at: &Url, response: &Response) -> Option<Url> {
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let next = at.join(location).ok()?;
    (next.scheme() == "https").then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_of_the_list_may_be_asked_and_never_the_node() {
        let listed = [
            "mcr.example",
            "other.example:8443",
            "localhost:5000",
            "127.0.0.1",
        ];
        let hosts = listed.iter().map(ToString::to_string).collect();
        let foreign = Foreign::new(Client::new(), hosts, Duration::from_secs(1));
        let allowed = |url: &str| !foreign.allowed(&[url.to_owned()]).is_empty();
        assert!(allowed("https://mcr.example/v2/x"));
        assert!(allowed("https://MCR.example:443/v2/x"));
        assert!(allowed("https://other.example:8443/x"));
        for url in [
            "http://mcr.example/v2/x",
            "https://mcr.example:444/",
            "https://mcr.example.evil.example/",
            "https://mcr.example@evil.example/",
            "https://localhost:5000/x",
            "https://127.0.0.1/x",
            "file:///etc/passwd",
            "nonsense",
        ] {
            assert!(!allowed(url), "{url}");
        }
    }
}
