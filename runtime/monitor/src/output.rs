//! What containers write, on its way into their logs.
//!
//! Owns the monitor's ends of a container's streams: pipes that its processes have are
//! tapped (`tap`), a terminal is read as it is. Reads whatever comes, log
//! or not, so that no container waits for a reader; only one whose log is full
//! does (`log`). Reads in turns, so that a loud one does not keep the others
//! waiting. A terminal is read for as long as the container's first process
//! lives, whether somebody has it open or not; who holds a stream open after an exit,
//! in another container perhaps, is read on for some mebibytes. What memory output takes is bounded: buffers
//! that all streams share, and for a container whose log is full one read and its
//! records, which is some 200 KiB at most.

mod clients;
mod handover;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use runtime::launcher::ContainerStdio;
use runtime::log::{LineSplitter, LogError, Stamp, Stream};
use runtime::protocol::{Create, Failure, FailureKind, Fds, ProtocolError};
use runtime::shared_pipe::SharedEnd;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use self::clients::Client;
pub(crate) use self::clients::{ClientStreams, Number};
use crate::log::Log;
use crate::reactor::{Key, Reactor, Source, Token};
use crate::tap::{self, Tap};

/// Most bytes of one read.
const READ: usize = 64 * 1024;
/// Records that are written at a time.
const RECORDS: usize = 64 * 1024;
/// Bytes that become records at a time: bounds what the records grow to when
/// lines are short.
const SLICE: usize = 1024;
/// Most that is kept for a container whose log is full: what was read, and
/// records of empty lines behind one that was nearly due to be written.
#[cfg(test)]
const MOST_HELD: usize = READ + RECORDS + SLICE * 48 + 2 * runtime::log::MAX_LINE;
/// Most bytes that are read before an exit is reported: more than a pipe
/// holds, so that only a writer that is still alive comes to this.
const DRAIN: usize = 4 * 1024 * 1024;

/// Most bytes that are logged after an exit was reported: nobody rotates the log any more.
const LATE: usize = 4 * 1024 * 1024;

/// Buffers that all streams share, since only one is read at a time.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    input: Vec<u8>,
    records: Vec<u8>,
}

/// One stream.
#[derive(Debug)]
struct Reader {
    stream: Stream,
    fd: OwnedFd,
    token: Token,
    splitter: LineSplitter,
    watch: Watch,
    is_terminal: bool,
}

/// How a stream is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// For all there is.
    Level,
    /// A terminal that nobody has open: its end would be told without end.
    News,
    /// Not at all: its log is full.
    Paused,
}

/// What was read when there was no room for its records.
#[derive(Debug)]
struct Held {
    stream: Stream,
    bytes: Vec<u8>,
    stamp: Stamp,
}

/// What was read.
#[derive(Debug, Clone, Copy)]
struct Piece<'a> {
    stream: Stream,
    bytes: &'a [u8],
    stamp: Stamp,
}

/// What a read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// It filled the buffer: there may be more.
    Full,
    /// All there was.
    Some,
    /// Nothing, or no room for it.
    Nothing,
    /// Its end.
    End,
}

/// A container's streams and log.
#[derive(Debug, Default)]
pub(crate) struct Output {
    log: Option<Log>,
    tap: Option<Tap>,
    readers: Vec<Reader>,
    held: Option<Held>,
    /// After the exit: bytes that may still come.
    late: Option<usize>,
    /// What the container reads, for clients that attach; a terminal is written to
    /// instead.
    stdin: Option<SharedEnd>,
    /// Whether that closes with the first client that wrote to it.
    stdin_once: bool,
    clients: Vec<Client>,
}

impl Output {
    /// Takes the log, opens pipes; gives the container's ends.
    pub(crate) fn open(
        key: Key,
        create: &mut Create,
        fds: &mut Fds,
        reactor: &mut Reactor,
    ) -> Result<(Self, ContainerStdio), Failure> {
        let mut output = Self {
            log: take_log(create, fds)?.map(|(file, path)| Log::new(key, file, path)),
            tap: None,
            readers: Vec::new(),
            held: None,
            late: None,
            stdin: None,
            stdin_once: create.stdin_once,
            clients: Vec::new(),
        };
        let stdio = if create.tty {
            ContainerStdio::default()
        } else {
            output
                .open_pipes(key, create.stdin, reactor)
                .map_err(|errno| {
                    output.close(reactor);
                    Failure::new(FailureKind::Launch, "make pipes", errno.to_string())
                })?
        };
        Ok((output, stdio))
    }

