//! A container's log, as far as the monitor has to do with it.
//!
//! A disk may keep whoever writes to it waiting for as long as it likes, and the
//! monitor has one thread for all containers of its pod. So it never touches a
//! log: each container's records go through a pipe to a process of its own, the
//! log writer (`log_writer`), a fork of the monitor that is made when there is
//! something to write and ends when there was nothing for a while.
//!
//! Owns the pipe, the writer and what the pipe has no room for. While it has
//! none, the log is *full*, and the container's streams are not read: a slow disk
//! holds up the containers that write to it, and no others. Nothing is lost when
//! the disk recovers, nor when a writer dies, but for what that one had taken.
//! At most one writer works for a container. When the monitor dies, writers
//! finish what is in their pipes and end.

mod handover;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use runtime::protocol::monotonic_now;
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use crate::connection::ReplyTo;
use crate::log_writer;
use crate::reactor::{Key, Reactor, Source, Token};

/// How often a writer is looked at, nanoseconds. One that has got nowhere in
/// between is stalled; one that had nothing to do is sent away.
const LOOK: u64 = 5_000_000_000;
/// How long a log that came to rest waits to be opened again, nanoseconds: the
/// container's output waits as long.
const REST: u64 = 500_000_000;
/// How long a writer must have lived to be replaced at once.
const SHORT_LIFE: u64 = 1_000_000_000;

/// A log.
#[derive(Debug)]
pub(crate) struct Log {
    key: Key,
    /// For engines of earlier builds, which ask to reopen by path.
    path: PathBuf,
    /// Names the file; see `runtime::log::open`.
    file: Rc<OwnedFd>,
    writer: Option<Writer>,
    /// What the writer's pipe had no room for.
    pending: Vec<u8>,
    lost: u64,
    /// When to look at it again, monotonic nanoseconds.
    look_at: Option<u64>,
    stalled: bool,
    /// Until when no writer is made, monotonic nanoseconds: its next file is about to
    /// be there.
    rests_until: Option<u64>,
    /// Who is to be told that nothing is on its way to the file.
    settling: Vec<ReplyTo>,
}

/// A writer and the way to it.
#[derive(Debug)]
pub(crate) struct Writer {
    /// `None`: it is to end when it has written what it has.
    input: Option<OwnedFd>,
    /// The input's watch, once it was full.
    token: Option<Token>,
    /// Kept, so that another writer can go on where one died.
    output: OwnedFd,
    /// The writer counts here what it could not write.
    lost: OwnedFd,
    file: Rc<OwnedFd>,
    /// `None`: it died and is to be replaced.
    pid: Option<Pid>,
    born_at: u64,
    /// Bytes that went into the pipe.
    sent: u64,
    /// The same, and those that were taken out, at the last look.
    seen: (u64, u64),
}

impl Log {
    /// A log by a descriptor that names its file.
    pub(crate) fn new(key: Key, file: OwnedFd, path: PathBuf) -> Self {
        Self {
            key,
            path,
            file: Rc::new(file),
            writer: None,
            pending: Vec::new(),
            lost: 0,
            look_at: None,
            stalled: false,
            rests_until: None,
            settling: Vec::new(),
        }
    }

    /// Lets what was appended be written, and takes nothing until it is opened
    /// again or [`REST`] is over.
    pub(crate) fn settle(&mut self, reply: ReplyTo, now: u64, reactor: &mut Reactor) {
        self.rests_until = Some(now.saturating_add(REST));
        self.settling.push(reply);
        self.finish(reactor);
    }

    /// Who can be told that nothing is on its way to the file any more, or that this
    /// takes too long.
    pub(crate) fn take_settled(&mut self) -> Vec<ReplyTo> {
        if self.writer.is_some() && self.rests_until.is_some() {
            return Vec::new();
        }
        std::mem::take(&mut self.settling)
    }

