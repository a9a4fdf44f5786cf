//! ListMetricDescriptors.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::context::Engine;
use crate::convert::metrics;
use crate::pod_metrics::counted;
use crate::status;

/// The metrics that this machine has of every pod or container.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::ListMetricDescriptorsRequest,
) -> Result<v1::ListMetricDescriptorsResponse, Status> {
    let v1::ListMetricDescriptorsRequest {} = request;
    let counted = counted(engine).await.map_err(|error| status::pod(&error))?;
    Ok(v1::ListMetricDescriptorsResponse {
        descriptors: metrics::descriptors(&counted),
    })
}
