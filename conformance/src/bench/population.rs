//! What many pods cost while they live: memory, the daemon's work in a
//! kubelet's rhythm, the lists, and how fast an engine finds them again.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use proto::v1;

use super::contestant::{Contestant, Pod};
use super::figures::{Row, Samples, Section, Unit};
use super::machine::{
    Born, available_memory, processes, processor_time, resident, settled, time_of,
};
use super::{Progress, burst};
use crate::client::Client;
use crate::engine::Engine;

/// Callers that make and remove the population.
const CALLERS: usize = 8;
/// How often a list is asked for.
const LISTS: usize = 30;
/// How often an engine is started anew.
const RESTARTS: usize = 3;
/// How long an engine may take to find its pods again.
const DEADLINE: Duration = Duration::from_secs(60);

/// Which of the figures are wanted, and of how many pods.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Pods with a running container each.
    pub pods: usize,
    /// Memory of each pod.
    pub memory: bool,
    /// The daemon at rest, so long.
    pub idle: Option<Duration>,
    /// The lists, with so many containers.
    pub lists: Option<usize>,
    /// The start of an engine with all these pods.
    pub restart: bool,
}

/// Rows that every contestant adds its samples to.
#[derive(Default)]
struct Table(Vec<Row>);

impl Table {
    fn add(&mut self, contestant: usize, name: &str, unit: Unit, samples: Samples) {
        let at = self.0.iter().position(|row| row.name == name);
        let at = at.unwrap_or_else(|| {
            self.0.push(Row::new(name, unit, Vec::new()));
            self.0.len() - 1
        });
        let row = &mut self.0[at];
        row.samples.resize(contestant, Samples::default());
        row.samples.push(samples);
    }

    fn finish(mut self, contestants: usize) -> Vec<Row> {
        for row in &mut self.0 {
            row.samples.resize(contestants, Samples::default());
        }
        self.0
    }
}

/// Measures one contestant after the other. `own` is the engine that this
/// process started: the first contestant's, the only one it may start anew.
///
/// # Errors
/// A call failed.
pub async fn measure(
    contestants: &mut [Contestant],
    own: Option<&mut Engine>,
    wanted: Wanted,
    progress: &Progress,
) -> anyhow::Result<Section> {
    let mut table = Table::default();
    let mut own = own;
    for (at, one) in contestants.iter_mut().enumerate() {
        progress.say(format!("{} pods: {}", wanted.pods, one.name));
        let engine = if at == 0 { own.take() } else { None };
        let done = Box::pin(of(one, at, engine, wanted, &mut table)).await;
        done.with_context(|| one.name.clone())?;
    }
    Ok(Section {
        mode: "population",
        what: format!(
            "{} pods with a sleeping container each, together on one engine.",
            wanted.pods
        ),
        rows: table.finish(contestants.len()),
    })
}

async fn of(
    one: &mut Contestant,
    at: usize,
    engine: Option<&mut Engine>,
    wanted: Wanted,
    table: &mut Table,
) -> anyhow::Result<()> {
    one.look_again().await;
    // What the first pod leaves behind for good is no pod's.
    let first = one.sleeping_pod(false).await?;
    one.remove(&first.id).await?;
    settled(one.daemon).await;
    let (known, available) = (processes(), available_memory());
    let filled = burst::fill(one, wanted.pods, CALLERS, false).await?;
    settled(one.daemon).await;
    let born = Born::since(&known);
    if wanted.memory {
        let used = available - available_memory();
        memory(at, wanted.pods, used, &born, table);
    }
    if let Some(daemon) = one.daemon.and_then(resident) {
        table.add(at, "daemon, resident", Unit::Kibibytes, number(daemon));
    }
    if let Some(time) = wanted.idle {
        idle(one, at, time, &born, table).await?;
    }
    let mut own = engine.filter(|_| wanted.restart);
    if let Some(engine) = own.as_deref_mut() {
        restart(engine, at, (wanted.pods, wanted.pods), table).await?;
    }
    if let Some(containers) = wanted.lists {
        lists(one, at, &filled.pods, containers, table).await?;
        if let Some(engine) = own {
            restart(engine, at, (wanted.pods, containers), table).await?;
        }
    }
    burst::empty(one, filled.pods).await?;
    Ok(())
}

fn number(kib: i64) -> Samples {
    // More than 2 TiB are none of the figures here.
    Samples::one(i32::try_from(kib).map_or(f64::NAN, f64::from))
}

fn memory(at: usize, pods: usize, used: i64, born: &Born, table: &mut Table) {
    let each = |kib: i64| number(kib / i64::try_from(pods.max(1)).unwrap_or(1));
    let kib = Unit::Kibibytes;
    table.add(at, "a pod: MemAvailable", kib, each(used));
    table.add(
        at,
        "a pod: PSS of all that was born",
        kib,
        each(born.memory()),
    );
    for (name, (count, memory)) in &born.by_name {
        // What is born once in a while is no part of every pod.
        if *count * 2 >= pods {
            let count = i64::try_from(*count).unwrap_or(1).max(1);
            let row = format!("of which one `{name}`");
            table.add(at, &row, kib, number(memory / count));
        }
    }
}

