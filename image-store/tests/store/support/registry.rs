//! A registry on loopback, made for the tests: it serves what it is given,
//! breaks as it is told to, and remembers what it was asked.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use image_store::Digest;

use super::image::Image;

/// Who may come in.
#[derive(Clone)]
pub(crate) enum Access {
    Open,
    Basic {
        user: String,
        password: String,
    },
    /// A token that anybody gets.
    AnonymousToken,
    /// A token for this user.
    UserToken {
        user: String,
        password: String,
    },
    /// A token for this refresh token.
    RefreshToken {
        refresh: String,
    },
    /// This token and no way to get one.
    FixedToken {
        token: String,
    },
}

/// What goes wrong with an answer.
#[derive(Clone)]
pub(crate) enum Fault {
    Status(u16),
    /// A status and a body.
    Says(u16, &'static str),
    /// Ends the connection after so many bytes of the body.
    Cut(usize),
    /// Sends so many bytes of the body, and then nothing.
    Stall(usize),
    /// Sends so many bytes of the body, and the rest at 2000 bytes a second: more
    /// than the least speed.
    Drip(usize),
    /// Flips a bit of the body.
    Corrupt,
    /// Sends another body.
    Other(Vec<u8>),
    /// Waits for a permit before the body.
    Gate(Arc<Semaphore>),
    /// A redirect to this address.
    Redirect(String),
}

/// What a connection is made of.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: HashMap<String, String>,
    pub body: String,
}

struct Shared {
    address: String,
    files: Mutex<HashMap<String, (String, Vec<u8>)>>,
    faults: Mutex<Vec<(String, usize, Fault)>>,
    asked: Mutex<Vec<Asked>>,
    access: Mutex<Access>,
    ranges: Mutex<bool>,
    pieces: Mutex<Option<usize>>,
    realm: Mutex<String>,
}

/// A running registry; ends when dropped.
pub(crate) struct Registry {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Registry {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1", None).await
    }

    /// Speaks HTTPS.
    pub(crate) async fn start_tls(config: ServerConfig) -> Self {
        Self::start_at("127.0.0.1", Some(config)).await
    }

    /// Listens at this address; speaks HTTPS with a configuration.
    pub(crate) async fn start_at(address: &str, tls: Option<ServerConfig>) -> Self {
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            realm: Mutex::new(format!("http://{address}/token")),
            address,
            files: Mutex::default(),
            faults: Mutex::default(),
            asked: Mutex::default(),
            access: Mutex::new(Access::Open),
            ranges: Mutex::new(true),
            pieces: Mutex::default(),
        });
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let (shared, tls) = (Arc::clone(&shared), tls.clone());
                    // A client that goes away is part of what is tested.
                    connections.spawn(async move {
                        match tls {
                            None => drop(shared.serve(stream).await),
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(stream).await {
                                    drop(shared.serve(stream).await);
                                }
                            }
                        }
                    });
                }
            }
        });
        Self { shared, task }
    }

    /// Host and port.
    pub(crate) fn host(&self) -> String {
        self.shared.address.clone()
    }

    /// The port alone.
    pub(crate) fn port(&self) -> String {
        self.host().rsplit_once(':').unwrap().1.to_owned()
    }

    /// A reference into this registry.
    pub(crate) fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host())
    }

    pub(crate) fn access(&self, access: Access) {
        *self.shared.access.lock().unwrap() = access;
    }

    pub(crate) fn without_ranges(&self) {
        *self.shared.ranges.lock().unwrap() = false;
    }

    /// Says that tokens are to be had there.
    pub(crate) fn realm(&self, url: String) {
        *self.shared.realm.lock().unwrap() = url;
    }

    /// Cuts the bodies of good answers into chunks of this size, which the client
    /// sees one by one.
    pub(crate) fn cut_bodies(&self, size: usize) {
        *self.shared.pieces.lock().unwrap() = Some(size);
    }

    /// The next `times` answers whose path ends so go wrong.
    pub(crate) fn fault(&self, path: impl Into<String>, times: usize, fault: Fault) {
        self.shared
            .faults
            .lock()
            .unwrap()
            .push((path.into(), times, fault));
    }

    /// Serves bytes at a path.
    pub(crate) fn put(&self, path: &str, media_type: &str, bytes: &[u8]) {
        let mut files = self.shared.files.lock().unwrap();
        files.insert(path.to_owned(), (media_type.to_owned(), bytes.to_vec()));
    }

    pub(crate) fn put_blob(&self, repository: &str, bytes: &[u8]) {
        let path = format!("/v2/{repository}/blobs/{}", Digest::of(bytes));
        self.put(&path, "application/octet-stream", bytes);
    }

    /// Serves a manifest by digest and by tag.
    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        for name in [tag.to_owned(), Digest::of(bytes).to_string()] {
            self.put(
                &format!("/v2/{repository}/manifests/{name}"),
                media_type,
                bytes,
            );
        }
    }

    /// Serves a whole image.
    pub(crate) fn push(&self, repository: &str, tag: &str, image: &Image) {
        for layer in &image.layers {
            self.put_blob(repository, &layer.blob);
        }
        self.put_blob(repository, &image.config);
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        self.put_manifest(repository, tag, media_type, &image.manifest);
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// How often paths that contain this were asked for.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.asked()
            .iter()
            .filter(|a| a.path.contains(part))
            .count()
    }
}

