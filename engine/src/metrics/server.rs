//! The endpoint: answers `GET /metrics` and nothing else.
//!
//! Owns its listener, and the socket file if it has one; takes over a socket that a
//! crash left. Few connections at a time: the scraper is one program.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::config::MetricsAddress;
use crate::context::Engine;

/// Connections at a time.
const CONNECTIONS: usize = 8;
/// How long a request may take to arrive.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a failed accept.
const PAUSE: Duration = Duration::from_millis(100);
/// What OpenMetrics calls its text.
const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What can go wrong with the endpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    /// The address cannot be listened on.
    #[error("serve metrics at {at}")]
    Bind {
        /// The address or the socket's path.
        at: String,
        /// Why not.
        source: io::Error,
    },
}

/// Where the endpoint listens.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Listens.
pub(crate) async fn bind(address: &MetricsAddress) -> Result<Listener, MetricsError> {
    let (at, bound) = match address {
        MetricsAddress::Tcp(address) => {
            let bound = TcpListener::bind(address).await.map(Listener::Tcp);
            (address.to_string(), bound)
        }
        MetricsAddress::Unix(path) => (path.display().to_string(), bind_unix(path)),
    };
    bound.map_err(|source| MetricsError::Bind { at, source })
}

fn bind_unix(path: &Path) -> io::Result<Listener> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    // The engine's lock says that no other of this root lives.
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(Listener::Unix(listener, path.to_owned()))
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // One that stays is taken over by the next start.
            let _gone = std::fs::remove_file(path);
        }
    }
}

/// Serves until it is dropped.
pub(crate) async fn serve(listener: Listener, engine: Arc<Engine>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                let engine = Arc::clone(&engine);
                tokio::spawn(async move { connection(stream, engine, permit).await })
            }),
            Listener::Unix(listener, _) => listener.accept().await.map(|(stream, _)| {
                let engine = Arc::clone(&engine);
                tokio::spawn(async move { connection(stream, engine, permit).await })
            }),
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "a scraper of metrics was not accepted");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn connection<S>(stream: S, engine: Arc<Engine>, permit: tokio::sync::OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &engine);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a scraper of metrics went away");
    }
    drop(permit);
}

fn answer(method: &Method, path: &str, engine: &Engine) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, text: String, kind: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        let kind = hyper::header::HeaderValue::from_static(kind);
        response
            .headers_mut()
            .insert(hyper::header::CONTENT_TYPE, kind);
        response
    };
    let refusal = |status: StatusCode| {
        let text = status.canonical_reason().unwrap_or_default();
        plain(status, format!("{text}\n"), "text/plain; charset=utf-8")
    };
    if path != "/metrics" {
        return refusal(StatusCode::NOT_FOUND);
    }
    if method != Method::GET {
        return refusal(StatusCode::METHOD_NOT_ALLOWED);
    }
    match engine.metrics.as_ref().map(|metrics| metrics.text(engine)) {
        Some(Ok(text)) => plain(StatusCode::OK, text, KIND),
        Some(Err(_)) | None => refusal(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_taken_over_and_removed_at_the_end() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("metrics.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        assert!(path.exists());
        let listener = bind(&MetricsAddress::Unix(path.clone()))
            .await
            .expect("taken over");
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "no socket").expect("written");
        assert!(bind(&MetricsAddress::Unix(path.clone())).await.is_err());
        assert!(path.exists(), "a file of somebody else stays");
    }
}
