//! A port-forward session.
//!
//! Owns the pairs of streams of one client: at most [`STREAMS`] at a time,
//! counted until the handler let go of a request, so that a client that opens
//! and resets gains nothing. An incomplete pair is reset after
//! `Options::creation`. A reset leaves its request EOF and `BrokenPipe`, which
//! it is told at once, and the others as they are.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

use super::{Connection, Writer, converse};
use crate::channels::{Flow, Gone, Input, Output};
use crate::delivery::{self, Delivered};
use crate::ports::{Place, PortError, PortRequest, PortRequests};
use crate::spdy::Headers;
use crate::wire::{Event, Lost, Out, Reason, Sink, Source};

/// How many streams a client may have; a request takes two.
const STREAMS: usize = 256;

/// The longest name of a request; kubectl counts from 0.
const KEY: usize = 256;

/// A port-forward session before it begins.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    /// The ports of the old WebSocket protocol, which has a fixed pair of
    /// channels for each.
    pub(crate) fixed: Vec<u16>,
}

/// What a stream of the client is.
enum Stream {
    /// The first of a pair, under this key.
    Waiting(String),
    /// A request's bytes.
    Data {
        /// `None` when the client sends or the handler reads no more.
        inbound: Option<mpsc::Sender<Bytes>>,
        /// Its outbound half.
        flow: Arc<Flow>,
        /// Dropped, it tells the handler that the client wants no more of it.
        here: Option<watch::Sender<bool>>,
    },
    /// A request's error stream.
    Error,
}

/// The first stream of a pair.
struct First {
    id: u32,
    kind: Kind,
    port: u16,
    since: Instant,
}