impl Shared {
    async fn serve(&self, mut stream: impl Stream) -> io::Result<()> {
        let Some(asked) = read_request(&mut stream).await? else {
            return Ok(());
        };
        self.asked.lock().unwrap().push(asked.clone());
        let fault = self.take_fault(&asked.path);
        if asked.path == "/token" && fault.is_none() {
            let (status, body) = self.token(&asked);
            return answer(&mut stream, status, &[], body.as_bytes()).await;
        }
        if let Some(Fault::Says(status, body)) = fault {
            return answer(&mut stream, status, &[], body.as_bytes()).await;
        }
        if let Some(Fault::Status(status)) = fault {
            return answer(&mut stream, status, &[], b"").await;
        }
        if let Some(Fault::Redirect(to)) = &fault {
            return answer(&mut stream, 307, &[("Location", to.clone())], b"").await;
        }
        if let Some(challenge) = self.challenge(&asked) {
            let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#;
            return answer(&mut stream, 401, &[("WWW-Authenticate", challenge)], body).await;
        }
        let found = self.files.lock().unwrap().get(&asked.path).cloned();
        let Some((media_type, bytes)) = found else {
            return answer(&mut stream, 404, &[], b"{}").await;
        };
        self.send(&mut stream, &asked, (media_type, bytes), fault)
            .await
    }

