//! A pod of a test: monitor, directories, cgroup.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::client::{
    CreateContainer, Created, Event, ExecExit, ExecProcess, ExecStreams, ExitRecord, LauncherKind,
    Monitor, MonitorError, MonitorPool, OciRuntime, Pids, PodReady, PodSetup, PodUser, Started,
};
use runtime::mount::IdMapping;
use runtime::netns::{NetNs, PodNamespaces};
use runtime::spec::{NamespaceKind, Spec};
use tokio::sync::mpsc::UnboundedReceiver;

use super::{TestCgroup, TestSpec, binaries, rootfs};

/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for a condition; says whether it came.
pub(crate) fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + DEADLINE;
    while Instant::now() < end {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

/// Does the same beside other tasks; ends the test where it takes too long.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    let come = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, come).await.unwrap();
}

/// Whose PID namespace a specification means: where it names one, the pod's.
fn pids_of(spec: &Spec) -> Pids {
    let mut all = spec.namespaces.iter();
    let pids = all.find(|one| one.kind == NamespaceKind::Pid);
    match pids.map(|one| one.path.is_some()) {
        None => Pids::Node,
        Some(false) => Pids::Own,
        Some(true) => Pids::Pod,
    }
}

/// What differs between pods.
#[derive(Debug, Clone)]
pub(crate) struct PodOptions {
    /// Who makes its containers.
    pub(crate) launcher: Kind,
    /// Changed before the setup.
    pub(crate) shared_pid: bool,
    /// Kernel parameters.
    pub(crate) sysctls: Vec<(String, String)>,
}

impl PodOptions {
    /// An ordinary pod.
    pub(crate) fn new(launcher: Kind) -> Self {
        Self {
            launcher,
            shared_pid: false,
            sysctls: Vec::new(),
        }
    }
}

/// A pod that is set up.
#[derive(Debug)]
pub(crate) struct Pod {
    /// Its monitor.
    pub(crate) monitor: Monitor,
    /// What the setup gave.
    pub(crate) ready: PodReady,
    /// What the monitor tells.
    pub(crate) events: UnboundedReceiver<Event>,
    /// The monitor's cgroup.
    pub(crate) cgroup: TestCgroup,
    /// Its user namespace.
    pub(crate) user: Option<Owned>,
    dir: tempfile::TempDir,
    launcher: Kind,
    next: u32,
}

/// A user namespace whose network is pinned as long as this lives.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) namespaces: Arc<PodNamespaces>,
    pin: PathBuf,
}

/// The first id of the node in pods that have user namespaces, and how many.
pub(crate) const IDS: (u32, u32) = (700_000, 65_536);

impl Owned {
    fn new(dir: &Path) -> Self {
        let ids = IdMapping {
            container_id: 0,
            host_id: IDS.0,
            length: IDS.1,
        };
        let pin = dir.join("netns").join("one");
        let namespaces = PodNamespaces::pinned(ids, &pin).unwrap();
        Self {
            namespaces: Arc::new(namespaces),
            pin,
        }
    }

    fn of_pod(&self) -> PodUser {
        PodUser {
            namespaces: Arc::clone(&self.namespaces),
            first: IDS.0,
            length: IDS.1,
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        NetNs::unpin(&self.pin).unwrap();
        NetNs::release_dir(self.pin.parent().unwrap()).unwrap();
    }
}

/// How containers are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By youki's libcontainer.
    Libcontainer,
    /// By the monitor.
    Native,
    /// By the monitor, in pods that have user namespaces.
    Inside,
    /// By runc.
    Runc,
    /// By crun.
    Crun,
}

impl Kind {
    /// The launcher.
    pub(crate) fn launcher(self) -> LauncherKind {
        match self {
            Self::Libcontainer => LauncherKind::Libcontainer,
            Self::Native | Self::Inside => LauncherKind::Native,
            Self::Runc | Self::Crun => LauncherKind::Oci,
        }
    }

    /// The OCI runtime.
    fn runtime(self) -> Option<OciRuntime> {
        let name = match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Libcontainer | Self::Native | Self::Inside => return None,
        };
        let dirs = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
        let mut paths = dirs.iter().map(|dir| Path::new(dir).join(name));
        let path = paths.find(|path| path.exists());
        // As `make test-tools` does.
        let path = path.unwrap_or_else(|| panic!("{name} has to be installed"));
        Some(OciRuntime {
            path,
            args: Vec::new(),
        })
    }
}

/// A container that a test made.
#[derive(Debug)]
pub(crate) struct TestContainer {
    /// Its id.
    pub(crate) id: String,
    /// Its cgroup.
    pub(crate) cgroup: TestCgroup,
    /// What the creation gave.
    pub(crate) created: Created,
    /// Its log.
    pub(crate) log: PathBuf,
    /// The changes to its root filesystem.
    pub(crate) upper: PathBuf,
}

