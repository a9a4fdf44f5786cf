//! `make demo`: an engine up, an image in, a pod with a container through its
//! whole life, all down again, with the time of each step and a look at what is
//! left.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;
use conformance::engine::Engine;
use conformance::host::Picture;
use conformance::image::{self, Extras};
use conformance::isolation;
use conformance::walk::{Steps, pod_life};

/// Shows a pod's whole life on a scratch engine, and leaves the node as it was.
#[derive(Debug, Parser)]
#[command(name = "slipway-demo")]
struct Args {
    /// The engine's executable.
    #[arg(long, default_value = "target/release/slipway")]
    slipway: PathBuf,
    /// Pull this image instead of building a tiny one. It needs /bin/sh.
    #[arg(long, value_name = "REFERENCE")]
    image: Option<String>,
    /// The part that runs in namespaces of its own; started by the demo itself.
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = if args.inside {
        inside(&args)
    } else {
        outside()
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Compares the node before and after.
fn outside() -> anyhow::Result<()> {
    let before = Picture::take();
    let own = std::env::current_exe().context("find the own executable")?;
    let status = Command::new(own)
        .args(std::env::args_os().skip(1))
        .arg("--inside")
        .status();
    ensure!(status.context("run the demo")?.success(), "the demo failed");
    let left = Picture::take().added_since(&before);
    ensure!(left.is_empty(), "left behind: {left:#?}");
    println!("the node is as it was: no mount, namespace, cgroup, link or process is left");
    Ok(())
}

fn inside(args: &Args) -> anyhow::Result<()> {
    // Before any other thread exists: they would stay in the old namespaces. With a
    // real image, the node's network is needed to pull it.
    if args.image.is_none() {
        isolation::enter()?;
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(demo(args))
}

async fn demo(args: &Args) -> anyhow::Result<()> {
    let mut steps = Steps::default();
    let mut engine = Engine::prepare(&args.slipway)?;
    if args.image.is_none() {
        let archive = engine.path("tiny.tar");
        image::write(&archive, &Extras::default())?;
        let began = Instant::now();
        let id = engine.import(&archive)?;
        steps.note("image in", began, &id[..19]);
    }
    let began = Instant::now();
    let mut client = engine.start().await?;
    let version = client.version().await?;
    steps.note(
        "engine up",
        began,
        format!("{} {}", version.runtime_name, version.runtime_version),
    );
    if let Some(name) = &args.image {
        let began = Instant::now();
        let id = client.pull(name).await.context("PullImage")?;
        steps.note("PullImage", began, id);
    }
    let name = args.image.as_deref().unwrap_or(image::NAME);
    let cgroup = engine.cgroup_parent().to_owned();
    let logs = engine.path("logs");
    let life = pod_life(&mut client, name, &cgroup, &logs, &mut steps).await;
    drop(client);
    let began = Instant::now();
    let down = engine.clean_up().await;
    steps.note("engine down", began, "");
    print!("{}", steps.table());
    life.with_context(|| engine.log_end())?;
    down
}
