//! Clients that are attached to a container: they read what it writes from then on, beside
//! its log, and one may write what it reads.
//!
//! Owns their pipes, which no container has. A client that does not read misses something
//! and is told so; it holds up neither the log nor another client. What it writes goes
//! into the container by a relay (`tap`). Its streams end with the container's.

use std::os::fd::{AsFd, OwnedFd};

use runtime::log::Stream;
use runtime::protocol::HandoverClient;
use runtime::shared_pipe::SharedEnd;
use runtime::sys::fds::Inherited;
use rustix::io::Errno;

use crate::handover::Kept;
use crate::reactor::{Key, Reactor, Source, Token};
use crate::tap::Tap;

/// Of the container with this number, the client with this one.
pub(crate) type Number = (Key, u64);

/// Where a client reads, and where it writes; each as far as it wants to.
#[derive(Debug, Default)]
pub(crate) struct ClientStreams {
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) stdin: Option<OwnedFd>,
}

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    number: Number,
    readers: Vec<Pipe>,
    /// What it writes, on its way to the container.
    pub(super) input: Option<Tap>,
}

/// A pipe that the client reads.
#[derive(Debug)]
struct Pipe {
    stream: Stream,
    end: OwnedFd,
    token: Token,
    /// Bytes that it did not read in time, since that was told.
    skipped: u64,
}

impl Client {
    /// Connects a client; `to` is a copy of the container's input for who writes to it.
    pub(super) fn connect(
        number: Number,
        streams: ClientStreams,
        to: Option<(Key, OwnedFd)>,
        reactor: &mut Reactor,
    ) -> Result<Self, Errno> {
        let mut client = Self {
            number,
            readers: Vec::new(),
            input: None,
        };
        let connected = client.add_all(streams, to, reactor);
        if let Err(errno) = connected {
            client.close(reactor);
            return Err(errno);
        }
        Ok(client)
    }

    fn add_all(
        &mut self,
        streams: ClientStreams,
        to: Option<(Key, OwnedFd)>,
        reactor: &mut Reactor,
    ) -> Result<(), Errno> {
        let ClientStreams {
            stdout,
            stderr,
            stdin,
        } = streams;
        for (stream, end) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            if let Some(end) = end {
                self.add(stream, end, 0, reactor)?;
            }
        }
        if let (Some(from), Some((key, to))) = (stdin, to) {
            self.input = Some(Tap::into_container(key, from, to, reactor)?);
        }
        Ok(())
    }

    fn add(
        &mut self,
        stream: Stream,
        end: OwnedFd,
        skipped: u64,
        reactor: &mut Reactor,
    ) -> Result<(), Errno> {
        rustix::io::ioctl_fionbio(&end, true)?;
        let (key, client) = self.number;
        // The end of a pipe to write to tells only that nobody reads it any more.
        let token = reactor.watch(end.as_fd(), Source::Client(key, client))?;
        self.readers.push(Pipe {
            stream,
            end,
            token,
            skipped,
        });
        Ok(())
    }

    /// Whether this is its number.
    pub(super) fn is(&self, number: Number) -> bool {
        self.number == number
    }

    /// Whether it neither reads nor writes any more.
    pub(super) fn is_gone(&self) -> bool {
        self.readers.is_empty() && self.input.is_none()
    }

    /// Gives it what the container wrote.
    pub(super) fn give(&mut self, stream: Stream, bytes: &[u8], reactor: &mut Reactor) {
        self.keep_readers(reactor, |pipe| {
            pipe.stream != stream || pipe.give(bytes) != Err(Errno::PIPE)
        });
    }

    /// A stream of the container has ended.
    pub(super) fn end(&mut self, stream: Stream, reactor: &mut Reactor) {
        self.keep_readers(reactor, |pipe| pipe.stream != stream);
    }

    /// Lets go what it does not read any more.
    pub(super) fn look(&mut self, reactor: &mut Reactor) {
        self.keep_readers(reactor, |pipe| pipe.give(&[]) != Err(Errno::PIPE));
    }

    /// Lets go what it wrote if that has ended; whether it has.
    pub(super) fn input_ended(&mut self, reactor: &mut Reactor) -> bool {
        match self.input.take_if(|input| input.is_over()) {
            Some(input) => {
                input.close(reactor);
                true
            }
            None => false,
        }
    }

    /// Ends its streams.
    pub(super) fn close(mut self, reactor: &mut Reactor) {
        self.keep_readers(reactor, |_| false);
        if let Some(input) = self.input.take() {
            input.close(reactor);
        }
    }

    fn keep_readers(&mut self, reactor: &mut Reactor, keep: impl Fn(&mut Pipe) -> bool) {
        self.readers.retain_mut(|pipe| {
            let kept = keep(pipe);
            if !kept {
                reactor.unwatch(pipe.end.as_fd(), pipe.token);
            }
            kept
        });
    }

    /// The client, for the next program.
    pub(super) fn hand_over(&self, kept: &mut Kept) -> HandoverClient {
        let mut client = HandoverClient {
            number: self.number.1,
            input: self.input.as_ref().map(|input| input.hand_over(kept)),
            ..HandoverClient::default()
        };
        client.skipped = vec![0, 0];
        for pipe in &self.readers {
            let (slot, index) = match pipe.stream {
                Stream::Stdout => (&mut client.stdout, 0),
                Stream::Stderr => (&mut client.stderr, 1),
            };
            *slot = Some(kept.add(&pipe.end));
            if let Some(skipped) = client.skipped.get_mut(index) {
                *skipped = pipe.skipped;
            }
        }
        client
    }

    /// The client that the program before gave.
    pub(super) fn resume(
        key: Key,
        client: HandoverClient,
        fds: &mut Inherited,
        reactor: &mut Reactor,
    ) -> Result<Self, Errno> {
        let HandoverClient {
            number,
            stdout,
            stderr,
            skipped,
            input,
        } = client;
        let mut resumed = Self {
            number: (key, number),
            readers: Vec::new(),
            input: input
                .map(|tap| Tap::resume(tap, fds, reactor))
                .transpose()?,
        };
        let ends = [(Stream::Stdout, stdout), (Stream::Stderr, stderr)];
        for (index, (stream, end)) in ends.into_iter().enumerate() {
            if let Some(end) = end {
                let skipped = skipped.get(index).copied().unwrap_or_default();
                resumed.add(stream, fds.take(end)?, skipped, reactor)?;
            }
        }
        Ok(resumed)
    }
}

