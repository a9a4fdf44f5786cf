//! What a monitor does before it serves: session, signals, descriptors.
//!
//! Leaves nothing of the engine's process state behind: own session, default
//! signals, `/` as working directory, no streams. The channel to the engine is
//! taken from descriptor 0.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use runtime::sys::fds::{Close, close_from};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::DumpableBehavior;

use crate::monitor::Monitor;
use crate::reactor::Reactor;

/// Signals that must not end a monitor: its containers would lose their parent.
const WITHSTOOD: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Descriptors that a monitor holds from the beginning.
#[derive(Debug)]
pub(crate) struct Descriptors {
    /// Tells of children that ended.
    pub(crate) signals: SignalFd,
}

/// Makes a monitor of this process.
pub(crate) fn start() -> Result<Monitor, Errno> {
    // What the engine forgot to close on exec is not for containers to find.
    close_from(3, Close::Now)?;
    // Fails for the leader of a process group, which is nobody's child group.
    let _already_leader = rustix::process::setsid();
    rustix::process::chdir(c"/")?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let descriptors = take_on()?;
    let null = open(c"/dev/null", OFlags::RDWR)?;
    let channel = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::io::ioctl_fionbio(&channel, true)?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Monitor::new(Reactor::new()?, descriptors, channel)
}

/// What every program that is a monitor does for itself, in a new process or not.
pub(crate) fn take_on() -> Result<Descriptors, Errno> {
    // Executed by a descriptor's number, which is no name for `top`.
    rustix::thread::set_name(c"slipway-monitor")?;
    // What is born in a container's pid namespace has nothing left that is the node's,
    // but for a moment a copy of this memory: nobody there without CAP_SYS_PTRACE may
    // look at it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(Descriptors {
        signals: take_signals()?,
    })
}

fn take_signals() -> Result<SignalFd, Errno> {
    runtime::sys::signals::reset_all()?;
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGCHLD);
    for signal in WITHSTOOD {
        blocked.add(signal);
    }
    let errno = |errno: nix::errno::Errno| Errno::from_raw_os_error(errno as i32);
    blocked.thread_block().map_err(errno)?;
    runtime::sys::signals::ignore_sigpipe()?;
    let mut wanted = SigSet::empty();
    wanted.add(Signal::SIGCHLD);
    SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(errno)
}

fn open(path: &std::ffi::CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let fd = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?;
    // Above the streams, so that filling them never closes it.
    rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 3)
}