impl First {
    /// When the other one must have come.
    fn due(&self, creation: Duration) -> Option<Instant> {
        self.since.checked_add(creation)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

struct Ears {
    out: mpsc::Sender<Out>,
    /// `None` when no more are to come.
    requests: Option<mpsc::Sender<PortRequest>>,
    streams: HashMap<u32, Stream>,
    waiting: HashMap<String, First>,
    /// What is told of each request, until the handler let go of it.
    answers: JoinSet<[u32; 2]>,
    last: u32,
    finishing: watch::Receiver<bool>,
}

impl Ports {
    /// Runs the session, and `start` with its requests, until both are done.
    pub(crate) async fn run<S, K, F>(
        self,
        connection: Connection,
        mut source: S,
        sink: K,
        start: impl FnOnce(PortRequests) -> F,
    ) where
        S: Source,
        K: Sink,
        F: Future<Output = ()>,
    {
        let (mut writer, out) = Writer::start(sink);
        let (finish, finishing) = watch::channel(false);
        let (requests, queue) = mpsc::channel(STREAMS / 2);
        let (quiet, silence) = oneshot::channel();
        let mut ears = Ears {
            out: out.clone(),
            requests: Some(requests),
            streams: HashMap::new(),
            waiting: HashMap::new(),
            answers: JoinSet::new(),
            last: 0,
            finishing,
        };
        ears.fixed(&self.fixed).await;
        let handler = start(PortRequests(queue));
        let handler = async {
            handler.await;
            finish.send_replace(true);
        };
        let wire = async move {
            let talk = async {
                // The listener says so when all requests are done after the
                // handler; it cannot be gone before.
                (silence.await.is_ok() && writer.close(&out).await).then_some(None)
            };
            let listen = ears.listen(&mut source, &connection, quiet);
            converse(&connection, &out, talk, listen).await;
            // The handler may go on for long: the socket and its place may not.
            drop((source, writer, connection));
        };
        tokio::join!(handler, wire);
    }
}

impl Ears {
    /// Hears the client until it is gone.
    async fn listen<S: Source>(
        mut self,
        source: &mut S,
        connection: &Connection,
        quiet: oneshot::Sender<()>,
    ) {
        let mut quiet = Some(quiet);
        let mut finishing = self.finishing.clone();
        let creation = connection.creation;
        loop {
            let finished = *finishing.borrow();
            if finished
                && self.answers.is_empty()
                && let Some(quiet) = quiet.take()
            {
                // Who would hear it ends with this future.
                quiet.send(()).ok();
            }
            let overdue = self
                .waiting
                .values()
                .filter_map(|first| first.due(creation))
                .min();
            let sweep = async {
                match overdue {
                    Some(overdue) => tokio::time::sleep_until(overdue).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                Some(over) = self.answers.join_next() => {
                    self.over(over);
                    continue;
                }
                () = sweep => {
                    self.sweep(creation).await;
                    continue;
                }
                () = delivery::finished(&mut finishing), if !finished => continue,
                event = source.next() => event,
            };
            match event {
                Ok(event) => {
                    if !self.hear(event, connection).await {
                        return;
                    }
                }
                Err(Lost::Closed) => return,
                Err(error) => {
                    debug!(error = &error as &dyn std::error::Error, "client lost");
                    return;
                }
            }
        }
    }

    /// One event; whether to go on.
    async fn hear(&mut self, event: Event, connection: &Connection) -> bool {
        match event {
            Event::Open { id, headers } => self.open(id, &headers).await,
            Event::Data { id, bytes } => self.data(id, bytes, connection).await,
            Event::End(id) => {
                if let Some(Stream::Data { inbound, .. }) = self.streams.get_mut(&id) {
                    *inbound = None;
                }
                true
            }
            Event::Reset(id) => {
                self.reset(id).await;
                true
            }
            Event::Ping(id) => {
                self.say(Out::Pong(id)).await;
                true
            }
            Event::Leave => {
                self.requests = None;
                true
            }
        }
    }

    async fn open(&mut self, id: u32, headers: &Headers) -> bool {
        if id.is_multiple_of(2) || id <= self.last {
            debug!(id, "a stream's number is not new");
            return false;
        }
        self.last = id;
        let answer = self.accept(id, headers);
        let accepted = answer.is_ok();
        let answer = answer.map_or_else(|reason| Out::Reset(id, reason), |()| Out::Reply(id));
        self.say(answer).await;
        if accepted {
            self.pair(id, headers).await;
        }
        true
    }

    async fn say(&self, out: Out) {
        // Nobody takes it once all is said, or when the connection is lost.
        self.out.send(out).await.ok();
    }

    /// Whether a stream makes sense and has a place.
    fn accept(&self, id: u32, headers: &Headers) -> Result<(), Reason> {
        let told = read_headers(id, headers).ok_or(Reason::Protocol)?;
        if self.requests.is_none()
            || *self.finishing.borrow()
            || 2 * self.answers.len() + self.waiting.len() >= STREAMS
        {
            return Err(Reason::Refused);
        }
        match self.waiting.get(&told.key) {
            Some(first) if first.kind == told.kind || first.port != told.port => {
                Err(Reason::Protocol)
            }
            _ => Ok(()),
        }
    }

    async fn pair(&mut self, id: u32, headers: &Headers) {
        let Some(PortHeaders { key, kind, port }) = read_headers(id, headers) else {
            return;
        };
        let Some(first) = self.waiting.remove(&key) else {
            self.streams.insert(id, Stream::Waiting(key.clone()));
            self.waiting.insert(
                key,
                First {
                    id,
                    kind,
                    port,
                    since: Instant::now(),
                },
            );
            return;
        };
        let (data, error) = if kind == Kind::Data {
            (id, first.id)
        } else {
            (first.id, id)
        };
        self.request(data, error, port).await;
    }

    /// Hands a request to the handler, with a pump for what it answers.
    async fn request(&mut self, data: u32, error: u32, port: u16) {
        let (inbound, input) = Input::new();
        let (output, flow) = Output::new(data, self.out.clone());
        let (report, reported) = oneshot::channel();
        let (hold, held) = oneshot::channel();
        let (here, gone) = watch::channel(false);
        let request = PortRequest {
            port,
            input,
            output,
            error: PortError(report),
            gone: Gone(gone),
            place: Place { _hold: hold },
        };
        let taken = self
            .requests
            .as_ref()
            .is_some_and(|queue| queue.try_send(request).is_ok());
        if !taken {
            // More were opened and reset than the handler took.
            for id in [data, error] {
                self.streams.remove(&id);
                self.say(Out::Reset(id, Reason::Refused)).await;
            }
            return;
        }
        self.streams.insert(
            data,
            Stream::Data {
                inbound: Some(inbound),
                flow: Arc::clone(&flow),
                here: Some(here),
            },
        );
        self.streams.insert(error, Stream::Error);
        let (out, finishing) = (self.out.clone(), self.finishing.clone());
        self.answers.spawn(async move {
            let report = tell(reported, error, out.clone(), finishing.clone());
            let letting_go = async {
                letting_go(held, finishing).await;
                if flow.finish() {
                    out.send(Out::End(data)).await.ok();
                }
            };
            tokio::join!(report, letting_go);
            [data, error]
        });
    }

    /// The requests of the fixed channels; each begins with its port.
    async fn fixed(&mut self, ports: &[u16]) {
        for (port, data) in ports.iter().zip((0_u32..).step_by(2)) {
            let name = Bytes::copy_from_slice(&port.to_le_bytes());
            for id in [data, data + 1] {
                self.say(Out::Data(id, name.clone())).await;
            }
            self.request(data, data + 1, *port).await;
        }
        if !ports.is_empty() {
            self.requests = None;
        }
    }

    async fn data(&mut self, id: u32, bytes: Bytes, connection: &Connection) -> bool {
        let Some(Stream::Data { inbound, .. }) = self.streams.get_mut(&id) else {
            return true;
        };
        let Some(pipe) = inbound else { return true };
        match delivery::deliver(bytes, pipe, &self.out, connection, &mut self.finishing).await {
            Delivered::Taken => true,
            Delivered::Unwanted => {
                *inbound = None;
                true
            }
            Delivered::HungUp => false,
        }
    }

    async fn reset(&mut self, id: u32) {
        match self.streams.get_mut(&id) {
            Some(Stream::Waiting(key)) => {
                self.waiting.remove(key);
                self.streams.remove(&id);
            }
            Some(Stream::Data {
                inbound,
                flow,
                here,
            }) => {
                flow.cut();
                *inbound = None;
                *here = None;
            }
            Some(Stream::Error) | None => {}
        }
    }

    fn over(&mut self, over: Result<[u32; 2], tokio::task::JoinError>) {
        for id in over.into_iter().flatten() {
            self.streams.remove(&id);
        }
    }

    /// Resets the streams whose other half did not come in time.
    async fn sweep(&mut self, creation: Duration) {
        let now = Instant::now();
        let overdue = self
            .waiting
            .extract_if(|_, first| first.due(creation).is_some_and(|due| due <= now));
        for (_, first) in overdue.collect::<Vec<_>>() {
            self.streams.remove(&first.id);
            self.say(Out::Reset(first.id, Reason::Refused)).await;
        }
    }
}

/// What the headers of a stream say.
struct PortHeaders {
    key: String,
    kind: Kind,
    port: u16,
}

fn read_headers(id: u32, headers: &Headers) -> Option<PortHeaders> {
    let kind = match headers.get("streamtype")? {
        "data" => Kind::Data,
        "error" => Kind::Error,
        _ => return None,
    };
    let port = headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
    let key = match headers.get("requestid").filter(|key| !key.is_empty()) {
        Some(key) => key.to_owned(),
        // Clients before Kubernetes 1.1 send none; theirs are the error stream
        // and the next one.
        None if kind == Kind::Data => format!("stream {}", id.checked_sub(2)?),
        None => format!("stream {id}"),
    };
    (key.len() <= KEY).then_some(PortHeaders { key, kind, port })
}

/// Sends what the handler reports, then that there is no more.
async fn tell(
    reported: oneshot::Receiver<String>,
    id: u32,
    out: mpsc::Sender<Out>,
    mut finishing: watch::Receiver<bool>,
) {
    let report = tokio::select! {
        biased;
        report = reported => report.ok(),
        () = delivery::finished(&mut finishing) => None,
    };
    if let Some(report) = report {
        out.send(Out::Data(id, report.into())).await.ok();
    }
    out.send(Out::End(id)).await.ok();
}

/// Waits until the handler dropped the request's place.
async fn letting_go(held: oneshot::Receiver<()>, mut finishing: watch::Receiver<bool>) {
    tokio::select! {
        _ = held => {}
        () = delivery::finished(&mut finishing) => {}
    }
}