impl Pipe {
    /// Writes as much as there is room for, behind a word about what there was none for
    /// before. `EPIPE`: nobody reads it.
    fn give(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if self.skipped > 0 {
            let word = format!(
                "\r\n[slipway: {} bytes are missing here: they were not read in time]\r\n",
                self.skipped
            );
            // A word is shorter than what a pipe takes wholly or not at all.
            match write(&self.end, word.as_bytes()) {
                Ok(0) => {}
                Ok(_) => self.skipped = 0,
                Err(errno) => return Err(errno),
            }
        }
        let mut rest = bytes;
        while self.skipped == 0 && !rest.is_empty() {
            match write(&self.end, rest)? {
                0 => break,
                written => rest = rest.get(written..).unwrap_or_default(),
            }
        }
        self.skipped += rest.len() as u64;
        if bytes.is_empty() && self.skipped == 0 {
            // Nothing was written: the kernel is asked.
            return match runtime::shared_pipe::state(self.end.as_fd()) {
                runtime::shared_pipe::State::Ended => Err(Errno::PIPE),
                _ => Ok(()),
            };
        }
        Ok(())
    }
}

/// Writes what there is room for now.
fn write(end: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    match rustix::io::retry_on_intr(|| rustix::io::write(end, bytes)) {
        Err(Errno::AGAIN) => Ok(0),
        other => other,
    }
}

/// A copy of a container's input, for one who writes to it.
pub(super) fn copy_of(stdin: &SharedEnd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(stdin.as_fd(), 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::PipeFlags;

    fn client(reactor: &mut Reactor) -> (Client, OwnedFd) {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        let streams = ClientStreams {
            stdout: Some(write),
            ..ClientStreams::default()
        };
        let client = Client::connect((1, 2), streams, None, reactor).unwrap();
        (client, read)
    }

    fn read(end: &OwnedFd) -> String {
        let mut bytes = vec![0; 1 << 20];
        let length = rustix::io::read(end, &mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn who_does_not_read_misses_something_and_is_told() {
        let mut reactor = Reactor::new().unwrap();
        let (mut client, end) = client(&mut reactor);
        client.give(Stream::Stderr, b"not asked for", &mut reactor);
        let piece = vec![b'x'; 40_000];
        for _ in 0..5 {
            client.give(Stream::Stdout, &piece, &mut reactor);
        }
        let missed = 5 * piece.len() - read(&end).len();
        client.give(Stream::Stdout, b"again", &mut reactor);
        let rest = read(&end);
        assert!(rest.contains(&format!("{missed} bytes")), "{rest}");
        assert!(rest.ends_with("again"), "{rest}");
        drop(end);
        client.look(&mut reactor);
        assert!(client.is_gone());
    }
}
