//! What every test starts from.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use conformance::client::{Client, container_config, pod_config};
use conformance::engine::{Engine, executable};
use conformance::host::Picture;
use conformance::image::{self, Extras};
use conformance::{eventually, isolation, patient};
use nix::unistd::Pid;
use proto::v1;

/// How long anything that is waited for may take.
pub(crate) fn deadline() -> Duration {
    patient(20)
}

/// The annotation by which a test finds its own pods on a foreign engine.
const MARK: &str = "slipway.test/scratch";

/// Engines that run side by side: two for each core are enough.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
static BEFORE: OnceLock<Picture> = OnceLock::new();

/// A test's engine and a client of it.
pub(crate) struct Rig {
    pub(crate) engine: Engine,
    pub(crate) client: Client,
    pub(crate) cgroup: String,
    pub(crate) image: String,
}

/// Runs a test on an engine of its own and cleans up behind it. With
/// `SLIPWAY_CRI_SOCKET`, on the engine behind that socket, with the image that
/// `SLIPWAY_CRI_IMAGE` names.
pub(crate) fn with_engine(test: impl AsyncFnOnce(&mut Rig)) {
    match std::env::var_os("SLIPWAY_CRI_SOCKET") {
        Some(socket) => on_foreign_engine(Path::new(&socket), test),
        None => with_image(&Extras::default(), test),
    }
}

/// The same for what only an engine of its own can be asked: to crash, to start
/// again, or to say what only Slipway says.
pub(crate) fn with_own_engine(test: impl AsyncFnOnce(&mut Rig)) {
    with_image(&Extras::default(), test);
}

/// The same with other settings than the suite's.
pub(crate) fn with_settings(settings: &str, test: impl AsyncFnOnce(&mut Rig)) {
    with_image_and_settings(&Extras::default(), settings, test);
}

/// The same with another image.
pub(crate) fn with_image(extras: &Extras, test: impl AsyncFnOnce(&mut Rig)) {
    with_image_and_settings(extras, "", test);
}

/// The same with both.
pub(crate) fn with_image_and_settings(
    extras: &Extras,
    settings: &str,
    test: impl AsyncFnOnce(&mut Rig),
) {
    if std::env::var_os("SLIPWAY_CRI_SOCKET").is_some() {
        println!("SKIPPED: needs an engine of its own, SLIPWAY_CRI_SOCKET names another");
        return;
    }
    BEFORE.get_or_init(Picture::take);
    let turn = Turn::take();
    isolation::enter().expect("namespaces of its own");
    on_own_engine(extras, settings, test);
    drop(turn);
}

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    // Tests start tasks of their own with clients that stay on this thread.
    tokio::task::LocalSet::new().block_on(&runtime(), work)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("an async runtime")
}

/// Cleans up after a test that fails, too: what it left would fail others.
fn on_own_engine(extras: &Extras, settings: &str, test: impl AsyncFnOnce(&mut Rig)) {
    let runtime = runtime();
    let local = tokio::task::LocalSet::new();
    let mut rig = local.block_on(&runtime, prepare(extras, settings));
    let work = || local.block_on(&runtime, test(&mut rig));
    let outcome = catch_unwind(AssertUnwindSafe(work));
    let cleaned = local.block_on(&runtime, rig.engine.clean_up());
    if let Err(failure) = outcome {
        eprintln!("clean-up after the failure: {cleaned:?}");
        resume_unwind(failure);
    }
    cleaned.expect("clean up");
    let left = leaks(&rig.engine.path("").to_string_lossy(), rig.engine.cgroup());
    assert!(left.is_empty(), "left behind: {left:#?}");
}

async fn prepare(extras: &Extras, settings: &str) -> Rig {
    let mut engine = Engine::prepare(&executable().expect("slipway")).expect("a scratch folder");
    if !settings.is_empty() {
        engine.configure_with(settings).expect("settings");
    }
    let archive = engine.path("tiny.tar");
    image::write(&archive, extras).expect("a tiny image");
    engine.import(&archive).expect("import");
    let client = engine.start().await.expect("an engine");
    let cgroup = engine.cgroup().to_owned();
    let image = extras
        .name
        .clone()
        .unwrap_or_else(|| image::NAME.to_owned());
    Rig {
        engine,
        client,
        cgroup,
        image,
    }
}

/// Runs a test on an engine that lives on, so that its pods are removed even if
/// the test fails.
fn on_foreign_engine(socket: &Path, test: impl AsyncFnOnce(&mut Rig)) {
    let image = std::env::var("SLIPWAY_CRI_IMAGE").expect("SLIPWAY_CRI_IMAGE names a BusyBox");
    let mut engine = Engine::prepare(&executable().expect("slipway")).expect("a scratch folder");
    engine.listen_at(socket.to_owned());
    let cgroup = engine.cgroup().to_owned();
    let mark = engine.path("logs").to_string_lossy().into_owned();
    let work = async {
        let mut client = Client::connect(&engine.socket())
            .await
            .expect("an engine at SLIPWAY_CRI_SOCKET");
        client.pull(&image).await.expect("pull");
        let cgroup = engine.cgroup().to_owned();
        let mut rig = Rig {
            engine,
            client,
            cgroup,
            image,
        };
        test(&mut rig).await;
        // The scratch folder stays until the pods are gone.
        rig
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| on_runtime(work)));
    on_runtime(remove_marked(socket, &mark));
    conformance::engine::remove_cgroups(&cgroup);
    if let Err(failure) = outcome {
        resume_unwind(failure);
    }
}

