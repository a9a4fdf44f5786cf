//! An engine in a scratch folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::client::Client;
use crate::{eventually, isolation, patient};

/// How long an engine may take to listen or to end.
fn deadline() -> Duration {
    patient(20)
}

/// A scratch folder and, most of the time, an engine that works in it.
#[derive(Debug)]
pub struct Engine {
    dir: TempDir,
    slipway: PathBuf,
    child: Option<Child>,
    cgroup: String,
    environment: Vec<(String, String)>,
    /// Another socket than the folder's own.
    listen: Option<PathBuf>,
    /// Another folder for the state than the own one.
    state: Option<PathBuf>,
    log_level: &'static str,
}

/// The `slipway` to test: `SLIPWAY`, or the one beside the test's own folder.
///
/// # Errors
/// There is none.
pub fn executable() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("SLIPWAY") {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe().context("find the own executable")?;
    let found = own
        .ancestors()
        .skip(1)
        .map(|dir| dir.join("slipway"))
        .find(|path| path.is_file());
    found.context("no slipway beside the test; build it first, or set SLIPWAY")
}

impl Engine {
    /// A scratch folder with a bridge network, and no engine yet.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn prepare(slipway: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("slipway-scratch-")
            .tempdir()?;
        let unique = dir
            .path()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let engine = Self {
            slipway: slipway.to_owned(),
            child: None,
            cgroup: match Driver::of_environment() {
                Driver::Cgroupfs => format!("/{unique}"),
                // A dash would stand for a slice above it.
                Driver::Systemd => format!("/{}.slice", unique.replace('-', "_")),
            },
            environment: Vec::new(),
            listen: None,
            state: None,
            log_level: "info,engine=debug",
            dir,
        };
        isolation::write_bridge_network(&engine.path("net.d"), &engine.path("ipam"))?;
        std::fs::create_dir_all(engine.path("config"))?;
        let config = format!(
            "[cni]\nconf_dir = {:?}\nbin_dirs = [\"/opt/cni/bin\", \"/usr/lib/cni\"]\nnetns_dir = {:?}\n",
            engine.path("net.d"),
            engine.path("netns"),
        );
        std::fs::write(engine.path("config/10-scratch.toml"), config)?;
        if Driver::of_environment() == Driver::Systemd {
            let config = "[cgroup]\ndriver = \"systemd\"\n";
            std::fs::write(engine.path("config/15-driver.toml"), config)?;
        }
        // Lets the whole suite run with another launcher than the default.
        if let Some(launcher) = std::env::var_os("SLIPWAY_TEST_HANDLER") {
            let name = launcher.to_string_lossy();
            let config = format!(
                "[runtime]\ndefault_handler = {name:?}\n[runtime.handlers.{name:?}]\nlauncher = {name:?}\n"
            );
            std::fs::write(engine.path("config/20-handler.toml"), config)?;
        }
        // The same with other settings.
        if let Some(file) = std::env::var_os("SLIPWAY_TEST_CONFIG") {
            engine.configure(Path::new(&file))?;
        }
        Ok(engine)
    }

    /// Adds the settings of a file to those of engines that are started from now on.
    ///
    /// # Errors
    /// The file cannot be read, or not be written to the folder.
    pub fn configure(&self, file: &Path) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(file);
        let text = text.with_context(|| format!("read {}", file.display()))?;
        self.configure_with(&text)
    }

    /// The same with the settings themselves.
    ///
    /// # Errors
    /// They cannot be written to the folder.
    pub fn configure_with(&self, settings: &str) -> anyhow::Result<()> {
        let path = self.path("config/40-more.toml");
        std::fs::write(&path, settings).with_context(|| format!("write {}", path.display()))
    }

    /// The parent of this engine's pods as the kubelet names it: by its path with both
    /// drivers.
    #[must_use]
    pub fn cgroup_parent(&self) -> &str {
        &self.cgroup
    }

    /// The cgroup of a pod's own processes, or of a container in that pod.
    #[must_use]
    pub fn cgroup_of(&self, pod: &str, id: &str) -> String {
        match Driver::of_environment() {
            Driver::Cgroupfs => format!("{}/{id}", self.cgroup),
            Driver::Systemd => format!("{}/slipway-{pod}.scope/{id}", self.cgroup),
        }
    }

    /// A path in the scratch folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        let own = || self.path("slipway.sock");
        self.listen.clone().unwrap_or_else(own)
    }

    /// Has engines that are started from now on be another build: copies whose
    /// monitor is of other bytes.
    ///
    /// # Errors
    /// The copies cannot be made.
    pub fn become_another_build(&mut self) -> anyhow::Result<()> {
        let dir = self.path("other-build");
        std::fs::create_dir(&dir)?;
        let from = self.slipway.parent().context("a folder of executables")?;
        for name in ["slipway", "slipway-monitor", "slipway-libcontainer"] {
            let copy = dir.join(name);
            std::fs::copy(from.join(name), &copy).with_context(|| format!("copy {name}"))?;
        }
        // What follows an ELF file's end means nothing.
        let monitor = dir.join("slipway-monitor");
        let mut monitor = std::fs::OpenOptions::new().append(true).open(monitor)?;
        std::io::Write::write_all(&mut monitor, b"another build")?;
        self.slipway = dir.join("slipway");
        Ok(())
    }

    /// Lets engines that are started from now on listen elsewhere.
    pub fn listen_at(&mut self, socket: PathBuf) {
        self.listen = Some(socket);
    }

    /// Has engines that are started from now on keep their state elsewhere.
    pub fn keep_state_at(&mut self, dir: PathBuf) {
        self.state = Some(dir);
    }

    /// The cgroup for the pods of this engine, made and removed with it.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Sets a variable for engines that are started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Removes a variable.
    pub fn unset(&mut self, name: &str) {
        self.environment.retain(|(known, _)| known != name);
    }

    /// Lets engines that are started from now on log as they would on a node.
    pub fn quiet(&mut self) {
        self.log_level = "info";
    }

    /// Configures a handler for each name: that of a launcher which is part of
    /// Slipway, or of an OCI runtime in `PATH`, with or without `oci:` before it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add_handlers(&self, names: &[String]) -> anyhow::Result<()> {
        let mut config = String::new();
        for name in names {
            let launcher = match name.as_str() {
                own @ ("native" | "libcontainer") => format!("launcher = {own:?}\n"),
                other => {
                    let program = other.strip_prefix("oci:").unwrap_or(other);
                    let dirs = std::env::var_os("PATH").unwrap_or_default();
                    let found = std::env::split_paths(&dirs)
                        .map(|dir| dir.join(program))
                        .find(|path| path.is_file());
                    let path = found.with_context(|| format!("no {program} in PATH"))?;
                    format!("launcher = \"oci\"\npath = {path:?}\n")
                }
            };
            config.push_str(&format!("[runtime.handlers.{name:?}]\n{launcher}"));
        }
        let path = self.path("config/30-handlers.toml");
        std::fs::write(&path, config).with_context(|| format!("write {}", path.display()))
    }

    /// Brings an archive in while no engine runs; answers the id.
    ///
    /// # Errors
    /// The command failed.
    pub fn import(&self, archive: &Path) -> anyhow::Result<String> {
        let output = self
            .command("image")
            .arg("import")
            .args(self.places())
            .arg(archive)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "slipway image import: {said}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// What `slipway status` says of the running engine.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn status(&self) -> anyhow::Result<String> {
        let mut command = self.command("status");
        let output = command.arg("--socket").arg(self.socket()).output()?;
        Ok(String::from_utf8(output.stdout)?)
    }

    fn command(&self, word: &str) -> Command {
        let mut command = Command::new(&self.slipway);
        command.arg(word);
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        command
    }

    fn places(&self) -> Vec<std::ffi::OsString> {
        let own_state = || self.path("state");
        let pairs = [
            ("--root", self.path("root")),
            ("--state", self.state.clone().unwrap_or_else(own_state)),
            ("--listen", self.socket()),
            ("--config-dir", self.path("config")),
        ];
        pairs
            .into_iter()
            .flat_map(|(flag, path)| [flag.into(), path.into_os_string()])
            .collect()
    }

    /// Starts an engine and waits until it answers.
    ///
    /// # Errors
    /// It ended, or does not answer in time; the end of its log is in the message.
    pub async fn start(&mut self) -> anyhow::Result<Client> {
        self.spawn()?;
        let socket = self.socket();
        let client = eventually(deadline(), async || {
            if self.has_ended() {
                return Some(Err(anyhow::anyhow!("the engine ended: {}", self.log_end())));
            }
            let mut client = Client::connect(&socket).await.ok()?;
            client.version().await.ok()?;
            Some(Ok(client))
        });
        match client.await {
            Some(client) => client,
            None => bail!("the engine does not answer: {}", self.log_end()),
        }
    }

    /// Starts an engine without waiting for it.
    ///
    /// # Errors
    /// It cannot be executed.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("engine.log"))?;
        let mut command = self.command("serve");
        command
            .args(self.places())
            .args(["--log-level", self.log_level]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.with_context(|| format!("run {}", self.slipway.display()))?);
        Ok(())
    }

    /// Whether the engine has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child
            .as_mut()
            .is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// The engine's process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Waits until an engine that was spawned ends by itself.
    ///
    /// # Errors
    /// It does not, within the deadline.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        let ended = eventually(deadline(), async || self.has_ended().then_some(())).await;
        ended.with_context(|| format!("the engine still runs: {}", self.log_end()))
    }

    /// The last lines of the engine's log.
    #[must_use]
    pub fn log_end(&self) -> String {
        let log = std::fs::read_to_string(self.path("engine.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// Ends the engine as a service manager would; answers how long it took.
    ///
    /// # Errors
    /// It does not end, or not well.
    pub fn terminate(&mut self) -> anyhow::Result<Duration> {
        self.signal(Signal::SIGTERM)
    }

    /// Ends the engine as a crash would.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL).map(|_| ())
    }

    fn signal(&mut self, signal: Signal) -> anyhow::Result<Duration> {
        let Some(mut child) = self.child.take() else {
            bail!("no engine runs")
        };
        let began = Instant::now();
        kill(Pid::from_raw(i32::try_from(child.id())?), signal).context("signal the engine")?;
        let status = child.wait()?;
        let well = signal == Signal::SIGKILL || status.success();
        ensure!(well, "the engine ended with {status}: {}", self.log_end());
        Ok(began.elapsed())
    }

    /// Removes all pods and ends the engine; starts it first where it is down.
    ///
    /// # Errors
    /// A pod cannot be removed.
    pub async fn clean_up(&mut self) -> anyhow::Result<()> {
        if self.has_ended() {
            self.child = None;
            self.unset("SLIPWAY_FAILPOINT");
            self.start().await?;
        }
        let mut client = Client::connect(&self.socket()).await?;
        for pod in client.pods().await? {
            client.stop_pod(&pod.id).await?;
            client.remove_pod(&pod.id).await?;
        }
        self.terminate()?;
        remove_cgroups(&self.cgroup);
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Only after a failed test; its monitors are found by the leak check.
            drop(child.kill());
            drop(child.wait());
        }
        if std::env::var_os("SLIPWAY_KEEP").is_some() {
            self.dir.disable_cleanup(true);
            eprintln!("kept {}", self.dir.path().display());
        }
    }
}

