//! Runs a command in a container and collects what it prints.
//!
//! The pipes go from the command straight to the engine; the monitor only starts
//! it and reports its end. What the command itself wrote before it ended is in
//! the pipes by then, so a grandchild that keeps them open holds nobody up.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use runtime::client::{Attachment, ExecExit, ExecProcess, ExecStreams, Monitor, MonitorError};
use runtime::spec::Process;
use runtime::spec::oci::read_process;
use tokio::net::unix::pipe::Receiver;

use super::error::PodError;
use super::view::{ContainerView, PodView};
use crate::context::Engine;

/// The most that is kept of either stream. The rest is read and thrown away.
const MAX_STREAM: usize = 16 * 1024 * 1024;
/// The most that is answered of both: what the kubelet takes as one message, with
/// room for the rest of it.
const MAX_ANSWER: usize = proto::MAX_MESSAGE_BYTES - 1024;

/// What is kept of each stream whatever others have: a probe's answer.
const OWN: usize = 64 * 1024;
/// The most that is kept of all streams at once beside that: commands that flood must
/// not fill the node's memory, however many run.
const MAX_KEPT: usize = 128 * 1024 * 1024;
/// What is kept now, until the client has read it.
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// The most that is read at once.
const PIECE: usize = 16 * 1024;

/// Room for the word about what was cut off.
const WORD: usize = 128;

/// What became of the command.
pub(crate) struct Output {
    pub(crate) stdout: Bytes,
    pub(crate) stderr: Bytes,
    pub(crate) exit_code: i32,
    /// The room that both take; to be held until the client has them.
    pub(crate) room: [Room; 2],
}

/// A container that runs, and in which a command can be run.
pub(crate) struct Ready {
    monitor: Monitor,
    container: Arc<ContainerView>,
    process: Process,
    cgroup_files: Vec<PathBuf>,
}

/// How a command is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// Its output is collected; after so many seconds it is ended, 0: never.
    Collecting(u64),
    /// Somebody reads its output as it comes.
    Streaming,
}

impl Ready {
    /// Looks whether a container can run commands.
    pub(crate) fn of(
        engine: &Engine,
        pod: &PodView,
        container: &Arc<ContainerView>,
    ) -> Result<Self, PodError> {
        let state = || PodError::State {
            what: format!("container {}", container.id),
            state: container.state.word().to_owned(),
        };
        if !container.state.is_running() {
            return Err(state());
        }
        // Its monitor is being looked for, or its sandbox's record cannot be read.
        let Some(monitor) = pod.monitor.clone() else {
            return Err(PodError::MonitorSilent);
        };
        // Both are known of a container whose record can be read.
        let (Some(template), Some(cgroup)) = (&container.process, &container.cgroup) else {
            return Err(state());
        };
        let mut process =
            read_process(template).map_err(|error| exec_error(container, error.into()))?;
        if let Some(pairs) = &container.raw_environment {
            process.env = pairs.iter().map(|pair| pair.0.clone()).collect();
        }
        Ok(Self {
            monitor,
            container: Arc::clone(container),
            process,
            cgroup_files: engine.cgroups.open(cgroup).files_to_join(),
        })
    }

    /// Whether its own streams are a terminal.
    pub(crate) fn has_terminal(&self) -> bool {
        self.container.config.tty
    }

    /// Whether it reads what clients write.
    pub(crate) fn has_input(&self) -> bool {
        self.container.config.stdin
    }

    /// Whether its input ends with what the first client writes: a terminal's does not.
    pub(crate) fn input_ends_with_client(&self) -> bool {
        self.container.config.stdin_once && !self.container.config.tty
    }

    /// Runs a command. Dropped, it ends the command.
    pub(crate) async fn run(
        self,
        words: Vec<String>,
        streams: ExecStreams,
        run: Run,
    ) -> Result<ExecExit, PodError> {
        let mut process = self.process;
        process.args = words;
        process.terminal = matches!(streams, ExecStreams::Terminal(_));
        if process.terminal && !process.env.iter().any(|pair| pair.starts_with(b"TERM=")) {
            process.env.push(b"TERM=xterm".to_vec());
        }
        let timeout = match run {
            Run::Collecting(0) | Run::Streaming => None,
            Run::Collecting(seconds) => Some(Duration::from_secs(seconds)),
        };
        let order = ExecProcess {
            container: self.container.id.to_string(),
            process,
            streams,
            streaming: run == Run::Streaming,
            timeout,
            cgroup_files: self.cgroup_files,
        };
        let ended = self.monitor.exec(order).await;
        ended.map_err(|error| exec_error(&self.container, error))
    }

