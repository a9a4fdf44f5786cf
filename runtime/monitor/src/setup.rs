//! Turning an idle monitor into a pod's.
//!
//! Owns the order: cgroups before namespaces, namespaces before what is set in
//! them, the socket last, so that whoever finds it finds a pod. The monitor
//! stays in the pod's ipc, uts and net namespaces, which its /proc entries
//! name, and in the host's mount namespace. A monitor whose setup failed is of
//! no use: the engine shuts it down, and it holds nothing that outlives it but
//! the directory `launch` and the socket's name.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use runtime::launcher::{Libcontainer, SOCKET_NAME, open_directory, socket_path};
use runtime::protocol::{Failure, FailureKind, Fds, IdRange, PodReady, Setup, Sysctl};
use runtime::user_space::UserSpace;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::thread::LinkNameSpaceType;

use crate::connection::ReplyTo;
use crate::monitor::{Pod, SocketFile};
use crate::process::{KILL, raw, send_signal};
use crate::reactor::{Reactor, Source};
use crate::{init, sysctl, user_space};

/// Where launcher helpers mount, each in a namespace of its own.
const WORK_DIR: &str = "launch";
/// Engines that may wait to be accepted: one, and one that replaces it.
const BACKLOG: i32 = 16;

/// Does all that is asked for, in this process.
pub(crate) fn set_up(
    setup: &Setup,
    mut fds: Fds,
    reactor: &mut Reactor,
    clock: &mut ReplyTo,
) -> Result<(Pod, PodReady), Failure> {
    let launcher = take_launcher(setup, &mut fds)?;
    let owned = Owned::take(setup, &mut fds)?;
    let mut warnings = Vec::new();
    join_cgroups(&setup.cgroup_files)?;
    clock.step("join cgroups");
    set_oom_score(setup.oom_score_adj, &mut warnings)?;
    enter_namespaces(setup, &owned)?;
    clock.step("enter namespaces");
    match &owned.user_space {
        None => setup.sysctls.iter().try_for_each(set_sysctl)?,
        // Those of IPC are for root of the user namespace alone.
        Some(user_space) => user_space::set_sysctls(user_space, &setup.sysctls)?,
    }
    clock.step("set sysctls");
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|errno| failed("become the pod's reaper", errno))?;
    let init = if setup.shared_pid {
        let started = init::start(owned.user_space.as_ref());
        Some(started.map_err(|errno| failed("start the pod's init", errno))?)
    } else {
        None
    };
    let listening = listen(path(&setup.state_dir)).and_then(|socket| {
        let watched = reactor.watch(socket.listener.as_fd(), Source::Listener);
        watched
            .map(|_| socket)
            .map_err(|errno| failed("watch the socket", errno))
    });
    let socket = listening.inspect_err(|_| {
        // It would outlive the monitor.
        if let Some(init) = init {
            let _gone = send_signal(init, KILL);
        }
    })?;
    clock.step("listen");
    let pod = Pod {
        id: setup.pod.clone(),
        exit_dir: path(&setup.exit_dir).to_owned(),
        socket,
        launcher,
        init,
        user_space: owned.user_space,
    };
    let ready = PodReady {
        pid: raw(rustix::process::getpid()),
        init_pid: init.map(raw),
        warnings,
    };
    Ok((pod, ready))
}

/// Takes the pod's names out of the file system.
pub(crate) fn remove_files(pod: &Pod) {
    // What is left behind is removed with the pod's directory.
    let directory = &pod.socket.directory;
    let _left = rustix::fs::unlinkat(directory, SOCKET_NAME, AtFlags::empty());
    let _left = rustix::fs::unlinkat(directory, WORK_DIR, AtFlags::REMOVEDIR);
}

fn take_launcher(setup: &Setup, fds: &mut Fds) -> Result<Option<Libcontainer>, Failure> {
    let executable = fds
        .take_optional(setup.launcher_fd, "the launcher")
        .map_err(|error| failed("take the launcher", error))?;
    let state_dir = path(&setup.state_dir);
    let work_dir: PathBuf = state_dir.join(WORK_DIR);
    match rustix::fs::mkdir(&work_dir, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => {
            return Err(failed(
                "make the launch directory",
                format!("{}: {errno}", work_dir.display()),
            ));
        }
    }
    let work_dir = work_dir.into_os_string().into_encoded_bytes();
    Ok(executable.map(|executable| Libcontainer::new(executable, work_dir)))
}

/// Joins the pod's cgroups by their files.
fn join_cgroups(files: &[Vec<u8>]) -> Result<(), Failure> {
    for file in files.iter().map(|file| path(file)) {
        write(file, b"0")
            .map_err(|errno| failed("join cgroup", format!("{}: {errno}", file.display())))?;
    }
    Ok(())
}

