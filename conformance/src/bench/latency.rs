//! The latency of each call of a pod's life.
//!
//! Pods alternate between the contestants within one run, so that whatever the
//! machine does meanwhile happens to all of them; the ratios can be trusted where
//! the milliseconds cannot.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::{Value, json};

use super::Progress;
use super::contestant::Contestant;
use super::figures::{Row, Samples, Section, Unit};
use super::machine::own_time;

/// The calls that are timed, in their order. The names are critest's where it
/// has one.
pub const OPERATIONS: [&str; 7] = [
    "CreatePod",
    "CreateContainer",
    "StartContainer",
    "ExecSync",
    "StopContainer",
    "StopPod",
    "RemovePod",
];

/// The rows of the table: a name, and the operations whose times are added.
const ROWS: [(&str, &[usize]); 9] = [
    ("RunPodSandbox", &[0]),
    ("CreateContainer", &[1]),
    ("StartContainer", &[2]),
    ("the three together", &[0, 1, 2]),
    ("ExecSync", &[3]),
    ("StopContainer", &[4]),
    ("StopPodSandbox", &[5]),
    ("RemovePodSandbox", &[6]),
    ("stop and remove together", &[4, 5, 6]),
];

/// How the calls follow each other.
#[derive(Debug, Clone, Copy)]
pub struct Rhythm {
    /// Pods for each contestant.
    pub pods: usize,
    /// Between two calls; zero: back to back.
    pub gap: Duration,
    /// Whether the pods have the node's network.
    pub host_network: bool,
}

/// One pod's life.
#[derive(Debug, Clone)]
pub struct Life {
    began: i64,
    ended: i64,
    /// In the order of [`OPERATIONS`].
    times: [Duration; OPERATIONS.len()],
    pod: String,
}

/// Measures; answers the figures and, for each contestant, the lives behind them.
///
/// # Errors
/// A call failed.
pub async fn measure(
    contestants: &[Contestant],
    mode: &'static str,
    rhythm: Rhythm,
    progress: &Progress,
) -> anyhow::Result<(Section, Vec<Vec<Life>>)> {
    let mut lives = vec![Vec::new(); contestants.len()];
    let mut client = vec![Vec::new(); contestants.len()];
    // The first pod of each is not counted: first use of code and of files.
    for number in 0..=rhythm.pods {
        progress.say(format!("{mode}: pod {number} of {}", rhythm.pods));
        // Whose turn comes first goes round: a call after a busy moment of the kernel
        // is another than one after a quiet moment.
        for turn in 0..contestants.len() {
            let at = (turn + number) % contestants.len();
            let one = &contestants[at];
            let before = own_time();
            let life = Box::pin(life(one, rhythm)).await;
            let life = life.with_context(|| format!("{}, pod {number}", one.name))?;
            if number > 0 {
                lives[at].push(life);
                client[at].push(own_time().saturating_sub(before));
            }
        }
    }
    let rows = ROWS.iter().map(|(name, parts)| {
        let times = |lives: &Vec<Life>| {
            let sum = |life: &Life| parts.iter().map(|part| life.times[*part]).sum();
            Samples::milliseconds(&lives.iter().map(sum).collect::<Vec<Duration>>())
        };
        Row::new(*name, Unit::Milliseconds, lives.iter().map(times).collect())
    });
    let mut rows: Vec<Row> = rows.collect();
    let own = client.iter().map(|times| Samples::milliseconds(times));
    rows.push(
        Row::new(
            "processor time of this client for a pod",
            Unit::Milliseconds,
            own.collect(),
        )
        .only_listed(),
    );
    let section = Section {
        mode,
        what: describe(rhythm),
        rows,
    };
    Ok((section, lives))
}

fn describe(rhythm: Rhythm) -> String {
    let Rhythm {
        pods,
        gap,
        host_network,
    } = rhythm;
    let pace = if gap.is_zero() {
        "back to back".to_owned()
    } else {
        format!("with {} ms between the calls", gap.as_millis())
    };
    let network = if host_network {
        "the node's network"
    } else {
        "a network of their own"
    };
    format!("{pods} pods for each contestant, alternating, calls {pace}, {network}.")
}

async fn life(one: &Contestant, rhythm: Rhythm) -> anyhow::Result<Life> {
    let sandbox = one.sandbox(rhythm.host_network);
    let config = one.container("main", &["/bin/sleep", "1000"], &sandbox);
    let mut client = one.client.clone();
    let mut laps = Laps::new(rhythm.gap);
    let began = now();
    let pod = laps.time(one.run_pod(&sandbox)).await?;
    let create = client.create(&pod, &config, &sandbox);
    let id = laps.time(create).await?;
    laps.time(client.start(&id)).await?;
    laps.time(client.exec(&id, &["/bin/true"], 10)).await?;
    laps.time(client.stop(&id, 0)).await?;
    laps.time(client.stop_pod(&pod)).await?;
    laps.time(client.remove_pod(&pod)).await?;
    Ok(Life {
        began,
        ended: now(),
        times: laps.times,
        pod,
    })
}

struct Laps {
    gap: Duration,
    times: [Duration; OPERATIONS.len()],
    next: usize,
}

impl Laps {
    fn new(gap: Duration) -> Self {
        Self {
            gap,
            times: Default::default(),
            next: 0,
        }
    }

    async fn time<T>(
        &mut self,
        call: impl Future<Output = Result<T, tonic::Status>>,
    ) -> anyhow::Result<T> {
        if !self.gap.is_zero() {
            tokio::time::sleep(self.gap).await;
        }
        let operation = self.next;
        let began = Instant::now();
        let answer = call.await.context(OPERATIONS[operation])?;
        self.times[operation] = began.elapsed();
        self.next += 1;
        Ok(answer)
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX)
}

/// Lives in the layout of the files that `critest -benchmark` writes.
#[must_use]
pub fn critest(lives: &[Life]) -> Value {
    let point = |(at, life): (usize, &Life)| {
        let times = life.times.iter().map(Duration::as_nanos);
        let nanoseconds = times.map(|time| u64::try_from(time).unwrap_or(u64::MAX));
        json!({
            "sampleIndex": at,
            "startTime": life.began,
            "endTime": life.ended,
            "operationsDurationsNs": nanoseconds.collect::<Vec<_>>(),
            "metaInfo": {"podId": life.pod},
        })
    };
    json!({
        "operationsNames": OPERATIONS,
        "numParallel": 1,
        "datapoints": lives.iter().enumerate().map(point).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn critests_layout_has_one_duration_for_each_operation() {
        let life = Life {
            began: 1,
            ended: 2,
            times: [Duration::from_nanos(7); OPERATIONS.len()],
            pod: "p".into(),
        };
        let value = critest(&[life]);
        let point = &value["datapoints"][0];
        let durations = point["operationsDurationsNs"].as_array().expect("a list");
        assert_eq!(durations.len(), OPERATIONS.len());
        assert_eq!(point["metaInfo"]["podId"], "p");
        assert_eq!(value["operationsNames"][0], "CreatePod");
    }
}
