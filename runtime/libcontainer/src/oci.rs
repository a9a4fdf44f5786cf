//! Containers by an OCI command line runtime: runc, crun and what speaks as they do.
//!
//! `create` and `start` of the OCI runtime specification's command line, with a
//! bundle and a state folder in the tmpfs of this helper's mount namespace. The
//! helper lives from `create` until it has run `start`; afterwards nothing is
//! left of runtime or state but the container, a child of the monitor, so that
//! there is nothing to `delete`. Processes are run in it as in any other: by its
//! namespaces. The runtime sets up the cgroups that the engine made; only the
//! tree of version 2 beside others, which runtimes leave alone, is joined here.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libcontainer::oci_spec::runtime::{Linux, LinuxDeviceCgroup, LinuxResources, Spec};
use runtime::launcher::{LaunchError, StartEnd};
use runtime::protocol::{Create, Fds, StreamSlots};
use runtime::sys::fork::{self, NewNamespaces};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::WaitOptions;

use crate::bundle::{Bundle, attach as mount, clone_tree};
use crate::cgroups::{self, Cgroups};
use crate::console::ConsoleSocket;
use crate::create::{Outcome, Streams, attach, join_keyring, write_config};
use crate::{devices, propagation, spec};

/// The version of the specification that all of them know.
const VERSION: &str = "1.0.2";
/// Where all cgroup filesystems are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// What runtimes say when the program is not there or cannot be executed.
const NOT_FOUND: [&str; 5] = [
    "executable file not found",
    "executable file `",
    "no such file or directory",
    "is a directory",
    "exec format error",
];

/// What the monitor asked for.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) create: Create,
    pub(crate) work_dir: Vec<u8>,
    pub(crate) start: StartEnd,
    pub(crate) streams: StreamSlots,
    pub(crate) fds: Fds,
}

/// A container that waits for the runtime's `start`.
#[derive(Debug)]
pub(crate) struct Start {
    runtime: Runtime,
    id: String,
    end: StartEnd,
}

/// The runtime, with its state.
#[derive(Debug)]
struct Runtime {
    /// Whether this helper made the container's session keyring.
    own_keyring: bool,
    path: PathBuf,
    args: Vec<OsString>,
    state: PathBuf,
    log: PathBuf,
}

/// The only cgroup of a container, where devices are a program's business. A runtime
/// puts its own in the place of what it finds there, with devices that it allows of
/// itself: it is told to allow all, and the program of the rules comes after it.
#[derive(Debug)]
struct OwnCgroup {
    dir: OwnedFd,
    /// The specification with the rules.
    ruled: Spec,
}

impl OwnCgroup {
    /// By a descriptor: other mounts may hide its path. Takes the rules away from
    /// the runtime.
    fn open(dir: &Path, spec: &mut Spec) -> Result<Self, LaunchError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(dir, flags, Mode::empty()).map_err(|errno| {
            LaunchError::failed("open cgroup", format!("{}: {errno}", dir.display()))
        })?;
        let ruled = spec.clone();
        let resources = spec.linux_mut().as_mut().map(Linux::resources_mut);
        if let Some(resources) = resources.and_then(Option::as_mut) {
            let mut all = LinuxDeviceCgroup::default();
            all.set_allow(true).set_access(Some("rwm".to_owned()));
            resources.set_devices(Some(vec![all]));
        }
        Ok(Self { dir: opened, ruled })
    }

    fn enforce(&self) -> Result<(), LaunchError> {
        let procs = format!("/proc/self/fd/{}/cgroup.procs", self.dir.as_raw_fd());
        devices::enforce(&self.ruled, &Cgroups::new(&[procs.into_bytes()]))
    }
}

/// Makes a container.
pub(crate) fn create(order: Order) -> Result<Outcome, LaunchError> {
    let Order {
        create,
        work_dir,
        start,
        streams,
        mut fds,
    } = order;
    let path = create.runtime.clone();
    let path = path.ok_or_else(|| LaunchError::failed("read the order", "it names no runtime"))?;
    let mut spec = spec::read(&fds.take(create.spec_fd, "the spec")?)?;
    let streams = Streams::take(&streams, &mut fds)?;
    streams.give_to(owner(&spec))?;
    let bundle = Bundle::make(PathBuf::from(OsString::from_vec(work_dir)))?;
    let sources = attach(&bundle, &mut spec, &create, &mut fds)?;
    let propagation = propagation::plan(&mut spec, &sources)?;
    let cgroups = Cgroups::new(&create.cgroup_files);
    let own = cgroups.unified().map(|dir| OwnCgroup::open(dir, &mut spec));
    let own = own.transpose()?;
    if own.is_none() {
        devices::enforce(&spec, &cgroups)?;
    }
    cgroups.provide_view(&mut spec, &bundle)?;
    fit(&mut spec, cgroups.dirs(), create.tty);
    if !show_alone(&cgroups)? {
        join_beside(&cgroups)?;
    }
    let mut warnings = give_up_score(&mut spec)?;
    let own_keyring = keeps_keyring(Path::new(OsStr::from_bytes(&path)), &spec);
    if own_keyring {
        warnings.extend(join_keyring(&create)?);
    }
    write_config(&bundle, &spec)?;
    let console = create
        .tty
        .then(|| ConsoleSocket::listen(bundle.dir()))
        .transpose()?;
    let runtime = Runtime {
        own_keyring,
        path: PathBuf::from(OsString::from_vec(path)),
        args: create
            .runtime_args
            .iter()
            .cloned()
            .map(OsString::from_vec)
            .collect(),
        state: bundle.state(),
        log: bundle.dir().join("log"),
    };
    let pid = runtime.create(&create.id, &bundle, streams, console.as_ref())?;
    if let Some(own) = own {
        own.enforce()?;
    }
    undo(&propagation, pid)?;
    let console = console.map(|socket| socket.take()).transpose()?;
    Ok(Outcome {
        pid,
        console,
        warnings,
        runtimes_keyring: !own_keyring,
        start: Some(Start {
            runtime,
            id: create.id,
            end: start,
        }),
    })
}

