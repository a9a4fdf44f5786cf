//! The two services: one file per RPC, each from the message to the answer.
//!
//! A handler checks and converts, asks the pod's task or the image store, and
//! converts the answer. Work never lives in a handler's future: tonic drops that
//! when its client goes away.

mod attach;
mod checkpoint_container;
mod checkpoint_pod;
mod container_stats;
mod container_status;
mod create_container;
mod exec;
mod exec_sync;
mod get_container_events;
mod image_fs_info;
mod image_status;
mod list_container_stats;
mod list_containers;
mod list_images;
mod list_metric_descriptors;
mod list_pod_sandbox;
mod list_pod_sandbox_metrics;
mod list_pod_sandbox_stats;
mod pieces;
mod pod_sandbox_stats;
mod pod_sandbox_status;
mod port_forward;
mod pull_image;
mod remove_container;
mod remove_image;
mod remove_pod_sandbox;
mod reopen_container_log;
mod restore_pod;
mod run_pod_sandbox;
mod runtime_config;
mod start_container;
mod status;
mod stop_container;
mod stop_pod_sandbox;
mod stream_container_stats;
mod stream_containers;
mod stream_images;
mod stream_pod_sandbox_metrics;
mod stream_pod_sandbox_stats;
mod stream_pod_sandboxes;
mod update_container_resources;
mod update_pod_sandbox_resources;
mod update_runtime_config;
mod version;

use std::pin::Pin;
use std::sync::Arc;

use proto::v1;
use proto::v1::image_service_server::ImageService;
use proto::v1::runtime_service_server::RuntimeService;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::context::Engine;
use crate::convert::BadRequest;
use crate::pod::error::PodError;
use crate::pod::index::{Inbox, Lookup};
use crate::pod::task::{Command, Reply};
use crate::status as codes;

/// Both services on one engine.
#[derive(Clone)]
pub(crate) struct Services {
    engine: Arc<Engine>,
}

