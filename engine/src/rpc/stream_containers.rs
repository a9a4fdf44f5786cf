//! StreamContainers: ListContainers in pieces.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::{Streamed, list_containers, pieces};
use crate::context::Engine;

/// What ListContainers answers.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::StreamContainersRequest,
) -> Result<Streamed<v1::StreamContainersResponse>, Status> {
    let v1::StreamContainersRequest { filter } = request;
    let list = list_containers::handle(engine, v1::ListContainersRequest { filter }).await?;
    Ok(pieces::of(list.containers, |containers| {
        v1::StreamContainersResponse { containers }
    }))
}