impl Start {
    /// Waits for the word and starts the container; says so where it cannot.
    pub(crate) fn wait(self) {
        let waiting = self.end.waiting();
        // Without a monitor nobody would look after the container.
        if !waiting.wait() {
            return;
        }
        let mut command = self.runtime.command("start");
        command.arg(&self.id);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null());
        if let Err(error) = self.runtime.run("start", command) {
            let not_found = matches!(
                &error,
                LaunchError::Failed {
                    not_found: true,
                    ..
                }
            );
            waiting.fail(&error, not_found);
        }
    }
}

impl Runtime {
    fn create(
        &self,
        id: &str,
        bundle: &Bundle,
        streams: Streams,
        console: Option<&ConsoleSocket>,
    ) -> Result<i32, LaunchError> {
        let pid_file = bundle.dir().join("pid");
        let mut command = self.command("create");
        command.arg("--bundle").arg(bundle.dir());
        command.arg("--pid-file").arg(&pid_file);
        if self.own_keyring {
            command.arg("--no-new-keyring");
        }
        if let Some(console) = console {
            command.arg("--console-socket").arg(console.path());
            command.stdin(Stdio::null()).stdout(Stdio::null());
            command.stderr(Stdio::null());
        } else {
            command.stdin(streams.stdin).stdout(streams.stdout);
            command.stderr(streams.stderr);
        }
        command.arg(id);
        self.run("create", command)?;
        let failed = |message: String| LaunchError::failed("read the runtime's pid file", message);
        let text = std::fs::read_to_string(&pid_file).map_err(|error| failed(error.to_string()))?;
        let pid = text.trim().parse();
        pid.map_err(|_| failed(format!("{text:?} is no number")))
    }

    fn command(&self, what: &str) -> Command {
        let mut command = Command::new(&self.path);
        // Runtimes look for newuidmap and systemd by these.
        command.env_clear();
        command.env("PATH", OsStr::from_bytes(runtime::exec::DEFAULT_PATH));
        command.current_dir("/");
        command.args(&self.args);
        command.arg("--root").arg(&self.state);
        command.arg("--log").arg(&self.log);
        command.arg("--log-format").arg("json");
        command.arg(what);
        command
    }

    /// Runs it to its end.
    fn run(&self, what: &str, mut command: Command) -> Result<(), LaunchError> {
        let name = self.path.file_name().unwrap_or(OsStr::new("the runtime"));
        let step = format!("{} {what}", name.to_string_lossy());
        let status = command.status().map_err(|error| {
            LaunchError::failed(&step, format!("{}: {error}", self.path.display()))
        })?;
        // What holds the container's streams must be closed with it.
        drop(command);
        if status.success() {
            return Ok(());
        }
        let message = self.complaint().unwrap_or_else(|| status.to_string());
        let not_found = NOT_FOUND.iter().any(|words| message.contains(words));
        Err(LaunchError::Failed {
            step,
            message,
            not_found,
        })
    }

    /// The last error of the log.
    fn complaint(&self) -> Option<String> {
        let text = std::fs::read_to_string(&self.log).ok()?;
        let entries = text.lines().rev();
        let mut entries =
            entries.filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let error = entries.find(|entry| entry["level"] == "error")?;
        error["msg"].as_str().map(str::to_owned)
    }
}

/// Whether the runtime is one that is known to keep the session keyring that it finds.
/// Theirs can be read, or joined by its name, by whoever has the same user; others, and
/// those that have to label it, make their own.
fn keeps_keyring(runtime: &Path, spec: &Spec) -> bool {
    let known = ["runc", "crun"]
        .iter()
        .any(|name| runtime.file_name() == Some(OsStr::new(name)));
    let process = spec.process().as_ref();
    let label = process.and_then(|process| process.selinux_label().as_deref());
    known && label.unwrap_or_default().is_empty()
}

fn owner(spec: &Spec) -> (u32, u32) {
    let user = spec.process().as_ref().map(|process| process.user());
    user.map_or((0, 0), |user| (user.uid(), user.gid()))
}

