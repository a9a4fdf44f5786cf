//! StreamImages: ListImages in pieces.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::{Streamed, list_images, pieces};
use crate::context::Engine;

/// What ListImages answers.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::StreamImagesRequest,
) -> Result<Streamed<v1::StreamImagesResponse>, Status> {
    let v1::StreamImagesRequest { filter } = request;
    let list = list_images::handle(engine, v1::ListImagesRequest { filter }).await?;
    Ok(pieces::of(list.images, |images| v1::StreamImagesResponse {
        images,
    }))
}
