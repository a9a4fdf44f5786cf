//! HTTP clients: one shared by all hosts without settings of their own.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Identity};

use crate::hosts::{Host, HostsError, Tls, is_loopback};

/// Idle connections are kept this long, so that the next pull finds them.
const IDLE: Duration = Duration::from_secs(60);

/// Makes clients and keeps those that several pulls can use.
pub(crate) struct Clients {
    user_agent: String,
    connect: Duration,
    usual: OnceLock<Client>,
    direct: OnceLock<Client>,
}

impl Clients {
    pub(crate) fn new(user_agent: String, connect: Duration) -> Self {
        Self {
            user_agent,
            connect,
            usual: OnceLock::new(),
            direct: OnceLock::new(),
        }
    }

    /// A client for one host. Reads certificates, so it blocks.
    pub(crate) fn for_host(&self, host: &Host) -> Result<Client, HostsError> {
        // Proxies are for what is far away.
        let direct = is_loopback(&host.authority());
        if host.tls == Tls::default() && host.dial_timeout.is_none() {
            let kept = if direct { &self.direct } else { &self.usual };
            return self.kept(kept, direct, host.api.scheme() == "http");
        }
        let mut builder = self.builder(direct);
        if let Some(timeout) = host.dial_timeout {
            builder = builder.connect_timeout(timeout);
        }
        if host.tls.skip_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        } else {
            builder = builder.tls_certs_merge(authorities(&host.tls)?);
        }
        if let Some(identity) = identity(&host.tls)? {
            builder = builder.identity(identity);
        }
        builder.build().map_err(|source| HostsError::Certificate {
            path: PathBuf::new(),
            source,
        })
    }

    /// A client for addresses that manifests name.
    pub(crate) fn elsewhere(&self) -> Result<Client, HostsError> {
        self.kept(&self.usual, false, true)
    }

    fn kept(
        &self,
        cell: &OnceLock<Client>,
        direct: bool,
        plain: bool,
    ) -> Result<Client, HostsError> {
        if let Some(client) = cell.get() {
            return Ok(client.clone());
        }
        match self.builder(direct).build() {
            Ok(client) => Ok(cell.get_or_init(|| client).clone()),
            // A machine without any authority's certificate can still speak
            // plain HTTP; the client trusts nobody, should it be redirected.
            Err(_) if plain => self.builder(direct).tls_certs_only([]).build(),
            Err(error) => Err(error),
        }
        .map_err(|source| HostsError::Certificate {
            path: PathBuf::new(),
            source,
        })
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

fn authorities(tls: &Tls) -> Result<Vec<Certificate>, HostsError> {
    let mut out = Vec::new();
    for path in &tls.ca {
        let certificates = Certificate::from_pem_bundle(&read(path)?).map_err(|source| {
            HostsError::Certificate {
                path: path.clone(),
                source,
            }
        })?;
        out.extend(certificates);
    }
    Ok(out)
}

fn identity(tls: &Tls) -> Result<Option<Identity>, HostsError> {
    let Some((cert, key)) = &tls.client else {
        return Ok(None);
    };
    let mut pem = read(cert)?;
    if let Some(key) = key {
        pem.push(b'\n');
        pem.extend(read(key)?);
    }
    match Identity::from_pem(&pem) {
        Ok(identity) => Ok(Some(identity)),
        Err(source) => Err(HostsError::Certificate {
            path: cert.clone(),
            source,
        }),
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, HostsError> {
    std::fs::read(path).map_err(|source| HostsError::Read {
        path: path.clone(),
        source,
    })
}