/// Says what runtimes of any age understand: the container's own cgroups, a terminal
/// where one was asked for, no limits, which the engine has set on controllers that
/// a runtime may not find.
fn fit(spec: &mut Spec, cgroups: &[PathBuf], tty: bool) {
    spec.set_version(VERSION.to_owned());
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(tty));
    }
    let unified = Path::new(CGROUPS).join("cgroup.controllers").exists();
    if let Some(linux) = spec.linux_mut() {
        let path = cgroups.iter().find_map(|dir| own_path(dir, unified));
        linux.set_cgroups_path(path);
        let devices = linux.resources().as_ref().map(|all| all.devices().clone());
        let mut resources = LinuxResources::default();
        resources.set_devices(devices.flatten());
        linux.set_resources(Some(resources));
        // All of it or the top alone is the same to the launchers made here.
        let propagation = linux.rootfs_propagation().clone();
        linux.set_rootfs_propagation(propagation.map(|kind| match kind.starts_with('r') {
            true => kind,
            false => format!("r{kind}"),
        }));
    }
}

/// Shows the runtime the tree of version 2 as that of a machine with no other, where
/// it is the only one that the container's cgroup is in: it would make cgroups in all
/// the others. Tells whether it is.
fn show_alone(cgroups: &Cgroups) -> Result<bool, LaunchError> {
    let Some(dir) = cgroups.unified() else {
        return Ok(false);
    };
    let Some(tree) = hierarchy(dir) else {
        return Ok(true);
    };
    let failed = |errno| {
        let path = tree.display().to_string();
        LaunchError::failed("show one cgroup tree", format!("{path}: {errno}"))
    };
    if !Path::new(CGROUPS).join("cgroup.controllers").exists() {
        let clone = clone_tree(&tree).map_err(failed)?;
        mount(clone.as_fd(), Path::new(CGROUPS)).map_err(failed)?;
    }
    Ok(true)
}

/// Where the hierarchy is mounted that a cgroup is in, beside others.
fn hierarchy(dir: &Path) -> Option<PathBuf> {
    let below = dir.strip_prefix(CGROUPS).ok()?;
    Some(Path::new(CGROUPS).join(below.components().next()?))
}

/// Joins the tree of version 2 beside others, so that runtime and container are born
/// there, and takes it out of the runtime's sight: some refuse to run where it has
/// controllers.
fn join_beside(cgroups: &Cgroups) -> Result<(), LaunchError> {
    let root = Path::new(CGROUPS);
    if root.join("cgroup.controllers").exists() {
        return Ok(());
    }
    let Some(dir) = cgroups.v2() else {
        return Ok(());
    };
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |errno| LaunchError::failed("join cgroup", format!("{path}: {errno}"))
    };
    let procs = dir.join("cgroup.procs");
    cgroups::write(&procs, b"0").map_err(failed(&procs))?;
    let Some(tree) = hierarchy(dir) else {
        return Ok(());
    };
    rustix::mount::unmount(&tree, UnmountFlags::DETACH).map_err(failed(&tree))
}

/// Takes back what sharing all mounts did to some, in a process of its own, since it
/// does not come back from the container's mounts.
fn undo(propagation: &propagation::Plan, init: i32) -> Result<(), LaunchError> {
    let failed = |error: &dyn std::fmt::Display| LaunchError::failed("set propagation", error);
    let work = || u8::from(propagation.undo(init).is_err());
    let child = fork::spawn(NewNamespaces::default(), work).map_err(|errno| failed(&errno))?;
    let ended = rustix::process::waitpid(Some(child.pid), WaitOptions::empty());
    match ended.map_err(|errno| failed(&errno))? {
        Some((_, status)) if status.exit_status() == Some(0) => Ok(()),
        other => Err(failed(&format!("it ended with {other:?}"))),
    }
}

/// A cgroup's path in its hierarchy.
fn own_path(dir: &Path, unified: bool) -> Option<PathBuf> {
    let below = dir.strip_prefix(CGROUPS).ok()?;
    let mut parts = below.components();
    if !unified {
        parts.next()?;
    }
    Some(Path::new("/").join(parts.as_path()))
}

/// A score that cannot be set ends a runtime: it is tried here first.
fn give_up_score(spec: &mut Spec) -> Result<Vec<String>, LaunchError> {
    let Some(process) = spec.process_mut() else {
        return Ok(Vec::new());
    };
    let Some(score) = process.oom_score_adj() else {
        return Ok(Vec::new());
    };
    let file = Path::new("/proc/self/oom_score_adj");
    match cgroups::write(file, score.to_string().as_bytes()) {
        Ok(()) => Ok(Vec::new()),
        Err(Errno::ACCESS | Errno::PERM) => {
            process.set_oom_score_adj(None);
            Ok(vec![format!("oom_score_adj {score}: permission denied")])
        }
        Err(errno) => Err(LaunchError::failed("set oom_score_adj", errno)),
    }
}
