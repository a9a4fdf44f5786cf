//! `slipway serve`: checks everything, restores what an earlier engine left,
//! then listens.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use image_store::{ImageStore, StoreOptions};
use nix::fcntl::{Flock, FlockArg};
use runtime::cgroup::{Driver, DriverKind, Hierarchies, Systemd};
use runtime::client::{MonitorBinaries, MonitorPool};
use runtime::netns::NetNsPool;
use runtime::sys::heap;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{ServeArgs, log};
use crate::apparmor;
use crate::causes::with_causes;
use crate::cdi::Cdi;
use crate::cgroups::LeftParents;
use crate::config::{self, Config, Streaming};
use crate::context::Engine;
use crate::ids::PodId;
use crate::metrics::{self, Metrics};
use crate::network::Network;
use crate::pod::index::Index;
use crate::pod::restore::{self, restore};
use crate::pod::task::keep_all;
use crate::pod_metrics::Known;
use crate::server;
use crate::spec::HostPaths;
use crate::stats::Samples;
use crate::steps::Traces;
use crate::stream::{self, Certificates, Streams};
use crate::user_ns;
use crate::warnings::Warnings;

/// How many monitors, and how many network namespaces, are kept ready: as many as
/// were needed at once lately, within these bounds (0.3 MiB for one of each).
const IDLE: std::ops::RangeInclusive<usize> = 2..=16;
/// How long a lock is waited for that may be an engine's which is dead.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// Heaps for all threads: RSS with 100 pods is 3 MB less than with as many as the C
/// library would make, and nothing becomes slower.
const ARENAS: u8 = 2;
/// Bytes that are worth a system call to be given back: the output of a command, an image's
/// manifest.
const LARGE: u32 = 1 << 20;
/// How often the folder of network configurations is looked at for Status, and
/// the cgroups of pods that are gone.
const CHORES_PERIOD: Duration = Duration::from_secs(2);

/// Runs the engine until SIGTERM or SIGINT.
pub(super) fn run(args: ServeArgs) -> anyhow::Result<()> {
    let ServeArgs {
        places,
        log_format,
        log_level,
    } = args;
    log::start(log_format, &log_level)?;
    let config = config::load(&places.places())?;
    heap::share_arenas(ARENAS);
    heap::give_back_from(LARGE);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // A thread that has to be made first costs the next pod some of its time.
        .thread_keep_alive(Duration::from_secs(60))
        .build()
        .context("start the async runtime")?;
    let result = runtime.block_on(Box::pin(serve(config)));
    // Threads that still wait for the kernel must not hold the end up.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let _locks = prepare(&config)?;
    let listen = config.listen.clone();
    // Before anything is restored: an engine that lives there must not be disturbed.
    let listener = server::bind(&listen).await?;
    let scraped = match &config.metrics {
        Some(address) => Some(metrics::bind(address).await?),
        None => None,
    };
    let Streaming { address, tls } = config.streaming.clone();
    let sessions = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen at {address} for exec and attach"))?;
    let certificates = tls.map(Certificates::open).transpose()?;
    let streams = Streams::at(
        sessions.local_addr().context("find the own address")?,
        certificates.is_some(),
    );
    let engine = Arc::new(open(config, streams).await?);
    protect(&engine).await;
    let pods = restore(&engine).await.context("restore pods")?;
    tracing::info!(pods, listen = %listen.display(), version = env!("CARGO_PKG_VERSION"), "ready");
    let (stop, stopped) = watch::channel(false);
    let collecting = Arc::clone(&engine);
    tokio::spawn(async move {
        let pods = || restore::pods(&collecting);
        let netns = |id: &PodId| collecting.netns(id);
        collecting.network.collect(pods, netns).await;
    });
    // For whoever asks for the status before a container asks for a device.
    let looking = Arc::clone(&engine);
    drop(tokio::task::spawn_blocking(move || looking.cdi.look()));
    let chores = tokio::spawn(chores_of(Arc::clone(&engine)));
    let scraped =
        scraped.map(|listener| tokio::spawn(metrics::serve(listener, Arc::clone(&engine))));
    let sessions = tokio::spawn(stream::serve(sessions, certificates, Arc::clone(&engine)));
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let serving = server::serve(listener, &listen, &engine, stopped);
    tokio::pin!(serving);
    // Only a service manager that set NOTIFY_SOCKET hears of it.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "the service manager was not told");
    }
    let result = tokio::select! {
        result = &mut serving => result,
        _ = terminate.recv() => end(&stop, serving).await,
        _ = interrupt.recv() => end(&stop, serving).await,
    };
    chores.abort();
    sessions.abort();
    keep_all(&engine).await;
    if let Some(scraped) = scraped {
        scraped.abort();
    }
    tracing::info!("stopped; containers live on");
    Ok(result?)
}

