//! HTTP clients: those shared by all hosts without settings of their own, and
//! those for one host.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use reqwest::{Client, ClientBuilder, Identity};

use super::{guard, tls};
use crate::hosts::{Host, HostsError, Tls, is_loopback};

/// Idle connections are kept this long, so that the next pull finds them.
const IDLE: Duration = Duration::from_secs(60);

/// Makes clients and keeps those that several pulls can use.
pub(crate) struct Clients {
    user_agent: String,
    connect: Duration,
    usual: OnceLock<Client>,
    direct: OnceLock<Client>,
    guarded: OnceLock<Client>,
}

/// The clients of one host.
pub(crate) struct Pair {
    /// For the host itself.
    pub(crate) home: Client,
    /// For where its answers lead; `None` when the host is on the node or its
    /// link itself, so that it may send anywhere.
    pub(crate) away: Option<Client>,
}

impl Clients {
    pub(crate) fn new(user_agent: String, connect: Duration) -> Self {
        Self {
            user_agent,
            connect,
            usual: OnceLock::new(),
            direct: OnceLock::new(),
            guarded: OnceLock::new(),
        }
    }

    /// The clients for one host. Reads certificates, so it blocks.
    pub(crate) fn for_host(&self, host: &Host) -> Result<Pair, HostsError> {
        // Proxies are for what is far away.
        let direct = is_loopback(&host.authority());
        let local = guard::check(&host.api).is_err();
        if host.tls == Tls::default() && host.dial_timeout.is_none() {
            let plain = host.api.scheme() == "http";
            let kept = if direct { &self.direct } else { &self.usual };
            let home = self.kept(kept, plain, || self.builder(direct))?;
            let away = if local { None } else { Some(self.guarded()?) };
            return Ok(Pair { home, away });
        }
        let mut builder = self.builder(direct);
        if !local {
            builder = builder.dns_resolver(guard::Resolver::new(host.api.host_str()));
        }
        if let Some(timeout) = host.dial_timeout {
            builder = builder.connect_timeout(timeout);
        }
        builder = with_tls(builder, &host.tls)?;
        let home = builder.build().map_err(|e| unusable(PathBuf::new(), e))?;
        let away = (!local).then(|| home.clone());
        Ok(Pair { home, away })
    }

    /// A client that connects to nothing on the node or its link.
    pub(crate) fn guarded(&self) -> Result<Client, HostsError> {
        self.kept(&self.guarded, true, || {
            self.builder(false).dns_resolver(guard::Resolver::new(None))
        })
    }

    fn kept(
        &self,
        cell: &OnceLock<Client>,
        plain: bool,
        builder: impl Fn() -> ClientBuilder,
    ) -> Result<Client, HostsError> {
        if let Some(client) = cell.get() {
            return Ok(client.clone());
        }
        match builder().build() {
            Ok(client) => Ok(cell.get_or_init(|| client).clone()),
            // A machine without any authority's certificate can still speak
            // plain HTTP; the client trusts nobody, should it be redirected.
            Err(_) if plain => builder().tls_certs_only([]).build(),
            Err(error) => Err(error),
        }
        .map_err(|e| unusable(PathBuf::new(), e))
    }

    fn builder(&self, direct: bool) -> ClientBuilder {
        let builder = Client::builder()
            .user_agent(&self.user_agent)
            .connect_timeout(self.connect)
            .pool_idle_timeout(IDLE)
            .tcp_keepalive(Duration::from_secs(30))
            .http2_adaptive_window(true)
            // Credentials must not follow a redirect: it is done by hand.
            .redirect(reqwest::redirect::Policy::none());
        if direct { builder.no_proxy() } else { builder }
    }
}

/// What a host is trusted by, and what it is shown.
fn with_tls(builder: ClientBuilder, settings: &Tls) -> Result<ClientBuilder, HostsError> {
    if !settings.ca.is_empty() && !settings.skip_verify {
        return Ok(builder.tls_backend_preconfigured(tls::config(settings)?));
    }
    let builder = builder.tls_danger_accept_invalid_certs(settings.skip_verify);
    match identity(settings)? {
        Some(identity) => Ok(builder.identity(identity)),
        None => Ok(builder),
    }
}

fn identity(settings: &Tls) -> Result<Option<Identity>, HostsError> {
    let Some((path, pem)) = tls::shown(settings)? else {
        return Ok(None);
    };
    match Identity::from_pem(&pem) {
        Ok(identity) => Ok(Some(identity)),
        Err(error) => Err(unusable(path, error)),
    }
}

fn unusable(path: PathBuf, error: reqwest::Error) -> HostsError {
    HostsError::Certificate {
        path,
        source: Box::new(error),
    }
}