    async fn send(
        &self,
        stream: &mut impl Stream,
        asked: &Asked,
        (media_type, mut bytes): (String, Vec<u8>),
        fault: Option<Fault>,
    ) -> io::Result<()> {
        let total = bytes.len();
        let mut headers = vec![("Content-Type", media_type)];
        let from: Option<usize> = asked
            .headers
            .get("range")
            .filter(|_| *self.ranges.lock().unwrap())
            .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match &fault {
            Some(Fault::Corrupt) => *bytes.last_mut().unwrap() ^= 1,
            Some(Fault::Other(other)) => bytes.clone_from(other),
            _ => {}
        }
        let status = match from {
            Some(from) => {
                headers.push((
                    "Content-Range",
                    format!("bytes {from}-{}/{total}", total - 1),
                ));
                bytes.drain(..from);
                206
            }
            None => 200,
        };
        match fault {
            Some(Fault::Cut(n)) => {
                head(stream, status, &headers, bytes.len()).await?;
                stream.write_all(&bytes[..n.min(bytes.len())]).await?;
                stream.flush().await
            }
            Some(Fault::Stall(n)) => {
                head(stream, status, &headers, bytes.len()).await?;
                stream.write_all(&bytes[..n.min(bytes.len())]).await?;
                // Until the client gives up.
                let mut rest = [0; 1];
                drop(stream.read(&mut rest).await);
                Ok(())
            }
            Some(Fault::Drip(n)) => {
                head(stream, status, &headers, bytes.len()).await?;
                let (first, rest) = bytes.split_at(n.min(bytes.len()));
                stream.write_all(first).await?;
                for drop in rest.chunks(100) {
                    stream.write_all(drop).await?;
                    stream.flush().await?;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(())
            }
            Some(Fault::Gate(gate)) => {
                gate.acquire().await.unwrap().forget();
                answer(stream, status, &headers, &bytes).await
            }
            _ => {
                let pieces = *self.pieces.lock().unwrap();
                match pieces {
                    Some(size) => in_chunks(stream, (status, &headers), &bytes, size).await,
                    None => answer(stream, status, &headers, &bytes).await,
                }
            }
        }
    }

    fn take_fault(&self, path: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let at = faults
            .iter()
            .position(|(end, times, _)| *times > 0 && path.ends_with(end))?;
        faults[at].1 -= 1;
        Some(faults[at].2.clone())
    }

    /// What to say to someone who may not come in.
    fn challenge(&self, asked: &Asked) -> Option<String> {
        let shown = asked
            .headers
            .get("authorization")
            .map(String::as_str)
            .unwrap_or_default();
        let bearer = format!(
            "Bearer realm=\"{}\",service=\"fake, registry\",scope=\"repository:x:pull\"",
            self.realm.lock().unwrap()
        );
        let (want, challenge) = match &*self.access.lock().unwrap() {
            Access::Open => return None,
            Access::Basic { user, password } => (basic(user, password), "Basic realm=\"x\"".into()),
            Access::FixedToken { token } => (format!("Bearer {token}"), bearer),
            _ => ("Bearer good-token".to_owned(), bearer),
        };
        (shown != want).then_some(challenge)
    }

    fn token(&self, asked: &Asked) -> (u16, String) {
        let shown = asked.headers.get("authorization").cloned();
        let good = match &*self.access.lock().unwrap() {
            Access::AnonymousToken => shown.is_none(),
            Access::UserToken { user, password } => shown == Some(basic(user, password)),
            Access::RefreshToken { refresh } => {
                asked.method == "POST"
                    && asked.body.contains("grant_type=refresh_token")
                    && asked.body.contains(&format!("refresh_token={refresh}"))
            }
            _ => false,
        };
        match good {
            true => (
                200,
                r#"{"access_token":"good-token","expires_in":60}"#.to_owned(),
            ),
            false => (401, "{}".to_owned()),
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {text}")
}

async fn read_request(stream: &mut impl Stream) -> io::Result<Option<Asked>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let method = first.next().unwrap().to_owned();
    let target = first.next().unwrap().to_owned();
    let headers: HashMap<String, String> = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(n, v)| (n.to_lowercase(), v.trim().to_owned()))
        .collect();
    let length: usize = headers
        .get("content-length")
        .map_or(0, |l| l.parse().unwrap());
    while bytes.len() < end + 4 + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Ok(Some(Asked {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: String::from_utf8_lossy(&bytes[end + 4..]).into_owned(),
    }))
}

async fn head(
    stream: &mut impl Stream,
    status: u16,
    headers: &[(&str, String)],
    length: usize,
) -> io::Result<()> {
    let mut text =
        format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).await
}

/// An answer whose body is cut: a client hands chunks on as they were made,
/// however many of them one packet brings.
async fn in_chunks(
    stream: &mut impl Stream,
    (status, headers): (u16, &[(&str, String)]),
    body: &[u8],
    size: usize,
) -> io::Result<()> {
    let mut out = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
    for (name, value) in headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out.push_str("Transfer-Encoding: chunked\r\n\r\n");
    let mut out = out.into_bytes();
    for chunk in body.chunks(size) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    stream.write_all(&out).await?;
    stream.flush().await?;
    stream.shutdown().await?;
    drop(tokio::time::timeout(Duration::from_secs(1), stream.read_u8()).await);
    Ok(())
}

async fn answer(
    stream: &mut impl Stream,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
) -> io::Result<()> {
    head(stream, status, headers, body.len()).await?;
    // In small pieces, as a network would.
    for piece in body.chunks(1 << 16) {
        stream.write_all(piece).await?;
    }
    stream.flush().await?;
    stream.shutdown().await?;
    drop(tokio::time::timeout(Duration::from_secs(1), stream.read_u8()).await);
    Ok(())
}
