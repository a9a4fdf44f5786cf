//! One host: requests, redirects, tokens.
//!
//! Owns what is shown to whom. Credentials and the headers of `hosts.toml` go
//! to the host itself and never along a redirect; a token is asked for only
//! where its realm is at least as safe as the host.

use std::time::Duration;

use reqwest::header::{
    ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Client, Request, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::challenge::Challenge;
use super::error::FetchError;
use crate::auth::Credentials;
use crate::hosts::{Host, authority, is_loopback};
use crate::manifest;
use crate::reference::{DEFAULT_REGISTRY, Reference};

const MAX_REDIRECTS: usize = 10;
const MAX_TOKEN: u64 = 1 << 20;
const MAX_MESSAGE: u64 = 4096;
const CLIENT_ID: &str = "slipway";

/// A host with its connection and what it has accepted so far.
pub(crate) struct Endpoint {
    host: Host,
    client: Client,
    credentials: Option<Credentials>,
    stall: Duration,
    /// What the host accepts as `Authorization`; held while a token is
    /// fetched, so that parallel layers fetch one.
    accepted: Mutex<Option<HeaderValue>>,
}

/// What to ask a host for.
pub(crate) struct Ask<'a> {
    /// Below the repository.
    pub(crate) path: &'a str,
    /// Whether that is a manifest.
    pub(crate) manifest: bool,
    /// The first byte.
    pub(crate) from: u64,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl Endpoint {
    pub(crate) fn new(
        host: Host,
        client: Client,
        credentials: Option<Credentials>,
        stall: Duration,
    ) -> Self {
        // An access token needs no asking.
        let accepted = match &credentials {
            Some(Credentials::Bearer { token }) => secret(&format!("Bearer {token}")),
            _ => None,
        };
        Self {
            host,
            client,
            credentials,
            stall,
            accepted: Mutex::new(accepted),
        }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn authority(&self) -> String {
        self.host.authority()
    }

    /// Asks, proves who asks if need be, and returns a good answer's head.
    pub(crate) async fn send(
        &self,
        reference: &Reference,
        ask: &Ask<'_>,
    ) -> Result<Response, FetchError> {
        let url = self.url(reference, ask.path);
        let mut shown = self.accepted.lock().await.clone();
        let mut response = self.follow(&url, ask, shown.as_ref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenges = challenges(&response);
            shown = Some(self.authorize(reference, &challenges, shown).await?);
            response = self.follow(&url, ask, shown.as_ref()).await?;
        }
        self.check(response).await
    }

    /// The whole body, up to a bound.
    pub(crate) async fn read(&self, response: Response, limit: u64) -> Result<Vec<u8>, FetchError> {
        read(&self.authority(), response, limit, self.stall).await
    }

    fn url(&self, reference: &Reference, path: &str) -> Url {
        let mut url = self.host.api.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/{}/{path}", reference.repository()));
        // A mirror of several registries has to know which one is meant.
        let registry = reference.registry();
        let own = self.authority() == registry
            || (registry == DEFAULT_REGISTRY && self.authority() == "registry-1.docker.io");
        if !own {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        url
    }

    async fn follow(
        &self,
        url: &Url,
        ask: &Ask<'_>,
        shown: Option<&HeaderValue>,
    ) -> Result<Response, FetchError> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::new(reqwest::Method::GET, at.clone());
            let home = at.origin() == url.origin();
            fill(request.headers_mut(), ask);
            if home {
                self.identify(request.headers_mut(), shown);
            }
            let response = self.execute(&at, request).await?;
            let Some(next) = self.redirected(&at, &response)? else {
                // What a stranger refuses is no matter of our credentials.
                if !home && response.status() == StatusCode::UNAUTHORIZED {
                    let (host, reason) = (authority(&at), "after a redirect".to_owned());
                    return Err(FetchError::Unauthorized { host, reason });
                }
                return Ok(response);
            };
            at = next;
        }
        let reason = format!("more than {MAX_REDIRECTS} in a row");
        Err(FetchError::Redirect {
            host: self.authority(),
            reason,
        })
    }

    fn identify(&self, headers: &mut HeaderMap, shown: Option<&HeaderValue>) {
        for (name, value) in &self.host.headers {
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
                headers.append(name, value);
            }
        }
        if let Some(shown) = shown {
            headers.insert(AUTHORIZATION, shown.clone());
        }
    }

    async fn execute(&self, at: &Url, request: Request) -> Result<Response, FetchError> {
        let host = authority(at);
        match tokio::time::timeout(self.stall, self.client.execute(request)).await {
            Ok(done) => done.map_err(|e| FetchError::from_reqwest(&host, e)),
            Err(_) => Err(FetchError::Stalled {
                host,
                waited: self.stall,
            }),
        }
    }

    fn redirected(&self, at: &Url, response: &Response) -> Result<Option<Url>, FetchError> {
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let fail = |reason: &str| FetchError::Redirect {
            host: self.authority(),
            reason: reason.to_owned(),
        };
        let location = response
            .headers()
            .get(LOCATION)
            .and_then(|v| v.to_str().ok());
        let next = location
            .and_then(|location| at.join(location).ok())
            .ok_or_else(|| fail("no usable Location"))?;
        match (at.scheme(), next.scheme()) {
            (_, "https") | ("http", "http") => Ok(Some(next)),
            ("https", "http") => Err(fail("from https to http")),
            _ => Err(fail("neither http nor https")),
        }
    }

    async fn check(&self, response: Response) -> Result<Response, FetchError> {
        let (host, status) = (self.authority(), response.status());
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::NOT_FOUND => Err(FetchError::NotFound { host }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let message = self.message(response).await;
                let reason = match (&self.credentials, message.is_empty()) {
                    (_, false) => format!("{status}{message}"),
                    (None, true) => format!("{status}, and there are no credentials for it"),
                    (Some(_), true) => format!("{status}, with the given credentials"),
                };
                Err(FetchError::Unauthorized { host, reason })
            }
            _ => {
                let message = self.message(response).await;
                Err(FetchError::Status {
                    host,
                    status,
                    message,
                })
            }
        }
    }

    /// What the registry says about its refusal, short and in one line.
    async fn message(&self, response: Response) -> String {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<Detail>,
        }
        #[derive(Deserialize)]
        struct Detail {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let bytes = self.read(response, MAX_MESSAGE).await.unwrap_or_default();
        match serde_json::from_slice::<Errors>(&bytes)
            .ok()
            .and_then(|e| e.errors.into_iter().next())
        {
            Some(first) => {
                let text = format!(": {} {}", first.code, first.message);
                text.chars().filter(|c| !c.is_control()).take(200).collect()
            }
            None => String::new(),
        }
    }

    /// Finds out what to show. Whoever comes second takes what the first got.
    async fn authorize(
        &self,
        reference: &Reference,
        challenges: &[Challenge],
        refused: Option<HeaderValue>,
    ) -> Result<HeaderValue, FetchError> {
        let mut accepted = self.accepted.lock().await;
        if let Some(other) = &*accepted
            && Some(other) != refused.as_ref()
        {
            return Ok(other.clone());
        }
        let offered = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
        let refuse = |reason: &str| FetchError::Unauthorized {
            host: self.authority(),
            reason: reason.to_owned(),
        };
        let value = match (&self.credentials, offered("bearer"), offered("basic")) {
            (Some(Credentials::Bearer { .. }), ..) => {
                return Err(refuse("the given registry token is not accepted"));
            }
            (_, Some(challenge), _) => {
                format!("Bearer {}", self.token(reference, challenge).await?)
            }
            (Some(Credentials::Basic { username, password }), None, Some(_)) => {
                if refused.is_some() {
                    return Err(refuse("the given user and password are not accepted"));
                }
                basic(username, password)
            }
            (Some(Credentials::Refresh { .. }), None, Some(_)) => {
                return Err(refuse(
                    "it wants a user and a password, and an identity token is given",
                ));
            }
            (None, None, Some(_)) => return Err(refuse("it wants a user and a password")),
            (_, None, None) => return Err(refuse("it offers no way to log in that is known here")),
        };
        let value = secret(&value).ok_or_else(|| refuse("the token cannot be sent in a header"))?;
        *accepted = Some(value.clone());
        Ok(value)
    }

    async fn token(
        &self,
        reference: &Reference,
        challenge: &Challenge,
    ) -> Result<String, FetchError> {
        let nonsense = |reason: &str| FetchError::Nonsense {
            host: self.authority(),
            reason: reason.to_owned(),
        };
        let realm = challenge
            .get("realm")
            .ok_or_else(|| nonsense("a challenge without realm"))?;
        let mut realm = Url::parse(realm).map_err(|_| nonsense("a realm that is no URL"))?;
        let plain = self.host.api.scheme() == "http" || is_loopback(&authority(&realm));
        if !realm.has_host() || !(realm.scheme() == "https" || realm.scheme() == "http" && plain) {
            return Err(FetchError::Unauthorized {
                host: self.authority(),
                reason: "its token service is not reached by https".to_owned(),
            });
        }
        let own_scope = format!("repository:{}:pull", reference.repository());
        let scope = challenge
            .get("scope")
            .filter(|s| !s.is_empty())
            .unwrap_or(&own_scope);
        let service = challenge.get("service");
        let request = if let Some(Credentials::Refresh { token }) = &self.credentials {
            exchange(realm.clone(), (scope, service), token)
        } else {
            {
                let mut query = realm.query_pairs_mut();
                service.map(|s| query.append_pair("service", s));
                for scope in scope.split(' ').filter(|s| !s.is_empty()) {
                    query.append_pair("scope", scope);
                }
                if let Some(Credentials::Basic { username, .. }) = &self.credentials {
                    query.append_pair("account", username);
                }
            }
            let mut request = Request::new(reqwest::Method::GET, realm.clone());
            if let Some(Credentials::Basic { username, password }) = &self.credentials
                && let Some(value) = secret(&basic(username, password))
            {
                request.headers_mut().insert(AUTHORIZATION, value);
            }
            request
        };
        self.token_answer(&realm, request).await
    }

    async fn token_answer(&self, realm: &Url, request: Request) -> Result<String, FetchError> {
        let host = authority(realm);
        let response = self.execute(realm, request).await?;
        let status = response.status();
        if matches!(status.as_u16(), 400 | 401 | 403) {
            let reason = format!("its token service answered {status}");
            return Err(FetchError::Unauthorized { host, reason });
        }
        if status != StatusCode::OK {
            let message = " (token service)".to_owned();
            return Err(FetchError::Status {
                host,
                status,
                message,
            });
        }
        let bytes = read(&host, response, MAX_TOKEN, self.stall).await?;
        let token: Option<Token> = serde_json::from_slice(&bytes).ok();
        token
            .and_then(|t| t.token.filter(|t| !t.is_empty()).or(t.access_token))
            .filter(|t| !t.is_empty())
            .ok_or(FetchError::Nonsense {
                host,
                reason: "no token in the answer".to_owned(),
            })
    }
}

