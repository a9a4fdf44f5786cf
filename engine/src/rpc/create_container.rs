//! CreateContainer: from a configuration to a container that waits for its start.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::{ask, must_find};
use crate::context::Engine;
use crate::convert::{container, missing, sandbox};
use crate::pod::error::PodError;
use crate::pod::task::Command;
use crate::status;

/// Makes the container, or joins the call that is making it.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::CreateContainerRequest,
) -> Result<v1::CreateContainerResponse, Status> {
    let v1::CreateContainerRequest {
        pod_sandbox_id,
        config,
        sandbox_config,
    } = request;
    let unknown = || PodError::NoPod(pod_sandbox_id.clone());
    let index = &engine.index;
    let found = index.pod(&pod_sandbox_id);
    let pod = must_find(found, "pod_sandbox_id", &pod_sandbox_id, &unknown())?;
    let config = config.ok_or_else(|| status::bad_request(&missing("config")))?;
    let config = sandbox::around_container(sandbox_config, &pod.config)
        .and_then(|around| container::from_proto(config, &around))
        .map_err(|error| status::bad_request(&error))?;
    let inbox = index
        .inbox(pod.id.as_str())
        .found()
        .ok_or_else(|| status::pod(&unknown()))?;
    let id = ask(engine, &inbox, |reply| {
        Command::Create(Box::new(config), reply)
    })
    .await?;
    let id = id.ok_or_else(|| status::pod(&unknown()))?;
    super::about("container_id", id.as_str());
    Ok(v1::CreateContainerResponse {
        container_id: id.to_string(),
    })
}
