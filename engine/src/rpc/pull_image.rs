//! PullImage.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::context::Engine;
use crate::convert::image::{auth_from_proto, name_from_proto};
use crate::status;

/// Brings an image in, or joins the pull that is doing so. The store ends the
/// work when the last of those who wait goes away.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::PullImageRequest,
) -> Result<v1::PullImageResponse, Status> {
    let v1::PullImageRequest {
        image,
        auth,
        // For signature rules per namespace; there are none yet.
        sandbox_config: _,
    } = request;
    let name = name_from_proto(image).map_err(|error| status::bad_request(&error))?;
    super::about("image", &name);
    let pulled = engine.images.pull(&name, auth_from_proto(auth)).await;
    let pulled = pulled.map_err(|error| status::pull(&error))?;
    tracing::info!(image = name, id = %pulled.id, "image pulled");
    Ok(v1::PullImageResponse {
        image_ref: pulled.id.to_string(),
    })
}
