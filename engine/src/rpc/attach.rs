//! Attach: the URL at which a client gets a container's own streams.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::exec::wants;
use super::must_find;
use crate::context::Engine;
use crate::pod::error::PodError;
use crate::pod::exec::Ready;
use crate::status;
use crate::stream::Session;

/// Checks what is asked for; the client is attached when it connects.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::AttachRequest,
) -> Result<v1::AttachResponse, Status> {
    let v1::AttachRequest {
        container_id,
        stdin,
        tty,
        stdout,
        stderr,
    } = request;
    let unknown = PodError::NoContainer(container_id.clone());
    let found = engine.index.container(&container_id);
    let (pod, container) = must_find(found, "container_id", &container_id, &unknown)?;
    super::about("pod_sandbox_id", pod.id.as_str());
    let wants = wants(tty, stdin, stdout, stderr)?;
    Ready::of(engine, &pod, &container).map_err(|error| status::pod(&error))?;
    let session = Session::Attach {
        container: container.id.clone(),
        wants,
    };
    let url = engine.streams.expect(session);
    let url = url.map_err(|error| status::too_many_sessions(&error))?;
    Ok(v1::AttachResponse { url })
}
