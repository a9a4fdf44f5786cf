//! ImageStatus, from the store's snapshot in memory; the whole configuration, for who
//! asks for it, from the store's database.

use std::collections::HashMap;
use std::sync::Arc;

use proto::v1;
use serde_json::json;
use tonic::Status;

use crate::context::Engine;
use crate::convert::image::{name_from_proto, to_proto};
use crate::status;

/// One image; an image that is not present is an answer, not an error.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::ImageStatusRequest,
) -> Result<v1::ImageStatusResponse, Status> {
    let v1::ImageStatusRequest { image, verbose } = request;
    let name = name_from_proto(image).map_err(|error| status::bad_request(&error))?;
    super::about("image", &name);
    let found = engine.images.find(&name);
    let info = match &found {
        Some(image) if verbose => {
            let configuration = engine.images.configuration(&image.id).await;
            let configuration = configuration.map_err(|error| status::configuration(&error))?;
            let text = json!({ "imageSpec": configuration });
            HashMap::from([("info".to_owned(), text.to_string())])
        }
        _ => HashMap::new(),
    };
    Ok(v1::ImageStatusResponse {
        image: found.map(|image| to_proto(&image)),
        info,
    })
}