/// Which cgroup driver the engines of tests have: `SLIPWAY_TEST_CGROUP_DRIVER`, or cgroupfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The engine makes cgroups.
    Cgroupfs,
    /// systemd makes scopes.
    Systemd,
}

impl Driver {
    /// The one that the environment asks for.
    ///
    /// # Panics
    /// It asks for another one, so that no suite runs with a driver that was not meant.
    #[must_use]
    pub fn of_environment() -> Self {
        match std::env::var("SLIPWAY_TEST_CGROUP_DRIVER").as_deref() {
            Err(_) | Ok("" | "cgroupfs") => Self::Cgroupfs,
            Ok("systemd") => Self::Systemd,
            Ok(other) => panic!("SLIPWAY_TEST_CGROUP_DRIVER={other:?} is no cgroup driver"),
        }
    }
}

/// Removes a cgroup and what is empty below it, in every hierarchy; a slice with its unit.
pub fn remove_cgroups(cgroup: &str) {
    if cgroup.ends_with(".slice") {
        stop_slice(cgroup.trim_start_matches('/'));
    }
    let Ok(hierarchies) = std::fs::read_dir("/sys/fs/cgroup") else {
        return;
    };
    let roots = hierarchies.filter_map(Result::ok).map(|entry| entry.path());
    for root in roots.chain([PathBuf::from("/sys/fs/cgroup")]) {
        let dir = root.join(cgroup.trim_start_matches('/'));
        if dir.is_dir() {
            remove_empty(&dir);
        }
    }
}

/// Stops a slice; again where systemd did not listen, since a test has it begin anew. One
/// that stays is found as a leak.
fn stop_slice(name: &str) {
    /// systemctl's status for a unit that is not there.
    const UNKNOWN: i32 = 5;
    let end = Instant::now() + deadline();
    while Instant::now() < end {
        let stopped = Command::new("systemctl").args(["stop", name]).output();
        match stopped.map(|output| output.status.code()) {
            Ok(Some(0 | UNKNOWN)) | Err(_) => return,
            Ok(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn remove_empty(dir: &Path) {
    for entry in std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
    {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    // One that is not empty is a leak, and found as such.
    drop(std::fs::remove_dir(dir));
}