    /// Connects a client to its own streams.
    pub(crate) async fn attach(&self, attachment: Attachment) -> Result<(), PodError> {
        let attached = self.monitor.attach(attachment).await;
        attached.map_err(|error| exec_error(&self.container, error))
    }
}

/// Runs `words` in a container that runs; a timeout of 0 means none.
pub(crate) async fn exec_sync(
    engine: &Engine,
    pod: &PodView,
    container: &Arc<ContainerView>,
    words: Vec<String>,
    timeout: i64,
) -> Result<Output, PodError> {
    let ready = Ready::of(engine, pod, container)?;
    let pipe = || half_blocking_pipe().map_err(|error| PodError::runtime("make a pipe", error));
    let ((stdout, stdout_end), (stderr, stderr_end)) = (pipe()?, pipe()?);
    let streams = ExecStreams::Pipes {
        stdin: None,
        stdout: stdout_end,
        stderr: stderr_end,
    };
    let seconds = u64::try_from(timeout).unwrap_or(0);
    let mut out = Collector::new(stdout);
    let mut err = Collector::new(stderr);
    let ended = ready.run(words, streams, Run::Collecting(seconds));
    tokio::pin!(ended);
    let exit = loop {
        tokio::select! {
            exit = &mut ended => break exit,
            () = out.more(), if !out.finished => {}
            () = err.more(), if !err.finished => {}
        }
    };
    out.rest();
    err.rest();
    match exit? {
        ExecExit::Exited { code } => {
            fit(&mut out, &mut err);
            let lost = (out.lost, err.lost);
            if lost != (0, 0) {
                tracing::warn!(container = %container.id, stdout = lost.0, stderr = lost.1, "bytes of a command's output were cut off");
            }
            Ok(Output {
                stdout: out.bytes.into(),
                stderr: err.bytes.into(),
                exit_code: code,
                room: [out.room, err.room],
            })
        }
        ExecExit::TimedOut => Err(PodError::Timeout(timeout)),
    }
}

/// Makes both streams fit into one answer: each has half of it, and what the other
/// leaves. What was cut off is said at the end of stderr, since the API has no other
/// place for it.
fn fit(out: &mut Collector, err: &mut Collector) {
    let all = out.bytes.len() + err.bytes.len();
    if out.lost + err.lost == 0 && all <= MAX_ANSWER {
        return;
    }
    let most = MAX_ANSWER - WORD;
    let stdout = (most / 2).max(most.saturating_sub(err.bytes.len()));
    out.cut(stdout);
    err.cut(most - out.bytes.len());
    let said = format!(
        "\n[slipway: the output was cut, {} bytes of stdout and {} of stderr are lost]\n",
        out.lost, err.lost
    );
    err.bytes.extend_from_slice(said.as_bytes());
}

fn exec_error(container: &ContainerView, error: MonitorError) -> PodError {
    match error {
        MonitorError::Gone => PodError::MonitorGone,
        MonitorError::NotRunning(_) | MonitorError::UnknownContainer(_) => PodError::State {
            what: format!("container {}", container.id),
            state: "not running".to_owned(),
        },
        other => PodError::runtime(format!("exec in container {}", container.id), other),
    }
}

/// The reading end does not block; the writing end does, as programs expect.
fn half_blocking_pipe() -> io::Result<(Receiver, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((Receiver::from_owned_fd(read)?, write))
}

/// A part of what is kept of all streams at once, given back when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Room(usize);

impl Room {
    /// Takes so many bytes more, or as many as there are; tells how many.
    fn take(&mut self, wanted: usize) -> usize {
        let free = |kept: usize| wanted.min(MAX_KEPT.saturating_sub(kept));
        let take = |kept: usize| Some(kept + free(kept));
        let taken = match KEPT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(before) | Err(before) => free(before),
        };
        self.0 += taken;
        taken
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.0, Ordering::Relaxed);
    }
}

