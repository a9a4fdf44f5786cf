//! RunPodSandbox: from a configuration to a READY sandbox.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::context::Engine;
use crate::convert::{missing, sandbox};
use crate::ids::PodId;
use crate::model::SandboxConfig;
use crate::pod::error::{PodError, SharedError};
use crate::pod::task::{Reply, run_or_join};
use crate::{status, user_ns};

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
    let config = sandbox::from_proto(config, engine.cgroups.kind())
        .map_err(|error| status::bad_request(&error))?;
    if engine.config.handler(&runtime_handler).is_none() {
        return Err(status::pod(&PodError::NoHandler(runtime_handler)));
    }
    user_ns::check(engine, &runtime_handler, &config).map_err(|e| status::bad_request(&e))?;
    let mut answered = run(engine, config.clone(), runtime_handler.clone()).await;
    if matches!(&answered, Err(error) if matches!(**error, PodError::CutOff)) {
        // The call had joined a start of an earlier engine that was being undone.
        answered = run(engine, config, runtime_handler).await;
    }
    let id = answered.map_err(|error| status::pod(&error))?;
    super::about("pod_sandbox_id", id.as_str());
    Ok(v1::RunPodSandboxResponse {
        pod_sandbox_id: id.to_string(),
    })
}

async fn run(
    engine: &Arc<Engine>,
    config: SandboxConfig,
    handler: String,
) -> Result<PodId, SharedError> {
    let (reply, answer) = Reply::channel();
    run_or_join(engine, config, handler, reply)?;
    let answered = answer.await;
    answered.unwrap_or_else(|_| Err(Arc::new(PodError::ShuttingDown)))
}
