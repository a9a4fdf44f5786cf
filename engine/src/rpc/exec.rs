//! Exec: the URL at which a client runs a command with its own streams.

use std::sync::Arc;

use proto::v1;
use streaming::Wants;
use tonic::Status;

use super::must_find;
use crate::context::Engine;
use crate::convert::{missing, wrong};
use crate::pod::error::PodError;
use crate::pod::exec::Ready;
use crate::status;
use crate::stream::Session;

/// Checks what is asked for; the command begins when somebody connects.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::ExecRequest,
) -> Result<v1::ExecResponse, Status> {
    let v1::ExecRequest {
        container_id,
        cmd,
        tty,
        stdin,
        stdout,
        stderr,
    } = request;
    let unknown = PodError::NoContainer(container_id.clone());
    let found = engine.index.container(&container_id);
    let (pod, container) = must_find(found, "container_id", &container_id, &unknown)?;
    super::about("pod_sandbox_id", pod.id.as_str());
    if cmd.is_empty() {
        return Err(status::bad_request(&missing("cmd")));
    }
    let wants = wants(tty, stdin, stdout, stderr)?;
    Ready::of(engine, &pod, &container).map_err(|error| status::pod(&error))?;
    let session = Session::Exec {
        container: container.id.clone(),
        words: cmd,
        wants,
    };
    let url = engine.streams.expect(session);
    let url = url.map_err(|error| status::too_many_sessions(&error))?;
    Ok(v1::ExecResponse { url })
}

/// The streams that a client wants: one at least, and with a terminal, which has one
/// output, no stderr.
pub(super) fn wants(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Result<Wants, Status> {
    if tty && stderr {
        let reason = "a terminal has no stderr of its own".to_owned();
        return Err(status::bad_request(&wrong("stderr", reason)));
    }
    if !(stdin || stdout || stderr) {
        let reason = "none of stdin, stdout and stderr is wanted".to_owned();
        return Err(status::bad_request(&wrong("stdout", reason)));
    }
    Ok(Wants {
        stdin,
        stdout,
        stderr,
        tty,
    })
}