async fn end(
    stop: &watch::Sender<bool>,
    serving: std::pin::Pin<&mut impl Future<Output = Result<(), server::ServerError>>>,
) -> Result<(), server::ServerError> {
    stop.send_replace(true);
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Stopping]) {
        tracing::warn!(%error, "the service manager was not told");
    }
    serving.await
}

/// The folders, and the locks that keep a second engine off the same root and off the
/// same state: each sweeps away what its own records do not speak of.
fn prepare(config: &Config) -> anyhow::Result<Vec<Flock<File>>> {
    use std::os::unix::fs::DirBuilderExt;
    let dirs = [
        config.pods_dir(),
        config.cni_cache_dir(),
        config.pods_state_dir(),
    ];
    for dir in &dirs {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(dir)
            .with_context(|| format!("create {}", dir.display()))?;
    }
    if is_same(&config.root, &config.state)? {
        // Both have a folder for each pod, and that of the state ends with the pod.
        let dir = config.root.display();
        anyhow::bail!("--root and --state must not be one folder, both are {dir}");
    }
    Ok(vec![lock_dir(&config.root)?, lock_dir(&config.state)?])
}

fn is_same(one: &Path, other: &Path) -> anyhow::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let of = |dir: &Path| {
        let found = std::fs::metadata(dir).with_context(|| format!("look at {}", dir.display()))?;
        anyhow::Ok((found.dev(), found.ino()))
    };
    Ok(of(one)? == of(other)?)
}

/// Takes the lock of a folder.
fn lock_dir(dir: &Path) -> anyhow::Result<Flock<File>> {
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let file = lock(file).with_context(|| format!("lock {}", path.display()))?;
    file.with_context(|| format!("another engine works on {}", dir.display()))
}

/// None if another engine has it. A monitor that was just being started when an
/// engine was killed has copies of its descriptors until it is executed.
fn lock(mut file: File) -> Result<Option<Flock<File>>, nix::errno::Errno> {
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((same, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
                file = same;
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, error)) => return Err(error),
        }
    }
}

