//! UpdateContainerResources.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::{ask, container_inbox, must_find};
use crate::context::Engine;
use crate::convert::resources;
use crate::pod::error::PodError;
use crate::pod::task::Command;
use crate::status;

/// Changes the limits that are given: all of them or, on an error, none.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::UpdateContainerResourcesRequest,
) -> Result<v1::UpdateContainerResourcesResponse, Status> {
    let v1::UpdateContainerResourcesRequest {
        container_id,
        linux,
        windows: _,
        // For plugins that watch updates; there are none yet.
        annotations: _,
    } = request;
    let unknown = || PodError::NoContainer(container_id.clone());
    let found = container_inbox(engine, &container_id);
    let (inbox, id) = must_find(found, "container_id", &container_id, &unknown())?;
    let update = resources::from_proto("linux", linux.unwrap_or_default())
        .map_err(|error| status::bad_request(&error))?;
    let done = ask(engine, &inbox, |reply| Command::Update(id, update, reply)).await?;
    done.map(|()| v1::UpdateContainerResourcesResponse {})
        .ok_or_else(|| status::pod(&unknown()))
}
