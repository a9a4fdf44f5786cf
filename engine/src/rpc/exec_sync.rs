//! ExecSync: a command in a container, its output and its exit code.

use std::sync::Arc;

use proto::v1;
use tonic::{Response, Status};

use super::must_find;
use crate::context::Engine;
use crate::convert::{missing, wrong};
use crate::layers::Held;
use crate::pod::error::PodError;
use crate::pod::exec::exec_sync;
use crate::status;

/// Runs the command; a timeout of 0 means none.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::ExecSyncRequest,
) -> Result<Response<v1::ExecSyncResponse>, Status> {
    let v1::ExecSyncRequest {
        container_id,
        cmd,
        timeout,
    } = request;
    let unknown = PodError::NoContainer(container_id.clone());
    let found = engine.index.container(&container_id);
    let (pod, container) = must_find(found, "container_id", &container_id, &unknown)?;
    super::about("pod_sandbox_id", pod.id.as_str());
    if cmd.is_empty() {
        return Err(status::bad_request(&missing("cmd")));
    }
    if timeout < 0 {
        let bad = wrong("timeout", format!("{timeout} s is negative"));
        return Err(status::bad_request(&bad));
    }
    let output = exec_sync(engine, &pod, &container, cmd, timeout)
        .await
        .map_err(|error| status::pod(&error))?;
    let mut response = Response::new(v1::ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.exit_code,
    });
    response.extensions_mut().insert(Held::new(output.room));
    Ok(response)
}
