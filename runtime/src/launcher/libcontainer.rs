//! The libcontainer launcher, the monitor's half.
//!
//! Owns the helper's executable and one socket per helper that runs. The
//! helper does the work (its own package says what), answers once and ends;
//! the container's first process becomes the monitor's child.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;

use super::{
    ContainerStdio, Launch, LaunchError, Launcher, Order, Ready, StartEnd, StartGate, start_pair,
};
use crate::protocol::{self, Body, Envelope, Received, StreamSlots, monotonic_now};

/// Makes containers by youki's libcontainer.
#[derive(Debug)]
pub struct Libcontainer {
    executable: OwnedFd,
    work_dir: Vec<u8>,
}

impl Libcontainer {
    /// A launcher that executes this helper. `work_dir` is an existing
    /// directory that helpers mount on, each in a mount namespace of its own.
    #[must_use]
    pub fn new(executable: OwnedFd, work_dir: Vec<u8>) -> Self {
        Self {
            executable,
            work_dir,
        }
    }

    /// Its parts, to be made of again.
    #[must_use]
    pub fn parts(&self) -> (BorrowedFd<'_>, &[u8]) {
        (self.executable.as_fd(), &self.work_dir)
    }

    /// `Command` uses `posix_spawn` and undoes what this process did to its
    /// signals.
    fn spawn(&self, socket: OwnedFd) -> io::Result<Pid> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.executable.as_raw_fd()));
        let child = Command::new(path)
            .arg0("slipway-libcontainer")
            .env_clear()
            .stdin(Stdio::from(socket))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What it makes may be traced, and could send signals to its group.
            .process_group(0)
            .spawn()?;
        // Reaped by the monitor, as all its children.
        i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("child has no pid"))
    }
}

impl Launcher for Libcontainer {
    fn begin(&mut self, order: Order) -> Result<Box<dyn Launch>, LaunchError> {
        let failed = |step: &'static str| move |error| LaunchError::failed(step, error);
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|errno| LaunchError::failed("make the helper's socket", errno))?;
        let (gate, start) =
            start_pair().map_err(|errno| LaunchError::failed("make the start gate", errno))?;
        // Sent before there is a reader: the socket holds it.
        self.send_order(order, ours.as_fd(), start)?;
        rustix::io::ioctl_fionbio(&ours, true)
            .map_err(|errno| LaunchError::failed("prepare the helper's socket", errno))?;
        let helper = self.spawn(theirs).map_err(failed("spawn the helper"))?;
        Ok(Box::new(Helper {
            socket: ours,
            pid: helper,
            gate: Some(gate),
        }))
    }
}

impl Libcontainer {
    fn send_order(
        &self,
        order: Order,
        socket: BorrowedFd<'_>,
        start: StartEnd,
    ) -> Result<(), LaunchError> {
        let (body, all) = order.into_message(self.work_dir.clone(), start)?;
        let envelope = Envelope {
            version: protocol::VERSION,
            request: 1,
            sent_at: monotonic_now(),
            body: Some(body),
            ..Envelope::default()
        };
        let borrowed: Vec<_> = all.iter().map(AsFd::as_fd).collect();
        match protocol::send(socket, &envelope, &borrowed)? {
            true => Ok(()),
            false => Err(LaunchError::failed("send the order", "socket is full")),
        }
    }
}

impl Order {
    /// The order as a message for another process, with its descriptors.
    fn into_message(
        self,
        work_dir: Vec<u8>,
        start: StartEnd,
    ) -> Result<(Body, Vec<OwnedFd>), LaunchError> {
        let Self {
            create,
            fds,
            stdio,
            pids: _,
            // The monitor refuses one.
            user_space: _,
        } = self;
        let mut all = fds.into_all()?;
        let mut add = |fd: OwnedFd| {
            all.push(fd);
            u32::try_from(all.len() - 1).unwrap_or(u32::MAX)
        };
        let ContainerStdio {
            stdin,
            stdout,
            stderr,
        } = stdio;
        let stdio = StreamSlots {
            stdin: stdin.map(&mut add),
            stdout: stdout.map(&mut add),
            stderr: stderr.map(&mut add),
            tty: None,
        };
        let launch = protocol::Launch {
            create: Some(Box::new(create)),
            work_dir,
            start_fd: Some(add(start.go)),
            words_fd: Some(add(start.words)),
            stdio: Some(stdio),
        };
        Ok((Body::Launch(Box::new(launch)), all))
    }
}

/// A helper at work.
#[derive(Debug)]
struct Helper {
    socket: OwnedFd,
    pid: Pid,
    gate: Option<StartGate>,
}

impl Launch for Helper {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn helper(&self) -> Option<Pid> {
        Some(self.pid)
    }

    fn progress(&mut self) -> Result<Option<Ready>, LaunchError> {
        let mut incoming = match protocol::receive(self.socket.as_fd())? {
            Received::Packet(incoming) => incoming,
            Received::Nothing => return Ok(None),
            Received::Closed => {
                return Err(LaunchError::failed("launcher's helper", "it died"));
            }
        };
        match incoming.envelope.body.take() {
            Some(Body::Launched(launched)) => {
                let pid = Pid::from_raw(launched.pid)
                    .ok_or_else(|| LaunchError::failed("launcher's helper", "it gave no pid"))?;
                let console = incoming
                    .fds
                    .take_optional(launched.console_fd, "the terminal")?;
                let gate = self.gate.take();
                let gate = gate
                    .ok_or_else(|| LaunchError::failed("launcher's helper", "it answered twice"))?;
                Ok(Some(Ready {
                    steps: Vec::new(),
                    pid,
                    gate,
                    console,
                    warnings: launched.warnings,
                    runtimes_keyring: launched.runtimes_keyring,
                }))
            }
            Some(Body::Failure(failure)) => Err(LaunchError::from(*failure)),
            _ => Err(LaunchError::failed(
                "launcher's helper",
                "it gave no proper answer",
            )),
        }
    }
}