    /// Takes over a terminal's master side.
    pub(crate) fn attach_console(
        &mut self,
        key: Key,
        console: OwnedFd,
        reactor: &mut Reactor,
    ) -> Result<(), Errno> {
        self.add_reader(key, Stream::Stdout, console, reactor)?;
        for reader in &mut self.readers {
            reader.is_terminal = true;
        }
        Ok(())
    }

    /// What its processes write on its way to here, and what clients write on its way to
    /// them.
    pub(crate) fn taps(&self) -> impl Iterator<Item = &Tap> {
        let inputs = self.clients.iter().filter_map(|one| one.input.as_ref());
        self.tap.iter().chain(inputs)
    }

    fn taps_mut(&mut self) -> impl Iterator<Item = &mut Tap> {
        let inputs = self.clients.iter_mut().filter_map(|one| one.input.as_mut());
        self.tap.iter_mut().chain(inputs)
    }

    /// A stream has something, or has ended: whether it is one of these.
    pub(crate) fn look(&mut self, key: Key, reactor: &mut Reactor) -> bool {
        let Some(tap) = self.taps_mut().find(|tap| tap.key() == key) else {
            return false;
        };
        tap.look(reactor);
        self.let_clients_go(reactor);
        true
    }

    /// Looks at streams without a relay whose time has come.
    pub(crate) fn look_at_due(&mut self, now: u64, reactor: &mut Reactor) {
        for tap in self.taps_mut() {
            if tap.deadline().is_some_and(|deadline| deadline <= now) {
                tap.look(reactor);
            }
        }
        self.let_clients_go(reactor);
    }

    /// A process was reaped: whether it was a relay.
    pub(crate) fn relay_ended(&mut self, pid: Pid, reactor: &mut Reactor) -> bool {
        let is_its = self.taps_mut().any(|tap| tap.relay_ended(pid, reactor));
        if is_its {
            self.let_clients_go(reactor);
        }
        is_its
    }

    /// Connects a client.
    pub(crate) fn attach(
        &mut self,
        number: Number,
        streams: ClientStreams,
        input_key: Key,
        reactor: &mut Reactor,
    ) -> Result<(), Errno> {
        let stdin = self.stdin.as_ref().filter(|_| streams.stdin.is_some());
        let to = stdin.map(|stdin| Ok((input_key, clients::copy_of(stdin)?)));
        let client = Client::connect(number, streams, to.transpose()?, reactor)?;
        self.clients.push(client);
        Ok(())
    }

    /// Whether a client could write to it.
    pub(crate) fn has_input(&self) -> bool {
        self.stdin.is_some()
    }

