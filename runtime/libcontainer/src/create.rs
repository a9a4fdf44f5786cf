//! Making the container.
//!
//! Owns the order of steps: refusals first, then what needs the host's view of
//! files, then the bundle, the cgroups last, so that little of this helper
//! counts as the container's.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::notify_socket::{NOTIFY_FILE, NotifySocket};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use runtime::exec::Program;
use runtime::exec::keyring::{self, Keyring};
use runtime::launcher::{LaunchError, StartEnd, null};
use runtime::protocol::{Create, Fds, Launch, LauncherKind, MountSource, StreamSlots};
use rustix::fs::{FileType, Gid, Uid};
use rustix::io::Errno;

use crate::bundle::Bundle;
use crate::cgroups::{self, Cgroups};
use crate::console::ConsoleSocket;
use crate::executor::Waiting;
use crate::spec::Wishes;
use crate::{check, devices, oci, propagation, spec};

/// A container that waits for its start.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Its first process, a child of the monitor.
    pub(crate) pid: i32,
    /// Its terminal's master side.
    pub(crate) console: Option<OwnedFd>,
    /// What was not honoured without harm.
    pub(crate) warnings: Vec<String>,
    /// Whether its session keyring is of the OCI runtime's making.
    pub(crate) runtimes_keyring: bool,
    /// Starts it, where the first process does not wait at the monitor's socket.
    pub(crate) start: Option<oci::Start>,
}

/// The container's ends of its streams.
#[derive(Debug)]
pub(crate) struct Streams {
    /// What it reads.
    pub(crate) stdin: OwnedFd,
    /// What it writes.
    pub(crate) stdout: OwnedFd,
    /// What it complains to.
    pub(crate) stderr: OwnedFd,
}

/// Makes a container.
pub(crate) fn create(launch: Launch, mut fds: Fds) -> Result<Outcome, LaunchError> {
    let Launch {
        create,
        work_dir,
        start_fd,
        words_fd,
        stdio,
    } = launch;
    let create = create.ok_or_else(|| LaunchError::failed("read the order", "it is empty"))?;
    let start = StartEnd {
        go: fds.take(start_fd, "the start")?,
        words: fds.take(words_fd, "the words")?,
    };
    if create.launcher() == LauncherKind::Oci {
        return oci::create(oci::Order {
            create: *create,
            work_dir,
            start,
            streams: stdio.unwrap_or_default(),
            fds,
        });
    }
    let mut spec = spec::read(&fds.take(create.spec_fd, "the spec")?)?;
    let given = |index| create.mounts.iter().any(|mount| is_at(mount, index));
    check::check(&spec, given)?;
    let cgroups = Cgroups::new(&create.cgroup_files);
    devices::enforce(&spec, &cgroups)?;
    let wishes = spec::prepare(&mut spec, create.tty)?;
    let waiting = Waiting::new(program(&wishes)?, start);
    let streams = Streams::take(&stdio.unwrap_or_default(), &mut fds)?;
    streams.give_to(wishes.owner)?;

    let bundle = Bundle::make(PathBuf::from(std::ffi::OsString::from_vec(work_dir)))?;
    let plan = fill(&bundle, &mut spec, &create, fds)?;
    bundle.make_working_directory(&spec);
    cgroups.provide_view(&mut spec, &bundle)?;
    let namespace = bundle.leave()?;
    spec::set_mount_namespace(&mut spec, &namespace)?;
    write_config(&bundle, &spec)?;
    let console = create
        .tty
        .then(|| ConsoleSocket::listen(bundle.dir()))
        .transpose()?;
    let mut warnings = give_up(&wishes)?;
    warnings.extend(join_keyring(&create)?);
    cgroups.join()?;
    cgroups::hide(&bundle)?;
    let pid = build(
        &bundle,
        &create.id,
        Parts {
            waiting,
            streams,
            console: console.as_ref(),
        },
    )?;
    let console = console.map(|socket| socket.take()).transpose()?;
    plan.undo(pid)?;
    Ok(Outcome {
        pid,
        console,
        warnings,
        runtimes_keyring: false,
        start: None,
    })
}

fn is_at(mount: &MountSource, index: usize) -> bool {
    usize::try_from(mount.index) == Ok(index)
}

fn program(wishes: &Wishes) -> Result<Program, LaunchError> {
    let failed = |error: &dyn std::fmt::Display| LaunchError::failed("read process.args", error);
    Program::new(&wishes.args, &wishes.env)
        .map_err(|error| failed(&error))?
        .ok_or_else(|| failed(&"there is no program"))
}

/// Attaches root and sources; they are this process's no longer afterwards.
fn fill(
    bundle: &Bundle,
    spec: &mut Spec,
    create: &Create,
    mut fds: Fds,
) -> Result<propagation::Plan, LaunchError> {
    let sources = attach(bundle, spec, create, &mut fds)?;
    propagation::plan(spec, &sources)
}