struct Collector {
    pipe: Receiver,
    bytes: Vec<u8>,
    /// Bytes that were thrown away.
    lost: u64,
    /// Of the bytes beyond its own.
    room: Room,
    finished: bool,
}

impl Collector {
    fn new(pipe: Receiver) -> Self {
        Self {
            pipe,
            bytes: Vec::new(),
            lost: 0,
            room: Room::default(),
            finished: false,
        }
    }

    /// Waits until there is something to read, and reads it.
    async fn more(&mut self) {
        if self.pipe.readable().await.is_err() {
            self.finished = true;
            return;
        }
        let mut buffer = [0_u8; PIECE];
        let read = self.pipe.try_read(&mut buffer);
        self.keep(&buffer, read);
    }

    /// Keeps so much.
    fn cut(&mut self, length: usize) {
        self.lost += self.bytes.len().saturating_sub(length) as u64;
        self.bytes.truncate(length);
    }

    /// What is in the pipe now, without waiting. The kernel is asked: the runtime may not
    /// have heard yet that there is something, and would say that there is nothing.
    fn rest(&mut self) {
        // A pipe holds at most 1 MiB; more can only come from who still writes.
        for _ in 0..64 {
            let mut buffer = [0_u8; PIECE];
            let read = rustix::io::read(&self.pipe, &mut buffer);
            if self.finished || !self.keep(&buffer, read.map_err(io::Error::from)) {
                return;
            }
        }
    }

    /// Keeps what a read gave; whether there was anything.
    fn keep(&mut self, buffer: &[u8], read: io::Result<usize>) -> bool {
        match read {
            Ok(0) => self.finished = true,
            Ok(read) => {
                let fits = read.min(MAX_STREAM.saturating_sub(self.bytes.len()));
                let own = fits.min(OWN.saturating_sub(self.bytes.len()));
                let kept = own + self.room.take(fits - own);
                self.bytes.extend_from_slice(&buffer[..kept]);
                self.lost += (read - kept) as u64;
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.finished = true,
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collector(bytes: usize) -> Collector {
        let (receiver, _) = half_blocking_pipe().unwrap();
        let mut collector = Collector::new(receiver);
        collector.bytes = vec![b'x'; bytes];
        collector
    }

    /// The runtime hears of it when a task waits.
    #[tokio::test]
    async fn what_the_runtime_has_not_heard_of_yet_is_read() {
        let (receiver, end) = half_blocking_pipe().unwrap();
        let mut collector = Collector::new(receiver);
        rustix::io::write(&end, b"printed").unwrap();
        collector.rest();
        assert_eq!(collector.bytes, b"printed");
    }

    #[tokio::test]
    async fn commands_that_flood_leave_the_others_room() {
        let (receiver, end) = half_blocking_pipe().unwrap();
        let mut collector = Collector::new(receiver);
        let mut flood = Room::default();
        flood.take(MAX_KEPT);
        rustix::io::write(&end, b"healthy").unwrap();
        collector.more().await;
        drop(flood);
        assert_eq!(
            (collector.bytes.as_slice(), collector.lost),
            (&b"healthy"[..], 0)
        );
    }

    #[tokio::test]
    async fn one_stream_may_have_the_whole_answer_and_both_fit_with_a_word() {
        let most = MAX_STREAM;
        for (stdout, stderr, kept) in [
            (1000, 1000, (1000, 1000)),
            (MAX_ANSWER - 10, 10, (MAX_ANSWER - 10, 10)),
        ] {
            let (mut out, mut err) = (collector(stdout), collector(stderr));
            fit(&mut out, &mut err);
            assert_eq!((out.bytes.len(), err.bytes.len()), kept);
            assert_eq!((out.lost, err.lost), (0, 0));
        }
        for (stdout, stderr) in [(most, most), (most, 10), (10, most), (most, 0)] {
            let (mut out, mut err) = (collector(stdout), collector(stderr));
            fit(&mut out, &mut err);
            assert!(out.bytes.len() + err.bytes.len() <= MAX_ANSWER);
            assert!(out.bytes.len() >= stdout.min(MAX_ANSWER / 2 - WORD));
            let said = String::from_utf8_lossy(&err.bytes).into_owned();
            let said = said.rsplit_once("[slipway: ").unwrap().1;
            assert!(
                said.contains(&format!("{} bytes of stdout", out.lost)),
                "{said}"
            );
        }
    }
}
