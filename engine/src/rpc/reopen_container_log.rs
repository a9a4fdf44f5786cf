//! ReopenContainerLog.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::{ask, container_inbox, must_find};
use crate::context::Engine;
use crate::pod::error::PodError;
use crate::pod::task::Command;
use crate::status;

/// Opens the log file anew after a rotation.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::ReopenContainerLogRequest,
) -> Result<v1::ReopenContainerLogResponse, Status> {
    let v1::ReopenContainerLogRequest { container_id } = request;
    let unknown = || PodError::NoContainer(container_id.clone());
    let found = container_inbox(engine, &container_id);
    let (inbox, id) = must_find(found, "container_id", &container_id, &unknown())?;
    let done = ask(engine, &inbox, |reply| Command::ReopenLog(id, reply)).await?;
    done.map(|()| v1::ReopenContainerLogResponse {})
        .ok_or_else(|| status::pod(&unknown()))
}