/// Removes a test's own pods.
async fn remove_marked(socket: &Path, mark: &str) {
    let mut client = Client::connect(socket).await.expect("the same engine");
    for pod in client.pods().await.expect("list") {
        if pod.annotations.get(MARK).is_some_and(|own| own == mark) {
            client.stop_pod(&pod.id).await.expect("stop");
            client.remove_pod(&pod.id).await.expect("remove");
        }
    }
}

/// What of this engine is still there: its mounts, cgroups and processes.
fn leaks(scratch: &str, cgroup: &str) -> Vec<String> {
    let before = BEFORE.get_or_init(Picture::take);
    let ours = |thing: &String| thing.contains(scratch) || thing.ends_with(cgroup);
    let deadline = Instant::now() + deadline();
    loop {
        let left: Vec<String> = Picture::take()
            .added_since(before)
            .into_iter()
            .filter(ours)
            .collect();
        // A monitor that was told to end needs a moment to be gone.
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::yield_now();
    }
}

struct Turn;

impl Turn {
    fn take() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let free = |running: usize| (running < 2 * cores).then_some(running + 1);
        while RUNNING
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, free)
            .is_err()
        {
            std::thread::yield_now();
        }
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The monitor of a pod, by the verbose status.
pub(crate) fn monitor_pid(status: &v1::PodSandboxStatusResponse) -> Pid {
    let info = serde_json::from_str(&status.info["info"]);
    let info: serde_json::Value = info.expect("verbose information");
    let pid = info["monitorPid"].as_i64().expect("pid");
    Pid::from_raw(i32::try_from(pid).expect("pid"))
}

/// Whether a process has these words in its command line.
pub(crate) fn runs(words: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let mut commands =
        processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    commands.any(|command| command.contains(words))
}

impl Rig {
    /// A sandbox's configuration.
    pub(crate) fn sandbox(&self, name: &str) -> v1::PodSandboxConfig {
        let logs = self.engine.path("logs");
        let mut config = pod_config(name, self.engine.cgroup_parent(), &logs.join(name));
        config
            .annotations
            .insert(MARK.to_owned(), logs.to_string_lossy().into_owned());
        config
    }

    /// A container's configuration.
    pub(crate) fn container(&self, name: &str, command: &[&str]) -> v1::ContainerConfig {
        container_config(name, &self.image, command)
    }

    /// A running container in a pod that is there.
    pub(crate) async fn started(
        &mut self,
        pod: &str,
        config: &v1::ContainerConfig,
        sandbox: &v1::PodSandboxConfig,
    ) -> String {
        let created = self.client.create(pod, config, sandbox).await;
        let id = created.expect("CreateContainer");
        self.client.start(&id).await.expect("StartContainer");
        id
    }

    /// A pod with a running container; answers both ids.
    pub(crate) async fn running(&mut self, name: &str, command: &[&str]) -> (String, String) {
        let sandbox = self.sandbox(name);
        let config = self.container("main", command);
        let pod = self.client.run_pod(&sandbox).await.expect("RunPodSandbox");
        let id = self.started(&pod, &config, &sandbox).await;
        (pod, id)
    }

    /// Asserts what a sandbox's status says of its state.
    pub(crate) async fn assert_not_ready(&mut self, pod: &str) {
        let status = self.client.pod(pod).await.expect("PodSandboxStatus");
        let state = status.status.expect("there").state;
        assert_eq!(state, v1::PodSandboxState::SandboxNotready as i32);
    }

    /// Waits until a container has ended.
    pub(crate) async fn exited(&mut self, id: &str) -> v1::ContainerStatus {
        let mut client = self.client.clone();
        let ended = v1::ContainerState::ContainerExited as i32;
        eventually(deadline(), async || {
            let status = client.container(id).await.expect("ContainerStatus");
            (status.state == ended).then_some(status)
        })
        .await
        .expect("the container ends")
    }

    /// The log of a container, once it contains `wanted`.
    pub(crate) async fn log_with(&self, pod: &str, wanted: &str) -> String {
        let path = self.engine.path("logs").join(pod).join("main/0.log");
        eventually(deadline(), async || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            text.contains(wanted).then_some(text)
        })
        .await
        .unwrap_or_else(|| panic!("{wanted:?} is not in {}", path.display()))
    }

    /// Kills the engine and starts another on the same folders.
    pub(crate) async fn crash_and_restart(&mut self) {
        self.engine.kill().expect("kill");
        self.client = self.engine.start().await.expect("an engine");
    }
}
