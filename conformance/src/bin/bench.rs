//! `make bench`, `slipway bench`: what a pod costs on a scratch engine or on one
//! that runs, beside any other engine by its socket, in one run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use conformance::bench::Progress;
use conformance::bench::contestant::{Contestant, Entry};
use conformance::bench::plan::{Mode, Plan, Results};
use conformance::bench::report::Head;
use conformance::bench::{latency, plot, report};
use conformance::engine::{Engine, remove_cgroups};
use conformance::image::{self, Extras};
use conformance::isolation;
use tokio::signal::unix::{SignalKind, signal};

/// Measures CRI engines side by side.
///
/// Without --socket, a scratch engine is started and ended. Every pod carries the
/// label `slipway-bench`, and is removed at the end, after a failure too.
#[derive(Debug, Parser)]
#[command(name = "slipway-bench", bin_name = "slipway bench")]
struct Args {
    /// The engine to measure, by its socket [default: a scratch engine].
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Another engine to measure in the same run; may be given again.
    #[arg(long, value_name = "PATH")]
    vs: Vec<PathBuf>,
    /// A runtime handler of the first engine; each one given is measured by itself.
    #[arg(long, value_name = "NAME")]
    handler: Vec<String>,
    /// The executable of the scratch engine [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    slipway: Option<PathBuf>,
    /// A file of settings for the scratch engine, such as one with other cgroups.
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    config: Option<PathBuf>,
    /// The image that the engines by socket have or can pull; it needs /bin/sleep,
    /// /bin/true and /bin/yes.
    #[arg(long, value_name = "REFERENCE", default_value = image::NAME)]
    image: String,
    /// The parent of the cgroups of the pods of engines by socket.
    #[arg(long, value_name = "CGROUP")]
    cgroup_parent: Option<String>,
    #[command(flatten)]
    much: HowMuch,
    /// What to print.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// The same as --format json.
    #[arg(long)]
    json: bool,
    /// Also write table.md, bench.json and, of each engine, the file that critest writes.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Also draw bench.svg and bench.png.
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
    /// Write the benchmark's image as an OCI archive and measure nothing.
    #[arg(long, value_name = "FILE")]
    write_image: Option<PathBuf>,
    /// Write an image of this one static program instead.
    #[arg(long, value_name = "PROGRAM", requires = "write_image")]
    write_pause: Option<PathBuf>,
}

/// What is measured; by default all of it, in about a minute for each engine.
#[derive(Debug, clap::Args)]
struct HowMuch {
    /// What to measure [default: all but latency-gap and latency-host].
    #[arg(long, value_enum, value_delimiter = ',')]
    mode: Vec<Mode>,
    /// Everything at full size: 100 pods for each latency, bursts to 200 pods, a
    /// population of 100 with 1000 containers.
    #[arg(long)]
    full: bool,
    /// Pods of each engine for the latency [default: 20].
    #[arg(long)]
    pods: Option<usize>,
    /// Pause between the calls in the mode latency, such as 100ms.
    #[arg(long, value_parser = duration, default_value = "0ms")]
    gap: Duration,
    /// Pods with the node's network in the modes latency and burst.
    #[arg(long)]
    host_network: bool,
    /// Containers whose first ExecSync is timed [default: 5].
    #[arg(long)]
    exec_pods: Option<usize>,
    /// Numbers of callers in the mode burst.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 64])]
    burst: Vec<usize>,
    /// Pods of a burst [default: 32].
    #[arg(long)]
    burst_pods: Option<usize>,
    /// Pods for memory, idle, lists and restart [default: 20].
    #[arg(long)]
    population: Option<usize>,
    /// Containers in the lists [default: ten for each pod].
    #[arg(long)]
    containers: Option<usize>,
    /// How long the daemon is watched in the kubelet's rhythm [default: 10s].
    #[arg(long, value_parser = duration)]
    idle_time: Option<Duration>,
    /// How long a container writes its log [default: 2s].
    #[arg(long, value_parser = duration)]
    log_time: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Markdown.
    Table,
    /// All samples.
    Json,
    /// The layout of `critest -benchmark`, of one engine's latency.
    Critest,
}

/// A number with `ms` or `s` behind it.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, scale) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').unwrap_or(text), 1000),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is neither a number of ms nor of s"))?;
    Ok(Duration::from_millis(number * scale))
}

