//! Waiting for many descriptors at once: epoll.
//!
//! Owns what each watched descriptor means. A meaning's number is never used
//! twice, so that an event of something that is gone means nothing.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use runtime::log::Stream;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

/// Most events that one wait gives.
const BATCH: usize = 16;

/// Number of a container within this monitor.
pub(crate) type Key = u64;

/// What a descriptor means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A child ended.
    Signals,
    /// Somebody wants to connect.
    Listener,
    /// A peer said something, or can be told more.
    Connection(u64),
    /// A launcher goes on.
    Launch(Key),
    /// A container that was let go runs, or does not.
    Start(Key),
    /// A container wrote something.
    Output(Key, Stream),
    /// A stream of a container or of a command has something, or has ended.
    Tap(Key),
    /// There is room for records of a container again.
    Log(Key),
    /// A client of a container may have gone: by both numbers.
    Client(Key, u64),
}

/// A watched descriptor's number in the reactor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Token(u64);

/// All that is watched.
#[derive(Debug)]
pub(crate) struct Reactor {
    epoll: OwnedFd,
    sources: BTreeMap<Token, Source>,
    next: u64,
}

impl Reactor {
    /// A reactor that watches nothing.
    pub(crate) fn new() -> Result<Self, Errno> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self {
            epoll,
            sources: BTreeMap::new(),
            next: 0,
        })
    }

    /// Watches a descriptor until [`unwatch`](Self::unwatch): for reading.
    pub(crate) fn watch(&mut self, fd: BorrowedFd<'_>, source: Source) -> Result<Token, Errno> {
        self.add(fd, source, EventFlags::IN)
    }

    /// Watches a descriptor that is full: told each time that it has room again.
    pub(crate) fn watch_room(
        &mut self,
        fd: BorrowedFd<'_>,
        source: Source,
    ) -> Result<Token, Errno> {
        self.add(fd, source, EventFlags::OUT | EventFlags::ET)
    }

    fn add(
        &mut self,
        fd: BorrowedFd<'_>,
        source: Source,
        flags: EventFlags,
    ) -> Result<Token, Errno> {
        let token = Token(self.next);
        epoll::add(&self.epoll, fd, EventData::new_u64(token.0), flags)?;
        self.next += 1;
        self.sources.insert(token, source);
        Ok(token)
    }

    /// Says nothing of a watched descriptor until [`resume`](Self::resume); its end
    /// would be told again and again otherwise.
    pub(crate) fn pause(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        epoll::delete(&self.epoll, fd)
    }

    /// Goes on watching for reading.
    pub(crate) fn resume(&self, fd: BorrowedFd<'_>, token: Token) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token.0), EventFlags::IN)
    }

    /// Watches for what is new only, or for all there is.
    pub(crate) fn only_news(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        wanted: bool,
    ) -> Result<(), Errno> {
        let flags = if wanted {
            EventFlags::IN | EventFlags::ET
        } else {
            EventFlags::IN
        };
        epoll::modify(&self.epoll, fd, EventData::new_u64(token.0), flags)
    }

    /// Watches for room to write as well, or no longer.
    pub(crate) fn want_room(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        wanted: bool,
    ) -> Result<(), Errno> {
        let flags = if wanted {
            EventFlags::IN | EventFlags::OUT
        } else {
            EventFlags::IN
        };
        epoll::modify(&self.epoll, fd, EventData::new_u64(token.0), flags)
    }

    /// Ends the watch. Must come before the descriptor is closed: a child that
    /// has not executed yet may hold a copy, which would go on to be watched.
    pub(crate) fn unwatch(&mut self, fd: BorrowedFd<'_>, token: Token) {
        self.sources.remove(&token);
        // It was watched, or nothing is to be done.
        let _gone = epoll::delete(&self.epoll, fd);
    }

    /// Waits until something happens or the time is up.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<Vec<Source>, Errno> {
        let timeout = timeout.map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let mut events = [MaybeUninit::uninit(); BATCH];
        let happened = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((happened, _)) => happened,
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        };
        let source = |event: &epoll::Event| self.sources.get(&Token(event.data.u64())).copied();
        Ok(happened.iter().filter_map(source).collect())
    }
}