/// What a process that was run left.
#[derive(Debug)]
pub(crate) struct Ended {
    /// How it ended.
    pub(crate) exit: ExecExit,
    /// What it wrote.
    pub(crate) stdout: String,
    /// What it complained.
    pub(crate) stderr: String,
}

impl Pod {
    /// An ordinary pod.
    pub(crate) async fn new(launcher: Kind) -> Self {
        Self::with(PodOptions::new(launcher)).await
    }

    /// A pod with options.
    pub(crate) async fn with(options: PodOptions) -> Self {
        Self::try_with(options).await.unwrap()
    }

    /// A pod that may fail to set up.
    pub(crate) async fn try_with(options: PodOptions) -> Result<Self, MonitorError> {
        let PodOptions {
            launcher,
            shared_pid,
            sysctls,
        } = options;
        let dir = tempfile::tempdir().unwrap();
        // As long as a real one: a socket's address could not hold the path.
        let state_dir = dir.path().join("pods").join("a".repeat(64));
        let exit_dir = dir.path().join("exits");
        for made in [&state_dir, &exit_dir, &dir.path().join("logs")] {
            std::fs::create_dir_all(made).unwrap();
        }
        let cgroup = TestCgroup::new();
        let pool = MonitorPool::new(binaries::monitor_binaries(), 0..=0);
        let monitor = pool.take().await.unwrap();
        let user = (launcher == Kind::Inside).then(|| Owned::new(dir.path()));
        let setup = PodSetup {
            pod_id: "a".repeat(64),
            state_dir,
            exit_dir,
            cgroup_files: cgroup.files_to_join(),
            hostname: Some("slipway-test".to_owned()),
            new_ipc: true,
            netns: user.as_ref().map(|user| user.pin.clone()),
            sysctls,
            shared_pid,
            oom_score_adj: 0,
            user: user.as_ref().map(Owned::of_pod),
        };
        let (ready, events) = monitor.setup(setup).await?;
        Ok(Self {
            monitor,
            ready,
            events,
            cgroup,
            user,
            dir,
            launcher,
            next: 0,
        })
    }

    /// Which id of the node an id of its containers is.
    pub(crate) fn on_node(&self, id: u32) -> u32 {
        id + self.user.as_ref().map_or(0, |_| IDS.0)
    }

