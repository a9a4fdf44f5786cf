//! `make bench`: the latency of a pod's life on a scratch engine, beside that of
//! any other engine by its socket, alternating in one run.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use conformance::bench::{CALLS, Contestant, table};
use conformance::engine::{Engine, remove_cgroups};
use conformance::image::{self, Extras};
use conformance::isolation;
use serde_json::json;

/// Measures RunPodSandbox to RemovePodSandbox, p50 and p99.
#[derive(Debug, Parser)]
#[command(name = "slipway-bench")]
struct Args {
    /// The engine's executable.
    #[arg(long, default_value = "target/release/slipway")]
    slipway: PathBuf,
    /// Another engine to measure in the same run; may be given again.
    #[arg(long, value_name = "PATH")]
    socket: Vec<PathBuf>,
    /// The image that the other engines have or can pull; it needs /bin/sleep and /bin/true.
    #[arg(long, value_name = "REFERENCE", default_value = image::NAME)]
    image: String,
    /// Pods for each engine.
    #[arg(long, default_value_t = 30)]
    pods: usize,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let run = || {
        // The other engines have their networks in the node's namespace; only a run
        // without them can have its own.
        if args.socket.is_empty() {
            isolation::enter()?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        runtime.block_on(Box::pin(bench(&args)))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(args: &Args) -> anyhow::Result<()> {
    let mut engine = Engine::prepare(&args.slipway)?;
    let archive = engine.path("tiny.tar");
    image::write(&archive, &Extras::default())?;
    engine.import(&archive)?;
    drop(engine.start().await?);
    let result = Box::pin(measure(args, &engine)).await;
    engine.clean_up().await?;
    remove_cgroups(&format!("{}-others", engine.cgroup()));
    let contestants = result?;
    if args.json {
        println!("{}", as_json(&contestants));
    } else {
        println!("{} pods for each engine, alternating\n", args.pods);
        print!("{}", table(&contestants));
    }
    Ok(())
}

async fn measure(args: &Args, engine: &Engine) -> anyhow::Result<Vec<Contestant>> {
    let mut contestants = vec![Contestant::new(&engine.socket(), image::NAME, false).await?];
    for socket in &args.socket {
        let pull = args.image != image::NAME;
        contestants.push(Contestant::new(socket, &args.image, pull).await?);
    }
    let logs = engine.path("logs");
    // One pod each is not counted: first use of code and of files.
    for number in 0..=args.pods {
        for (at, one) in contestants.iter_mut().enumerate() {
            let own = engine.cgroup();
            let cgroup = if at == 0 {
                own.to_owned()
            } else {
                format!("{own}-others")
            };
            let done = one.pod(number, &cgroup, &logs).await;
            done.with_context(|| format!("{}, pod {number}", one.name))?;
            if number == 0 {
                one.times.iter_mut().for_each(Vec::clear);
            }
        }
    }
    Ok(contestants)
}

fn as_json(contestants: &[Contestant]) -> serde_json::Value {
    let figures = |one: &Contestant| {
        let calls = CALLS.iter().zip(&one.times).map(|(name, times)| {
            let nanoseconds: Vec<_> = times
                .iter()
                .map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
                .collect();
            ((*name).to_owned(), json!(nanoseconds))
        });
        json!({ "engine": one.name, "ns": calls.collect::<serde_json::Map<_, _>>() })
    };
    json!(contestants.iter().map(figures).collect::<Vec<_>>())
}
