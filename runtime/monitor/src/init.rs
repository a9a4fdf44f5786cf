//! The init of a pod's shared pid namespace.
//!
//! The same executable in another life: PID 1 of a pid namespace, in a mount
//! namespace whose root is empty and read-only, without capabilities, as
//! nobody, with a keyring and a cgroup namespace of its own, and a filter that leaves it
//! the calls it makes. Reaps, and ends on the node's SIGKILL only: no signal of a container
//! reaches the first process of its namespace that has no handler. With it the kernel
//! ends the namespace. Containers see it as process 1: it has nothing to take.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use runtime::sys::execve::{CStrings, execve};
use runtime::sys::fork::{self, NewNamespaces, spawn};
use runtime::sys::keyring;
use runtime::sys::note::Note;
use runtime::sys::seccomp_load::Filter;
use runtime::user_space::UserSpace;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};
use rustix::pipe::PipeFlags;
use rustix::process::{DumpableBehavior, Gid, Pid, Uid, WaitId, WaitIdOptions, WaitOptions};
use rustix::thread::{CapabilitySet, CapabilitySets};
use rustix::time::Timespec;

use crate::process::{KILL, send_signal};

/// Name of the process, and of its life as an argument.
pub(crate) const NAME: &str = "slipway-init";
/// The user and group that it runs as: nobody's.
const NOBODY: u32 = 65_535;
/// How long it may take to become ready.
const READY_TIME: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// The calls that it makes: to say that it is ready, to reap, to wait and to end.
const CALLS: [libc::c_long; 8] = [
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_wait4,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Starts an init, in the pod's user namespace if it has one, and waits until it has
/// given everything up.
pub(crate) fn start(user_space: Option<&UserSpace>) -> Result<Pid, Errno> {
    let (ready, report) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let text = |text: &str| CString::new(text).map_err(|_| Errno::INVAL);
    let user = user_space.map(|space| space.highest(NOBODY));
    let user = user.filter(|user| *user != NOBODY);
    let user = user.map(|user| text(&user.to_string()));
    let arguments = [Ok(text(NAME)?)].into_iter().chain(user);
    let name = CStrings::new(arguments.collect::<Result<_, _>>()?);
    let environment = CStrings::new(Vec::new());
    let new = NewNamespaces {
        pid: true,
        mount: true,
        ..NewNamespaces::default()
    };
    let life = || {
        if rustix::stdio::dup2_stdin(&report).is_err() {
            return 127;
        }
        // What is left of the monitor's descriptors closes on exec.
        let _failed = execve(c"/proc/self/exe", name.pointers(), environment.pointers());
        127
    };
    let pid = match user_space {
        None => spawn(new, life)?.pid,
        Some(space) => spawn_inside(space, new, life)?,
    };
    drop(report);
    if wait_ready(&ready) {
        return Ok(pid);
    }
    let _gone = send_signal(pid, KILL);
    Err(Errno::CHILD)
}

/// Starts a child of this process whose namespaces the user namespace owns: one that has
/// entered it makes it, and ends.
fn spawn_inside(
    space: &UserSpace,
    new: NewNamespaces,
    life: impl FnOnce() -> u8,
) -> Result<Pid, Errno> {
    let note = Note::new()?;
    let maker = spawn(NewNamespaces::default(), || {
        let made = space
            .enter()
            .and_then(|()| fork::spawn_noted_sibling(new, &note, life));
        match made {
            Ok(_) => 0,
            Err(errno) => {
                note.fail(errno);
                1
            }
        }
    })?;
    rustix::process::waitid(WaitId::PidFd(maker.pidfd.as_fd()), WaitIdOptions::EXITED)?;
    let failed = || note.failed().unwrap_or(Errno::CHILD);
    note.born().ok_or_else(failed)
}

fn wait_ready(ready: &OwnedFd) -> bool {
    let mut wanted = [PollFd::new(ready, PollFlags::IN)];
    let polled = rustix::io::retry_on_intr(|| rustix::event::poll(&mut wanted, Some(&READY_TIME)));
    polled == Ok(1) && rustix::io::read(ready, &mut [0; 1]) == Ok(1)
}

/// The init's life.
pub(crate) fn run() -> ExitCode {
    match become_init().and_then(|signals| reap_for_ever(&signals)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn become_init() -> Result<SigSet, Errno> {
    rustix::thread::set_name(c"slipway-init")?;
    runtime::sys::signals::reset_all()?;
    // PID 1 only gets signals that it blocks or handles.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals
        .thread_block()
        .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
    keyring::leave()?;
    nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP)
        .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
    leave_file_system()?;
    give_up_privileges(user()?)?;
    // Standard output is /dev/null: the report pipe is not needed for long.
    let report = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(rustix::stdio::stdout())?;
    // A tracer in a container must not do by it what the container may not.
    Filter::of_calls(&CALLS).load()?;
    rustix::io::write(&report, b"r")?;
    Ok(signals)
}

/// Puts an empty file system in the place of everything.
fn leave_file_system() -> Result<(), Errno> {
    let everything = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", everything)?;
    let filesystem = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [(c"size", c"4k"), (c"nr_inodes", c"2"), (c"mode", c"0555")] {
        rustix::mount::fsconfig_set_string(filesystem.as_fd(), key, value)?;
    }
    rustix::mount::fsconfig_create(filesystem.as_fd())?;
    let root = rustix::mount::fsmount(
        filesystem.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    // Any directory will do to attach it; this one was just used to get here.
    let cwd = rustix::fs::CWD;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(root.as_fd(), c"", cwd, c"/proc", flags)?;
    rustix::process::chdir(c"/proc")?;
    rustix::process::pivot_root(c".", c".")?;
    // The old root lies on top of the new one now.
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

/// As whom it is to run: as nobody, or where a user namespace has no such user, as its
/// argument says.
fn user() -> Result<u32, Errno> {
    match std::env::args().nth(1) {
        None => Ok(NOBODY),
        Some(user) => user.parse().map_err(|_| Errno::INVAL),
    }
}

fn give_up_privileges(user: u32) -> Result<(), Errno> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Err(Errno::INVAL) => break,
            other => other?,
        }
    }
    rustix::thread::set_thread_groups(&[])?;
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

fn reap_for_ever(signals: &SigSet) -> Result<(), Errno> {
    loop {
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        signals
            .wait()
            .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
    }
}
