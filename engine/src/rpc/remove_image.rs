//! RemoveImage.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::context::Engine;
use crate::convert::image::name_from_proto;
use crate::status;

/// Removes an image with all its names; an unknown one is removed. Layers that a
/// container stands on stay until it is removed.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::RemoveImageRequest,
) -> Result<v1::RemoveImageResponse, Status> {
    let v1::RemoveImageRequest { image } = request;
    let name = name_from_proto(image).map_err(|error| status::bad_request(&error))?;
    super::about("image", &name);
    engine
        .images
        .remove(&name)
        .await
        .map_err(|error| status::remove_image(&error))?;
    Ok(v1::RemoveImageResponse {})
}
