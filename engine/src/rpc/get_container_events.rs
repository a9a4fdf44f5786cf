//! GetContainerEvents: what happens to pods and containers, as it happens.

use std::sync::Arc;

use futures::stream::unfold;
use proto::v1;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use super::Streamed;
use crate::context::Engine;
use crate::convert::status::event;

/// All events from now on, in order, each with the status of its pod. A client that does
/// not read in time is told that it has missed some, by the end of the stream.
#[expect(
    clippy::unnecessary_wraps,
    reason = "every handler of a stream may refuse"
)]
pub(crate) fn handle(
    engine: &Arc<Engine>,
    request: v1::GetEventsRequest,
) -> Result<Streamed<v1::ContainerEventResponse>, Status> {
    let v1::GetEventsRequest {} = request;
    let events = engine.index.events().listen();
    Ok(Box::pin(unfold(Some(events), |events| async {
        let mut events = events?;
        match events.recv().await {
            Ok(told) => Some((Ok(event(&told)), Some(events))),
            Err(RecvError::Closed) => None,
            Err(RecvError::Lagged(missed)) => {
                let message = format!("{missed} events were not read in time: list again");
                Some((Err(Status::data_loss(message)), None))
            }
        }
    })))
}
