//! A command's session: Exec and Attach.
//!
//! Owns the streams of one command, one of each kind at most. A stream that the
//! client resets leaves the handler EOF or `BrokenPipe` and the others as they
//! are; a lost connection leaves that on all of them.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::debug;

use super::sizes::{self, Sizes};
use super::{Connection, Writer, converse};
use crate::Wants;
use crate::channels::{Channels, Flow, Gone, Input, Outcome, Output, Size, Verdict};
use crate::delivery::{self, Delivered};
use crate::status::Spelling;
use crate::wire::{Event, Lost, Out, Reason, Sink, Source};

/// The streams' numbers on the wire.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ids {
    pub(crate) stdin: Option<u32>,
    pub(crate) stdout: Option<u32>,
    pub(crate) stderr: Option<u32>,
    pub(crate) error: Option<u32>,
    pub(crate) resize: Option<u32>,
}

impl Ids {
    /// Where the number of a stream that the client names belongs.
    fn place(&mut self, kind: &str) -> Option<&mut Option<u32>> {
        match kind {
            "stdin" => Some(&mut self.stdin),
            "stdout" => Some(&mut self.stdout),
            "stderr" => Some(&mut self.stderr),
            "error" => Some(&mut self.error),
            "resize" => Some(&mut self.resize),
            _ => None,
        }
    }

    fn all(self) -> [Option<u32>; 5] {
        [
            self.stdout,
            self.stderr,
            self.error,
            self.stdin,
            self.resize,
        ]
    }
}

/// A command's session before it begins.
#[derive(Debug)]
pub(crate) struct Command {
    /// The streams that the handler expects.
    pub(crate) wants: Wants,
    /// How the outcome is told.
    pub(crate) spelling: Spelling,
    /// Whether a client with a terminal opens a stream for its sizes.
    pub(crate) resizes: bool,
    /// The streams' numbers, where the protocol has them fixed.
    pub(crate) fixed: Option<Ids>,
}

/// What the client may send before all its streams are there.
const EARLY: usize = 64 * 1024;

/// What is known of a stream of output besides its bytes.
#[derive(Debug, Clone)]
struct Outgoing {
    id: u32,
    flow: Arc<Flow>,
}

/// The wire's ends of the streams that a client sends on, and of those that it may
/// reset.
struct Ears {
    ids: Ids,
    /// What the client said before all streams were there.
    early: Vec<Event>,
    stdin: Option<mpsc::Sender<Bytes>>,
    outgoing: Vec<Outgoing>,
    sizes: Sizes,
    newest: watch::Sender<Option<Size>>,
    finishing: watch::Receiver<bool>,
}

impl Command {
    /// Runs the session, and `start` with its channels, until both are done.
    pub(crate) async fn run<S, K, F>(
        self,
        connection: Connection,
        mut source: S,
        sink: K,
        start: impl FnOnce(Channels) -> F,
    ) where
        S: Source,
        K: Sink,
        F: Future<Output = ()>,
    {
        let (mut writer, out) = Writer::start(sink);
        let Some((ids, early)) = self.open(&connection, &mut source, &out).await else {
            return;
        };

        let (finish, finishing) = watch::channel(false);
        let (gone, lost) = watch::channel(false);
        let (outcome, verdict) = oneshot::channel();
        let (newest, newer) = watch::channel(None);
        let (to_sizes, sizes) = mpsc::channel(1);
        let mut outgoing = Vec::new();
        let mut output = |id: Option<u32>| {
            let (output, flow) = Output::new(id?, out.clone());
            outgoing.push(Outgoing { id: id?, flow });
            Some(output)
        };
        let wants = self.wants;
        let stdout = output(ids.stdout.filter(|_| wants.stdout));
        let stderr = output(ids.stderr.filter(|_| wants.stderr && !wants.tty));
        let (stdin, input) = wants.stdin.then(Input::new).unzip();
        let channels = Channels {
            stdin: input,
            stdout,
            stderr,
            sizes,
            outcome: Outcome(outcome),
            gone: Gone(lost),
        };
        let ears = Ears {
            ids,
            early,
            stdin,
            outgoing: outgoing.clone(),
            sizes: Sizes::default(),
            newest,
            finishing,
        };

        let wire = async move {
            let talk = async {
                let (verdict, waiting) = verdict_of(verdict.await);
                finish.send_replace(true);
                self.end(ids, &outgoing, &verdict, &out).await;
                writer.close(&out).await.then_some(waiting)
            };
            let listen = ears.listen(&mut source, &out, &connection);
            let sizes = sizes::forward(newer, to_sizes).then(|()| std::future::pending());
            tokio::select! {
                () = converse(&connection, &out, talk, listen) => {}
                () = sizes => {}
            }
            gone.send_replace(true);
            // The handler may go on for long: the socket and its place may not.
            drop((source, writer, connection));
        };
        tokio::join!(start(channels), wire);
    }

