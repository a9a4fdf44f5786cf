//! The order from the monitor and the answer to it.
//!
//! Owns the socket that the process was started with as descriptor 0.

use std::os::fd::{AsFd, OwnedFd};

use runtime::launcher::LaunchError;
use runtime::protocol::{
    self, Body, Envelope, Failure, Incoming, Launched, ProtocolError, Received, VERSION,
    monotonic_now,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::create::{self, Outcome};

/// The way back to the monitor.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// Takes the socket; makes a clean process of this one.
pub(crate) fn take() -> Result<Channel, ProtocolError> {
    prepare().map_err(|source| ProtocolError::Socket {
        step: "prepare the helper",
        source,
    })
}

fn prepare() -> Result<Channel, Errno> {
    runtime::sys::fds::close_from(3, runtime::sys::fds::Close::Now)?;
    // Whatever is ignored or blocked here would stay so in the container.
    runtime::sys::signals::reset_all()?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(Channel(socket))
}

impl Channel {
    /// Reads the order, does it, answers.
    pub(crate) fn serve(self) -> Result<(), ProtocolError> {
        let incoming = match protocol::receive(self.0.as_fd())? {
            Received::Packet(incoming) => *incoming,
            Received::Nothing | Received::Closed => return Ok(()),
        };
        let request = incoming.envelope.request;
        let outcome = work(incoming);
        let mut console: Option<OwnedFd> = None;
        let mut waiting = None;
        let (body, fds) = match outcome {
            Ok(Outcome {
                pid,
                console: given,
                warnings,
                runtimes_keyring,
                start,
            }) => {
                console = given;
                waiting = start;
                let console_fd = console.is_some().then_some(0);
                let launched = Launched {
                    pid,
                    console_fd,
                    warnings,
                    runtimes_keyring,
                };
                (
                    Body::Launched(launched),
                    console.iter().map(AsFd::as_fd).collect(),
                )
            }
            Err(error) => (Body::Failure(Box::new(Failure::from(error))), Vec::new()),
        };
        let envelope = Envelope {
            version: VERSION,
            request,
            sent_at: monotonic_now(),
            body: Some(body),
            ..Envelope::default()
        };
        protocol::send(self.0.as_fd(), &envelope, &fds)?;
        drop(console);
        if let Some(start) = waiting {
            start.wait();
        }
        Ok(())
    }
}

fn work(incoming: Incoming) -> Result<Outcome, LaunchError> {
    let Incoming {
        envelope,
        fds,
        at: _,
    } = incoming;
    match envelope.body {
        Some(Body::Launch(launch)) => create::create(*launch, fds),
        _ => Err(LaunchError::failed("read the order", "it is none")),
    }
}
