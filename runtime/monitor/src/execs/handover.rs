//! What a process that was run hands over, once its program runs.

use runtime::protocol::HandoverExec;
use runtime::shared_pipe::State;
use runtime::sys::fds::Inherited;
use rustix::io::Errno;
use rustix::process::Pid;

use super::Exec;
use crate::connection::ReplyTo;
use crate::handover::Kept;
use crate::process::raw;
use crate::reactor::Reactor;
use crate::start;
use crate::tap::Tap;

impl Exec {
    /// Whether its program runs: nothing more will be reported of its making.
    pub(crate) fn runs(&self) -> bool {
        let over = self.report.state() == State::Ended;
        // Who traces it may hold a copy of the pipe.
        let runs = over || start::executable(self.pid) != start::own_executable();
        self.is_born() && self.problem.is_none() && runs
    }

    /// The process, for the next program.
    pub(crate) fn hand_over(&self, kept: &mut Kept) -> HandoverExec {
        HandoverExec {
            container: self.container.clone(),
            pid: raw(self.pid),
            report: kept.add(&self.report),
            deadline: self.deadline,
            timed_out: self.timed_out,
            killed: self.killed,
            asked: self.reply.as_ref().map(ReplyTo::hand_over),
            tap: self.tap.as_ref().map(|tap| tap.hand_over(kept)),
            input: self.input.as_ref().map(|input| input.hand_over(kept)),
            streaming: self.streaming,
        }
    }

    /// The process that the program before gave.
    pub(crate) fn resume(
        exec: HandoverExec,
        fds: &mut Inherited,
        reactor: &mut Reactor,
    ) -> Result<(Pid, Self), Errno> {
        let HandoverExec {
            container,
            pid,
            report,
            deadline,
            timed_out,
            killed,
            asked,
            tap,
            input,
            streaming,
        } = exec;
        let pid = Pid::from_raw(pid).ok_or(Errno::BADMSG)?;
        let exec = Self {
            container,
            pid,
            note: None,
            ended_early: None,
            problem: None,
            plan: None,
            report: fds.take(report)?.into(),
            deadline,
            timed_out,
            killed,
            reply: asked.map(ReplyTo::resume),
            tap: tap.map(|tap| Tap::resume(tap, fds, reactor)).transpose()?,
            input: input
                .map(|tap| Tap::resume(tap, fds, reactor))
                .transpose()?,
            streaming,
        };
        Ok((pid, exec))
    }
}
