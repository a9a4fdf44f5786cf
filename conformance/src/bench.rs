//! The latency of a pod's life, for several engines in turn.
//!
//! Pods alternate between the engines within one run, so that whatever the
//! machine does meanwhile happens to all of them; the ratios can be trusted where
//! the milliseconds cannot.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::client::{Client, container_config, pod_config};

/// What is measured of each pod, in this order.
pub const CALLS: [&str; 8] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "the three together",
    "ExecSync",
    "StopContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
];

/// An engine to measure.
#[derive(Debug)]
pub struct Contestant {
    /// What it calls itself, with its version.
    pub name: String,
    client: Client,
    image: String,
    /// One list a call, in the order of [`CALLS`].
    pub times: Vec<Vec<Duration>>,
}

impl Contestant {
    /// Connects, and makes sure that the image is there.
    ///
    /// # Errors
    /// Nobody listens on the socket, or the image cannot be pulled.
    pub async fn new(socket: &Path, image: &str, pull: bool) -> anyhow::Result<Self> {
        let mut client = Client::connect(socket).await?;
        let version = client.version().await.context("Version")?;
        if pull {
            client
                .pull(image)
                .await
                .with_context(|| format!("pull {image}"))?;
        }
        Ok(Self {
            name: format!("{} {}", version.runtime_name, version.runtime_version),
            client,
            image: image.to_owned(),
            times: vec![Vec::new(); CALLS.len()],
        })
    }

    /// Runs one pod through its life and notes the times.
    ///
    /// # Errors
    /// A call failed.
    pub async fn pod(&mut self, number: usize, cgroup: &str, logs: &Path) -> anyhow::Result<()> {
        let unique = format!("bench-{}-{number}", std::process::id());
        let sandbox = pod_config(&unique, cgroup, &logs.join(&unique));
        let config = container_config("main", &self.image, &["/bin/sleep", "1000"]);
        let client = &mut self.client;
        let mut laps = Laps::start();
        let pod = client.run_pod(&sandbox).await.context("RunPodSandbox")?;
        laps.lap();
        let id = client
            .create(&pod, &config, &sandbox)
            .await
            .context("CreateContainer")?;
        laps.lap();
        client.start(&id).await.context("StartContainer")?;
        laps.lap();
        let three = laps.0.iter().sum();
        laps.0.push(three);
        laps.1 = Instant::now();
        client
            .exec(&id, &["/bin/true"], 10)
            .await
            .context("ExecSync")?;
        laps.lap();
        client.stop(&id, 0).await.context("StopContainer")?;
        laps.lap();
        client.stop_pod(&pod).await.context("StopPodSandbox")?;
        laps.lap();
        client.remove_pod(&pod).await.context("RemovePodSandbox")?;
        laps.lap();
        for (times, lap) in self.times.iter_mut().zip(laps.0) {
            times.push(lap);
        }
        Ok(())
    }

    /// The time below which this share of the calls stayed.
    #[must_use]
    pub fn percentile(&self, call: usize, percent: usize) -> Duration {
        let mut times = self.times[call].clone();
        times.sort_unstable();
        let last = times.len().saturating_sub(1);
        let at = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(at.min(last)).copied().unwrap_or_default()
    }
}

struct Laps(Vec<Duration>, Instant);

impl Laps {
    fn start() -> Self {
        Self(Vec::new(), Instant::now())
    }

    fn lap(&mut self) {
        self.0.push(self.1.elapsed());
        self.1 = Instant::now();
    }
}

/// All figures as a Markdown table; ratios are against the first engine.
#[must_use]
pub fn table(contestants: &[Contestant]) -> String {
    let mut text = String::from("| call |");
    for (at, one) in contestants.iter().enumerate() {
        text.push_str(&format!(" {} p50 / p99 ms |", one.name));
        if at > 0 {
            text.push_str(" ratio of p50 |");
        }
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(contestants.len() * 2 - 1));
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    for (call, name) in CALLS.iter().enumerate() {
        text.push_str(&format!("\n| {name} |"));
        let first = contestants
            .first()
            .map_or(0.0, |one| ms(one.percentile(call, 50)));
        for (at, one) in contestants.iter().enumerate() {
            let (p50, p99) = (ms(one.percentile(call, 50)), ms(one.percentile(call, 99)));
            text.push_str(&format!(" {p50:.2} / {p99:.2} |"));
            if at > 0 {
                text.push_str(&format!(" {:.1} |", p50 / first));
            }
        }
    }
    text.push('\n');
    text
}
