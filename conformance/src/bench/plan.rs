//! What one run measures, and how much of it.

use std::time::Duration;

use super::contestant::Contestant;
use super::figures::Section;
use super::latency::{Life, Rhythm};
use super::population::Wanted;
use super::{Progress, burst, exec, latency, logs, population, streams};
use crate::engine::Engine;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Mode {
    /// Each call of a pod's life, pods alternating between the engines.
    Latency,
    /// The same with 100 ms between the calls: every call meets a quiet kernel.
    LatencyGap,
    /// The same with the node's network.
    LatencyHost,
    /// ExecSync: first, again, and with four callers.
    Exec,
    /// Many pods at once.
    Burst,
    /// Memory of a pod.
    Memory,
    /// The daemon's work in the kubelet's rhythm.
    Idle,
    /// Latency of the lists.
    Lists,
    /// From the start of the engine to the first complete list; only for an engine
    /// that the benchmark started.
    Restart,
    /// Throughput of a container's log.
    Logs,
    /// Exec, attach and port-forward.
    Streams,
}

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What.
    pub modes: Vec<Mode>,
    /// Pods of each contestant for the latency.
    pub pods: usize,
    /// Between the calls of [`Mode::Latency`].
    pub gap: Duration,
    /// Whether [`Mode::Latency`] and [`Mode::Burst`] use the node's network.
    pub host_network: bool,
    /// Containers whose first exec is timed.
    pub exec_pods: usize,
    /// Numbers of callers of a burst.
    pub callers: Vec<usize>,
    /// Pods of a burst.
    pub burst_pods: usize,
    /// Pods that memory, idle, lists and restart are measured with.
    pub population: usize,
    /// Containers in the lists.
    pub containers: usize,
    /// How long the daemon is watched.
    pub idle: Duration,
    /// How long a container writes, its log or a stream.
    pub logs: Duration,
}

/// What a run gave.
#[derive(Debug, Default)]
pub struct Results {
    /// The figures.
    pub sections: Vec<Section>,
    /// The lives behind the first latency section, one list a contestant.
    pub lives: Vec<Vec<Life>>,
}

impl Plan {
    /// Measures everything that is asked for.
    ///
    /// # Errors
    /// A call failed.
    pub async fn run(
        &self,
        contestants: &mut [Contestant],
        own: Option<&mut Engine>,
        progress: &Progress,
    ) -> anyhow::Result<Results> {
        let mut results = Results::default();
        for (mode, name, rhythm) in self.rhythms() {
            if !self.modes.contains(&mode) {
                continue;
            }
            let measured = Box::pin(latency::measure(contestants, name, rhythm, progress));
            let (section, lives) = measured.await?;
            results.sections.push(section);
            if results.lives.is_empty() {
                results.lives = lives;
            }
        }
        let wants = |mode| self.modes.contains(&mode);
        if wants(Mode::Exec) {
            let section = Box::pin(exec::measure(contestants, self.exec_pods, progress));
            results.sections.push(section.await?);
        }
        if wants(Mode::Burst) {
            let (pods, host) = (self.burst_pods, self.host_network);
            let section = burst::measure(contestants, &self.callers, pods, host, progress);
            results.sections.push(Box::pin(section).await?);
        }
        let wanted = Wanted {
            pods: self.population,
            memory: wants(Mode::Memory),
            idle: wants(Mode::Idle).then_some(self.idle),
            lists: wants(Mode::Lists).then_some(self.containers),
            restart: wants(Mode::Restart),
        };
        if wanted.memory || wanted.idle.is_some() || wanted.lists.is_some() || wanted.restart {
            let section = population::measure(contestants, own, wanted, progress);
            results.sections.push(Box::pin(section).await?);
        }
        if wants(Mode::Logs) {
            let section = Box::pin(logs::measure(contestants, self.logs, progress));
            results.sections.push(section.await?);
        }
        if wants(Mode::Streams) {
            let section = Box::pin(streams::measure(contestants, self.logs, progress));
            results.sections.push(section.await?);
        }
        progress.done();
        Ok(results)
    }

    fn rhythms(&self) -> [(Mode, &'static str, Rhythm); 3] {
        let asked = Rhythm {
            pods: self.pods,
            gap: self.gap,
            host_network: self.host_network,
        };
        let gap = Rhythm {
            gap: Duration::from_millis(100),
            ..asked
        };
        let host = Rhythm {
            host_network: true,
            ..asked
        };
        [
            (Mode::Latency, "latency", asked),
            (Mode::LatencyGap, "latency-gap", gap),
            (Mode::LatencyHost, "latency-host", host),
        ]
    }
}