    /// Where the monitor's socket is.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("pods").join("a".repeat(64))
    }

    /// Where exit records are.
    pub(crate) fn exit_dir(&self) -> PathBuf {
        self.dir.path().join("exits")
    }

    /// A place for files of the test.
    pub(crate) fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// A container with everything in it that the engine would send.
    pub(crate) fn request(&mut self, spec: &TestSpec) -> (CreateContainer, TestCgroup, PathBuf) {
        self.next += 1;
        let id = format!("{:064x}", self.next);
        let cgroup = TestCgroup::new();
        let upper = self.dir.path().join(&id);
        let user = self.user.as_ref().map(|user| user.namespaces.user.as_fd());
        let rootfs = rootfs::overlay(&upper, user);
        let spec = spec.build();
        let request = CreateContainer {
            launcher: self.launcher.launcher(),
            runtime: self.launcher.runtime(),
            pids: pids_of(&spec),
            spec,
            rootfs,
            cgroup_files: cgroup.files_to_join(),
            cgroup_oom: cgroup.oom_file(),
            cgroup_kill: cgroup.kill_file(),
            log_path: Some(self.dir.path().join("logs").join(format!("{id}.log"))),
            stdin: false,
            stdin_once: false,
            id,
        };
        (request, cgroup, upper.join("upper"))
    }

    /// Makes a container.
    pub(crate) async fn create(&mut self, spec: &TestSpec) -> TestContainer {
        self.create_with(spec, |_| ()).await.unwrap()
    }

    /// Makes a container whose request is changed before.
    pub(crate) async fn create_with(
        &mut self,
        spec: &TestSpec,
        change: impl FnOnce(&mut CreateContainer),
    ) -> Result<TestContainer, MonitorError> {
        let (mut request, cgroup, upper) = self.request(spec);
        change(&mut request);
        let id = request.id.clone();
        let log = request.log_path.clone().unwrap_or_default();
        let created = self.monitor.create(request).await?;
        Ok(TestContainer {
            id,
            cgroup,
            created,
            log,
            upper,
        })
    }

    /// Makes a container and lets it run.
    pub(crate) async fn run(&mut self, spec: &TestSpec) -> TestContainer {
        let container = self.create(spec).await;
        self.start(&container).await;
        container
    }

    /// Lets a container run.
    pub(crate) async fn start(&self, container: &TestContainer) -> Started {
        self.monitor.start(&container.id).await.unwrap()
    }

    /// Waits for the exit of a container.
    pub(crate) async fn exit(&mut self, container: &TestContainer) -> ExitRecord {
        loop {
            match self.event().await {
                Event::Exited(record) if record.container == container.id => return record,
                Event::Exited(_) | Event::StartEnded { .. } | Event::Log { .. } => {}
                Event::Gone => panic!("the monitor died"),
            }
        }
    }

    /// The next event.
    pub(crate) async fn event(&mut self) -> Event {
        tokio::time::timeout(DEADLINE, self.events.recv())
            .await
            .unwrap()
            .unwrap()
    }

    /// Runs a container to its end; gives exit and log without time stamps.
    pub(crate) async fn outcome(&mut self, spec: &TestSpec) -> (ExitRecord, Vec<String>) {
        let container = self.run(spec).await;
        let record = self.exit(&container).await;
        let log = container.log();
        self.monitor.delete(&container.id).await.unwrap();
        (record, log)
    }

    /// Runs a process in a container.
    pub(crate) async fn exec(
        &self,
        container: &TestContainer,
        spec: &TestSpec,
    ) -> Result<Ended, MonitorError> {
        self.exec_with(container, spec, |_| ()).await
    }

    /// Runs a process whose request is changed before.
    pub(crate) async fn exec_with(
        &self,
        container: &TestContainer,
        spec: &TestSpec,
        change: impl FnOnce(&mut ExecProcess),
    ) -> Result<Ended, MonitorError> {
        let (stdout, stdout_end) = rustix::pipe::pipe().unwrap();
        let (stderr, stderr_end) = rustix::pipe::pipe().unwrap();
        let mut request = ExecProcess {
            container: container.id.clone(),
            process: spec.process(),
            streams: ExecStreams::Pipes {
                stdin: None,
                stdout: stdout_end,
                stderr: stderr_end,
            },
            streaming: false,
            timeout: None,
            cgroup_files: container.cgroup.files_to_join(),
        };
        change(&mut request);
        let readers = (read_all(stdout), read_all(stderr));
        let exit = tokio::time::timeout(DEADLINE, self.monitor.exec(request))
            .await
            .unwrap()?;
        let (stdout, stderr) = (readers.0.await.unwrap(), readers.1.await.unwrap());
        Ok(Ended {
            exit,
            stdout,
            stderr,
        })
    }

    /// Ends the pod and looks for what is left.
    pub(crate) async fn end(mut self) {
        // Its monitor does without the pin.
        drop(self.user.take());
        let before = self.monitor.pid();
        let mounts = mounts_below(self.dir.path());
        assert_eq!(mounts, Vec::<String>::new(), "mounts on the host");
        tokio::time::timeout(DEADLINE, self.monitor.shutdown())
            .await
            .unwrap()
            .unwrap();
        assert!(
            wait_until(|| !Path::new(&format!("/proc/{before}")).exists()),
            "monitor is left"
        );
        assert!(
            !self.state_dir().join("monitor.sock").exists(),
            "socket is left"
        );
        assert!(
            !self.state_dir().join("launch").exists(),
            "launch directory is left"
        );
        // An OCI runtime's own process may need a moment more.
        let is_empty = || self.cgroup.pids().is_empty();
        assert!(wait_until(is_empty), "left: {:?}", self.cgroup.pids());
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // A test that failed leaves its monitor: its containers are killed
        // with their cgroups, it with its own.
        if std::thread::panicking() {
            for record in std::fs::read_dir(self.exit_dir())
                .into_iter()
                .flatten()
                .flatten()
            {
                eprintln!("exit record: {}", record.path().display());
            }
        }
    }
}

impl TestContainer {
    /// Its log without time stamps: `stdout F text`.
    pub(crate) fn log(&self) -> Vec<String> {
        let text = std::fs::read(&self.log).unwrap();
        let text = String::from_utf8_lossy(&text);
        // Not `lines`, which takes a carriage return for a part of the end.
        text.split_terminator('\n')
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    /// Waits until its log holds a text.
    pub(crate) fn logged(&self, text: &str) {
        let found = wait_until(|| self.log().iter().any(|line| line.contains(text)));
        assert!(found, "{text:?} is not in {:?}", self.log());
    }
}

/// Reads to the end without keeping the test's thread.
fn read_all(pipe: OwnedFd) -> tokio::task::JoinHandle<String> {
    assert!(pipe.as_raw_fd() > 2);
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(pipe), &mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines()
        .filter(|line| line.contains(dir))
        .map(str::to_owned)
        .collect()
}