/// The kubelet's rhythm: a relist each second, stats every ten.
async fn idle(
    one: &Contestant,
    at: usize,
    time: Duration,
    born: &Born,
    table: &mut Table,
) -> anyhow::Result<()> {
    let mut client = one.client.clone();
    let helpers = born.helpers(&["sleep"], one.daemon);
    let daemon = || one.daemon.and_then(processor_time).unwrap_or_default();
    let (daemon_before, before) = (daemon(), time_of(&helpers, None));
    let began = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    for tick in 0.. {
        ticks.tick().await;
        if began.elapsed() >= time {
            break;
        }
        client.pods().await.context("ListPodSandbox")?;
        client.containers().await.context("ListContainers")?;
        if tick % 10 == 5 {
            let runtime = &mut client.runtime;
            let request = v1::ListContainerStatsRequest::default();
            runtime.list_container_stats(request).await?;
            let request = v1::ListPodSandboxStatsRequest::default();
            // Not every engine has it.
            drop(runtime.list_pod_sandbox_stats(request).await);
            client
                .images
                .image_fs_info(v1::ImageFsInfoRequest {})
                .await?;
        }
    }
    let percent = |used: Duration| 100.0 * used.as_secs_f64() / began.elapsed().as_secs_f64();
    let unit = Unit::CorePercent;
    let name = "daemon in the kubelet's rhythm";
    let used = percent(daemon().saturating_sub(daemon_before));
    table.add(at, name, unit, Samples::one(used));
    let name = "its helpers meanwhile";
    let used = percent(time_of(&helpers, None).saturating_sub(before));
    table.add(at, name, unit, Samples::one(used));
    Ok(())
}

/// Fills up to so many containers, created and never started, and asks for lists.
async fn lists(
    one: &Contestant,
    at: usize,
    pods: &[Pod],
    containers: usize,
    table: &mut Table,
) -> anyhow::Result<()> {
    let mut client = one.client.clone();
    let mut times = Vec::new();
    for _ in 0..LISTS {
        let began = Instant::now();
        let request = v1::ListContainerStatsRequest::default();
        let answer = client.runtime.list_container_stats(request).await?;
        times.push(began.elapsed());
        let count = answer.into_inner().stats.len();
        ensure!(count >= pods.len(), "stats of {count} containers");
    }
    let name = format!("ListContainerStats, {} running", pods.len());
    let unit = Unit::Milliseconds;
    table.add(at, &name, unit, Samples::milliseconds(&times));
    let sleep = ["/bin/sleep", "100000"];
    for number in pods.len()..containers {
        let pod = &pods[number % pods.len()];
        let config = one.container(&format!("more-{number}"), &sleep, &pod.sandbox);
        let created = client.create(&pod.id, &config, &pod.sandbox).await;
        created.context("CreateContainer")?;
    }
    let (mut of_containers, mut of_pods) = (Vec::new(), Vec::new());
    for _ in 0..LISTS {
        let began = Instant::now();
        let count = client.containers().await?.len();
        of_containers.push(began.elapsed());
        ensure!(count >= containers.max(pods.len()), "a list of {count}");
        let began = Instant::now();
        client.pods().await?;
        of_pods.push(began.elapsed());
    }
    let name = format!("ListContainers, {} containers", containers.max(pods.len()));
    table.add(at, &name, unit, Samples::milliseconds(&of_containers));
    let name = format!("ListPodSandbox, {} pods", pods.len());
    table.add(at, &name, unit, Samples::milliseconds(&of_pods));
    Ok(())
}

/// From the start of the process to a list with all pods.
async fn restart(
    engine: &mut Engine,
    at: usize,
    (pods, containers): (usize, usize),
    table: &mut Table,
) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for _ in 0..RESTARTS {
        engine.terminate()?;
        let began = Instant::now();
        engine.spawn()?;
        while !complete(&engine.socket(), pods).await {
            ensure!(began.elapsed() < DEADLINE, "no list: {}", engine.log_end());
            // Polled, and finely: this is what is measured.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        times.push(began.elapsed());
    }
    let name = format!("restart to the first complete list, {containers} containers");
    table.add(at, &name, Unit::Milliseconds, Samples::milliseconds(&times));
    Ok(())
}

/// Whether an engine answers with so many pods.
async fn complete(socket: &Path, pods: usize) -> bool {
    let Ok(mut client) = Client::connect(socket).await else {
        return false;
    };
    client.pods().await.is_ok_and(|listed| listed.len() >= pods)
}