async fn open(config: Config, streams: Streams) -> anyhow::Result<Engine> {
    let dir = executable_dir()?;
    let binaries = MonitorBinaries::load(&dir).context("load the monitor")?;
    let cgroups = driver(&config).await?;
    let options = StoreOptions {
        root: config.root.clone(),
        hosts_dir: config.registry_config_path.clone(),
        user_agent: concat!("slipway/", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let images = ImageStore::open_with(options, config.tuning())
        .await
        .context("open the image store")?;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("read the kernel's boot_id")?;
    let boot_id = boot_id.trim().to_owned();
    let first_of_boot = first_of_boot(&config.root, &boot_id).context("note the boot_id")?;
    let user_namespaces = user_ns::probe(&config.root);
    if let Err(why) = &user_namespaces {
        tracing::info!(why, "pods have no user namespaces here");
    }
    Ok(Engine {
        network: Network::new(config.cni.clone(), config.cni_cache_dir()),
        monitors: MonitorPool::new(Arc::new(binaries), IDLE),
        namespaces: NetNsPool::new(IDLE),
        images,
        cgroups,
        index: Index::default(),
        seccomp: runtime::seccomp::Cache::new(),
        host_paths: HostPaths::default(),
        cdi: Cdi::new(config.cdi.spec_dirs.clone()),
        streams,
        samples: Samples::default(),
        pod_metrics: Known::default(),
        warnings: Warnings::default(),
        traces: Traces::default(),
        #[cfg(feature = "otel")]
        spans: crate::otel::Spans::of_environment()
            .transpose()
            .context("send spans")?,
        metrics: config.metrics.is_some().then(Metrics::new),
        left_parents: LeftParents::default(),
        user_namespaces,
        boot_id,
        first_of_boot,
        config,
    })
}

/// How long the AppArmor profile may take before the engine serves without it.
const LOADING: Duration = Duration::from_secs(10);

/// Has the default AppArmor profile loaded before the first container can be asked for:
/// one without a profile of its own would run without any.
async fn protect(engine: &Arc<Engine>) {
    let loading = Arc::clone(engine);
    let loading = tokio::task::spawn_blocking(move || load_profile(&loading));
    if tokio::time::timeout(LOADING, loading).await.is_err() {
        let warning = "apparmor_parser takes long: containers are made without its profile until it is loaded";
        engine.warnings.once(warning);
    }
}

/// Loads the default AppArmor profile where the kernel has AppArmor.
fn load_profile(engine: &Engine) {
    if !apparmor::is_enabled() {
        return;
    }
    if let Err(error) = apparmor::load() {
        let why = with_causes(&error);
        let warning = format!(
            "the AppArmor profile {} is not loaded: {why}",
            apparmor::DEFAULT
        );
        engine.warnings.once(&warning);
    }
}

/// The configured cgroup driver. A machine that it does not fit is refused; a systemd that
/// cannot be reached now may be later, and the node is not ready until then.
async fn driver(config: &Config) -> anyhow::Result<Box<dyn Driver>> {
    let selection = config.cgroup.hierarchy.selection();
    let hierarchies = Hierarchies::detect(selection).context("find the cgroups")?;
    if config.cgroup.driver == DriverKind::Cgroupfs {
        return Ok(Box::new(hierarchies));
    }
    let systemd = Systemd::new(hierarchies).context("cgroup.driver = \"systemd\"")?;
    match systemd.version().await {
        Ok(version) => tracing::info!(version, "cgroups of pods are scopes of systemd's"),
        Err(error) => tracing::error!(
            error = with_causes(&error),
            "the node is not ready before systemd answers"
        ),
    }
    Ok(Box::new(systemd))
}

/// Whether an engine last worked on this root in another boot than this one; notes
/// this one. A root without the note, or with a damaged one, may be of this boot.
fn first_of_boot(root: &Path, boot_id: &str) -> std::io::Result<bool> {
    let path = root.join("boot_id");
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    let known = known.trim();
    if known == boot_id {
        return Ok(false);
    }
    let temporary = root.join("boot_id.tmp");
    std::fs::write(&temporary, boot_id)?;
    std::fs::rename(&temporary, &path)?;
    Ok(known.len() == boot_id.len())
}

/// Where the monitor is: beside this executable.
pub(super) fn executable_dir() -> anyhow::Result<std::path::PathBuf> {
    let own = std::env::current_exe().context("find the own executable")?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

async fn chores_of(engine: Arc<Engine>) {
    let mut ticks = tokio::time::interval(CHORES_PERIOD);
    // Transitions at the last tick, and when memory was given back.
    let (mut seen, mut trimmed) = (0, 0);
    loop {
        ticks.tick().await;
        let engine = Arc::clone(&engine);
        engine.monitors.refill();
        engine.namespaces.refill();
        engine.network.refresh().await;
        if let Some(systemd) = engine.cgroups.systemd()
            && systemd.trouble().is_some()
            && systemd.version().await.is_ok()
        {
            tracing::info!("systemd answers again");
        }
        let now = engine.index.transitions();
        let trim = now == seen && now != trimmed;
        seen = now;
        if trim {
            trimmed = now;
        }
        let chores = move || {
            engine.left_parents.sweep(&*engine.cgroups);
            if trim {
                heap::trim();
            }
        };
        if tokio::task::spawn_blocking(chores).await.is_err() {
            tracing::error!("a chore panicked");
        }
    }
}
