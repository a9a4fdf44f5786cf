//! `make guard`: the counts of a pod's life against recorded bounds, and against
//! those of another build if there is one.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use conformance::bench::figures::{Samples, digits};
use conformance::bench::machine;
use conformance::guard::bounds::Bounds;
use conformance::guard::{Counts, Subject};
use conformance::isolation;

/// Lives of each build for the ratio of times.
const TIMED: usize = 20;

/// Compares what a pod's life costs with recorded bounds.
#[derive(Debug, Parser)]
#[command(name = "slipway-guard")]
struct Args {
    /// The engine to look at.
    #[arg(long, default_value = "target/release/slipway")]
    slipway: PathBuf,
    /// Another build to compare with; only told, never a reason to fail.
    #[arg(long, value_name = "PATH")]
    base: Option<PathBuf>,
    /// The recorded bounds.
    #[arg(long, default_value = "conformance/guard.json")]
    bounds: PathBuf,
    /// Record what is counted now as the bounds of this kind of machine.
    #[arg(long)]
    record: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let run = || {
        isolation::enter()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        runtime.block_on(Box::pin(guard(&args)))
    };
    match run() {
        Ok(exceeded) if exceeded.is_empty() => ExitCode::SUCCESS,
        Ok(exceeded) => {
            for one in exceeded {
                eprintln!("guard: {one}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("guard: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn guard(args: &Args) -> anyhow::Result<Vec<String>> {
    let mut bounds = Bounds::read(&args.bounds)?;
    let machine = machine::cgroups();
    let mut subject = Subject::start(&args.slipway).await?;
    let mut base = match &args.base {
        Some(path) => Some(Subject::start(path).await?),
        None => None,
    };
    let result = Box::pin(compare(&mut subject, base.as_mut())).await;
    let ended = subject.end().await;
    if let Some(base) = base {
        base.end().await.context("end the base")?;
    }
    let (counts, of_base) = result?;
    ended?;
    print(&bounds, machine, &counts, of_base.as_ref());
    if args.record {
        bounds.record(&args.bounds, machine, &counts)?;
        println!("recorded in {}", args.bounds.display());
        return Ok(Vec::new());
    }
    if !bounds.machines.contains_key(machine) {
        println!("SKIPPED: nothing is recorded for a machine with cgroups {machine}");
        return Ok(Vec::new());
    }
    Ok(bounds.exceeded(machine, &counts))
}

async fn compare(
    subject: &mut Subject,
    base: Option<&mut Subject>,
) -> anyhow::Result<(Counts, Option<Counts>)> {
    let counts = Box::pin(subject.count()).await?;
    let Some(base) = base else {
        return Ok((counts, None));
    };
    let of_base = Box::pin(base.count()).await?;
    let mut times: [Vec<Duration>; 2] = Default::default();
    for _ in 0..TIMED {
        times[0].push(Box::pin(subject.life()).await?);
        times[1].push(Box::pin(base.life()).await?);
    }
    let [change, before] = times.map(|times| Samples::milliseconds(&times));
    let median = |samples: &Samples| samples.percentile(50).unwrap_or_default();
    println!(
        "the three calls, alternating: {} ms, of the base {} ms: {:.2} times as long\n",
        digits(median(&change)),
        digits(median(&before)),
        median(&change) / median(&before)
    );
    Ok((counts, Some(of_base)))
}

fn print(bounds: &Bounds, machine: &str, counts: &Counts, base: Option<&Counts>) {
    println!("| a pod's life | now | bound | base |\n|---|---:|---:|---:|");
    // What only the base did is worth telling, too.
    let names: BTreeSet<&String> = counts
        .keys()
        .chain(base.iter().flat_map(|one| one.keys()))
        .collect();
    let number = |number: Option<f64>| number.map_or("-".to_owned(), |one| format!("{one:.1}"));
    for name in names {
        let now = number(counts.get(name).copied());
        let bound = number(bounds.of(machine, name));
        let base = number(base.and_then(|base| base.get(name).copied()));
        println!("| {name} | {now} | {bound} | {base} |");
    }
    println!();
}