impl Services {
    /// Serves this engine.
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Puts the thing a call is about into the call's span.
fn about(field: &'static str, id: &str) {
    let field = match field {
        "pod_sandbox_id" => "pod",
        "container_id" => "container",
        other => other,
    };
    tracing::Span::current().record(field, id);
    crate::steps::about(field, id);
}

/// A prefix that more than one id has is a mistake worth telling.
fn ambiguous(what: &str, id: &str) -> Status {
    Status::invalid_argument(format!(
        "{what}: {id:?} is the beginning of more than one id"
    ))
}

/// The thing that an id names; NOT_FOUND and INVALID_ARGUMENT otherwise.
fn must_find<T>(
    lookup: Lookup<T>,
    field: &'static str,
    id: &str,
    unknown: &PodError,
) -> Result<T, Status> {
    about(field, id);
    if id.is_empty() {
        let field = field.to_owned();
        return Err(codes::bad_request(&BadRequest::Missing { field }));
    }
    match lookup {
        Lookup::Found(thing) => Ok(thing),
        Lookup::Unknown => Err(codes::pod(unknown)),
        Lookup::Ambiguous => Err(ambiguous(field, id)),
    }
}

/// Sends a command to a pod's task and waits for the answer. `None`: the pod was
/// removed in the meantime, and its task with it.
async fn ask<T>(
    engine: &Engine,
    inbox: &Inbox,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Result<Option<T>, Status> {
    let (reply, answer) = Reply::channel();
    let sent = inbox.send(command(reply));
    let answered = match sent {
        Ok(()) => answer.await.ok(),
        Err(_) => None,
    };
    match answered {
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(error)) => Err(codes::pod(&error)),
        // A task that failed is not a pod that was removed.
        None if engine.index.has(inbox.pod()) => Err(codes::pod(&PodError::TaskFailed)),
        None => Ok(None),
    }
}

/// The sandbox's task and the id of one of its containers.
fn container_inbox(engine: &Engine, id: &str) -> Lookup<(Inbox, crate::ids::ContainerId)> {
    match engine.index.container(id) {
        Lookup::Found((pod, container)) => match engine.index.inbox(pod.id.as_str()) {
            Lookup::Found(inbox) => {
                about("pod_sandbox_id", pod.id.as_str());
                Lookup::Found((inbox, container.id.clone()))
            }
            Lookup::Unknown => Lookup::Unknown,
            Lookup::Ambiguous => Lookup::Ambiguous,
        },
        Lookup::Unknown => Lookup::Unknown,
        Lookup::Ambiguous => Lookup::Ambiguous,
    }
}

#[tonic::async_trait]
impl RuntimeService for Services {
    async fn version(
        &self,
        request: Request<v1::VersionRequest>,
    ) -> Result<Response<v1::VersionResponse>, Status> {
        version::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Result<Response<v1::RunPodSandboxResponse>, Status> {
        run_pod_sandbox::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Result<Response<v1::StopPodSandboxResponse>, Status> {
        stop_pod_sandbox::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Result<Response<v1::RemovePodSandboxResponse>, Status> {
        remove_pod_sandbox::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        pod_sandbox_status::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        list_pod_sandbox::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    type StreamPodSandboxesStream = Streamed<v1::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        stream_pod_sandboxes::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        create_container::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        start_container::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Result<Response<v1::StopContainerResponse>, Status> {
        stop_container::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Result<Response<v1::RemoveContainerResponse>, Status> {
        remove_container::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        list_containers::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    type StreamContainersStream = Streamed<v1::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        stream_containers::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Result<Response<v1::ContainerStatusResponse>, Status> {
        container_status::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Result<Response<v1::UpdateContainerResourcesResponse>, Status> {
        update_container_resources::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Result<Response<v1::ReopenContainerLogResponse>, Status> {
        reopen_container_log::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Result<Response<v1::ExecSyncResponse>, Status> {
        exec_sync::handle(&self.engine, request.into_inner()).await
    }

    async fn exec(
        &self,
        request: Request<v1::ExecRequest>,
    ) -> Result<Response<v1::ExecResponse>, Status> {
        exec::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<v1::AttachResponse>, Status> {
        attach::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Result<Response<v1::PortForwardResponse>, Status> {
        port_forward::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Result<Response<v1::ContainerStatsResponse>, Status> {
        container_stats::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Result<Response<v1::ListContainerStatsResponse>, Status> {
        list_container_stats::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    type StreamContainerStatsStream = Streamed<v1::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        stream_container_stats::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Result<Response<v1::PodSandboxStatsResponse>, Status> {
        pod_sandbox_stats::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Result<Response<v1::ListPodSandboxStatsResponse>, Status> {
        list_pod_sandbox_stats::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    type StreamPodSandboxStatsStream = Streamed<v1::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        stream_pod_sandbox_stats::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<v1::UpdateRuntimeConfigResponse>, Status> {
        update_runtime_config::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        status::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn checkpoint_container(
        &self,
        request: Request<v1::CheckpointContainerRequest>,
    ) -> Result<Response<v1::CheckpointContainerResponse>, Status> {
        Err(checkpoint_container::handle(request.get_ref()))
    }

    async fn checkpoint_pod(
        &self,
        request: Request<v1::CheckpointPodRequest>,
    ) -> Result<Response<v1::CheckpointPodResponse>, Status> {
        Err(checkpoint_pod::handle(request.get_ref()))
    }

    async fn restore_pod(
        &self,
        request: Request<v1::RestorePodRequest>,
    ) -> Result<Response<v1::RestorePodResponse>, Status> {
        Err(restore_pod::handle(request.get_ref()))
    }

    type GetContainerEventsStream = Streamed<v1::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        request: Request<v1::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        get_container_events::handle(&self.engine, request.into_inner()).map(Response::new)
    }

    async fn list_metric_descriptors(
        &self,
        request: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Result<Response<v1::ListMetricDescriptorsResponse>, Status> {
        list_metric_descriptors::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_pod_sandbox_metrics(
        &self,
        request: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<v1::ListPodSandboxMetricsResponse>, Status> {
        list_pod_sandbox_metrics::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    type StreamPodSandboxMetricsStream = Streamed<v1::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        request: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        stream_pod_sandbox_metrics::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn runtime_config(
        &self,
        request: Request<v1::RuntimeConfigRequest>,
    ) -> Result<Response<v1::RuntimeConfigResponse>, Status> {
        runtime_config::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<v1::UpdatePodSandboxResourcesResponse>, Status> {
        update_pod_sandbox_resources::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }
}

#[tonic::async_trait]
impl ImageService for Services {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        list_images::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    type StreamImagesStream = Streamed<v1::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        stream_images::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        image_status::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        pull_image::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        remove_image::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn image_fs_info(
        &self,
        request: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        image_fs_info::handle(&self.engine, request.into_inner())
            .await
            .map(Response::new)
    }
}
