//! What a container's output hands over: streams, unfinished lines, the log.

use std::os::fd::AsFd;

use runtime::log::{LineSplitter, Stamp, Stream};
use runtime::protocol::{HandoverOutput, HandoverReader};
use runtime::shared_pipe::SharedEnd;
use runtime::sys::fds::Inherited;
use rustix::io::Errno;

use super::{Client, Held, Output, Reader, Watch};
use crate::handover::Kept;
use crate::log::Log;
use crate::reactor::{Key, Reactor, Source};
use crate::tap::Tap;

fn stream(is_stderr: bool) -> Stream {
    if is_stderr {
        Stream::Stderr
    } else {
        Stream::Stdout
    }
}

impl Output {
    /// Streams and log, for the next program.
    pub(crate) fn hand_over(&self, kept: &mut Kept) -> HandoverOutput {
        let readers = self.readers.iter().map(|reader| HandoverReader {
            fd: kept.add(&reader.fd),
            is_stderr: reader.stream == Stream::Stderr,
            is_terminal: reader.is_terminal,
            unfinished: reader.splitter.unfinished().to_vec(),
        });
        let readers = readers.collect();
        let held = self.held.as_ref();
        HandoverOutput {
            readers,
            stdin: self.stdin.as_ref().map(|stdin| kept.add(stdin)),
            stdin_once: self.stdin_once,
            held: held.map(|held| held.bytes.clone()).unwrap_or_default(),
            held_is_stderr: held.is_some_and(|held| held.stream == Stream::Stderr),
            log: self.log.as_ref().map(|log| log.hand_over(kept)),
            tap: self.tap.as_ref().map(|tap| tap.hand_over(kept)),
            clients: self.clients.iter().map(|one| one.hand_over(kept)).collect(),
        }
    }

    /// Streams and log that the program before gave.
    pub(crate) fn resume(
        key: Key,
        output: HandoverOutput,
        fds: &mut Inherited,
        reactor: &mut Reactor,
    ) -> Result<Self, Errno> {
        let HandoverOutput {
            readers,
            stdin,
            held,
            held_is_stderr,
            log,
            tap,
            stdin_once,
            clients,
        } = output;
        let mut resumed = Self {
            log: log.map(|log| Log::resume(log, fds, reactor)).transpose()?,
            tap: tap.map(|tap| Tap::resume(tap, fds, reactor)).transpose()?,
            readers: Vec::new(),
            held: (!held.is_empty()).then(|| Held {
                stream: stream(held_is_stderr),
                bytes: held,
                stamp: Stamp::now(),
            }),
            late: None,
            stdin: stdin
                .map(|stdin| fds.take(stdin).map(SharedEnd::from))
                .transpose()?,
            stdin_once,
            clients: Vec::new(),
        };
        for client in clients {
            let client = Client::resume(key, client, fds, reactor)?;
            resumed.clients.push(client);
        }
        for reader in readers {
            let stream = stream(reader.is_stderr);
            let fd = fds.take(reader.fd)?;
            let token = reactor.watch(fd.as_fd(), Source::Output(key, stream))?;
            resumed.readers.push(Reader {
                stream,
                fd,
                token,
                splitter: LineSplitter::resume(stream, reader.unfinished),
                watch: Watch::Level,
                is_terminal: reader.is_terminal,
            });
        }
        Ok(resumed)
    }
}
