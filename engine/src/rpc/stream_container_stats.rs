//! StreamContainerStats: ListContainerStats in pieces.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::{Streamed, list_container_stats, pieces};
use crate::context::Engine;

/// What ListContainerStats answers.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::StreamContainerStatsRequest,
) -> Result<Streamed<v1::StreamContainerStatsResponse>, Status> {
    let v1::StreamContainerStatsRequest { filter } = request;
    let list =
        list_container_stats::handle(engine, v1::ListContainerStatsRequest { filter }).await?;
    Ok(pieces::of(list.stats, |container_stats| {
        v1::StreamContainerStatsResponse { container_stats }
    }))
}