impl HowMuch {
    fn plan(&self) -> Plan {
        let usual =
            |mode: &Mode| self.full || !matches!(mode, Mode::LatencyGap | Mode::LatencyHost);
        let all = || {
            Mode::value_variants()
                .iter()
                .copied()
                .filter(usual)
                .collect()
        };
        let size = |asked: Option<usize>, plain, full| {
            asked.unwrap_or(if self.full { full } else { plain })
        };
        let time = |asked: Option<Duration>, plain, full| {
            asked.unwrap_or(Duration::from_secs(if self.full { full } else { plain }))
        };
        let population = size(self.population, 20, 100).max(1);
        Plan {
            modes: if self.mode.is_empty() {
                all()
            } else {
                self.mode.clone()
            },
            pods: size(self.pods, 20, 100).max(1),
            gap: self.gap,
            host_network: self.host_network,
            exec_pods: size(self.exec_pods, 5, 20).max(1),
            callers: self.burst.iter().map(|callers| (*callers).max(1)).collect(),
            burst_pods: size(self.burst_pods, 32, 200).max(1),
            population,
            containers: self.containers.unwrap_or(population * 10),
            idle: time(self.idle_time, 10, 30),
            logs: time(self.log_time, 2, 5),
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let run = || {
        if let Some(path) = &args.write_image {
            return write_image(path, args.write_pause.as_deref());
        }
        // The other engines have their networks in the namespace of the caller;
        // only a run without them can have its own.
        if args.vs.is_empty() && args.socket.is_none() {
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

fn write_image(path: &Path, program: Option<&Path>) -> anyhow::Result<()> {
    let mut extras = Extras::default();
    if let Some(program) = program {
        let bytes = std::fs::read(program);
        let bytes = bytes.with_context(|| format!("read {}", program.display()))?;
        extras.files.push(("pause".to_owned(), bytes, 0o755));
        extras.config = serde_json::json!({"Entrypoint": ["/pause"], "Cmd": []});
        extras.name = Some("localhost/slipway/pause:latest".to_owned());
    }
    image::write(path, &extras)
}

async fn bench(args: &Args) -> anyhow::Result<()> {
    let scratch = tempfile::Builder::new()
        .prefix("slipway-bench-")
        .tempdir()?;
    let mut engine = match args.socket {
        Some(_) => None,
        None => Some(start(args).await?),
    };
    let others = format!("/slipway-bench-{}", std::process::id());
    let result = Box::pin(measure(args, engine.as_mut(), scratch.path(), &others)).await;
    if let Some(engine) = &mut engine {
        engine.clean_up().await?;
    }
    remove_cgroups(&others);
    let (names, results) = result?;
    show(args, &Head::new(names), &results)
}

/// A scratch engine with the image and all handlers that are asked for.
async fn start(args: &Args) -> anyhow::Result<Engine> {
    let slipway = match &args.slipway {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("slipway"),
    };
    let mut engine = Engine::prepare(&slipway)?;
    engine.add_handlers(&args.handler)?;
    if let Some(file) = &args.config {
        engine.configure(file)?;
    }
    let archive = engine.path("tiny.tar");
    image::write(&archive, &Extras::default())?;
    engine.import(&archive)?;
    engine.quiet();
    drop(engine.start().await?);
    Ok(engine)
}

/// Measures, and removes the own pods whatever comes of it.
async fn measure(
    args: &Args,
    mut engine: Option<&mut Engine>,
    scratch: &Path,
    others: &str,
) -> anyhow::Result<(Vec<String>, Results)> {
    let others = args.cgroup_parent.as_deref().unwrap_or(others);
    let logs = scratch.join("logs");
    let first = match (&engine, &args.socket) {
        (Some(engine), _) => Entry {
            socket: engine.socket(),
            handler: String::new(),
            image: image::NAME.to_owned(),
            cgroup: engine.cgroup_parent().to_owned(),
            logs: logs.clone(),
        },
        (None, Some(socket)) => entry(args, socket, others, &logs),
        (None, None) => anyhow::bail!("no engine"),
    };
    let mut entries = Vec::new();
    for handler in &args.handler {
        let handler = handler.clone();
        entries.push(Entry {
            handler,
            ..first.clone()
        });
    }
    if entries.is_empty() {
        entries.push(first);
    }
    let other = |socket: &PathBuf| entry(args, socket, others, &logs);
    entries.extend(args.vs.iter().map(other));
    let mut contestants = Vec::new();
    for entry in entries {
        contestants.push(Contestant::connect(entry).await?);
    }
    let names: Vec<&str> = contestants.iter().map(|one| one.name.as_str()).collect();
    let names = Head::distinct(&names);
    let (plan, progress) = (args.much.plan(), Progress::new());
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let result = tokio::select! {
        result = plan.run(&mut contestants, engine.take(), &progress) => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    for one in &contestants {
        if let Err(error) = one.clean_up().await {
            eprintln!("bench: {error:#}");
        }
    }
    Ok((names, result?))
}

fn entry(args: &Args, socket: &Path, cgroup: &str, logs: &Path) -> Entry {
    Entry {
        socket: socket.to_owned(),
        handler: String::new(),
        image: args.image.clone(),
        cgroup: cgroup.to_owned(),
        logs: logs.to_owned(),
    }
}

fn show(args: &Args, head: &Head, results: &Results) -> anyhow::Result<()> {
    let sections = &results.sections;
    if let Some(dir) = &args.output {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        write("table.md", report::markdown(head, sections))?;
        let json = serde_json::to_string_pretty(&report::json(head, sections))?;
        write("bench.json", json)?;
        for (name, lives) in head.contestants.iter().zip(&results.lives) {
            let name = name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
            let text = serde_json::to_string_pretty(&latency::critest(lives))?;
            write(&format!("{name}_benchmark_data.json"), text)?;
        }
    }
    if let Some(dir) = &args.plot {
        plot::write(dir, head, sections)?;
    }
    let format = if args.json { Format::Json } else { args.format };
    let text = match (format, results.lives.as_slice()) {
        (Format::Table, _) => report::markdown(head, sections),
        (Format::Json, _) => serde_json::to_string_pretty(&report::json(head, sections))?,
        (Format::Critest, [lives]) => serde_json::to_string_pretty(&latency::critest(lives))?,
        (Format::Critest, _) => {
            anyhow::bail!("critest's file is of one engine's latency; --output writes one of each")
        }
    };
    writeln!(std::io::stdout(), "{}", text.trim_end()).context("print the results")?;
    ensure!(!sections.is_empty(), "nothing was measured");
    Ok(())
}
