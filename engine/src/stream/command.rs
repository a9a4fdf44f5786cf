//! Sessions with a command, or with a container's own streams.
//!
//! A command ends with its client; a container goes on. A client learns of the end when
//! it has got all that was written before. Who ends what he types into a container is
//! detached, as with containerd and CRI-O: so crictl's keys for that let go of it. Only of
//! a container whose input ends with its first client (`stdin_once`, without a terminal) he
//! goes on to read, to its end.

use std::future::pending;
use std::io;

use runtime::client::{Attachment, ExecExit, ExecStreams};
use streaming::{Channels, Gone, Input, Outcome, Output, Size};
use tokio::sync::mpsc;

use super::pipes::{self, EndedBy, pass_in, pass_out};
use super::terminal::{self, Terminal};
use crate::causes::with_causes;
use crate::context::Engine;
use crate::ids::ContainerId;
use crate::pod::error::PodError;
use crate::pod::exec::{Ready, Run};
use crate::pod::index::Lookup;

/// Runs a command with the client's streams.
pub(super) async fn exec(
    engine: &Engine,
    container: &ContainerId,
    words: Vec<String>,
    tty: bool,
    channels: Channels,
) {
    let Channels {
        stdin,
        stdout,
        stderr,
        sizes,
        outcome,
        gone,
    } = channels;
    let work = async {
        let ready = find(engine, container)?;
        let exit = if tty {
            with_terminal(ready, words, (stdin, stdout, sizes)).await?
        } else {
            with_pipes(ready, words, stdin, stdout, stderr).await?
        };
        match exit {
            ExecExit::Exited { code } => Ok(code),
            // It has no limit.
            ExecExit::TimedOut => Err(PodError::Timeout(0)),
        }
    };
    end(work, outcome, &gone).await;
}

/// Connects the client to a container's own streams.
pub(super) async fn attach(
    engine: &Engine,
    container: &ContainerId,
    tty: bool,
    channels: Channels,
) {
    let Channels {
        stdin,
        stdout,
        stderr,
        sizes,
        outcome,
        gone,
    } = channels;
    let work = async {
        let ready = find(engine, container)?;
        // Always there: its end is the container's.
        let (from_stdout, stdout_end) = pipes::roomy_to_read().map_err(no_pipe)?;
        let mut attachment = Attachment {
            container: container.to_string(),
            stdin: None,
            stdout: Some(stdout_end),
            stderr: None,
            terminal: None,
        };
        if tty && ready.has_terminal() {
            let (expected, socket) = terminal::expect().map_err(no_terminal)?;
            attachment.terminal = Some(socket);
            ready.attach(attachment).await?;
            let terminal = expected.arrives().await.map_err(no_terminal)?;
            let typing = stdin.map(|input| terminal.pass_in(input));
            tokio::select! {
                () = pass_out(from_stdout, stdout) => {}
                () = detached(typing) => {}
                () = and_then_nothing(Some(terminal.follow(sizes))) => {}
            }
        } else {
            let (from_stderr, stderr_end) = pipes::roomy_to_read().map_err(no_pipe)?;
            attachment.stderr = Some(stderr_end);
            let writing = match stdin {
                Some(input) if ready.has_input() => {
                    let (end, to_stdin) = pipes::to_write().map_err(no_pipe)?;
                    attachment.stdin = Some(end);
                    Some(pass_in(input, to_stdin))
                }
                // It reads nothing, whatever is written.
                _ => None,
            };
            let stays = ready.input_ends_with_client();
            ready.attach(attachment).await?;
            let reading = async {
                tokio::join!(pass_out(from_stdout, stdout), pass_out(from_stderr, stderr))
            };
            let writing = async {
                if stays {
                    and_then_nothing(writing).await;
                } else {
                    detached(writing).await;
                }
            };
            tokio::select! {
                ((), ()) = reading => {}
                () = writing => {}
            }
        }
        // How a container has ended is in its status.
        Ok(0)
    };
    end(work, outcome, &gone).await;
}

