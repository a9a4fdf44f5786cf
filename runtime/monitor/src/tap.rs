//! What processes of a container write, on its way out of their pipes.
//!
//! Whoever writes to a pipe holds its lock while the kernel takes what he writes from
//! where it is: splice(2) from a socket that says nothing, write(2) of memory that is a
//! file on a disk that does not answer. A read of the other end waits for that lock, and
//! neither a flag nor a signal ends the wait. So neither the monitor nor the engine reads
//! a pipe that a container has: a process of its own does, the *relay*, and passes on
//! what it reads through a pipe that no container knows.
//!
//! ```text
//! container ──pipe──▶ relay ──pipe──▶ the monitor's log, or the engine
//!               └poll─▶ monitor: is there something? then a relay
//! ```
//! What a client writes goes the other way, by a relay as well: whoever reads a pipe holds
//! that lock, too.
//!
//! Owns both pipes' inner ends and the relay, a fork of the monitor as the log's writer
//! is: made when there is something to read, which poll(2) tells without the lock, and
//! gone after a while of silence. One that is stuck holds up the streams of one container
//! or command, and no other's. When the monitor dies, relays pass on what is there and
//! end.

mod handover;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use runtime::log::WRITER_NAME;
use runtime::protocol::monotonic_now;
use runtime::shared_pipe::{self, SharedEnd, State};
use runtime::sys::fds::keep_all;
use runtime::sys::fork::{self, NewNamespaces};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use crate::process::{KILL, send_signal};
use crate::reactor::{Key, Reactor, Source, Token};

/// How long a relay waits for more.
const SILENCE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};
/// What is passed on at once.
const PIECE: usize = 64 * 1024;
/// How long after a relay could not be made the next is tried, nanoseconds.
const RETRY: u64 = 1_000_000_000;
/// How often what is there is looked for at the end: a relay may just have left.
const LAST_LOOKS: u8 = 2;
/// Most that is passed on of a stream once the relay is to end: more than a pipe holds,
/// so that only a writer that is still alive comes to this.
const REST: usize = 4 * 1024 * 1024;

/// Streams of one container or command.
#[derive(Debug)]
pub(crate) struct Tap {
    key: Key,
    direction: Direction,
    streams: Vec<Stream>,
    relay: Option<Relay>,
    /// How often what is there was looked for since nothing is to follow it.
    last_looks: Option<u8>,
    /// When another relay is tried, since there was no process to be had: monotonic
    /// nanoseconds.
    retry: Option<u64>,
}

/// Where streams lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// Out of the container: its processes write.
    Out,
    /// Into the container: its processes read.
    In,
}

/// A stream: from where it is written to where it is read.
#[derive(Debug)]
struct Stream {
    from: End,
    to: End,
    /// The watch of `from`, while no relay works.
    token: Option<Token>,
}

/// An inner end of a pipe.
#[derive(Debug)]
enum End {
    /// Of a pipe that a container has.
    Shared(SharedEnd),
    /// Of one that none has.
    Own(OwnedFd),
}

impl Direction {
    /// The inner ends of a stream that leads there.
    fn ends(self, from: OwnedFd, to: OwnedFd) -> (End, End) {
        match self {
            Self::Out => (End::Shared(from.into()), End::Own(to)),
            Self::In => (End::Own(from), End::Shared(to.into())),
        }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Shared(end) => end.as_fd(),
            Self::Own(end) => end.as_fd(),
        }
    }
}

impl AsRawFd for End {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// The process that reads.
#[derive(Debug)]
struct Relay {
    pid: Pid,
    /// Closed, it is to pass on what is there, and to end.
    go_on: Option<OwnedFd>,
}

/// Makes a pipe for a container: the end that is tapped, which does not block, and the one
/// to write to, which does, as programs expect.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}

impl Tap {
    /// Taps streams of a container: what comes from the first of each goes to the
    /// second, which it knows nothing of.
    pub(crate) fn new(
        key: Key,
        streams: Vec<(OwnedFd, OwnedFd)>,
        reactor: &mut Reactor,
    ) -> Result<Self, Errno> {
        Self::leading(Direction::Out, key, streams, reactor)
    }

