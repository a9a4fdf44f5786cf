//! ContainerStatus, from the views alone.

use std::collections::HashMap;
use std::sync::Arc;

use proto::v1;
use runtime::cgroup::CgroupPath;
use serde_json::json;
use tonic::Status;

use super::must_find;
use crate::context::Engine;
use crate::convert::status::container;
use crate::pod::error::PodError;
use crate::pod::view::ContainerView;

/// State and effective settings of one container.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::ContainerStatusRequest,
) -> Result<v1::ContainerStatusResponse, Status> {
    let v1::ContainerStatusRequest {
        container_id,
        verbose,
    } = request;
    let unknown = PodError::NoContainer(container_id.clone());
    let found = engine.index.container(&container_id);
    let (_, view) = must_find(found, "container_id", &container_id, &unknown)?;
    Ok(v1::ContainerStatusResponse {
        status: Some(container(&view)),
        info: if verbose { info(&view) } else { HashMap::new() },
    })
}

fn info(view: &ContainerView) -> HashMap<String, String> {
    let text = json!({
        "pid": view.pid,
        "sandboxID": view.pod,
        "cgroup": view.cgroup.as_ref().map_or("", CgroupPath::as_str),
        "process": view.process.as_deref(),
        "config": *view.config,
    });
    HashMap::from([("info".to_owned(), text.to_string())])
}
