//! PodSandboxStatus, from the views alone.

use std::collections::HashMap;
use std::sync::Arc;

use proto::v1;
use runtime::cgroup::CgroupPath;
use serde_json::json;
use tonic::Status;

use super::must_find;
use crate::clock::now;
use crate::context::Engine;
use crate::convert::status::{container, pod};
use crate::pod::error::PodError;
use crate::pod::view::PodView;

/// The sandbox and its containers, all from one view.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::PodSandboxStatusRequest,
) -> Result<v1::PodSandboxStatusResponse, Status> {
    let v1::PodSandboxStatusRequest {
        pod_sandbox_id,
        verbose,
    } = request;
    let unknown = PodError::NoPod(pod_sandbox_id.clone());
    let found = engine.index.pod(&pod_sandbox_id);
    let view = must_find(found, "pod_sandbox_id", &pod_sandbox_id, &unknown)?;
    Ok(v1::PodSandboxStatusResponse {
        status: Some(pod(&view)),
        info: if verbose {
            info(engine, &view)
        } else {
            HashMap::new()
        },
        containers_statuses: view.containers.iter().map(|one| container(one)).collect(),
        timestamp: now(),
    })
}

fn info(engine: &Engine, view: &PodView) -> HashMap<String, String> {
    let monitor = view.monitor.as_ref().map(runtime::client::Monitor::pid);
    let text = json!({
        // Where others have their pause container's: the monitor is in the pod's network, IPC
        // and UTS namespaces, so that what enters those of this process enters the pod's.
        "pid": monitor.unwrap_or_default(),
        "cgroup": view.cgroup.as_ref().map_or("", CgroupPath::as_str),
        "netns": view.netns,
        "runtimeSpec": shown_spec(view),
        "monitorPid": monitor,
        "transition": view.transition,
        "reason": view.reason,
        "config": *view.config,
        "resources": engine.index.told_resources(&view.id).as_deref(),
    });
    // Objects, both: of a list crictl shows the text that it is on the wire.
    let steps = json!({ "calls": engine.traces.json(view.id.as_str()) });
    HashMap::from([
        ("info".to_owned(), text.to_string()),
        ("steps".to_owned(), steps.to_string()),
    ])
}

/// The namespaces of the pod, where containerd and CRI-O show their pause container's: what
/// looks for a pod's network finds its path there. A pod of the node's network has none.
fn shown_spec(view: &PodView) -> serde_json::Value {
    let network = view
        .netns
        .iter()
        .map(|path| json!({ "type": "network", "path": path }));
    let namespaces: Vec<_> = network.collect();
    json!({ "linux": { "namespaces": namespaces } })
}
