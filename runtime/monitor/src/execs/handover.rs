//! What a process that was run hands over, once its program runs.

use std::os::fd::AsFd;

use runtime::protocol::HandoverExec;
use runtime::sys::fds::Inherited;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::time::Timespec;

use super::{Exec, Reader};
use crate::connection::ReplyTo;
use crate::container::raw;
use crate::handover::Kept;
use crate::reactor::{Key, Reactor, Source};

impl Exec {
    /// Whether its program runs: nothing more will be reported of its making.
    pub(crate) fn runs(&self) -> bool {
        let mut report = [PollFd::new(&self.report, PollFlags::IN)];
        let polled = rustix::event::poll(&mut report, Some(&Timespec::default()));
        let [report] = report;
        let over = report.revents() == PollFlags::HUP;
        self.born && self.problem.is_none() && polled == Ok(1) && over
    }

    /// The process, for the next program.
    pub(crate) fn hand_over(&self, kept: &mut Kept) -> HandoverExec {
        let output = self.reader.as_ref().map(|reader| &reader.output);
        HandoverExec {
            container: self.container.clone(),
            pid: raw(self.pid),
            report: kept.add(&self.report),
            output: output.map(|output| kept.add(output)),
            deadline: self.deadline,
            timed_out: self.timed_out,
            killed: self.killed,
            asked: Some(self.reply.hand_over()),
        }
    }

    /// The process that the program before gave; `key` is its output's.
    pub(crate) fn resume(
        key: Key,
        exec: HandoverExec,
        fds: &mut Inherited,
        reactor: &mut Reactor,
    ) -> Result<(Pid, Self), Errno> {
        let HandoverExec {
            container,
            pid,
            report,
            output,
            deadline,
            timed_out,
            killed,
            asked,
        } = exec;
        let pid = Pid::from_raw(pid).ok_or(Errno::BADMSG)?;
        let reader = match output {
            Some(output) => {
                let output = fds.take(output)?;
                let token = reactor.watch(output.as_fd(), Source::Unread(key))?;
                Some(Reader { key, output, token })
            }
            None => None,
        };
        let exec = Self {
            container,
            pid,
            born: true,
            problem: None,
            plan: None,
            report: fds.take(report)?,
            reader,
            deadline,
            timed_out,
            killed,
            reply: ReplyTo::resume(asked.ok_or(Errno::BADMSG)?),
        };
        Ok((pid, exec))
    }
}