    /// Waits for all streams that the client is to open.
    async fn open<S: Source>(
        &self,
        connection: &Connection,
        source: &mut S,
        out: &mpsc::Sender<Out>,
    ) -> Option<(Ids, Vec<Event>)> {
        if let Some(ids) = self.fixed {
            // The kubelet's server says with an empty message that all is set up.
            let first = ids.stdout.or(ids.stderr).or(ids.error)?;
            out.send(Out::Data(first, Bytes::new())).await.ok()?;
            return Some((ids, Vec::new()));
        }
        let (mut ids, mut early) = (Ids::default(), Early::default());
        let opened = tokio::time::timeout(connection.creation, async {
            while !self.complete(&ids) {
                opening(source.next().await?, &mut ids, &mut early, out).await?;
            }
            Ok::<(), Lost>(())
        });
        match opened.await {
            Ok(Ok(())) => Some((ids, early.events)),
            Ok(Err(error)) => {
                debug!(
                    error = &error as &dyn std::error::Error,
                    "client left before its streams"
                );
                None
            }
            Err(_) => {
                debug!("client did not open its streams in time");
                None
            }
        }
    }

    fn complete(&self, ids: &Ids) -> bool {
        let wants = self.wants;
        ids.error.is_some()
            && (ids.stdin.is_some() || !wants.stdin)
            && (ids.stdout.is_some() || !wants.stdout)
            && (ids.stderr.is_some() || !wants.stderr || wants.tty)
            && (ids.resize.is_some() || !wants.tty || !self.resizes)
    }

    /// Says that output has ended, how the command did, and that all streams have.
    async fn end(
        &self,
        ids: Ids,
        outgoing: &[Outgoing],
        verdict: &Verdict,
        out: &mpsc::Sender<Out>,
    ) {
        for stream in outgoing {
            if stream.flow.finish() {
                out.send(Out::End(stream.id)).await.ok();
            }
        }
        if let (Some(id), Some(text)) = (ids.error, self.spelling.spell(verdict)) {
            out.send(Out::Data(id, text)).await.ok();
        }
        for id in [ids.error, ids.stdin, ids.resize].into_iter().flatten() {
            out.send(Out::End(id)).await.ok();
        }
    }
}

/// What is told, and who waits for it: without an outcome, that it is missing.
fn verdict_of(
    told: Result<(Verdict, oneshot::Sender<()>), oneshot::error::RecvError>,
) -> (Verdict, Option<oneshot::Sender<()>>) {
    match told {
        Ok((verdict, tell)) => (verdict, Some(tell)),
        Err(_) => (
            Verdict::Failed("the session ended without an outcome".to_owned()),
            None,
        ),
    }
}

/// What comes before all streams are there: nothing from the Go client, and
/// [`EARLY`] bytes at most from others.
#[derive(Debug, Default)]
struct Early {
    events: Vec<Event>,
    bytes: usize,
}

impl Early {
    fn keep(&mut self, event: Event) -> Result<(), Lost> {
        // An event takes room, too, however few bytes it carries.
        self.bytes += 64;
        let event = match event {
            Event::Data { id, bytes } => {
                self.bytes += bytes.len();
                let bytes = Bytes::copy_from_slice(&bytes);
                Event::Data { id, bytes }
            }
            other => other,
        };
        if self.bytes > EARLY {
            return Err(Lost::Protocol("too much data before all streams".into()));
        }
        self.events.push(event);
        Ok(())
    }
}

