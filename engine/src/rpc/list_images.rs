//! ListImages, from the store's snapshot in memory.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::context::Engine;
use crate::convert::image::{filter_from_proto, to_proto};

/// All images, or the one that the filter names.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::ListImagesRequest,
) -> Result<v1::ListImagesResponse, Status> {
    let v1::ListImagesRequest { filter } = request;
    Ok(v1::ListImagesResponse {
        images: matching(engine, filter),
    })
}

/// The images that a filter leaves.
fn matching(engine: &Engine, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
    match filter_from_proto(filter) {
        Some(name) => engine
            .images
            .find(&name)
            .iter()
            .map(|image| to_proto(image))
            .collect(),
        None => engine
            .images
            .list()
            .iter()
            .map(|image| to_proto(image))
            .collect(),
    }
}
