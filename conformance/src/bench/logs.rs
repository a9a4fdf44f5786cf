//! How much a container can say: payload of its log by the second, and what the
//! engine's processes work for it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::Progress;
use super::contestant::Contestant;
use super::figures::{Row, Samples, Section, Unit};
use super::machine::{Born, processes, settled, time_of};

/// Payload of a line with its line feed.
const LINE: usize = 100;
/// What the container runs: one program, so that it has one name.
const PROGRAM: &str = "yes";

/// One container of each contestant writes for so long.
///
/// # Errors
/// A call failed, or there is no log.
pub async fn measure(
    contestants: &[Contestant],
    time: Duration,
    progress: &Progress,
) -> anyhow::Result<Section> {
    let (mut rates, mut works) = (Vec::new(), Vec::new());
    for one in contestants {
        progress.say(format!("logs: {}", one.name));
        let (rate, work) = of(one, time).await.with_context(|| one.name.clone())?;
        rates.push(Samples::one(rate));
        works.push(Samples::one(work));
    }
    Ok(Section {
        mode: "logs",
        what: format!(
            "A container without a processor limit writes lines of {LINE} bytes for {} s.",
            time.as_secs()
        ),
        rows: vec![
            Row::new("payload", Unit::MebibytesPerSecond, rates),
            Row::new("engine and helpers meanwhile", Unit::CorePercent, works),
        ],
    })
}

async fn of(one: &Contestant, time: Duration) -> anyhow::Result<(f64, f64)> {
    let mut client = one.client.clone();
    let known = processes();
    // One pod is there for its helpers' names alone: a new one waits in a pool.
    let other = one.sleeping_pod(false).await?;
    settled(one.daemon).await;
    let sandbox = one.sandbox(false);
    let line = "x".repeat(LINE - 1);
    let mut config = one.container("main", &["/bin/yes", &line], &sandbox);
    let resources = config
        .linux
        .as_mut()
        .and_then(|linux| linux.resources.as_mut());
    if let Some(resources) = resources {
        resources.cpu_quota = 0;
        resources.cpu_period = 0;
    }
    let pod = one.run_pod(&sandbox).await.context("RunPodSandbox")?;
    let id = client.create(&pod, &config, &sandbox).await?;
    client.start(&id).await?;
    let helpers = Born::since(&known).helpers(&[PROGRAM, "sleep"], one.daemon);
    let (began, before) = (Instant::now(), time_of(&helpers, one.daemon));
    // No wait for something: this long it writes.
    tokio::time::sleep(time).await;
    let log = format!("{}/{}", sandbox.log_directory, config.log_path);
    let length = std::fs::metadata(&log).with_context(|| log.clone())?.len();
    let took = began.elapsed().as_secs_f64();
    let worked = time_of(&helpers, one.daemon).saturating_sub(before);
    let prefix = prefix(&log)?;
    one.remove(&pod).await?;
    one.remove(&other.id).await?;
    std::fs::remove_file(&log).with_context(|| format!("remove {log}"))?;
    let share = f64::from(u32::try_from(LINE)?) / f64::from(u32::try_from(LINE + prefix)?);
    let mebibytes = f64::from(u32::try_from(length / 1024)?) / 1024.0;
    Ok((
        mebibytes * share / took,
        100.0 * worked.as_secs_f64() / took,
    ))
}

/// How long the time, the stream and the tag before the payload are.
fn prefix(log: &str) -> anyhow::Result<usize> {
    use std::io::BufRead;
    let file = std::fs::File::open(log).with_context(|| log.to_owned())?;
    let mut line = String::new();
    std::io::BufReader::new(file).read_line(&mut line)?;
    let length = line.len();
    ensure!(length > LINE, "the first line of {log} is {line:?}");
    Ok(length - LINE)
}
