//! One host: requests, redirects, tokens.
//!
//! Owns what is shown to whom. Credentials and the headers of `hosts.toml` go
//! to the host itself and never along a redirect to another one; a token is
//! asked for only where its realm is at least as safe as the host. Where
//! answers may lead at all is told by [`guard`].

use reqwest::header::{
    ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Client, Request, Response, StatusCode, Url};
use tokio::sync::Mutex;

use super::answer::{self, Patience};
use super::challenge::Challenge;
use super::client::Pair;
use super::error::FetchError;
use super::guard;
use crate::auth::Credentials;
use crate::hosts::{Host, authority, is_loopback};
use crate::manifest;
use crate::reference::{DEFAULT_REGISTRY, Reference};

const MAX_REDIRECTS: usize = 10;
const CLIENT_ID: &str = "slipway";

/// A host with its connection and what it has accepted so far.
pub(crate) struct Endpoint {
    host: Host,
    clients: Pair,
    credentials: Option<Credentials>,
    patience: Patience,
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

impl Endpoint {
    pub(crate) fn new(
        host: Host,
        clients: Pair,
        credentials: Option<Credentials>,
        patience: Patience,
    ) -> Self {
        // An access token needs no asking.
        let accepted = match &credentials {
            Some(Credentials::Bearer { token }) => secret(&format!("Bearer {token}")),
            _ => None,
        };
        Self {
            host,
            clients,
            credentials,
            patience,
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
        let home = response.url().origin() == url.origin();
        if home && response.status() == StatusCode::UNAUTHORIZED {
            let challenges = challenges(&response);
            shown = Some(self.authorize(reference, &challenges, shown).await?);
            response = self.follow(&url, ask, shown.as_ref()).await?;
        }
        self.check(response).await
    }

    /// The whole body, up to a bound.
    pub(crate) async fn read(&self, response: Response, limit: u64) -> Result<Vec<u8>, FetchError> {
        answer::read(&self.authority(), response, limit, self.patience).await
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
            match self.redirected(&at, &response)? {
                Some(next) => at = next,
                None => return Ok(response),
            }
        }
        Err(self.too_many_redirects())
    }

    fn too_many_redirects(&self) -> FetchError {
        FetchError::Redirect {
            host: self.authority(),
            reason: format!("more than {MAX_REDIRECTS} in a row"),
        }
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
        let sent = self.client(at)?.execute(request);
        match tokio::time::timeout(self.patience.first_byte, sent).await {
            Ok(done) => done.map_err(|e| FetchError::from_reqwest(&host, e)),
            Err(_) => Err(FetchError::Stalled {
                host,
                waited: self.patience.first_byte,
            }),
        }
    }

    /// The host itself may be anywhere; where it sends to may not.
    fn client(&self, at: &Url) -> Result<&Client, FetchError> {
        match &self.clients.away {
            Some(away) if at.host_str() != self.host.api.host_str() => {
                guard::check(at).map_err(|source| FetchError::OffLimits {
                    host: self.authority(),
                    source,
                })?;
                Ok(away)
            }
            _ => Ok(&self.clients.home),
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
        let (at, status) = (response.url().clone(), response.status());
        let host = authority(&at);
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::NOT_FOUND => Err(FetchError::NotFound { host }),
            // What a stranger refuses is no matter of our credentials.
            _ if at.origin() != self.host.api.origin() => Err(FetchError::Store {
                host,
                from: self.authority(),
                status,
                message: answer::message(response, self.patience).await,
            }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let message = answer::message(response, self.patience).await;
                let reason = match (&self.credentials, message.is_empty()) {
                    (_, false) => format!("{status}{message}"),
                    (None, true) => format!("{status}, and there are no credentials for it"),
                    (Some(_), true) => format!("{status}, with the given credentials"),
                };
                Err(FetchError::Unauthorized { host, reason })
            }
            _ => Err(FetchError::Status {
                host,
                status,
                message: answer::message(response, self.patience).await,
            }),
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
        self.check_realm(&realm)?;
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

    /// A token is as good as credentials, so it is not fetched over plain HTTP
    /// for a registry that is reached by HTTPS.
    fn check_realm(&self, realm: &Url) -> Result<(), FetchError> {
        let plain = self.host.api.scheme() == "http" || is_loopback(&authority(realm));
        if realm.has_host() && (realm.scheme() == "https" || realm.scheme() == "http" && plain) {
            return Ok(());
        }
        Err(FetchError::Unauthorized {
            host: self.authority(),
            reason: "its token service is not reached by https".to_owned(),
        })
    }

    /// Asks the token service, and where that sends on.
    async fn token_answer(&self, realm: &Url, mut request: Request) -> Result<String, FetchError> {
        let mut at = realm.clone();
        for _ in 0..=MAX_REDIRECTS {
            // Bodies are short texts, so that they can be sent again.
            let again = request.try_clone();
            let response = self.execute(&at, request).await?;
            let Some(next) = self.redirected(&at, &response)? else {
                return answer::token(&authority(&at), response, self.patience).await;
            };
            self.check_realm(&next)?;
            request = again
                .and_then(|again| sent_on(again, &at, &next, response.status()))
                .ok_or_else(|| FetchError::Redirect {
                    host: authority(&at),
                    reason: "a refresh token is for its own token service alone".to_owned(),
                })?;
            at = next;
        }
        Err(self.too_many_redirects())
    }
}

/// A request to a token service, for the place that it is sent on to: nothing
/// secret goes to another one. `None` when nothing would be left of it.
fn sent_on(mut request: Request, from: &Url, to: &Url, status: StatusCode) -> Option<Request> {
    let same = from.origin() == to.origin();
    if request.method() == reqwest::Method::POST {
        // The other redirects ask for a GET, which cannot carry the token.
        let kept = matches!(
            status,
            StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
        );
        if !same || !kept {
            return None;
        }
    }
    if !same {
        request.headers_mut().remove(AUTHORIZATION);
    }
    *request.url_mut() = to.clone();
    Some(request)
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