    /// Goes on in another file: what is in the pipe still goes to the former one.
    pub(crate) fn reopen(&mut self, file: OwnedFd, reactor: &mut Reactor) {
        self.file = Rc::new(file);
        self.rests_until = None;
        self.finish(reactor);
        self.flush(reactor);
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether somebody waits for it to come to rest.
    pub(crate) fn is_settling(&self) -> bool {
        !self.settling.is_empty()
    }

    /// Whether there is no room: nothing may be appended.
    pub(crate) fn is_full(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether all that was appended is written or lost.
    pub(crate) fn is_written(&self) -> bool {
        self.pending.is_empty() && self.writer.is_none()
    }

    /// Bytes of memory that wait for the writer.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.pending.capacity()
    }

    /// Lets a test's log take everything.
    #[cfg(test)]
    pub(crate) fn throw_away(&mut self) {
        self.writer = Some(Writer::into_nothing());
    }

    /// Whether the disk has not taken anything for a while.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Bytes that could not be written.
    pub(crate) fn lost(&mut self) -> u64 {
        if let Some(writer) = &self.writer {
            self.lost += writer.take_lost();
        }
        self.lost
    }

    /// Appends records.
    pub(crate) fn append(&mut self, records: &[u8], reactor: &mut Reactor) {
        if records.is_empty() {
            return;
        }
        let sent = if self.pending.is_empty() {
            self.send(records, reactor)
        } else {
            0
        };
        self.pending
            .extend_from_slice(records.get(sent..).unwrap_or_default());
    }

    /// Sends what waits, as far as there is room.
    pub(crate) fn flush(&mut self, reactor: &mut Reactor) {
        if self.pending.is_empty() {
            return;
        }
        let pending = std::mem::take(&mut self.pending);
        let sent = self.send(&pending, reactor);
        self.pending = pending;
        self.pending.drain(..sent);
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
    }

    /// Lets the writer end behind what it was given. Records that wait are
    /// another one's.
    pub(crate) fn finish(&mut self, reactor: &mut Reactor) {
        if let Some(writer) = &mut self.writer {
            writer.close(reactor);
            self.look_at.get_or_insert(monotonic_now() + LOOK);
        }
    }

    /// Whether this process is its writer.
    pub(crate) fn is_writer(&self, pid: Pid) -> bool {
        self.writer.as_ref().and_then(|writer| writer.pid) == Some(pid)
    }

    /// Its writer was reaped.
    pub(crate) fn writer_ended(&mut self, reactor: &mut Reactor) {
        self.lost();
        let Some(writer) = &mut self.writer else {
            return;
        };
        writer.pid = None;
        if writer.input.is_none() && writer.unread() == 0 {
            self.writer = None;
            self.look_at = None;
            self.stalled = false;
            return self.flush(reactor);
        }
        // It died before its time.
        let now = monotonic_now();
        if now.saturating_sub(writer.born_at) < SHORT_LIFE {
            self.look_at = Some(now + SHORT_LIFE);
        } else {
            self.replace();
        }
    }

    /// When it has to be looked at.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.look_at.into_iter().chain(self.rests_until).min()
    }

    /// Looks how far the writer got, and whether the log has rested long enough.
    pub(crate) fn look(&mut self, now: u64, reactor: &mut Reactor) {
        if self.rests_until.is_some_and(|until| until <= now) {
            self.rests_until = None;
            self.flush(reactor);
        }
        if self.look_at.is_none_or(|at| at > now) {
            return;
        }
        self.look_at = None;
        let Some(writer) = &mut self.writer else {
            return self.flush(reactor);
        };
        if writer.pid.is_none() {
            return self.replace();
        }
        self.look_at = Some(now.saturating_add(LOOK));
        let unread = writer.unread();
        let seen = (writer.sent, writer.sent - unread);
        let former = std::mem::replace(&mut writer.seen, seen);
        let ends = writer.input.is_none();
        if !ends && unread == 0 && former.0 == seen.0 {
            // Should it be stuck with what it took, it will not end.
            return writer.close(reactor);
        }
        self.stalled = (ends || unread > 0) && former.1 == seen.1;
        self.flush(reactor);
    }

