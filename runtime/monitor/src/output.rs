//! What containers write, on its way into their logs.
//!
//! Owns the monitor's ends of a container's streams. Reads whatever comes, log
//! or not, so that no container ever waits for a reader; reads in turns, so
//! that a loud one does not keep the others waiting. What was written before an
//! exit is in the log before the exit is reported, as far as it is in the pipe
//! by then; a grandchild that holds a pipe open is read on afterwards.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use runtime::launcher::ContainerStdio;
use runtime::log::{LineSplitter, LogError, LogFile, Stamp, Stream};
use runtime::protocol::{Create, Failure, FailureKind};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::monitor::Monitor;
use crate::reactor::{Key, Reactor, Source, Token};

/// Most bytes of one read.
const READ: usize = 64 * 1024;
/// Bytes that become records at a time: bounds what the records grow to when
/// lines are short.
const SLICE: usize = 16 * 1024;
/// Reads of one stream in a row.
const TURN: usize = 4;
/// Most bytes that are read before an exit is reported: more than a pipe
/// holds, so that only a writer that is still alive comes to this.
const DRAIN: usize = 4 * 1024 * 1024;

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
}

/// What a read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    Some(usize),
    Nothing,
    End,
}

/// A container's streams and log.
#[derive(Debug)]
pub(crate) struct Output {
    log: Option<LogFile>,
    readers: Vec<Reader>,
    /// Kept open for clients that attach; with a terminal it is that.
    _stdin: Option<OwnedFd>,
}

impl Output {
    /// Opens log and pipes; gives the container's ends.
    pub(crate) fn open(
        key: Key,
        create: &Create,
        reactor: &mut Reactor,
    ) -> Result<(Self, ContainerStdio), Failure> {
        let failed =
            |step: &str, errno: Errno| Failure::new(FailureKind::Launch, step, errno.to_string());
        let log = create.log_path.as_deref().map(|path| {
            let path =
                Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path));
            LogFile::open(path).map_err(|error| {
                let message = match &error {
                    LogError::Open { source, .. } => source.to_string(),
                    LogError::NotRegular { .. } => "not a regular file".to_owned(),
                };
                let step = format!("open log {}", path.display());
                Failure::new(FailureKind::Launch, &step, message)
            })
        });
        let mut output = Self {
            log: log.transpose()?,
            readers: Vec::new(),
            _stdin: None,
        };
        let stdio = if create.tty {
            ContainerStdio::default()
        } else {
            output
                .open_pipes(key, create.stdin, reactor)
                .map_err(|errno| {
                    output.close(reactor);
                    failed("make pipes", errno)
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
        self.add_reader(key, Stream::Stdout, console, reactor)
    }

    /// Its log, if it has one.
    pub(crate) fn log_mut(&mut self) -> Option<&mut LogFile> {
        self.log.as_mut()
    }

    /// Bytes that its log lost.
    pub(crate) fn lost(&self) -> u64 {
        self.log.as_ref().map_or(0, LogFile::lost)
    }

    /// Reads all that is there, within reason.
    pub(crate) fn drain(&mut self, scratch: &mut Scratch, reactor: &mut Reactor) {
        for index in (0..self.readers.len()).rev() {
            let mut rest = DRAIN;
            while rest > 0 {
                match self.read(index, scratch) {
                    Read::Some(length) => rest = rest.saturating_sub(length),
                    Read::Nothing => break,
                    Read::End => {
                        self.end(index, scratch, reactor);
                        break;
                    }
                }
            }
        }
    }

    /// Writes unfinished lines: nothing will follow.
    pub(crate) fn flush(&mut self, scratch: &mut Scratch) {
        for index in 0..self.readers.len() {
            self.finish(index, scratch);
        }
    }

    /// Ends all watches and closes all streams.
    pub(crate) fn close(&mut self, reactor: &mut Reactor) {
        for reader in self.readers.drain(..) {
            reactor.unwatch(reader.fd.as_fd(), reader.token);
        }
    }

    fn open_pipes(
        &mut self,
        key: Key,
        stdin: bool,
        reactor: &mut Reactor,
    ) -> Result<ContainerStdio, Errno> {
        let mut stdio = ContainerStdio::default();
        for (stream, end) in [
            (Stream::Stdout, &mut stdio.stdout),
            (Stream::Stderr, &mut stdio.stderr),
        ] {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            self.add_reader(key, stream, read, reactor)?;
            *end = Some(write);
        }
        if stdin {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&write, true)?;
            self._stdin = Some(write);
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
        });
        Ok(())
    }

    /// Reads once and logs what came.
    fn read(&mut self, index: usize, scratch: &mut Scratch) -> Read {
        let Some(reader) = self.readers.get_mut(index) else {
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
        let Some(log) = &mut self.log else {
            return Read::Some(input.len());
        };
        let stamp = Stamp::now();
        for slice in input.chunks(SLICE) {
            reader.splitter.push(slice, &stamp, records);
            if records.len() >= READ {
                log.append(records);
                records.clear();
            }
        }
        log.append(records);
        records.clear();
        Read::Some(input.len())
    }

    /// Writes a stream's unfinished line.
    fn finish(&mut self, index: usize, scratch: &mut Scratch) {
        let (Some(reader), Some(log)) = (self.readers.get_mut(index), &mut self.log) else {
            return;
        };
        reader.splitter.finish(&Stamp::now(), &mut scratch.records);
        log.append(&scratch.records);
        scratch.records.clear();
    }

    fn end(&mut self, index: usize, scratch: &mut Scratch, reactor: &mut Reactor) {
        self.finish(index, scratch);
        let reader = self.readers.remove(index);
        reactor.unwatch(reader.fd.as_fd(), reader.token);
    }
}

impl Monitor {
    /// Reads what a container wrote.
    pub(crate) fn read_output(&mut self, key: Key, stream: Stream) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let output = &mut container.output;
        let position = output
            .readers
            .iter()
            .position(|reader| reader.stream == stream);
        let Some(index) = position else { return };
        for _ in 0..TURN {
            match output.read(index, &mut self.scratch) {
                // A short read emptied the pipe.
                Read::Some(length) if length < READ => break,
                Read::Some(_) => {}
                Read::Nothing => break,
                Read::End => {
                    output.end(index, &mut self.scratch, &mut self.reactor);
                    self.shrink_scratch();
                    break;
                }
            }
        }
    }

    /// Gives memory back when nobody writes any more.
    fn shrink_scratch(&mut self) {
        if self
            .containers
            .values()
            .all(|container| container.output.readers.is_empty())
        {
            self.scratch = Scratch::default();
        }
    }
}