/// Raising one's own score is free, lowering it needs CAP_SYS_RESOURCE.
fn set_oom_score(score: i32, warnings: &mut Vec<String>) -> Result<(), Failure> {
    match write(
        Path::new("/proc/self/oom_score_adj"),
        score.to_string().as_bytes(),
    ) {
        Ok(()) => Ok(()),
        Err(Errno::ACCESS | Errno::PERM) => {
            warnings.push(format!(
                "oom_score_adj {score} of the monitor: permission denied"
            ));
            Ok(())
        }
        Err(errno) => Err(failed("set oom_score_adj", errno)),
    }
}

/// What a pod with a user namespace comes with.
struct Owned {
    user_space: Option<UserSpace>,
    ipc: Option<OwnedFd>,
    uts: Option<OwnedFd>,
}

impl Owned {
    fn take(setup: &Setup, fds: &mut Fds) -> Result<Self, Failure> {
        let mut take = |slot, what: &'static str| {
            let taken = fds.take_optional(slot, what);
            taken.map_err(|error| failed(&format!("take {what}"), error))
        };
        let user = take(setup.userns_fd, "the user namespace")?;
        let user_space = match (user, setup.user_ids) {
            (Some(user), Some(IdRange { first, length })) if first > 0 => {
                Some(UserSpace::new(user, first, length))
            }
            (None, None) => None,
            _ => {
                let message = "the ids of its user namespace are missing";
                return Err(Failure::new(FailureKind::Protocol, "setup", message));
            }
        };
        Ok(Self {
            user_space,
            ipc: take(setup.ipc_fd, "the IPC namespace")?,
            uts: take(setup.uts_fd, "the UTS namespace")?,
        })
    }
}

fn enter_namespaces(setup: &Setup, owned: &Owned) -> Result<(), Failure> {
    for (namespace, kind) in [
        (&owned.ipc, LinkNameSpaceType::InterProcessCommunication),
        (&owned.uts, LinkNameSpaceType::HostNameAndNISDomainName),
    ] {
        if let Some(namespace) = namespace {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind))
                .map_err(|errno| failed("enter the pod's namespaces", errno))?;
        }
    }
    if let Some(netns) = &setup.netns {
        let netns = path(netns);
        enter_network(netns).map_err(|errno| {
            failed(
                "enter network namespace",
                format!("{}: {errno}", netns.display()),
            )
        })?;
    }
    let mut new = CloneFlags::empty();
    let (ipc, uts) = (owned.ipc.is_none(), owned.uts.is_none());
    new.set(CloneFlags::CLONE_NEWIPC, setup.new_ipc && ipc);
    new.set(CloneFlags::CLONE_NEWUTS, setup.hostname.is_some() && uts);
    if !new.is_empty() {
        nix::sched::unshare(new).map_err(|errno| failed("make namespaces", errno))?;
    }
    if let Some(hostname) = &setup.hostname {
        rustix::system::sethostname(hostname.as_bytes())
            .map_err(|errno| failed("set host name", errno))?;
    }
    Ok(())
}

fn enter_network(netns: &Path) -> Result<(), Errno> {
    let fd = rustix::fs::open(netns, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::thread::move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))
}

pub(crate) fn set_sysctl(sysctl: &Sysctl) -> Result<(), Failure> {
    let Sysctl { name, value } = sysctl;
    let step = format!("sysctl {name}");
    let path = sysctl::path(name).ok_or_else(|| failed(&step, "not a kernel parameter"))?;
    write(&Path::new("/proc/sys").join(path), value.as_bytes())
        .map_err(|errno| failed(&step, errno))
}

/// Binds through the directory's descriptor: an address holds 108 bytes only.
fn listen(state_dir: &Path) -> Result<SocketFile, Failure> {
    let failed = |errno: Errno| {
        failed(
            "listen on the monitor's socket",
            format!("{}: {errno}", state_dir.display()),
        )
    };
    let directory = open_directory(state_dir).map_err(failed)?;
    match rustix::fs::unlinkat(&directory, SOCKET_NAME, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let listener = bind(&directory).map_err(failed)?;
    Ok(SocketFile {
        directory,
        listener,
    })
}

fn bind(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let listener = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::bind(
        &listener,
        &SocketAddrUnix::new(socket_path(directory.as_fd()))?,
    )?;
    rustix::fs::chmodat(
        directory,
        SOCKET_NAME,
        Mode::RUSR | Mode::WUSR,
        AtFlags::empty(),
    )?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Writes an existing file at once.
fn write(path: &Path, text: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::retry_on_intr(|| rustix::io::write(&file, text)).map(drop)
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

pub(crate) fn failed(step: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Setup, step, error.to_string())
}
