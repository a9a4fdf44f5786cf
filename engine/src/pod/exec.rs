//! Runs a command in a container and collects what it prints.
//!
//! The pipes go from the command straight to the engine; the monitor only starts
//! it and reports its end. What the command itself wrote before it ended is in
//! the pipes by then, so a grandchild that keeps them open holds nobody up.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use runtime::client::{ExecExit, ExecProcess, MonitorError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::error::PodError;
use super::view::{ContainerView, PodView};
use crate::engine::Engine;

/// The most that is answered of either stream: half of what a client takes, so
/// that both fit. The rest is read and thrown away.
const MAX_OUTPUT: usize = proto::MAX_MESSAGE_BYTES / 2 - 1024;

/// What became of the command.
pub(crate) struct Output {
    pub(crate) stdout: Bytes,
    pub(crate) stderr: Bytes,
    pub(crate) exit_code: i32,
}

/// Runs `words` in a container that runs; a timeout of 0 means none.
pub(crate) async fn exec_sync(
    engine: &Engine,
    pod: &PodView,
    container: &Arc<ContainerView>,
    words: Vec<String>,
    timeout: i64,
) -> Result<Output, PodError> {
    let state = || PodError::State {
        what: format!("container {}", container.id),
        state: container.state.word().to_owned(),
    };
    if !container.state.is_running() {
        return Err(state());
    }
    let (Some(monitor), Some(template)) = (&pod.monitor, &container.process) else {
        return Err(state());
    };
    let mut process = (**template).clone();
    process.set_args(Some(words)).set_terminal(Some(false));
    let pipe = || nonblocking_pipe().map_err(|error| PodError::runtime("make a pipe", error));
    let ((stdout, stdout_end), (stderr, stderr_end)) = (pipe()?, pipe()?);
    let seconds = u64::try_from(timeout).unwrap_or(0);
    let order = ExecProcess {
        container: container.id.to_string(),
        process,
        stdin: None,
        stdout: stdout_end,
        stderr: stderr_end,
        timeout: (seconds > 0).then(|| Duration::from_secs(seconds)),
        cgroup_procs: engine.cgroups.open(&container.cgroup).procs_files(),
    };
    let mut out = Collector::new(stdout);
    let mut err = Collector::new(stderr);
    let ended = monitor.exec(order);
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
    match exit.map_err(|error| exec_error(container, error))? {
        ExecExit::Exited { code } => {
            Ok(Output { stdout: out.bytes.into(), stderr: err.bytes.into(), exit_code: code })
        }
        ExecExit::TimedOut => Err(PodError::Timeout(timeout)),
    }
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
fn nonblocking_pipe() -> io::Result<(AsyncFd<std::fs::File>, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    let file = std::fs::File::from(read);
    Ok((AsyncFd::with_interest(file, Interest::READABLE)?, write))
}

struct Collector {
    pipe: AsyncFd<std::fs::File>,
    bytes: Vec<u8>,
    finished: bool,
}

impl Collector {
    fn new(pipe: AsyncFd<std::fs::File>) -> Self {
        Self { pipe, bytes: Vec::new(), finished: false }
    }

    /// Waits until there is something to read, and reads it.
    async fn more(&mut self) {
        let Ok(mut guard) = self.pipe.readable().await else {
            self.finished = true;
            return;
        };
        let mut buffer = [0_u8; 16 * 1024];
        match guard.try_io(|pipe| pipe.get_ref().read(&mut buffer)) {
            Ok(Ok(0) | Err(_)) => self.finished = true,
            Ok(Ok(read)) => self.keep(&buffer[..read]),
            // Not readable after all.
            Err(_) => {}
        }
    }

    /// What is in the pipe now, without waiting.
    fn rest(&mut self) {
        let mut buffer = [0_u8; 16 * 1024];
        // A pipe holds at most 1 MiB; more can only come from who still writes.
        for _ in 0..64 {
            match self.pipe.get_ref().read(&mut buffer) {
                Ok(read @ 1..) => self.keep(&buffer[..read]),
                _ => return,
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = MAX_OUTPUT - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}
