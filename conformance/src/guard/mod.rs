//! What a pod's life costs in counts that do not depend on how fast the machine
//! is: system calls, processes, bytes written, allocations.
//!
//! The engine is the one that is shipped, nothing of it is built for this: system
//! calls are counted by strace from outside, allocations by a preloaded library
//! (`allocations.c`) that steps between the engine and its C library. The static
//! monitor's allocations are not counted.

pub mod allocations;
pub mod bounds;
pub mod strace;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::client::{Client, container_config, pod_config};
use crate::engine::Engine;
use crate::image::{self, Extras};

/// Lives before anything is counted: code is loaded and pools are full then.
const WARM: usize = 4;
/// Lives that are counted, by each of the two ways.
const COUNTED: usize = 6;
/// How long the engine is left alone for its pools to be filled again.
const REST: Duration = Duration::from_millis(2500);

/// Counts of one life, by their names.
pub type Counts = BTreeMap<String, f64>;

/// An engine whose work can be counted.
#[derive(Debug)]
pub struct Subject {
    engine: Engine,
    client: Client,
    allocations: allocations::Counter,
    lives: usize,
}

impl Subject {
    /// Starts a scratch engine of this executable, and warms it up.
    ///
    /// # Errors
    /// It does not start, or a call failed.
    pub async fn start(slipway: &std::path::Path) -> anyhow::Result<Self> {
        let mut engine = Engine::prepare(slipway)?;
        let allocations = allocations::Counter::prepare(&engine.path("allocations"))?;
        for (name, value) in allocations.environment() {
            engine.set(&name, &value);
        }
        let archive = engine.path("tiny.tar");
        image::write(&archive, &Extras::default())?;
        engine.import(&archive)?;
        engine.quiet();
        let client = engine.start().await?;
        let mut subject = Self {
            engine,
            client,
            allocations,
            lives: 0,
        };
        for _ in 0..WARM {
            Box::pin(subject.life()).await?;
        }
        Ok(subject)
    }

    /// Counts.
    ///
    /// # Errors
    /// A call or strace failed.
    pub async fn count(&mut self) -> anyhow::Result<Counts> {
        let mut counts = Counts::new();
        tokio::time::sleep(REST).await;
        let before = self.allocations.read()?;
        for _ in 0..COUNTED {
            Box::pin(self.life()).await?;
        }
        let after = self.allocations.read()?;
        counts.insert(
            "engine: allocations".into(),
            each(after.calls - before.calls),
        );
        counts.insert(
            "engine: bytes allocated".into(),
            each(after.bytes - before.bytes),
        );
        tokio::time::sleep(REST).await;
        let pid = self.engine.pid().context("no engine runs")?;
        let tracer = strace::Tracer::attach(&self.engine.path("strace"), pid).await?;
        for _ in 0..COUNTED {
            Box::pin(self.life()).await?;
        }
        for (name, count) in tracer.end()? {
            counts.insert(name, each(count));
        }
        Ok(counts)
    }

    /// A pod's life with an exec; answers how long the three calls to a running
    /// container took.
    ///
    /// # Errors
    /// A call failed.
    pub async fn life(&mut self) -> anyhow::Result<Duration> {
        self.lives += 1;
        let name = format!("guard-{}", self.lives);
        let logs = self.engine.path("logs").join(&name);
        let sandbox = pod_config(&name, self.engine.cgroup_parent(), &logs);
        let config = container_config("main", image::NAME, &["/bin/sleep", "1000"]);
        let client = &mut self.client;
        let began = Instant::now();
        let pod = client.run_pod(&sandbox).await.context("RunPodSandbox")?;
        let id = client.create(&pod, &config, &sandbox).await;
        let id = id.context("CreateContainer")?;
        client.start(&id).await.context("StartContainer")?;
        let took = began.elapsed();
        let exec = client.exec(&id, &["/bin/true"], 10).await;
        exec.context("ExecSync")?;
        client.stop(&id, 0).await.context("StopContainer")?;
        client.stop_pod(&pod).await.context("StopPodSandbox")?;
        client.remove_pod(&pod).await.context("RemovePodSandbox")?;
        Ok(took)
    }

    /// Ends the engine and removes what is left.
    ///
    /// # Errors
    /// Something stays.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.engine.clean_up().await
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts far below the 52 bits that an f64 keeps"
)]
fn each(total: u64) -> f64 {
    total as f64 / COUNTED as f64
}
