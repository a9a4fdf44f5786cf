//! RunPodSandbox: from a configuration to a READY sandbox.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::convert::{missing, sandbox};
use crate::engine::Engine;
use crate::pod::error::PodError;
use crate::pod::task::{Reply, run_or_join};
use crate::status;

/// Starts the sandbox, or joins the call that is starting it.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::RunPodSandboxRequest,
) -> Result<v1::RunPodSandboxResponse, Status> {
    let v1::RunPodSandboxRequest {
        config,
        runtime_handler,
    } = request;
    let config = config.ok_or_else(|| status::bad_request(&missing("config")))?;
    let config = sandbox::from_proto(config).map_err(|error| status::bad_request(&error))?;
    if engine.config.handler(&runtime_handler).is_none() {
        return Err(status::pod(&PodError::NoHandler(runtime_handler)));
    }
    let (reply, answer) = Reply::channel();
    run_or_join(engine, config, runtime_handler, reply).map_err(|error| status::pod(&error))?;
    match answer.await {
        Ok(Ok(id)) => {
            super::about("pod_sandbox_id", id.as_str());
            Ok(v1::RunPodSandboxResponse {
                pod_sandbox_id: id.to_string(),
            })
        }
        Ok(Err(error)) => Err(status::pod(&error)),
        Err(_) => Err(status::pod(&PodError::ShuttingDown)),
    }
}