/// A refresh token goes into the body, where no log of addresses finds it.
fn exchange(realm: Url, (scope, service): (&str, Option<&str>), token: &str) -> Request {
    let mut form = realm.clone();
    form.set_query(None);
    form.query_pairs_mut()
        .append_pair("grant_type", "refresh_token")
        .append_pair("service", service.unwrap_or_default())
        .append_pair("scope", scope)
        .append_pair("client_id", CLIENT_ID)
        .append_pair("refresh_token", token);
    let body = form.query().unwrap_or_default().to_owned();
    let mut request = Request::new(reqwest::Method::POST, realm);
    let form = HeaderValue::from_static("application/x-www-form-urlencoded");
    request
        .headers_mut()
        .insert(reqwest::header::CONTENT_TYPE, form);
    *request.body_mut() = Some(body.into());
    request
}

fn fill(headers: &mut HeaderMap, ask: &Ask<'_>) {
    if ask.manifest {
        headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
    }
    if ask.from > 0
        && let Ok(value) = HeaderValue::from_str(&format!("bytes={}-", ask.from))
    {
        headers.insert(RANGE, value);
    }
}

fn challenges(response: &Response) -> Vec<Challenge> {
    let headers = response.headers().get_all(WWW_AUTHENTICATE);
    headers
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(Challenge::parse)
        .collect()
}

fn basic(username: &str, password: &str) -> String {
    use base64::Engine as _;
    let text = format!("{username}:{password}");
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(text)
    )
}

/// A header that no debug output shows.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

async fn read(
    host: &str,
    mut response: Response,
    limit: u64,
    stall: Duration,
) -> Result<Vec<u8>, FetchError> {
    let mut out = Vec::new();
    loop {
        let chunk = tokio::time::timeout(stall, response.chunk())
            .await
            .map_err(|_| FetchError::Stalled {
                host: host.to_owned(),
                waited: stall,
            })?
            .map_err(|e| FetchError::from_reqwest(host, e))?;
        let Some(chunk) = chunk else { return Ok(out) };
        if (out.len() + chunk.len()) as u64 > limit {
            return Err(FetchError::TooLong {
                host: host.to_owned(),
                limit,
            });
        }
        out.extend_from_slice(&chunk);
    }
}
