//! What a container's first process waits at for its start.
//!
//! Owns both ends: [`StartGate`] in the monitor, [`StartEnd`] in the process that
//! waits. One byte through a pipe lets it go; then either the other pipe closes with
//! exec, or words come through it. When the monitor dies, what waits reads the end of
//! its pipe and gives up.
//!
//! Two pipes and no socket: whoever may trace the process that waits has its
//! descriptors, and a socket would lead on to the monitor's (`SO_PEERPIDFD`). That one may
//! hold the pipes' locks as well: see [`crate::shared_pipe`].

use std::fmt::{self, Display, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::shared_pipe::{SharedEnd, State};

/// Longest text that a process may leave: less than a pipe takes at once.
const MAX_MESSAGE: usize = 4000;

/// Makes both ends. Those that wait block and close on exec.
///
/// # Errors
/// The kernel's answer.
pub fn start_pair() -> Result<(StartGate, StartEnd), Errno> {
    let (waits, go) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (words, says) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    for own in [&go, &words] {
        rustix::io::ioctl_fionbio(own, true)?;
    }
    Ok((
        StartGate {
            go: go.into(),
            words: words.into(),
        },
        StartEnd {
            go: waits,
            words: says,
        },
    ))
}

/// The monitor's end. Readable when there is an outcome.
#[derive(Debug)]
pub struct StartGate {
    go: SharedEnd,
    words: SharedEnd,
}

/// What became of a process that was let go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartOutcome {
    /// Its program runs, or it died without a word: its exit will tell.
    Running,
    /// Its program could not be executed.
    Failed {
        /// Why.
        message: String,
        /// The executable is missing or cannot be executed.
        not_found: bool,
    },
}

impl StartGate {
    /// The gate of a process that waits already, by its [`parts`](Self::parts).
    #[must_use]
    pub fn resume([go, words]: [OwnedFd; 2]) -> Self {
        Self {
            go: go.into(),
            words: words.into(),
        }
    }

    /// Its descriptors.
    #[must_use]
    pub fn parts(&self) -> [BorrowedFd<'_>; 2] {
        [self.go.as_fd(), self.words.as_fd()]
    }

    /// Lets the process go.
    ///
    /// # Errors
    /// The process is gone.
    pub fn open(&self) -> Result<(), Errno> {
        match rustix::io::write(&self.go, b"g") {
            // Somebody who traces it has filled the pipe: it has its byte.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Does the same where others may have got hold of the pipe: nobody waits for its
    /// lock. That the process is gone is told by its end.
    ///
    /// # Errors
    /// There is no process to be had that would do it.
    pub fn open_apart(&self) -> Result<(), Errno> {
        self.go.write(b"g")
    }

    /// What became of it. `None`: nothing is known yet.
    #[must_use]
    pub fn outcome(&self) -> Option<StartOutcome> {
        let state = self.words.state();
        let text = match state {
            State::Silent => return None,
            State::Ended => Vec::new(),
            State::Brings => self.words.read(MAX_MESSAGE),
        };
        if state == State::Brings && text.is_empty() {
            return Some(StartOutcome::Failed {
                message: "why is kept from being read".to_owned(),
                not_found: false,
            });
        }
        let Some((kind, message)) = text.split_first() else {
            return Some(StartOutcome::Running);
        };
        Some(StartOutcome::Failed {
            message: String::from_utf8_lossy(message).into_owned(),
            not_found: *kind == b'n',
        })
    }
}

impl AsFd for StartGate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }
}

/// The end of the process that waits.
#[derive(Debug)]
pub struct StartEnd {
    /// Brings the word.
    pub go: OwnedFd,
    /// Takes words about what went wrong.
    pub words: OwnedFd,
}

impl StartEnd {
    /// The same, borrowed.
    #[must_use]
    pub fn waiting(&self) -> Waiting<'_> {
        Waiting {
            go: self.go.as_fd(),
            words: self.words.as_fd(),
        }
    }
}

/// A process that waits. Uses `read` and `write` only: a seccomp filter is in force
/// already, and hardly any forbids these.
#[derive(Debug, Clone, Copy)]
pub struct Waiting<'a> {
    /// Brings the word.
    pub go: BorrowedFd<'a>,
    /// Takes words.
    pub words: BorrowedFd<'a>,
}

impl Waiting<'_> {
    /// Waits to be let go. `false`: the monitor is gone.
    #[must_use]
    pub fn wait(&self) -> bool {
        let read = rustix::io::retry_on_intr(|| rustix::io::read(self.go, &mut [0; 1]));
        read == Ok(1)
    }

    /// Says why the program cannot be executed. Takes no memory but what the message
    /// takes.
    pub fn fail(&self, message: impl Display, not_found: bool) {
        let mut words = Words::new(if not_found { b'n' } else { b'e' });
        // What does not fit is cut.
        let _cut = write!(words, "{message}");
        // The exit code tells that something went wrong, should this fail.
        let _lost = rustix::io::write(self.words, words.bytes());
    }
}

/// A text that takes no memory.
struct Words {
    text: [u8; MAX_MESSAGE],
    length: usize,
}

impl Words {
    fn new(first: u8) -> Self {
        let mut text = [0; MAX_MESSAGE];
        text[0] = first;
        Self { text, length: 1 }
    }

    fn bytes(&self) -> &[u8] {
        self.text.get(..self.length).unwrap_or_default()
    }
}

impl Write for Words {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let place = self.text.get_mut(self.length..).unwrap_or_default();
        let length = part.len().min(place.len());
        let (Some(place), Some(fits)) = (place.get_mut(..length), part.as_bytes().get(..length))
        else {
            return Err(fmt::Error);
        };
        place.copy_from_slice(fits);
        self.length += length;
        if length == part.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_then_close_means_running() {
        let (gate, socket) = start_pair().unwrap();
        assert_eq!(gate.outcome(), None);
        gate.open().unwrap();
        assert!(socket.waiting().wait());
        assert_eq!(gate.outcome(), None);
        drop(socket);
        assert_eq!(gate.outcome(), Some(StartOutcome::Running));
    }

    #[test]
    fn words_arrive_before_the_end() {
        for (message, not_found) in [("no such file", true), ("out of memory", false)] {
            let (gate, socket) = start_pair().unwrap();
            socket.waiting().fail(message, not_found);
            drop(socket);
            let message = message.to_owned();
            assert_eq!(
                gate.outcome(),
                Some(StartOutcome::Failed { message, not_found })
            );
        }
    }

    /// A process that traces the one that waits can write to its pipe.
    #[test]
    fn a_pipe_that_others_filled_is_open() {
        let (gate, end) = start_pair().unwrap();
        while rustix::io::write(&gate.go, &[0; 4096]).is_ok() {}
        gate.open().unwrap();
        drop(end);
        assert_eq!(gate.open(), Err(Errno::PIPE));
    }

    #[test]
    fn dead_monitor_lets_nobody_go() {
        let (gate, socket) = start_pair().unwrap();
        drop(gate);
        assert!(!socket.waiting().wait());
    }

    #[test]
    fn long_words_are_cut() {
        let (gate, socket) = start_pair().unwrap();
        socket.waiting().fail("x".repeat(10_000), true);
        let outcome = gate.outcome();
        assert!(matches!(outcome, Some(StartOutcome::Failed { message, .. })
            if message.len() == MAX_MESSAGE - 1));
    }
}