    /// Leads what comes from the first pipe, which does not block and which no container
    /// has, into the second, which one reads. The second ends with the first.
    pub(crate) fn into_container(
        key: Key,
        from: OwnedFd,
        to: OwnedFd,
        reactor: &mut Reactor,
    ) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&from, true)?;
        Self::leading(Direction::In, key, vec![(from, to)], reactor)
    }

    fn leading(
        direction: Direction,
        key: Key,
        streams: Vec<(OwnedFd, OwnedFd)>,
        reactor: &mut Reactor,
    ) -> Result<Self, Errno> {
        let streams = streams.into_iter().map(|(from, to)| {
            let (from, to) = direction.ends(from, to);
            Stream {
                from,
                to,
                token: None,
            }
        });
        let mut tap = Self {
            key,
            direction,
            streams: streams.collect(),
            relay: None,
            last_looks: None,
            retry: None,
        };
        match tap.watch(reactor) {
            Ok(()) => Ok(tap),
            Err(errno) => {
                tap.unwatch(reactor);
                Err(errno)
            }
        }
    }

    /// The number by which its streams are watched.
    pub(crate) fn key(&self) -> Key {
        self.key
    }

    /// Whether all its streams have ended.
    pub(crate) fn is_over(&self) -> bool {
        self.streams.is_empty() && self.relay.is_none()
    }

    /// When it has to be looked at, monotonic nanoseconds.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.retry
    }

    /// A stream has something, or has ended.
    pub(crate) fn look(&mut self, reactor: &mut Reactor) {
        if self.relay.is_some() {
            return;
        }
        self.retry = None;
        let mut brings = false;
        for index in (0..self.streams.len()).rev() {
            let Some(stream) = self.streams.get(index) else {
                continue;
            };
            match shared_pipe::state(stream.from.as_fd()) {
                State::Brings => brings = true,
                State::Silent => {}
                State::Ended => {
                    let mut stream = self.streams.swap_remove(index);
                    stream.unwatch(reactor);
                }
            }
        }
        if brings {
            self.unwatch(reactor);
            if self.spawn().is_err() {
                self.retry = Some(monotonic_now().saturating_add(RETRY));
            }
        } else if self.last_looks.is_none() {
            self.watch_or_retry(reactor);
        }
    }

    /// Brings what is there now to whoever reads it, and nothing that follows. Whether
    /// that is done; if not, it is to be asked again when a relay has ended.
    pub(crate) fn finish(&mut self, reactor: &mut Reactor) -> bool {
        let looks = *self.last_looks.get_or_insert(0);
        if self.relay.is_none() && looks < LAST_LOOKS {
            self.last_looks = Some(looks + 1);
            self.look(reactor);
        }
        match &mut self.relay {
            Some(relay) => {
                relay.go_on = None;
                false
            }
            None => self.retry.is_none() || looks >= LAST_LOOKS,
        }
    }

    /// Goes on although it was to bring only what was there.
    pub(crate) fn go_on(&mut self, reactor: &mut Reactor) {
        self.last_looks = None;
        if self.relay.is_none() {
            self.watch_or_retry(reactor);
        }
    }

    /// A process was reaped: whether it was the relay.
    pub(crate) fn relay_ended(&mut self, pid: Pid, reactor: &mut Reactor) -> bool {
        if self.relay.as_ref().map(|relay| relay.pid) != Some(pid) {
            return false;
        }
        self.relay = None;
        if self.last_looks.is_none() {
            self.watch_or_retry(reactor);
        }
        true
    }

    /// Ends it: nothing more is passed on.
    pub(crate) fn close(mut self, reactor: &mut Reactor) {
        self.unwatch(reactor);
        let relay = self.relay.take();
        // The relay has them, too, as long as it lives.
        self.streams.clear();
        if let Some(relay) = relay {
            // Reaped with all other children; one that is stuck ends when it can.
            let _gone = send_signal(relay.pid, KILL);
        }
    }

    fn watch_or_retry(&mut self, reactor: &mut Reactor) {
        if self.watch(reactor).is_err() {
            self.retry = Some(monotonic_now().saturating_add(RETRY));
        }
    }

    /// What relays write to: tests have threads, and can have no relay.
    #[cfg(test)]
    pub(crate) fn into_ends(mut self, reactor: &mut Reactor) -> Vec<OwnedFd> {
        self.unwatch(reactor);
        let own = |stream: Stream| match stream.to {
            End::Own(to) => Some(to),
            End::Shared(_) => None,
        };
        self.streams.into_iter().filter_map(own).collect()
    }

    fn watch(&mut self, reactor: &mut Reactor) -> Result<(), Errno> {
        for stream in &mut self.streams {
            if stream.token.is_none() {
                let source = Source::Tap(self.key);
                stream.token = Some(reactor.watch(stream.from.as_fd(), source)?);
            }
        }
        Ok(())
    }

    fn unwatch(&mut self, reactor: &mut Reactor) {
        for stream in &mut self.streams {
            stream.unwatch(reactor);
        }
    }

    fn spawn(&mut self) -> Result<(), Errno> {
        let (told, go_on) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let pairs = self.streams.iter();
        let pairs: Vec<_> = pairs
            .map(|one| (one.from.as_fd(), one.to.as_fd()))
            .collect();
        let child = fork::spawn(NewNamespaces::default(), || {
            u8::from(relay(&pairs, told.as_fd()).is_err())
        })?;
        self.relay = Some(Relay {
            pid: child.pid,
            go_on: Some(go_on),
        });
        Ok(())
    }
}

