//! ListContainers, from the views alone.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::context::Engine;
use crate::convert::filter::ContainerFilter;
use crate::convert::status::container_line;
use crate::status;

/// All containers that match.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::ListContainersRequest,
) -> Result<v1::ListContainersResponse, Status> {
    let v1::ListContainersRequest { filter } = request;
    let filter =
        ContainerFilter::from_proto(filter).map_err(|error| status::bad_request(&error))?;
    let mut containers = Vec::new();
    for pod in engine.index.list() {
        let matching = pod
            .containers
            .iter()
            .filter(|container| filter.matches(&pod, container));
        containers.extend(matching.map(|container| container_line(container)));
    }
    Ok(v1::ListContainersResponse { containers })
}