/// Attaches root and sources and names them in the spec; gives the indexes of
/// mounts and the paths of their sources.
pub(crate) fn attach(
    bundle: &Bundle,
    spec: &mut Spec,
    create: &Create,
    fds: &mut Fds,
) -> Result<Vec<(usize, PathBuf)>, LaunchError> {
    let rootfs = fds.take(create.rootfs_fd, "the root filesystem")?;
    check::check_links(&rootfs, spec)?;
    bundle.attach_rootfs(&rootfs)?;
    spec::set_root(spec, &bundle.rootfs());
    let mut sources = Vec::with_capacity(create.mounts.len());
    for mount in &create.mounts {
        let index = usize::try_from(mount.index).unwrap_or(usize::MAX);
        let target = spec
            .mounts_mut()
            .as_mut()
            .and_then(|mounts| mounts.get_mut(index));
        let target = target.ok_or_else(|| {
            LaunchError::failed("read the order", format!("the spec has no mounts[{index}]"))
        })?;
        let source = fds.take(mount.fd, "a mount")?;
        propagation::limit(&source, target)?;
        let path = bundle.attach_source(index, &source)?;
        target.set_source(Some(path.clone()));
        sources.push((index, path));
    }
    Ok(sources)
}

pub(crate) fn write_config(bundle: &Bundle, spec: &Spec) -> Result<(), LaunchError> {
    spec.save(bundle.dir().join("config.json"))
        .map_err(|error| LaunchError::failed("write config.json", chain(&error)))
}

/// What every process after this one inherits.
fn give_up(wishes: &Wishes) -> Result<Vec<String>, LaunchError> {
    let mut warnings = Vec::new();
    if let Some(score) = wishes.oom_score_adj {
        let file = Path::new("/proc/self/oom_score_adj");
        match cgroups::write(file, score.to_string().as_bytes()) {
            Ok(()) => {}
            Err(Errno::ACCESS | Errno::PERM) => {
                warnings.push(format!("oom_score_adj {score}: permission denied"));
            }
            Err(errno) => return Err(LaunchError::failed("set oom_score_adj", errno)),
        }
    }
    if wishes.no_new_privileges {
        // libcontainer does it too, and never looks whether it worked.
        rustix::thread::set_no_new_privs(true)
            .map_err(|errno| LaunchError::failed("set no_new_privs", errno))?;
    }
    Ok(warnings)
}

/// Gives the container a session keyring of its own, which libcontainer does not.
pub(crate) fn join_keyring(create: &Create) -> Result<Option<String>, LaunchError> {
    let failed = |error: &dyn std::fmt::Display| LaunchError::failed("join session keyring", error);
    let keyring = Keyring::of(&create.id, &create.keyring, "").map_err(|error| failed(&error))?;
    let joined = keyring.join().map_err(|errno| failed(&errno))?;
    Ok((!joined).then(|| keyring::NONE.to_owned()))
}

/// What libcontainer takes over.
#[derive(Debug)]
struct Parts<'a> {
    waiting: Waiting,
    streams: Streams,
    console: Option<&'a ConsoleSocket>,
}

/// Lets libcontainer make the container, and its first process pass
/// libcontainer's gate: it waits at ours.
fn build(bundle: &Bundle, id: &str, parts: Parts<'_>) -> Result<i32, LaunchError> {
    let failed = |error: &LibcontainerError| LaunchError::failed("libcontainer", chain(error));
    let Parts {
        waiting,
        streams,
        console,
    } = parts;
    let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(bundle.state())
        .map_err(|error| failed(&error))?
        .with_executor(waiting)
        .with_console_socket(console.map(ConsoleSocket::path));
    if console.is_none() {
        let Streams {
            stdin,
            stdout,
            stderr,
        } = streams;
        builder = builder
            .with_stdin(stdin)
            .with_stdout(stdout)
            .with_stderr(stderr);
    }
    let container: Container = builder
        .as_init(bundle.dir())
        .with_systemd(false)
        .as_sibling(true)
        .build()
        .map_err(|error| failed(&error))?;
    let gate = bundle.state().join(id).join(NOTIFY_FILE);
    NotifySocket::new(gate)
        .notify_container_start()
        .map_err(|error| LaunchError::failed("pass libcontainer's gate", chain(&error)))?;
    let pid = container.pid().map(nix_pid);
    pid.ok_or_else(|| LaunchError::failed("libcontainer", "the container has no process"))
}

/// libcontainer has a `nix` of its own, older than this one.
fn nix_pid(pid: impl Into<i32>) -> i32 {
    pid.into()
}

impl Streams {
    /// Takes what the monitor sent; what it did not is a null device of the
    /// container's own.
    pub(crate) fn take(slots: &StreamSlots, fds: &mut Fds) -> Result<Self, LaunchError> {
        let mut stream = |slot: Option<u32>| match fds.take_optional(slot, "a stream")? {
            Some(fd) => Ok(fd),
            None => null::open().map_err(|errno| LaunchError::failed("open a null device", errno)),
        };
        Ok(Self {
            stdin: stream(slots.stdin)?,
            stdout: stream(slots.stdout)?,
            stderr: stream(slots.stderr)?,
        })
    }

    /// A process that is not root could not open /dev/stdout otherwise, which
    /// leads to the pipe.
    pub(crate) fn give_to(&self, (uid, gid): (u32, u32)) -> Result<(), LaunchError> {
        for stream in [&self.stdin, &self.stdout, &self.stderr] {
            let failed = |errno| LaunchError::failed("give streams to the user", errno);
            let stat = rustix::fs::fstat(stream).map_err(failed)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
                let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                rustix::fs::fchown(stream, Some(uid), Some(gid)).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// An error and all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors repeat their cause's words.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
