//! A pod's whole life, with the time of each step: the demo, and a test.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::client::{Client, container_config, pod_config};
use crate::{eventually, patient};

/// What a container of the walk says first.
const GREETING: &str = "hello from a container";

/// A step and how long it took.
#[derive(Debug, Clone)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// How long it took.
    pub took: Duration,
    /// What was seen.
    pub seen: String,
}

/// The steps so far.
#[derive(Debug, Default)]
pub struct Steps(pub Vec<Step>);

impl Steps {
    /// Notes a step that began at `began`.
    pub fn note(&mut self, name: &str, began: Instant, seen: impl Into<String>) {
        let step = Step {
            name: name.to_owned(),
            took: began.elapsed(),
            seen: seen.into(),
        };
        self.0.push(step);
    }

    /// The steps as a table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        for Step { name, took, seen } in &self.0 {
            let milliseconds = took.as_secs_f64() * 1000.0;
            text.push_str(&format!("{name:<22} {milliseconds:>9.2} ms   {seen}\n"));
        }
        text
    }
}

/// Runs a pod with one container, looks at its log, an exec and its status, and
/// takes all down again.
///
/// # Errors
/// A call failed, or something is not as it should be.
pub async fn pod_life(
    client: &mut Client,
    image: &str,
    cgroup: &str,
    logs: &Path,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    let sandbox = pod_config("demo", cgroup, logs);
    let script = format!("echo {GREETING}; sleep 1000");
    let config = container_config("main", image, &["/bin/sh", "-c", &script]);

    let began = Instant::now();
    let pod = client.run_pod(&sandbox).await.context("RunPodSandbox")?;
    steps.note("RunPodSandbox", began, &pod[..12]);
    let began = Instant::now();
    let container = client
        .create(&pod, &config, &sandbox)
        .await
        .context("CreateContainer")?;
    steps.note("CreateContainer", began, &container[..12]);
    let began = Instant::now();
    client.start(&container).await.context("StartContainer")?;
    steps.note("StartContainer", began, "running");

    look(client, &pod, &container, logs, steps).await?;

    let began = Instant::now();
    client.stop(&container, 0).await.context("StopContainer")?;
    let status = client
        .container(&container)
        .await
        .context("ContainerStatus")?;
    steps.note(
        "StopContainer",
        began,
        format!("exit code {}", status.exit_code),
    );
    let began = Instant::now();
    client.remove(&container).await.context("RemoveContainer")?;
    steps.note("RemoveContainer", began, "");
    let began = Instant::now();
    client.stop_pod(&pod).await.context("StopPodSandbox")?;
    steps.note("StopPodSandbox", began, "");
    let began = Instant::now();
    client.remove_pod(&pod).await.context("RemovePodSandbox")?;
    steps.note("RemovePodSandbox", began, "");
    let listed = client.pods().await?;
    ensure!(
        listed.iter().all(|one| one.id != pod),
        "the sandbox is still listed"
    );
    Ok(())
}

async fn look(
    client: &mut Client,
    pod: &str,
    container: &str,
    logs: &Path,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let log = logs.join("main/0.log");
    let line = eventually(patient(5), async || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines()
            .find(|line| line.contains(GREETING))
            .map(str::to_owned)
    })
    .await
    .context("the greeting is not in the log")?;
    steps.note("log", began, line);
    let began = Instant::now();
    let output = client
        .exec(container, &["hostname"], 5)
        .await
        .context("ExecSync")?;
    ensure!(output.stdout.trim() == "demo", "hostname says {output:?}");
    steps.note("ExecSync hostname", began, output.stdout.trim());
    let began = Instant::now();
    let status = client.pod(pod).await.context("PodSandboxStatus")?;
    let network = status
        .status
        .and_then(|status| status.network)
        .unwrap_or_default();
    ensure!(!network.ip.is_empty(), "the sandbox has no address");
    steps.note("PodSandboxStatus", began, format!("address {}", network.ip));
    let began = Instant::now();
    let status = client
        .container(container)
        .await
        .context("ContainerStatus")?;
    ensure!(
        status.state == proto::v1::ContainerState::ContainerRunning as i32,
        "{status:?}"
    );
    steps.note("ContainerStatus", began, "running");
    Ok(())
}
