//! Sessions with a command, or with a container's own streams.
//!
//! A command ends when its client goes away; a container goes on. Either way the client
//! learns the end when it has got all that was written before.

use std::io;
use std::sync::Arc;

use runtime::client::{Attachment, ExecExit, ExecStreams};
use streaming::{Channels, Outcome};

use super::pipes::{self, pass_in, pass_out};
use super::terminal;
use crate::causes::with_causes;
use crate::context::Engine;
use crate::ids::ContainerId;
use crate::pod::error::PodError;
use crate::pod::exec::{Ready, exec_error, ready};
use crate::pod::index::Lookup;

/// Runs a command with the client's streams.
pub(super) async fn exec(
    engine: &Engine,
    container: &ContainerId,
    words: Vec<String>,
    channels: Channels,
) {
    let Channels {
        stdin,
        stdout,
        stderr,
        sizes,
        outcome,
        gone,
        tty,
    } = channels;
    let work = async {
        let ready = find(engine, container)?;
        if tty {
            let (expected, socket) = terminal::expect().map_err(no_terminal)?;
            let order = ready.order(words, ExecStreams::Terminal(socket), true)?;
            let command = ready.monitor.exec(order);
            let mut output = stdout;
            let exchange = async {
                // Without one the command's own failure says more.
                let terminal = expected.arrives().await.ok()?;
                let reading = terminal.pass_out(&mut output);
                let writing = async {
                    if let Some(stdin) = stdin {
                        terminal.pass_in(stdin).await;
                    }
                    // The terminal outlives what the client writes.
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = reading => {}
                    () = writing => {}
                    () = terminal.follow(sizes) => {}
                }
                Some(terminal)
            };
            ready.ended(command, exchange).await
        } else {
            let pipe = |made: io::Result<_>| made.map_err(no_pipe);
            let (from_stdout, stdout_end) = pipe(pipes::to_read())?;
            let (from_stderr, stderr_end) = pipe(pipes::to_read())?;
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
            let order = ready.order(words, streams, true)?;
            let command = ready.monitor.exec(order);
            todo_exchange(command, from_stdout, from_stderr, stdout, stderr, writing).await
        }
    };
    let _ = (work, outcome, gone);
}