impl Stream {
    fn unwatch(&mut self, reactor: &mut Reactor) {
        if let Some(token) = self.token.take() {
            reactor.unwatch(self.from.as_fd(), token);
        }
    }
}

/// The life of a relay.
fn relay(pairs: &[(BorrowedFd<'_>, BorrowedFd<'_>)], told: BorrowedFd<'_>) -> Result<(), Errno> {
    let ends = pairs.iter().flat_map(|(from, to)| [*from, *to]);
    let ends: Vec<_> = std::iter::once(told).chain(ends).collect();
    // Whatever else the monitor has is to end when the monitor ends it.
    let mut kept = keep_all(&ends)?.into_iter();
    let told = kept.next().ok_or(Errno::INVAL)?;
    let mut streams = Vec::with_capacity(pairs.len());
    while let (Some(from), Some(to)) = (kept.next(), kept.next()) {
        streams.push((from, to));
    }
    // By its name the engine lets it go where a pod ends before it does.
    rustix::thread::set_name(&std::ffi::CString::new(WRITER_NAME).map_err(|_| Errno::INVAL)?)?;
    let mut piece = Vec::with_capacity(PIECE);
    let mut rest = None;
    loop {
        let (brings, ends) = wait(&streams, &told, rest.is_some())?;
        if ends && rest.is_none() {
            rest = Some(REST);
        }
        if brings.is_empty() || rest == Some(0) {
            return Ok(());
        }
        let mut ended = Vec::new();
        for index in brings {
            let Some((from, to)) = streams.get(index) else {
                continue;
            };
            match pass_on(from, to, &mut piece)? {
                None => ended.push(index),
                Some(length) => rest = rest.map(|rest| rest.saturating_sub(length)),
            }
        }
        for index in ended.into_iter().rev() {
            drop(streams.remove(index));
        }
    }
}

/// Which streams have something to read or have ended, and whether the relay is to end.
/// None: there is nothing to do any more.
fn wait(
    streams: &[(OwnedFd, OwnedFd)],
    told: &OwnedFd,
    ending: bool,
) -> Result<(Vec<usize>, bool), Errno> {
    if streams.is_empty() {
        return Ok((Vec::new(), true));
    }
    let sources = streams
        .iter()
        .map(|(from, _)| PollFd::new(from, PollFlags::IN));
    let mut polled: Vec<_> = sources.collect();
    if !ending {
        polled.push(PollFd::new(told, PollFlags::IN));
    }
    let patience = if ending { Timespec::default() } else { SILENCE };
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&patience)))?;
    let happened = |index: usize| {
        polled
            .get(index)
            .is_some_and(|one| !one.revents().is_empty())
    };
    let brings: Vec<_> = (0..streams.len())
        .filter(|index| happened(*index))
        .collect();
    let ends = !ending && happened(streams.len());
    if ends && brings.is_empty() {
        // What came meanwhile is still to be passed on.
        return wait(streams, told, true).map(|(brings, _)| (brings, true));
    }
    Ok((brings, ends))
}

/// Passes on what one read gives; says how much, `None`: the stream has ended.
fn pass_on(from: &OwnedFd, to: &OwnedFd, piece: &mut Vec<u8>) -> Result<Option<usize>, Errno> {
    piece.clear();
    match rustix::io::retry_on_intr(|| rustix::io::read(from, spare_capacity(piece))) {
        Ok(0) => return Ok(None),
        Ok(_) => {}
        Err(Errno::AGAIN) => return Ok(Some(0)),
        Err(errno) => return Err(errno),
    }
    let mut rest = piece.as_slice();
    while !rest.is_empty() {
        match rustix::io::retry_on_intr(|| rustix::io::write(to, rest)) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::AGAIN) => {
                let mut room = [PollFd::new(to, PollFlags::OUT)];
                rustix::io::retry_on_intr(|| rustix::event::poll(&mut room, None))?;
            }
            // Nobody reads any more: it is thrown away.
            Err(Errno::PIPE) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(Some(piece.len()))
}
