//! What a child says when it cannot become the process it was made for.
//!
//! Owns the few bytes that travel through a pipe which closes on exec: nothing
//! means that the program runs.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::Pid;

/// What the child was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Undoing what the parent did to signals.
    Signals = 1,
    /// Becoming the leader of a session.
    Session = 2,
    /// Joining a cgroup.
    Cgroup = 3,
    /// Adjusting the OOM score.
    OomScore = 4,
    /// Writing an AppArmor profile or SELinux label.
    Label = 5,
    /// Entering the container's namespaces.
    Namespaces = 6,
    /// Connecting its streams.
    Streams = 7,
    /// Entering the working directory.
    Cwd = 8,
    /// Setting a resource limit.
    Rlimit = 9,
    /// Loading the seccomp filter.
    Seccomp = 10,
    /// Limiting the bounding set.
    Bounding = 11,
    /// Setting groups and user.
    Ids = 12,
    /// Setting capabilities.
    Capabilities = 13,
    /// Forbidding new privileges.
    NoNewPrivileges = 14,
    /// Executing the program.
    Exec = 15,
}

impl Step {
    const ALL: [Self; 15] = [
        Self::Signals,
        Self::Session,
        Self::Cgroup,
        Self::OomScore,
        Self::Label,
        Self::Namespaces,
        Self::Streams,
        Self::Cwd,
        Self::Rlimit,
        Self::Seccomp,
        Self::Bounding,
        Self::Ids,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::Exec,
    ];

    /// The step of a number.
    pub(crate) fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u8 == number)
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Signals => "reset signals",
            Self::Session => "begin a session",
            Self::Cgroup => "join cgroup",
            Self::OomScore => "set OOM score",
            Self::Label => "set security label",
            Self::Namespaces => "enter namespaces",
            Self::Streams => "connect streams",
            Self::Cwd => "enter working directory",
            Self::Rlimit => "set resource limit",
            Self::Seccomp => "load seccomp filter",
            Self::Bounding => "limit capabilities",
            Self::Ids => "set user and groups",
            Self::Capabilities => "set capabilities",
            Self::NoNewPrivileges => "set no_new_privs",
            Self::Exec => "exec",
        }
    }
}

/// A step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// Which.
    pub step: Step,
    /// Why.
    pub errno: Errno,
}

impl Problem {
    const LENGTH: usize = 5;

    /// As bytes for the pipe.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let [a, b, c, d] = self.errno.raw_os_error().to_ne_bytes();
        [self.step as u8, a, b, c, d]
    }

    /// Reads what came through the pipe, without waiting. `None`: nothing.
    #[must_use]
    pub fn read(pipe: BorrowedFd<'_>) -> Option<Self> {
        let mut bytes = [0; Self::LENGTH];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut bytes)).ok()?;
        Self::of(bytes.get(..length)?)
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let &[step, a, b, c, d] = bytes else {
            return None;
        };
        let step = Step::of(step)?;
        Some(Self {
            step,
            errno: Errno::from_raw_os_error(i32::from_ne_bytes([a, b, c, d])),
        })
    }
}

/// What a process that a parked one makes says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Birth {
    /// It is there and has done nothing yet.
    Born(Pid),
    /// It could not be made.
    Failed(Problem),
    /// Nobody is there to make it.
    Nobody,
}

/// The packet of a birth; problems are longer.
const BORN: [u8; 1] = [b'b'];

/// Says that the process is there.
pub(super) fn send_born(report: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::io::write(report, &BORN).map(drop)
}

impl Birth {
    /// What was said first, without waiting; `None`: nothing yet.
    #[must_use]
    pub fn read(report: BorrowedFd<'_>) -> Option<Self> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; Problem::LENGTH];
        let received = {
            let mut text = [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::DONTWAIT;
            match rustix::net::recvmsg(report, &mut text, &mut control, flags) {
                Ok(received) => received.bytes,
                Err(Errno::AGAIN | Errno::INTR) => return None,
                Err(_) => return Some(Self::Nobody),
            }
        };
        let sender = control.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid),
            _ => None,
        });
        let said = bytes.get(..received).unwrap_or_default();
        if said == BORN {
            return Some(sender.map_or(Self::Nobody, Self::Born));
        }
        Some(Problem::of(said).map_or(Self::Nobody, Self::Failed))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn every_step_survives_the_pipe() {
        for step in Step::ALL {
            let (read, write) = rustix::pipe::pipe().unwrap();
            let problem = Problem {
                step,
                errno: Errno::ACCESS,
            };
            rustix::io::write(&write, &problem.to_bytes()).unwrap();
            assert_eq!(Problem::read(read.as_fd()), Some(problem));
            drop(write);
            assert_eq!(Problem::read(read.as_fd()), None);
        }
    }

    #[test]
    fn a_birth_names_the_sender_and_its_absence_is_told() {
        let (read, write) = super::super::report_pair().unwrap();
        assert_eq!(Birth::read(read.as_fd()), None);
        send_born(write.as_fd()).unwrap();
        let own = rustix::process::getpid();
        assert_eq!(Birth::read(read.as_fd()), Some(Birth::Born(own)));
        let problem = Problem {
            step: Step::Cgroup,
            errno: Errno::NODEV,
        };
        rustix::io::write(&write, &problem.to_bytes()).unwrap();
        assert_eq!(Birth::read(read.as_fd()), Some(Birth::Failed(problem)));
        drop(write);
        assert_eq!(Birth::read(read.as_fd()), Some(Birth::Nobody));
    }
}
