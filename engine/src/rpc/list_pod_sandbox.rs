//! ListPodSandbox, from the views alone.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::context::Engine;
use crate::convert::filter::SandboxFilter;
use crate::convert::status::pod_line;
use crate::status;

/// All sandboxes that match.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::ListPodSandboxRequest,
) -> Result<v1::ListPodSandboxResponse, Status> {
    let v1::ListPodSandboxRequest { filter } = request;
    let filter = SandboxFilter::from_proto(filter).map_err(|error| status::bad_request(&error))?;
    let pods = engine.index.list();
    let items = pods
        .iter()
        .filter(|pod| filter.matches(pod))
        .map(|pod| pod_line(pod))
        .collect();
    Ok(v1::ListPodSandboxResponse { items })
}
