//! Debian's `docker-registry`, and a front before it that speaks TLS and HTTP/2.

use std::convert::Infallible;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use image_store::Digest;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::authority::Authority;
use super::eventually;
use super::image::Image;

/// Debian's registry on a socket, with its files in a folder.
pub(crate) struct DockerRegistry {
    child: Child,
    pub(crate) client: reqwest::Client,
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl DockerRegistry {
    pub(crate) async fn start(dir: &Path) -> Self {
        let (config, socket) = (dir.join("registry.yml"), dir.join("registry.sock"));
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{net: unix, addr: {}, secret: x}}\n",
            dir.join("registry").display(),
            socket.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("docker-registry (conformance/scripts/install test): {e}"));
        let client = reqwest::Client::builder()
            .unix_socket(socket.clone())
            .build()
            .unwrap();
        eventually("docker-registry listens", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        })
        .await;
        Self { child, client }
    }

    pub(crate) async fn push(&self, image: &Image) {
        let blobs = image.layers.iter().map(|l| &l.blob).chain([&image.config]);
        for blob in blobs {
            let begin = self.client.post("http://r/v2/a/b/blobs/uploads/");
            let begun = begin.send().await.unwrap();
            let place = begun.headers()["location"].to_str().unwrap();
            let mut place: reqwest::Url = place.parse().unwrap();
            let digest = Digest::of(blob).to_string();
            place.query_pairs_mut().append_pair("digest", &digest);
            let upload = self.client.put(place).body(blob.clone());
            assert_eq!(upload.send().await.unwrap().status(), 201);
        }
        let manifest = self
            .client
            .put("http://r/v2/a/b/manifests/1")
            .header("content-type", "application/vnd.oci.image.manifest.v1+json")
            .body(image.manifest.clone());
        assert_eq!(manifest.send().await.unwrap().status(), 201);
    }
}

/// What the front was asked, by HTTP version.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) requests: AtomicUsize,
    pub(crate) other_versions: AtomicUsize,
}

/// A front that speaks HTTP/2 over TLS, and cuts a few bytes off the beginning
/// of each body as a frame of its own: 1 to 7 of them, in turn.
pub(crate) async fn front(
    authority: &Authority,
    behind: reqwest::Client,
) -> (u16, Arc<Seen>, JoinHandle<()>) {
    let mut tls = authority.server(None);
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Seen::default());
    let task = tokio::spawn({
        let seen = Arc::clone(&seen);
        async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, behind, seen) = (tls.clone(), behind.clone(), Arc::clone(&seen));
                connections.spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else {
                        return;
                    };
                    let service = hyper::service::service_fn(move |request| {
                        pass_on(behind.clone(), Arc::clone(&seen), request)
                    });
                    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        }
    });
    (port, seen, task)
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn pass_on(
    behind: reqwest::Client,
    seen: Arc<Seen>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let number = seen.requests.fetch_add(1, Ordering::Relaxed);
    if request.version() != hyper::Version::HTTP_2 {
        seen.other_versions.fetch_add(1, Ordering::Relaxed);
    }
    let url = format!("http://r{}", request.uri().path());
    let mut asked = behind.get(url);
    for name in ["accept", "range"] {
        if let Some(value) = request.headers().get(name) {
            asked = asked.header(name, value.clone());
        }
    }
    let answer = asked.send().await.unwrap();
    let mut response = Response::builder().status(answer.status());
    for name in ["content-type", "content-length", "content-range"] {
        if let Some(value) = answer.headers().get(name) {
            response = response.header(name, value.clone());
        }
    }
    let mut first = Some(number % 7 + 1);
    let pieces = answer.bytes_stream().flat_map(move |bytes| {
        let mut bytes = bytes.unwrap();
        let cut = first.take().unwrap_or(0).min(bytes.len());
        let head = bytes.split_to(cut);
        let frames = [head, bytes].into_iter().filter(|b| !b.is_empty());
        futures::stream::iter(frames.map(|b| Ok(Frame::data(b))).collect::<Vec<_>>())
    });
    Ok(response
        .body(StreamBody::new(pieces).boxed_unsync())
        .unwrap())
}
