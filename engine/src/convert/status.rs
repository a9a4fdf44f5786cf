//! Sandboxes and containers as lists and statuses say them.

use proto::v1;

use super::container::{image_to_proto, key_to_proto, mount_to_proto};
use super::{resources, sandbox, signal};
use crate::pod::events::{Event, Happening};
use crate::pod::machine::State;
use crate::pod::view::{ContainerView, PodView};

/// The state as the API counts it.
pub(crate) const fn container_state(container: &ContainerView) -> v1::ContainerState {
    match &container.state {
        State::Exited(_) => v1::ContainerState::ContainerExited,
        _ if container.unread => v1::ContainerState::ContainerUnknown,
        State::Creating | State::Created | State::Starting => v1::ContainerState::ContainerCreated,
        State::Running { .. } | State::Stopping { .. } | State::Killing { .. } => {
            v1::ContainerState::ContainerRunning
        }
    }
}

fn pod_state(pod: &PodView) -> i32 {
    if pod.ready {
        v1::PodSandboxState::SandboxReady as i32
    } else {
        v1::PodSandboxState::SandboxNotready as i32
    }
}

/// A line of ListPodSandbox.
pub(crate) fn pod_line(pod: &PodView) -> v1::PodSandbox {
    v1::PodSandbox {
        id: pod.id.to_string(),
        metadata: Some(sandbox::key_to_proto(&pod.config.key)),
        state: pod_state(pod),
        created_at: pod.created_at,
        labels: pod.config.labels.clone().into_iter().collect(),
        annotations: pod.config.annotations.clone().into_iter().collect(),
        runtime_handler: pod.handler.clone(),
    }
}

/// The status of a sandbox.
pub(crate) fn pod(pod: &PodView) -> v1::PodSandboxStatus {
    let mut ips = pod.ips.iter().filter(|_| pod.ready).cloned();
    let network = v1::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
    };
    let options = sandbox::namespaces_to_proto(&pod.config);
    let v1::PodSandbox {
        id,
        metadata,
        state,
        created_at,
        labels,
        annotations,
        runtime_handler,
    } = pod_line(pod);
    v1::PodSandboxStatus {
        id,
        metadata,
        state,
        created_at,
        network: Some(network),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace {
                options: Some(options),
            }),
        }),
        labels,
        annotations,
        runtime_handler,
    }
}

/// The image as people name it, whatever the request called it: the kubelet names it by
/// its id and shows what it is answered here.
pub(super) fn name_of_image(container: &ContainerView) -> String {
    match container.image_name.as_str() {
        "" => container.config.image.image.clone(),
        name => name.to_owned(),
    }
}

/// A line of ListContainers.
pub(crate) fn container_line(container: &ContainerView) -> v1::Container {
    v1::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.pod.to_string(),
        metadata: Some(key_to_proto(&container.config.key)),
        image: Some(v1::ImageSpec {
            image: name_of_image(container),
            ..image_to_proto(&container.config.image)
        }),
        image_ref: container.image_ref.clone(),
        state: container_state(container) as i32,
        created_at: container.created_at,
        labels: container.config.labels.clone().into_iter().collect(),
        annotations: container.config.annotations.clone().into_iter().collect(),
        image_id: container.image_id.clone(),
    }
}

/// The status of a container.
pub(crate) fn container(container: &ContainerView) -> v1::ContainerStatus {
    let (started_at, finished_at, exit_code, reason, message) = match &container.state {
        State::Exited(exit) => (
            exit.started_at,
            exit.finished_at,
            exit.code,
            exit.reason.clone(),
            exit.message.clone(),
        ),
        other => (other.started_at(), 0, 0, String::new(), String::new()),
    };
    let user = v1::LinuxContainerUser {
        uid: i64::from(container.user.uid),
        gid: i64::from(container.user.gid),
        supplemental_groups: container
            .user
            .groups
            .iter()
            .copied()
            .map(i64::from)
            .collect(),
    };
    let log_path = container.log_path.as_ref();
    let v1::Container {
        id,
        metadata,
        image,
        image_ref,
        created_at,
        labels,
        annotations,
        image_id,
        state,
        pod_sandbox_id: _,
    } = container_line(container);
    v1::ContainerStatus {
        id,
        metadata,
        state,
        created_at,
        started_at,
        finished_at,
        exit_code,
        image,
        image_ref,
        reason,
        message,
        labels,
        annotations,
        mounts: container.config.mounts.iter().map(mount_to_proto).collect(),
        log_path: log_path
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        resources: Some(v1::ContainerResources {
            linux: Some(resources::to_proto(&container.resources)),
            windows: None,
        }),
        image_id,
        user: Some(v1::ContainerUser { linux: Some(user) }),
        stop_signal: signal::from_kernel(container.stop_signal) as i32,
    }
}
/// An event, with the status of its pod at that moment.
pub(crate) fn event(event: &Event) -> v1::ContainerEventResponse {
    let kind = match event.happening {
        Happening::Created => v1::ContainerEventType::ContainerCreatedEvent,
        Happening::Started => v1::ContainerEventType::ContainerStartedEvent,
        Happening::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        Happening::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
    };
    v1::ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: Some(pod(&event.pod)),
        containers_statuses: event
            .pod
            .containers
            .iter()
            .map(|one| container(one))
            .collect(),
    }
}