    /// The master side of its terminal.
    pub(crate) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        let terminal = self.readers.iter().find(|reader| reader.is_terminal);
        terminal.map(|reader| reader.fd.as_fd())
    }

    /// A client may have gone.
    pub(crate) fn look_at_client(&mut self, number: Number, reactor: &mut Reactor) {
        if let Some(client) = self.clients.iter_mut().find(|one| one.is(number)) {
            client.look(reactor);
        }
        self.let_clients_go(reactor);
    }

    /// Forgets clients that are gone. With one that wrote, the input may end.
    fn let_clients_go(&mut self, reactor: &mut Reactor) {
        for client in &mut self.clients {
            if client.input_ended(reactor) && self.stdin_once {
                self.stdin = None;
            }
        }
        self.clients.retain(|client| !client.is_gone());
    }

    fn let_all_clients_go(&mut self, reactor: &mut Reactor) {
        for client in self.clients.drain(..) {
            client.close(reactor);
        }
    }

    /// Has brought here what was written until now. Whether it is; if not, it is to be
    /// asked again when a relay has ended.
    pub(crate) fn collect(&mut self, reactor: &mut Reactor) -> bool {
        self.tap.as_mut().is_none_or(|tap| tap.finish(reactor))
    }

    /// Goes on for those that write after the exit.
    pub(crate) fn go_on(&mut self, reactor: &mut Reactor) {
        self.is_late();
        self.let_all_clients_go(reactor);
        if let Some(tap) = &mut self.tap {
            tap.go_on(reactor);
        }
    }

    /// The exit was reported: what still comes is bounded.
    pub(crate) fn is_late(&mut self) {
        self.late.get_or_insert(LATE);
    }

    /// Its log, if it has one.
    pub(crate) fn log(&self) -> Option<&Log> {
        self.log.as_ref()
    }

    /// Its log, to be changed.
    pub(crate) fn log_mut(&mut self) -> Option<&mut Log> {
        self.log.as_mut()
    }

    /// Whether its streams wait for its log.
    pub(crate) fn is_full(&self) -> bool {
        self.log.as_ref().is_some_and(Log::is_full)
    }

    /// Whether no stream is open.
    pub(crate) fn is_closed(&self) -> bool {
        self.readers.is_empty()
    }

    /// Whether a stream that hangs up belongs to a terminal.
    fn is_terminal(&self, index: usize) -> bool {
        self.readers
            .get(index)
            .is_some_and(|reader| reader.is_terminal)
    }

    /// Reads once what a stream brings. A terminal without users ends only when
    /// its container did.
    pub(crate) fn read_once(
        &mut self,
        stream: Stream,
        init_lives: bool,
        scratch: &mut Scratch,
        reactor: &mut Reactor,
    ) -> Read {
        let position = self
            .readers
            .iter()
            .position(|reader| reader.stream == stream);
        let Some(index) = position else {
            return Read::Nothing;
        };
        if self.is_full() {
            self.pause(index, reactor);
            return Read::Nothing;
        }
        match self.read(index, scratch, reactor) {
            Read::End if init_lives && self.is_terminal(index) => {
                self.watch(index, Watch::News, reactor);
                Read::Nothing
            }
            Read::End => {
                self.end(index, scratch, reactor);
                Read::End
            }
            Read::Nothing => Read::Nothing,
            read => {
                self.watch(index, Watch::Level, reactor);
                read
            }
        }
    }

    /// Goes on after the log had no room, as far as it has some now.
    pub(crate) fn proceed(&mut self, scratch: &mut Scratch, reactor: &mut Reactor) {
        let Some(log) = &mut self.log else { return };
        log.flush(reactor);
        if log.is_full() {
            return;
        }
        if let Some(held) = self.held.take() {
            let piece = Piece {
                stream: held.stream,
                bytes: &held.bytes,
                stamp: held.stamp,
            };
            self.record(piece, &mut scratch.records, reactor);
        }
        if self.is_full() {
            return;
        }
        for index in 0..self.readers.len() {
            if self.readers.get(index).map(|reader| reader.watch) == Some(Watch::Paused) {
                self.watch(index, Watch::Level, reactor);
            }
        }
    }

    /// Reads all that is there, within reason and as far as the log has room.
    pub(crate) fn drain(&mut self, scratch: &mut Scratch, reactor: &mut Reactor) {
        for index in (0..self.readers.len()).rev() {
            let mut rest = DRAIN / READ;
            while rest > 0 && !self.is_full() {
                rest -= 1;
                match self.read(index, scratch, reactor) {
                    Read::Full | Read::Some => {}
                    Read::Nothing => break,
                    Read::End => {
                        self.end(index, scratch, reactor);
                        break;
                    }
                }
            }
        }
    }

    /// Brings into the log what is still to come, since the container is to be
    /// forgotten. Whether that is done.
    pub(crate) fn wind_up(&mut self, scratch: &mut Scratch, reactor: &mut Reactor) -> bool {
        self.proceed(scratch, reactor);
        // While a relay waits for room there is some to be made.
        let collected = self.collect(reactor);
        self.drain(scratch, reactor);
        if !collected || self.is_full() {
            return false;
        }
        self.let_all_clients_go(reactor);
        if let Some(tap) = self.tap.take() {
            tap.close(reactor);
        }
        for index in (0..self.readers.len()).rev() {
            self.end(index, scratch, reactor);
        }
        let Some(log) = &mut self.log else {
            return true;
        };
        log.finish(reactor);
        log.is_written()
    }

    /// Ends all watches and closes all streams.
    pub(crate) fn close(&mut self, reactor: &mut Reactor) {
        self.let_all_clients_go(reactor);
        if let Some(tap) = self.tap.take() {
            tap.close(reactor);
        }
        for reader in self.readers.drain(..) {
            reactor.unwatch(reader.fd.as_fd(), reader.token);
        }
        if let Some(log) = &mut self.log {
            log.finish(reactor);
        }
    }

    fn open_pipes(
        &mut self,
        key: Key,
        stdin: bool,
        reactor: &mut Reactor,
    ) -> Result<ContainerStdio, Errno> {
        let mut stdio = ContainerStdio::default();
        let mut tapped = Vec::new();
        for (stream, end) in [
            (Stream::Stdout, &mut stdio.stdout),
            (Stream::Stderr, &mut stdio.stderr),
        ] {
            let (from, write) = tap::pipe()?;
            let (read, to) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            self.add_reader(key, stream, read, reactor)?;
            tapped.push((from, to));
            *end = Some(write);
        }
        self.tap = Some(Tap::new(key, tapped, reactor)?);
        if stdin {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&write, true)?;
            self.stdin = Some(write.into());
            stdio.stdin = Some(read);
        }
        Ok(stdio)
    }

    fn add_reader(
        &mut self,
        key: Key,
        stream: Stream,
        fd: OwnedFd,
        reactor: &mut Reactor,
    ) -> Result<(), Errno> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let token = reactor.watch(fd.as_fd(), Source::Output(key, stream))?;
        self.readers.push(Reader {
            stream,
            fd,
            token,
            splitter: LineSplitter::new(stream),
            watch: Watch::Level,
            is_terminal: false,
        });
        Ok(())
    }

    fn pause(&mut self, index: usize, reactor: &Reactor) {
        self.watch(index, Watch::Paused, reactor);
    }

    /// Watches a stream in another way.
    fn watch(&mut self, index: usize, wanted: Watch, reactor: &Reactor) {
        let Some(reader) = self.readers.get_mut(index) else {
            return;
        };
        let (fd, token) = (reader.fd.as_fd(), reader.token);
        let changed = match (reader.watch, wanted) {
            (former, wanted) if former == wanted => return,
            (_, Watch::Paused) => reactor.pause(fd),
            (Watch::Paused, _) => reactor.resume(fd, token),
            (_, wanted) => reactor.only_news(fd, token, wanted == Watch::News),
        };
        // One that cannot be watched otherwise is watched as before.
        if changed.is_ok() {
            reader.watch = wanted;
        }
    }

    /// Reads once and logs what came.
    fn read(&mut self, index: usize, scratch: &mut Scratch, reactor: &mut Reactor) -> Read {
        if self.late == Some(0) {
            // Whoever writes finds nobody that reads.
            if let Some(tap) = self.tap.take() {
                tap.close(reactor);
            }
            return Read::End;
        }
        let Some(reader) = self.readers.get(index) else {
            return Read::Nothing;
        };
        let Scratch { input, records } = scratch;
        input.clear();
        input.reserve(READ);
        let read =
            rustix::io::retry_on_intr(|| rustix::io::read(&reader.fd, spare_capacity(input)));
        match read {
            Ok(0) => return Read::End,
            Ok(_) => {}
            Err(Errno::AGAIN) => return Read::Nothing,
            // A terminal whose last user is gone; anything else is as final.
            Err(_) => return Read::End,
        }
        self.late = self.late.map(|late| late.saturating_sub(input.len()));
        for client in &mut self.clients {
            client.give(reader.stream, input, reactor);
        }
        if self.log.is_some() {
            let piece = Piece {
                stream: reader.stream,
                bytes: input,
                stamp: Stamp::now(),
            };
            self.record(piece, records, reactor);
        }
        // A short read emptied the pipe; a terminal gives a line or a page at once.
        if input.len() < READ {
            Read::Some
        } else {
            Read::Full
        }
    }

    /// Makes records of what was read, and keeps what finds no room.
    fn record(&mut self, piece: Piece<'_>, records: &mut Vec<u8>, reactor: &mut Reactor) {
        let Piece {
            stream,
            bytes: mut rest,
            stamp,
        } = piece;
        let reader = self.readers.iter_mut().find(|r| r.stream == stream);
        let (Some(log), Some(reader)) = (&mut self.log, reader) else {
            return;
        };
        while !rest.is_empty() && !log.is_full() {
            let (slice, later) = rest.split_at(rest.len().min(SLICE));
            reader.splitter.push(slice, &stamp, records);
            rest = later;
            if records.len() >= RECORDS || rest.is_empty() {
                log.append(records, reactor);
                records.clear();
            }
        }
        if !rest.is_empty() {
            let bytes = rest.to_vec();
            self.held = Some(Held {
                stream,
                bytes,
                stamp,
            });
        }
    }

    /// Takes a stream out; writes its unfinished line.
    fn end(&mut self, index: usize, scratch: &mut Scratch, reactor: &mut Reactor) {
        let mut reader = self.readers.remove(index);
        reactor.unwatch(reader.fd.as_fd(), reader.token);
        for client in &mut self.clients {
            client.end(reader.stream, reactor);
        }
        self.let_clients_go(reactor);
        if let Some(log) = &mut self.log {
            let records = &mut scratch.records;
            reader.splitter.finish(&Stamp::now(), records);
            log.append(records, reactor);
            records.clear();
        }
    }
}

