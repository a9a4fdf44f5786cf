//! What a log hands over: its file, its writer and what waits for that.

use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::rc::Rc;

use runtime::protocol::{HandoverLog, HandoverWriter, monotonic_now};
use runtime::sys::fds::Inherited;
use rustix::io::Errno;
use rustix::process::Pid;

use super::{LOOK, Log, Writer};
use crate::handover::Kept;
use crate::process::raw;
use crate::reactor::{Reactor, Source};

impl Log {
    /// The log, for the next program.
    pub(crate) fn hand_over(&self, kept: &mut Kept) -> HandoverLog {
        HandoverLog {
            key: self.key,
            path: self.path.as_os_str().as_bytes().to_vec(),
            file: kept.add(&*self.file),
            pending: self.pending.clone(),
            lost: self.lost,
            stalled: self.stalled,
            writer: self.writer.as_ref().map(|writer| writer.hand_over(kept)),
        }
    }

    /// The log that the program before gave.
    pub(crate) fn resume(
        log: HandoverLog,
        fds: &mut Inherited,
        reactor: &mut Reactor,
    ) -> Result<Self, Errno> {
        let HandoverLog {
            key,
            path,
            file,
            pending,
            lost,
            stalled,
            writer,
        } = log;
        let number = file;
        let file = Rc::new(fds.take(number)?);
        let writer = match writer {
            Some(writer) if writer.file == number => {
                Some(Writer::resume(writer, Rc::clone(&file), fds)?)
            }
            Some(writer) => {
                let former = Rc::new(fds.take(writer.file)?);
                Some(Writer::resume(writer, former, fds)?)
            }
            None => None,
        };
        let mut log = Self {
            key,
            path: PathBuf::from(std::ffi::OsString::from_vec(path)),
            file,
            look_at: (writer.is_some() || !pending.is_empty()).then(|| monotonic_now() + LOOK),
            writer,
            pending,
            lost,
            stalled,
            rests_until: None,
            settling: Vec::new(),
        };
        if log.is_full()
            && let Some(writer) = &mut log.writer
            && let Some(input) = &writer.input
        {
            writer.token = Some(reactor.watch_room(input.as_fd(), Source::Log(key))?);
        }
        Ok(log)
    }
}

impl Writer {
    fn hand_over(&self, kept: &mut Kept) -> HandoverWriter {
        HandoverWriter {
            input: self.input.as_ref().map(|input| kept.add(input)),
            output: kept.add(&self.output),
            lost: kept.add(&self.lost),
            file: kept.add(&*self.file),
            pid: self.pid.map(raw),
            sent: self.sent,
        }
    }

    fn resume(
        writer: HandoverWriter,
        file: Rc<std::os::fd::OwnedFd>,
        fds: &mut Inherited,
    ) -> Result<Self, Errno> {
        let HandoverWriter {
            input,
            output,
            lost,
            file: _,
            pid,
            sent,
        } = writer;
        Ok(Self {
            input: input.map(|input| fds.take(input)).transpose()?,
            token: None,
            output: fds.take(output)?,
            lost: fds.take(lost)?,
            file,
            pid: pid.and_then(Pid::from_raw),
            born_at: monotonic_now(),
            sent,
            seen: (0, 0),
        })
    }
}
