//! An engine that is measured, or one handler of it.
//!
//! All its pods carry the run's label; cleaning up removes those and no other.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use proto::v1;
use tokio::net::UnixStream;
use tonic::Status;

use crate::client::{Client, container_config, pod_config};

/// The label of all pods of a benchmark.
const LABEL: &str = "slipway-bench";
/// Numbers the pods of this process.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// How to reach a contestant.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its socket.
    pub socket: PathBuf,
    /// The runtime handler to ask for; empty: the default.
    pub handler: String,
    /// The image of its containers, with /bin/sleep, /bin/true and /bin/sh.
    pub image: String,
    /// The parent of its cgroups.
    pub cgroup: String,
    /// Where its containers' logs go.
    pub logs: PathBuf,
}

/// An engine that is measured.
#[derive(Debug, Clone)]
pub struct Contestant {
    /// What it calls itself, with its version and the handler.
    pub name: String,
    /// Its services.
    pub client: Client,
    /// The engine's process.
    pub daemon: Option<i32>,
    entry: Entry,
}

/// A pod with a container.
#[derive(Debug, Clone)]
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    /// The container's id.
    pub container: String,
    /// What it was made of.
    pub sandbox: v1::PodSandboxConfig,
}

impl Contestant {
    /// Connects, and makes sure that the image is there.
    ///
    /// # Errors
    /// Nobody listens on the socket, or the image is not there and cannot be pulled.
    pub async fn connect(entry: Entry) -> anyhow::Result<Self> {
        let mut client = Client::connect(&entry.socket).await?;
        let version = client.version().await.context("Version")?;
        let mut name = format!("{} {}", version.runtime_name, version.runtime_version);
        if !entry.handler.is_empty() {
            name.push_str(&format!(" ({})", entry.handler));
        }
        let request = v1::ImageStatusRequest {
            image: Some(crate::client::image(&entry.image)),
            ..Default::default()
        };
        let known = client.images.image_status(request).await;
        if known.context("ImageStatus")?.into_inner().image.is_none() {
            let why = || format!("{name} neither has nor can pull {}", entry.image);
            client.pull(&entry.image).await.with_context(why)?;
        }
        let daemon = peer(&entry.socket).await;
        Ok(Self {
            name,
            client,
            daemon,
            entry,
        })
    }

    /// Asks again who listens: an engine that was started anew is another process.
    pub async fn look_again(&mut self) {
        self.daemon = peer(&self.entry.socket).await;
    }

    /// The configuration of a new pod.
    #[must_use]
    pub fn sandbox(&self, host_network: bool) -> v1::PodSandboxConfig {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("bench-{}-{number}", std::process::id());
        let mut config = pod_config(&name, &self.entry.cgroup, &self.entry.logs.join(&name));
        config.labels.insert(LABEL.to_owned(), run());
        if host_network {
            config.hostname = String::new();
            let context = config.linux.as_mut().and_then(|linux| {
                let context = linux.security_context.as_mut()?;
                context.namespace_options.as_mut()
            });
            if let Some(options) = context {
                options.network = v1::NamespaceMode::Node as i32;
            }
        }
        config
    }

    /// The configuration of a container as a kubelet would ask for it.
    #[must_use]
    pub fn container(
        &self,
        name: &str,
        command: &[&str],
        sandbox: &v1::PodSandboxConfig,
    ) -> v1::ContainerConfig {
        let mut config = container_config(name, &self.entry.image, command);
        let options = |linux: &v1::LinuxPodSandboxConfig| {
            let context = linux.security_context.as_ref()?;
            context.namespace_options.clone()
        };
        let of_pod = sandbox.linux.as_ref().and_then(options);
        let context = config
            .linux
            .as_mut()
            .and_then(|linux| linux.security_context.as_mut());
        if let (Some(context), Some(of_pod)) = (context, of_pod) {
            context.namespace_options = Some(of_pod);
        }
        config
    }

    /// RunPodSandbox with the contestant's handler.
    ///
    /// # Errors
    /// The engine's.
    pub async fn run_pod(&self, config: &v1::PodSandboxConfig) -> Result<String, Status> {
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.entry.handler.clone(),
        };
        let mut runtime = self.client.runtime.clone();
        let answer = runtime.run_pod_sandbox(request).await?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    /// A pod whose container sleeps.
    ///
    /// # Errors
    /// The engine's.
    pub async fn sleeping_pod(&self, host_network: bool) -> anyhow::Result<Pod> {
        let mut client = self.client.clone();
        let sandbox = self.sandbox(host_network);
        let config = self.container("main", &["/bin/sleep", "100000"], &sandbox);
        let id = self.run_pod(&sandbox).await.context("RunPodSandbox")?;
        let container = client.create(&id, &config, &sandbox).await;
        let container = container.context("CreateContainer")?;
        client.start(&container).await.context("StartContainer")?;
        Ok(Pod {
            id,
            container,
            sandbox,
        })
    }

    /// Stops and removes a pod.
    ///
    /// # Errors
    /// The engine's.
    pub async fn remove(&self, id: &str) -> anyhow::Result<()> {
        let mut client = self.client.clone();
        client.stop_pod(id).await.context("StopPodSandbox")?;
        client.remove_pod(id).await.context("RemovePodSandbox")
    }

    /// Removes all pods of this run, whatever became of it.
    ///
    /// # Errors
    /// One stays.
    pub async fn clean_up(&self) -> anyhow::Result<()> {
        let filter = v1::PodSandboxFilter {
            label_selector: [(LABEL.to_owned(), run())].into(),
            ..Default::default()
        };
        let request = v1::ListPodSandboxRequest {
            filter: Some(filter),
        };
        let mut runtime = self.client.runtime.clone();
        let left = runtime.list_pod_sandbox(request).await?.into_inner().items;
        let mut failed = Vec::new();
        for pod in left {
            if let Err(error) = self.remove(&pod.id).await {
                failed.push(format!("{}: {error:#}", pod.id));
            }
        }
        ensure!(
            failed.is_empty(),
            "{} keeps {}",
            self.name,
            failed.join(", ")
        );
        Ok(())
    }
}

/// The label's value: this run.
fn run() -> String {
    std::process::id().to_string()
}

/// The process that listens on a socket.
async fn peer(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).await.ok()?;
    stream.peer_cred().ok()?.pid()
}
