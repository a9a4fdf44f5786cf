//! ExecSync: the first one after a quiet second, one that follows another, and
//! how many four callers get in a second.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinSet;

use super::Progress;
use super::contestant::{Contestant, Pod};
use super::figures::{Row, Samples, Section, Unit};

/// How long the node is quiet before an exec, as between two probes.
const QUIET: Duration = Duration::from_millis(1100);
/// Callers at once.
const CALLERS: usize = 4;
/// How long they call.
const RUN: Duration = Duration::from_secs(3);

struct Figures {
    first: Vec<Duration>,
    again: Vec<Duration>,
    empty: Vec<Duration>,
    rate: f64,
    busy: Vec<Duration>,
}

/// Measures on `pods` pods of each contestant, one contestant after the other.
///
/// # Errors
/// A call failed.
pub async fn measure(
    contestants: &[Contestant],
    pods: usize,
    progress: &Progress,
) -> anyhow::Result<Section> {
    let mut all = Vec::new();
    for one in contestants {
        progress.say(format!("exec: {}", one.name));
        let figures = of(one, pods.max(1)).await;
        all.push(figures.with_context(|| one.name.clone())?);
    }
    let times = |name: &str, of: fn(&Figures) -> &Vec<Duration>| {
        let samples = all.iter().map(|one| Samples::milliseconds(of(one)));
        Row::new(name, Unit::Milliseconds, samples.collect())
    };
    let rate = all.iter().map(|one| Samples::one(one.rate)).collect();
    Ok(Section {
        mode: "exec",
        what: format!(
            "ExecSync of /bin/true in {pods} containers: the first of each after {} ms of quiet, \
             the next after as long again, and after that a call of Version, which does \
             nothing; then {CALLERS} callers of one container for {} s.",
            QUIET.as_millis(),
            RUN.as_secs()
        ),
        rows: vec![
            times("first in a container", |one| &one.first),
            times("again within 10 s", |one| &one.again),
            times("an empty call", |one| &one.empty),
            times("with 4 callers", |one| &one.busy),
            Row::new("rate with 4 callers", Unit::PerSecond, rate),
        ],
    })
}

async fn of(one: &Contestant, pods: usize) -> anyhow::Result<Figures> {
    let mut ready = Vec::new();
    for _ in 0..pods {
        ready.push(one.sleeping_pod(false).await?);
    }
    let mut figures = Figures {
        first: Vec::new(),
        again: Vec::new(),
        empty: Vec::new(),
        rate: 0.0,
        busy: Vec::new(),
    };
    for pod in &ready {
        for times in [&mut figures.first, &mut figures.again] {
            tokio::time::sleep(QUIET).await;
            times.push(exec(one, pod).await?);
        }
        // What of it is the way there and back alone.
        tokio::time::sleep(QUIET).await;
        let mut client = one.client.clone();
        let began = Instant::now();
        client.version().await.context("Version")?;
        figures.empty.push(began.elapsed());
    }
    if let Some(pod) = ready.first() {
        let began = Instant::now();
        figures.busy = busy(one, pod).await?;
        let count = u32::try_from(figures.busy.len())?;
        figures.rate = f64::from(count) / began.elapsed().as_secs_f64();
    }
    for pod in &ready {
        one.remove(&pod.id).await?;
    }
    Ok(figures)
}

async fn exec(one: &Contestant, pod: &Pod) -> anyhow::Result<Duration> {
    let mut client = one.client.clone();
    let began = Instant::now();
    let output = client.exec(&pod.container, &["/bin/true"], 10).await;
    let output = output.context("ExecSync")?;
    anyhow::ensure!(output.code == 0, "/bin/true ended with {output:?}");
    Ok(began.elapsed())
}

async fn busy(one: &Contestant, pod: &Pod) -> anyhow::Result<Vec<Duration>> {
    let end = Instant::now() + RUN;
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (one, pod) = (one.clone(), pod.clone());
        callers.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                times.push(exec(&one, &pod).await?);
            }
            anyhow::Ok(times)
        });
    }
    let mut all = Vec::new();
    while let Some(times) = callers.join_next().await {
        all.extend(times??);
    }
    Ok(all)
}
