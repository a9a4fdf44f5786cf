//! StreamImages: ListImages in pieces.

use std::sync::Arc;

use proto::v1;
use tokio_stream::iter;
use tonic::Status;

use super::Streamed;
use super::list_images::matching;
use crate::context::Engine;

/// How many images go into one message: far below the largest one allowed.
const PIECE: usize = 256;

/// All images, or the one that the filter names.
#[expect(
    clippy::unnecessary_wraps,
    reason = "every handler of a stream may refuse"
)]
pub(crate) fn handle(
    engine: &Arc<Engine>,
    request: v1::StreamImagesRequest,
) -> Result<Streamed<v1::StreamImagesResponse>, Status> {
    let v1::StreamImagesRequest { filter } = request;
    let images = matching(engine, filter);
    let pieces: Vec<_> = images
        .chunks(PIECE)
        .map(|piece| {
            Ok(v1::StreamImagesResponse {
                images: piece.to_vec(),
            })
        })
        .collect();
    Ok(Box::pin(iter(pieces)))
}
