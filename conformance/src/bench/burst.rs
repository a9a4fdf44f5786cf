//! Many pods at once: how many a second, how long each takes, what all of the
//! machine works for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinSet;

use super::Progress;
use super::contestant::{Contestant, Pod};
use super::figures::{Row, Samples, Section, Unit};
use super::machine::{busy_time, own_time};

/// Pods that were made at once.
#[derive(Debug, Default)]
pub struct Filled {
    /// All of them.
    pub pods: Vec<Pod>,
    /// From the call of RunPodSandbox to the answer of StartContainer.
    pub times: Vec<Duration>,
    /// From the first call to the last answer.
    pub took: Duration,
}

/// Makes pods with so many callers at once.
///
/// # Errors
/// A call failed.
pub async fn fill(
    one: &Contestant,
    pods: usize,
    callers: usize,
    host_network: bool,
) -> anyhow::Result<Filled> {
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..callers.min(pods) {
        let (one, next) = (one.clone(), Arc::clone(&next));
        running.spawn(async move {
            let mut made = Vec::new();
            while next.fetch_add(1, Ordering::Relaxed) < pods {
                let began = Instant::now();
                let pod = one.sleeping_pod(host_network).await?;
                made.push((pod, began.elapsed()));
            }
            anyhow::Ok(made)
        });
    }
    let mut filled = Filled::default();
    while let Some(made) = running.join_next().await {
        for (pod, time) in made?? {
            filled.pods.push(pod);
            filled.times.push(time);
        }
    }
    filled.took = began.elapsed();
    Ok(filled)
}

/// Removes pods with eight callers at once; answers how long that took.
///
/// # Errors
/// A call failed.
pub async fn empty(one: &Contestant, pods: Vec<Pod>) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let pods = Arc::new(pods);
    let next = Arc::new(AtomicUsize::new(0));
    let mut running = JoinSet::new();
    for _ in 0..8 {
        let (one, pods, next) = (one.clone(), Arc::clone(&pods), Arc::clone(&next));
        running.spawn(async move {
            while let Some(pod) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
                one.remove(&pod.id).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(began.elapsed())
}

/// Measures every number of callers on an empty engine.
///
/// # Errors
/// A call failed.
pub async fn measure(
    contestants: &[Contestant],
    callers: &[usize],
    pods: usize,
    host_network: bool,
    progress: &Progress,
) -> anyhow::Result<Section> {
    let mut rows = Vec::new();
    for &callers in callers {
        let mut figures: [Vec<Samples>; 5] = Default::default();
        for one in contestants {
            progress.say(format!("burst: {}, {callers} callers", one.name));
            let (busy, own) = (busy_time(), own_time());
            let filled = fill(one, pods, callers, host_network).await;
            let filled = filled.with_context(|| one.name.clone())?;
            let (busy, own) = (busy_time() - busy, own_time() - own);
            let count = u32::try_from(pods)?;
            let each = |time: Duration| Samples::milliseconds(&[time / count.max(1)]);
            let rate = |took: Duration| Samples::one(f64::from(count) / took.as_secs_f64());
            figures[0].push(rate(filled.took));
            figures[1].push(Samples::milliseconds(&filled.times));
            figures[2].push(each(busy));
            figures[3].push(each(own));
            let took = empty(one, filled.pods).await;
            figures[4].push(rate(took.with_context(|| one.name.clone())?));
        }
        let [rate, times, busy, own, removal] = figures;
        let who = match callers {
            1 => "1 caller".to_owned(),
            several => format!("{several} callers"),
        };
        let named = |what: &str| format!("{who}: {what}");
        rows.extend([
            Row::new(named("pods"), Unit::PerSecond, rate),
            Row::new(named("the three calls"), Unit::Milliseconds, times),
            Row::new(named("all processors for a pod"), Unit::Milliseconds, busy),
            Row::new(named("of which this client"), Unit::Milliseconds, own).only_listed(),
            Row::new(named("pods removed by 8"), Unit::PerSecond, removal).only_listed(),
        ]);
    }
    Ok(Section {
        mode: "burst",
        what: format!(
            "{pods} pods with one container each, made by so many callers at once; all stay \
             until the last one runs."
        ),
        rows,
    })
}
