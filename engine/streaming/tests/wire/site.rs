//! A server whose sessions do what a test wants.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use streaming::{Channels, Expected, Handler, Options, PortRequest, PortRequests, Wants};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// No test takes as long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not in time: {what}"),
    }
}

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    /// Copies stdin to stdout, says "bye" on stderr, exits with this.
    Cat(i32),
    /// Writes sizes as they come until the second of them, then exits.
    Sizes,
    /// Writes until it cannot.
    Flood,
    /// Never reads its stdin; writes "up", then exits when told to go.
    Deaf,
    /// Returns without a word.
    Mute,
    /// Is not run.
    Fail,
    /// Stays until the client is gone.
    Stay,
    /// Stays until told to go.
    Hold,
    /// Ports: 1 cannot be reached, 2 is never read, 3 breaks after the first
    /// bytes, 4 lasts until the client is gone, others echo.
    Forward,
}

#[derive(Debug)]
struct Shared {
    tokens: Mutex<HashMap<String, (Expected, Job)>>,
    live: watch::Sender<usize>,
    go: watch::Sender<bool>,
}

#[derive(Debug, Clone)]
pub(crate) struct Site {
    shared: Arc<Shared>,
    pub(crate) address: SocketAddr,
    server: Arc<JoinSet<()>>,
}

/// Counts a session while it lives.
struct Live(Arc<Shared>);

impl Live {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.live.send_modify(|live| *live += 1);
        Self(Arc::clone(shared))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.send_modify(|live| *live -= 1);
    }
}

#[derive(Debug, Clone)]
struct Host(Arc<Shared>);

impl Site {
    pub(crate) async fn new() -> Self {
        Self::with(None, DEADLINE, Duration::from_secs(30)).await
    }

    pub(crate) async fn with(
        tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
        idle: Duration,
        creation: Duration,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            tokens: Mutex::default(),
            live: watch::Sender::new(0),
            go: watch::Sender::new(false),
        });
        let mut server = JoinSet::new();
        let (host, options) = (
            Host(Arc::clone(&shared)),
            Options {
                tls,
                idle,
                creation,
            },
        );
        server.spawn(async move {
            streaming::serve(listener, host, options).await.unwrap();
        });
        Self {
            shared,
            address,
            server: Arc::new(server),
        }
    }

    pub(crate) fn token(&self, job: Job, wants: Wants) -> String {
        let mut tokens = self.shared.tokens.lock().unwrap();
        let token = format!("token{}", tokens.len());
        let expected = if job == Job::Forward {
            Expected::Ports
        } else {
            Expected::Command(wants)
        };
        tokens.insert(token.clone(), (expected, job));
        token
    }

    /// Drops the server.
    pub(crate) fn end(&mut self) {
        self.server = Arc::default();
    }

    /// Lets the deaf go.
    pub(crate) fn go(&self) {
        self.shared.go.send_replace(true);
    }

    /// Waits until so many sessions and requests live.
    pub(crate) async fn live(&self, want: usize) {
        let mut live = self.shared.live.subscribe();
        let reached = live.wait_for(|live| *live == want);
        soon("a number of sessions", reached).await.unwrap();
    }
}

impl Handler for Host {
    type Session = Job;

    fn take(&self, token: &str) -> Option<(Expected, Job)> {
        let mut tokens = self.0.tokens.lock().unwrap();
        // The entry stays so that names are not given twice.
        let (expected, job) = tokens.get_mut(token)?;
        let taken = (*expected, *job);
        tokens.insert(token.to_owned(), (Expected::Ports, Job::Mute));
        (taken != (Expected::Ports, Job::Mute)).then_some(taken)
    }

    async fn command(&self, job: Job, channels: Channels) {
        let _live = Live::new(&self.0);
        run(job, channels, self.0.go.subscribe()).await;
    }

    async fn ports(&self, _: Job, mut requests: PortRequests) {
        let _live = Live::new(&self.0);
        let mut tasks = JoinSet::new();
        while let Some(request) = requests.next().await {
            let live = Live::new(&self.0);
            let go = self.0.go.subscribe();
            tasks.spawn(async move {
                connect(request, go).await;
                drop(live);
            });
        }
        tasks.join_all().await;
    }
}

async fn run(job: Job, mut channels: Channels, mut go: watch::Receiver<bool>) {
    match job {
        Job::Cat(code) => {
            let (mut stdin, mut stdout) = (
                channels.stdin.take().unwrap(),
                channels.stdout.take().unwrap(),
            );
            let copied = tokio::io::copy(&mut stdin, &mut stdout).await;
            if let (Ok(_), Some(stderr)) = (copied, &mut channels.stderr) {
                stderr.write_all(b"bye").await.ok();
            }
            channels.outcome.exited(code).await;
        }
        Job::Sizes => {
            let stdout = channels.stdout.as_mut().unwrap();
            for _ in 0..2 {
                let Some(size) = channels.sizes.recv().await else {
                    return;
                };
                let line = format!("{}x{}\n", size.columns, size.rows);
                stdout.write_all(line.as_bytes()).await.ok();
            }
            channels.outcome.exited(0).await;
        }
        Job::Flood => {
            let stdout = channels.stdout.as_mut().unwrap();
            while stdout.write_all(&[b'x'; 4096]).await.is_ok() {}
            channels.outcome.exited(0).await;
        }
        Job::Deaf => {
            channels
                .stdout
                .as_mut()
                .unwrap()
                .write_all(b"up")
                .await
                .unwrap();
            tokio::select! {
                _ = go.wait_for(|go| *go) => {}
                () = channels.gone.wait() => {}
            }
            channels.outcome.exited(0).await;
        }
        Job::Mute | Job::Forward => {}
        Job::Fail => channels.outcome.failed("no such command").await,
        Job::Hold => drop(go.wait_for(|go| *go).await),
        Job::Stay => channels.gone.wait().await,
    }
}

async fn connect(mut request: PortRequest, mut go: watch::Receiver<bool>) {
    match request.port {
        1 => request.error.report("connection refused").await,
        2 => {
            go.wait_for(|go| *go).await.unwrap();
        }
        3 => {
            let mut bytes = [0; 4];
            request.input.read_exact(&mut bytes).await.ok();
            request.error.report("connection reset by peer").await;
        }
        4 => request.gone.wait().await,
        _ => {
            let (mut read, mut write) = (request.input, request.output);
            tokio::io::copy(&mut read, &mut write).await.ok();
            write.shutdown().await.ok();
        }
    }
}
