//! PortForward: the URL at which a client connects to ports of a pod.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::must_find;
use crate::context::Engine;
use crate::convert::wrong;
use crate::pod::error::PodError;
use crate::status;
use crate::stream::Session;

/// Checks what is asked for; connections are made when the client asks for them.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::PortForwardRequest,
) -> Result<v1::PortForwardResponse, Status> {
    let v1::PortForwardRequest {
        pod_sandbox_id,
        port,
    } = request;
    let unknown = PodError::NoPod(pod_sandbox_id.clone());
    let found = engine.index.pod(&pod_sandbox_id);
    let pod = must_find(found, "pod_sandbox_id", &pod_sandbox_id, &unknown)?;
    if !pod.ready {
        let error = PodError::State {
            what: format!("sandbox {}", pod.id),
            state: "not ready".to_owned(),
        };
        return Err(status::pod(&error));
    }
    let ports = port.iter().map(|port| match u16::try_from(*port) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(wrong("port", format!("{port} is no TCP port"))),
    });
    let ports: Result<Vec<u16>, _> = ports.collect();
    let session = Session::Ports {
        pod: pod.id.clone(),
        ports: ports.map_err(|error| status::bad_request(&error))?,
    };
    let url = engine.streams.expect(session);
    let url = url.map_err(|error| status::too_many_sessions(&error))?;
    Ok(v1::PortForwardResponse { url })
}