/// One event while streams are missing.
async fn opening(
    event: Event,
    ids: &mut Ids,
    early: &mut Early,
    out: &mpsc::Sender<Out>,
) -> Result<(), Lost> {
    let answer = match event {
        Event::Open { id, headers } => {
            let fresh = id % 2 == 1 && ids.all().into_iter().flatten().all(|known| known < id);
            if !fresh {
                return Err(Lost::Protocol("a stream's number is not new".into()));
            }
            match headers.get("streamtype").and_then(|kind| ids.place(kind)) {
                Some(place @ None) => {
                    *place = Some(id);
                    Out::Reply(id)
                }
                _ => Out::Reset(id, Reason::Protocol),
            }
        }
        Event::Ping(id) => Out::Pong(id),
        Event::Data { .. } | Event::End(_) => return early.keep(event),
        Event::Reset(_) | Event::Leave => return Err(Lost::Closed),
    };
    out.send(answer).await.map_err(|_| Lost::Closed)
}

impl Ears {
    /// Hears the client until it is gone.
    async fn listen<S: Source>(
        mut self,
        source: &mut S,
        out: &mpsc::Sender<Out>,
        connection: &Connection,
    ) {
        for event in std::mem::take(&mut self.early) {
            if !self.hear(event, out, connection).await {
                return;
            }
        }
        loop {
            let event = match source.next().await {
                Ok(event) => event,
                Err(Lost::Closed) => return,
                Err(error) => {
                    debug!(error = &error as &dyn std::error::Error, "client lost");
                    return;
                }
            };
            if !self.hear(event, out, connection).await {
                return;
            }
        }
    }

    /// One event; whether to go on.
    async fn hear(
        &mut self,
        event: Event,
        out: &mpsc::Sender<Out>,
        connection: &Connection,
    ) -> bool {
        let answer = match event {
            Event::Data { id, bytes } if Some(id) == self.ids.stdin => {
                return self.stdin(bytes, out, connection).await;
            }
            Event::Data { id, bytes } if Some(id) == self.ids.resize => {
                if let Some(size) = self.sizes.hear(&bytes) {
                    self.newest.send_replace(Some(size));
                }
                return true;
            }
            Event::End(id) | Event::Reset(id) if Some(id) == self.ids.stdin => {
                self.stdin = None;
                return true;
            }
            Event::Reset(id) => {
                for stream in self.outgoing.iter().filter(|stream| stream.id == id) {
                    stream.flow.cut();
                }
                return true;
            }
            Event::Data { .. } | Event::End(_) => return true,
            // The Go client says so when it closes the connection.
            Event::Leave => return false,
            Event::Open { id, .. } => Out::Reset(id, Reason::Refused),
            Event::Ping(id) => Out::Pong(id),
        };
        // Nobody takes it once all is said, or when the connection is lost.
        out.send(answer).await.ok();
        true
    }

    async fn stdin(
        &mut self,
        bytes: Bytes,
        out: &mpsc::Sender<Out>,
        connection: &Connection,
    ) -> bool {
        let Some(stdin) = &self.stdin else {
            return true;
        };
        match delivery::deliver(bytes, stdin, out, connection, &mut self.finishing).await {
            Delivered::Taken => true,
            Delivered::Unwanted => {
                self.stdin = None;
                true
            }
            Delivered::HungUp => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A piece is a part of what was read at once, 16 KiB and more, and would keep all of it.
    #[test]
    fn what_comes_early_keeps_no_more_than_what_it_counts() {
        let read = Bytes::from(vec![1; 16 * 1024]);
        let mut early = Early::default();
        let bytes = read.slice(8..9);
        early.keep(Event::Data { id: 3, bytes }).unwrap();
        assert!(read.is_unique());
        assert!(matches!(&early.events[..], [Event::Data { id: 3, bytes }] if bytes[..] == [1]));
    }
}