    /// Writes to the pipe; a writer is made where there is none. Says how many
    /// bytes went in.
    fn send(&mut self, records: &[u8], reactor: &mut Reactor) -> usize {
        if self.writer.is_none() {
            if self.rests_until.is_some() {
                return 0;
            }
            match Writer::start(&self.file) {
                Ok(writer) => self.writer = Some(writer),
                Err(_) => {
                    // No process to be had now; the container waits so long.
                    self.look_at = Some(monotonic_now() + SHORT_LIFE);
                    return 0;
                }
            }
        }
        let Some(writer) = &mut self.writer else {
            return 0;
        };
        self.look_at.get_or_insert_with(|| monotonic_now() + LOOK);
        writer.send(records, self.key, reactor)
    }

    /// Another writer for the same pipe.
    fn replace(&mut self) {
        let now = monotonic_now();
        let Some(writer) = &mut self.writer else {
            return;
        };
        let came = match writer.spawn(log_writer::Begin::Again) {
            Ok(()) => LOOK,
            Err(_) => SHORT_LIFE,
        };
        self.look_at = Some(now + came);
    }
}

impl Writer {
    #[cfg(test)]
    fn into_nothing() -> Self {
        let open = |flags| {
            let mode = rustix::fs::Mode::empty();
            rustix::fs::open("/dev/null", flags, mode).unwrap()
        };
        let null = || open(rustix::fs::OFlags::RDWR);
        Self {
            input: Some(null()),
            token: None,
            output: null(),
            lost: null(),
            file: Rc::new(null()),
            pid: None,
            born_at: 0,
            sent: 0,
            seen: (0, 0),
        }
    }

    fn start(file: &Rc<OwnedFd>) -> Result<Self, Errno> {
        let (output, input) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&input, true)?;
        let lost = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut writer = Self {
            input: Some(input),
            token: None,
            output,
            lost,
            file: Rc::clone(file),
            pid: None,
            born_at: 0,
            sent: 0,
            seen: (0, 0),
        };
        writer.spawn(log_writer::Begin::New)?;
        Ok(writer)
    }

    fn spawn(&mut self, begin: log_writer::Begin) -> Result<(), Errno> {
        let streams = log_writer::Streams {
            pipe: self.output.as_fd(),
            file: self.file.as_fd(),
            lost: self.lost.as_fd(),
        };
        self.pid = Some(log_writer::spawn(&streams, begin)?);
        self.born_at = monotonic_now();
        Ok(())
    }

    fn send(&mut self, records: &[u8], key: Key, reactor: &mut Reactor) -> usize {
        // One that is to end: the rest is its successor's.
        let Some(input) = &self.input else { return 0 };
        let mut done = 0;
        while let Some(rest) = records.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::retry_on_intr(|| rustix::io::write(input, rest)) {
                Ok(written) => done += written,
                Err(_) => break,
            }
        }
        self.sent += done as u64;
        if done < records.len() && self.token.is_none() {
            // Told of room from now on. Unwatched, it is looked at in a while.
            let watched = reactor.watch_room(input.as_fd(), Source::Log(key));
            self.token = watched.ok();
        }
        done
    }

    fn close(&mut self, reactor: &mut Reactor) {
        let Some(input) = self.input.take() else {
            return;
        };
        if let Some(token) = self.token.take() {
            reactor.unwatch(input.as_fd(), token);
        }
    }

    /// Bytes that are in the pipe.
    fn unread(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.output).unwrap_or(0)
    }

    fn take_lost(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.lost, &mut count) {
            Ok(8) => u64::from_ne_bytes(count),
            _ => 0,
        }
    }
}