/// The log as the engine opened it, and its path.
fn take_log(create: &mut Create, fds: &mut Fds) -> Result<Option<(OwnedFd, PathBuf)>, Failure> {
    let Some(path) = create.log_path.take() else {
        return Ok(None);
    };
    let path = PathBuf::from(std::ffi::OsString::from_vec(path));
    let Some(slot) = create.log_fd.take() else {
        return Ok(Some((open_log(&path)?, path)));
    };
    let failed = |error: ProtocolError| {
        Failure::new(FailureKind::Protocol, "take the log", error.to_string())
    };
    let file = fds.pop(slot, "the log").map_err(failed)?;
    Ok(Some((file, path)))
}

/// Opens the log for an engine of an earlier build, which only names it.
pub(crate) fn open_log(path: &Path) -> Result<OwnedFd, Failure> {
    runtime::log::open(path).map_err(|error| {
        let message = match &error {
            LogError::Open { source, .. } => source.to_string(),
            LogError::NotRegular { .. } => "not a regular file".to_owned(),
        };
        let step = format!("open log {}", path.display());
        Failure::new(FailureKind::Launch, &step, message)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// An output whose log takes nothing: tests have threads, and without a process
    /// for the writer to be there is no room.
    fn full(reactor: &mut Reactor) -> (tempfile::TempDir, Output, [std::fs::File; 2]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut create = Create {
            log_path: Some(path.into_os_string().into_encoded_bytes()),
            ..Create::default()
        };
        let fds = &mut Fds::default();
        let (mut output, _stdio) = Output::open(1, &mut create, fds, reactor).unwrap();
        let ends = output.tap.take().unwrap().into_ends(reactor);
        let ends: Vec<_> = ends.into_iter().map(std::fs::File::from).collect();
        (dir, output, ends.try_into().unwrap())
    }

    fn held(output: &Output) -> usize {
        let held = output.held.as_ref().map_or(0, |held| held.bytes.capacity());
        let unfinished = output.readers.iter().map(|r| r.splitter.held());
        let pending = output.log.as_ref().map_or(0, Log::held);
        held + pending + unfinished.sum::<usize>()
    }

    #[test]
    fn whatever_a_container_writes_a_stalled_log_holds_little() {
        let line = [b'x'; READ];
        for input in [[b'\n'; READ], line] {
            let mut reactor = Reactor::new().unwrap();
            let mut scratch = Scratch::default();
            let (_dir, mut output, mut ends) = full(&mut reactor);
            for (stream, end) in [Stream::Stdout, Stream::Stderr].into_iter().zip(&mut ends) {
                for _ in 0..4 {
                    rustix::io::ioctl_fionbio(&*end, true).unwrap();
                    let _as_much_as_fits = end.write(&input);
                    output.read_once(stream, true, &mut scratch, &mut reactor);
                }
            }
            assert!(output.is_full());
            // A vector may have grown to twice of what it needs.
            assert!(held(&output) <= 2 * MOST_HELD, "{}", held(&output));
            let shared = scratch.input.capacity() + scratch.records.capacity();
            assert!(shared <= READ + 2 * MOST_HELD, "{shared}");
        }
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut reactor = Reactor::new().unwrap();
        let mut scratch = Scratch::default();
        let (_dir, mut output, mut ends) = full(&mut reactor);
        output.log.as_mut().unwrap().throw_away();
        for _ in 0..64 {
            ends[0].write_all(&[b'x'; READ]).unwrap();
            output.read_once(Stream::Stdout, true, &mut scratch, &mut reactor);
        }
        assert!(held(&output) <= 2 * MOST_HELD, "{}", held(&output));
    }
}
