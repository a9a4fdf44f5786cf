//! Both services of an engine, and requests with sensible values.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use proto::v1;
use proto::v1::image_service_client::ImageServiceClient;
use proto::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::patience;

/// A client of one engine.
#[derive(Debug, Clone)]
pub struct Client {
    /// RuntimeService.
    pub runtime: RuntimeServiceClient<Channel>,
    /// ImageService.
    pub images: ImageServiceClient<Channel>,
}

/// What a command printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code.
    pub code: i32,
}

impl Client {
    /// Connects to a socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .with_context(|| format!("connect to {}", socket.display()))?;
        let limit = proto::MAX_MESSAGE_BYTES;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
            images: ImageServiceClient::new(channel)
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
        })
    }

    /// Version.
    ///
    /// # Errors
    /// The engine's.
    pub async fn version(&mut self) -> Result<v1::VersionResponse, Status> {
        Ok(self
            .runtime
            .version(v1::VersionRequest::default())
            .await?
            .into_inner())
    }

    /// PullImage without credentials.
    ///
    /// # Errors
    /// The engine's.
    pub async fn pull(&mut self, name: &str) -> Result<String, Status> {
        let image = Some(image(name));
        let request = v1::PullImageRequest {
            image,
            ..Default::default()
        };
        Ok(self
            .images
            .pull_image(request)
            .await?
            .into_inner()
            .image_ref)
    }

    /// RunPodSandbox with the default handler.
    ///
    /// # Errors
    /// The engine's.
    pub async fn run_pod(&mut self, config: &v1::PodSandboxConfig) -> Result<String, Status> {
        let config = Some(config.clone());
        let request = v1::RunPodSandboxRequest {
            config,
            runtime_handler: String::new(),
        };
        Ok(self
            .runtime
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    /// CreateContainer.
    ///
    /// # Errors
    /// The engine's.
    pub async fn create(
        &mut self,
        pod: &str,
        config: &v1::ContainerConfig,
        sandbox: &v1::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self
            .runtime
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    /// StartContainer.
    ///
    /// # Errors
    /// The engine's.
    pub async fn start(&mut self, id: &str) -> Result<(), Status> {
        let request = v1::StartContainerRequest {
            container_id: id.to_owned(),
        };
        self.runtime.start_container(request).await.map(|_| ())
    }

    /// ExecSync with a timeout in seconds, times [`patience`]; 0 = none.
    ///
    /// # Errors
    /// The engine's.
    pub async fn exec(&mut self, id: &str, words: &[&str], timeout: i64) -> Result<Output, Status> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: words.iter().map(|word| (*word).to_owned()).collect(),
            timeout: timeout * i64::from(patience()),
        };
        let answer = self.runtime.exec_sync(request).await?.into_inner();
        Ok(Output {
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
            code: answer.exit_code,
        })
    }

    /// ContainerStatus.
    ///
    /// # Errors
    /// The engine's.
    pub async fn container(&mut self, id: &str) -> Result<v1::ContainerStatus, Status> {
        let request = v1::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.runtime.container_status(request).await?.into_inner();
        answer
            .status
            .ok_or_else(|| Status::internal("a status without a status"))
    }

    /// PodSandboxStatus.
    ///
    /// # Errors
    /// The engine's.
    pub async fn pod(&mut self, id: &str) -> Result<v1::PodSandboxStatusResponse, Status> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        Ok(self.runtime.pod_sandbox_status(request).await?.into_inner())
    }

    /// ListPodSandbox without a filter.
    ///
    /// # Errors
    /// The engine's.
    pub async fn pods(&mut self) -> Result<Vec<v1::PodSandbox>, Status> {
        let request = v1::ListPodSandboxRequest::default();
        Ok(self
            .runtime
            .list_pod_sandbox(request)
            .await?
            .into_inner()
            .items)
    }

    /// ListContainers without a filter.
    ///
    /// # Errors
    /// The engine's.
    pub async fn containers(&mut self) -> Result<Vec<v1::Container>, Status> {
        let request = v1::ListContainersRequest::default();
        Ok(self
            .runtime
            .list_containers(request)
            .await?
            .into_inner()
            .containers)
    }

    /// StopContainer.
    ///
    /// # Errors
    /// The engine's.
    pub async fn stop(&mut self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = v1::StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        self.runtime.stop_container(request).await.map(|_| ())
    }

    /// RemoveContainer.
    ///
    /// # Errors
    /// The engine's.
    pub async fn remove(&mut self, id: &str) -> Result<(), Status> {
        let request = v1::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        self.runtime.remove_container(request).await.map(|_| ())
    }

    /// StopPodSandbox.
    ///
    /// # Errors
    /// The engine's.
    pub async fn stop_pod(&mut self, id: &str) -> Result<(), Status> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.runtime.stop_pod_sandbox(request).await.map(|_| ())
    }

    /// RemovePodSandbox.
    ///
    /// # Errors
    /// The engine's.
    pub async fn remove_pod(&mut self, id: &str) -> Result<(), Status> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.runtime.remove_pod_sandbox(request).await.map(|_| ())
    }
}

/// An image by its name.
#[must_use]
pub fn image(name: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: name.to_owned(),
        ..Default::default()
    }
}

/// A pod as a kubelet would ask for it: a PID namespace for each container.
#[must_use]
pub fn pod_config(name: &str, cgroup: &str, logs: &Path) -> v1::PodSandboxConfig {
    let namespaces = v1::NamespaceOption {
        pid: v1::NamespaceMode::Container as i32,
        ..Default::default()
    };
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: logs.to_string_lossy().into_owned(),
        labels: HashMap::from([("app".to_owned(), name.to_owned())]),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: cgroup.to_owned(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container as a kubelet would ask for it: RuntimeDefault seccomp, limits and
/// the score for the OOM killer of a burstable pod.
#[must_use]
pub fn container_config(name: &str, image_name: &str, command: &[&str]) -> v1::ContainerConfig {
    let namespaces = v1::NamespaceOption {
        pid: v1::NamespaceMode::Container as i32,
        ..Default::default()
    };
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(image(image_name)),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        labels: HashMap::from([("container".to_owned(), name.to_owned())]),
        log_path: format!("{name}/0.log"),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 50_000,
                cpu_shares: 102,
                memory_limit_in_bytes: 128 * 1024 * 1024,
                oom_score_adj: 900,
                hugepage_limits: vec![v1::HugepageLimit {
                    page_size: "2MB".into(),
                    limit: 0,
                }],
                ..Default::default()
            }),
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces),
                seccomp: Some(v1::SecurityProfile::default()),
                masked_paths: masked_paths(),
                readonly_paths: readonly_paths(),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

fn owned(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

/// What the kubelet hides from an ordinary container.
#[must_use]
pub fn masked_paths() -> Vec<String> {
    owned(&[
        "/proc/asound",
        "/proc/acpi",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ])
}

/// What the kubelet makes read-only for an ordinary container.
#[must_use]
pub fn readonly_paths() -> Vec<String> {
    owned(&[
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ])
}