/// Tells the client what became of the work; a client that is gone ends it.
async fn end(work: impl Future<Output = Result<i32, PodError>>, outcome: Outcome, gone: &Gone) {
    let done = tokio::select! {
        done = work => done,
        () = gone.wait() => return,
    };
    match done {
        Ok(code) => outcome.exited(code).await,
        Err(error) => outcome.failed(&with_causes(&error)).await,
    }
}

fn find(engine: &Engine, id: &ContainerId) -> Result<Ready, PodError> {
    match engine.index.container(id.as_str()) {
        Lookup::Found((pod, container)) => Ready::of(engine, &pod, &container),
        Lookup::Unknown | Lookup::Ambiguous => Err(PodError::NoContainer(id.to_string())),
    }
}

async fn with_pipes(
    ready: Ready,
    words: Vec<String>,
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
) -> Result<ExecExit, PodError> {
    let (from_stdout, stdout_end) = pipes::to_read().map_err(no_pipe)?;
    let (from_stderr, stderr_end) = pipes::to_read().map_err(no_pipe)?;
    let (stdin_end, writing) = match stdin {
        Some(input) => {
            let (end, to_stdin) = pipes::to_write().map_err(no_pipe)?;
            (Some(end), Some(pass_in(input, to_stdin)))
        }
        None => (None, None),
    };
    let streams = ExecStreams::Pipes {
        stdin: stdin_end,
        stdout: stdout_end,
        stderr: stderr_end,
    };
    let running = ready.run(words, streams, Run::Streaming);
    let reading = async {
        // Both end with the command: the monitor lets go of them then.
        let (exit, (), ()) = tokio::join!(
            running,
            pass_out(from_stdout, stdout),
            pass_out(from_stderr, stderr)
        );
        exit
    };
    tokio::select! {
        exit = reading => exit,
        () = and_then_nothing(writing) => unreachable!("it never ends"),
    }
}

async fn with_terminal(
    ready: Ready,
    words: Vec<String>,
    (stdin, stdout, sizes): (Option<Input>, Option<Output>, mpsc::Receiver<Size>),
) -> Result<ExecExit, PodError> {
    let (expected, socket) = terminal::expect().map_err(no_terminal)?;
    let running = ready.run(words, ExecStreams::Terminal(socket), Run::Streaming);
    tokio::pin!(running);
    let terminal = tokio::select! {
        terminal = expected.arrives() => match terminal {
            Ok(terminal) => terminal,
            // Why there is none is what the command's failure says.
            Err(_) => return running.await,
        },
        // It may have ended as soon as it had sent its terminal.
        exit = &mut running => match expected.arrived() {
            Some(terminal) => {
                let mut output = stdout;
                return terminal.pass_out(&mut output, std::future::ready(exit)).await;
            }
            None => return exit,
        },
    };
    let mut output = stdout;
    tokio::select! {
        exit = terminal.pass_out(&mut output, running) => exit,
        () = control(&terminal, stdin, sizes) => unreachable!("it never ends"),
    }
}

/// Passes on what the client types and how large his terminal is; never ends.
async fn control(terminal: &Terminal, stdin: Option<Input>, sizes: mpsc::Receiver<Size>) {
    let typing = async {
        if let Some(input) = stdin {
            terminal.pass_in(input).await;
        }
    };
    tokio::join!(typing, terminal.follow(sizes));
    pending().await
}

/// Does the work, if there is any; never ends.
async fn and_then_nothing<T>(work: Option<impl Future<Output = T>>) {
    if let Some(work) = work {
        work.await;
    }
    pending().await
}

/// Passes on what the client writes, if he does, and ends when he ends that.
async fn detached(writing: Option<impl Future<Output = EndedBy>>) {
    if let Some(writing) = writing
        && writing.await == EndedBy::Client
    {
        return;
    }
    pending().await
}

fn no_pipe(error: io::Error) -> PodError {
    PodError::runtime("make a pipe", error)
}

fn no_terminal(error: io::Error) -> PodError {
    PodError::runtime("receive the terminal", error)
}
