//! What is said on the way to a process: why it cannot become what it was made for.
//!
//! Owns the few bytes that travel through a pipe which closes on exec: nothing means
//! that the program runs. A process of the container that may trace others can write
//! here, too: it could as well trace the program.

use rustix::io::Errno;

use crate::shared_pipe::{SharedEnd, State};

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
    /// Joining the container's session keyring.
    Keyring = 16,
    /// Being born in the container's pid namespace.
    Birth = 17,
    /// Opening its terminal.
    Terminal = 18,
}

impl Step {
    const ALL: [Self; 18] = [
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
        Self::Keyring,
        Self::Birth,
        Self::Terminal,
    ];

    /// Whether it comes behind the birth.
    #[must_use]
    pub fn follows_birth(self) -> bool {
        matches!(self, Self::Session | Self::Seccomp | Self::Exec)
    }

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
            Self::Keyring => "join session keyring",
            Self::Birth => "enter pid namespace",
            Self::Terminal => "open its terminal",
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
    /// As bytes for the pipe.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 5] {
        let [a, b, c, d] = self.errno.raw_os_error().to_ne_bytes();
        [self.step as u8, a, b, c, d]
    }
}

impl Problem {
    /// Reads what came through the pipe, without waiting. `None`: nothing.
    #[must_use]
    pub fn read(pipe: &SharedEnd) -> Option<Self> {
        if pipe.state() != State::Brings {
            return None;
        }
        let [step, errno @ ..] = <[u8; 5]>::try_from(pipe.read(5)).ok()?;
        let step = Step::of(step)?;
        let errno = Errno::from_raw_os_error(i32::from_ne_bytes(errno));
        Some(Self { step, errno })
    }
}

#[cfg(test)]
mod tests {
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
            let read = SharedEnd::from(read);
            assert_eq!(Problem::read(&read), Some(problem));
            drop(write);
            assert_eq!(Problem::read(&read), None);
        }
    }
}
