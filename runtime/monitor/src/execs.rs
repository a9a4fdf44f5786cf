//! Processes that are run in containers beside their first ones.
//!
//! Owns them until they are reaped. Each begins as an intermediate process, by whose
//! note the one that it makes in the container is known (`runtime::exec`), and ends with
//! that one's exit. A timeout, or a client that is gone, ends the process with all that
//! descends from it: processes that began sessions of their own are found as its
//! children's children, since it is their reaper as long as it lives. What outlives
//! a process that ended by itself is the container's.

mod handover;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use runtime::exec::{self, Begun, Plan, Problem, Stdio, Step, Streams};
use runtime::pidfd::has_ended;
use runtime::protocol::{
    self, Body, ExecEnded, Failure, FailureKind, Fds, ProtocolError, monotonic_now,
};
use runtime::shared_pipe::SharedEnd;
use runtime::sys::note::Note;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitStatus};

use crate::connection::ReplyTo;
use crate::container::Container;
use crate::descent;
use crate::monitor::Monitor;
use crate::process::{KILL, exit_code, raw, send_signal};
use crate::reactor::Key;
use crate::requests::again;
use crate::tap::{self, Tap};

/// Exit code of a process that could not become its program.
const NOT_RUN: i32 = 127;

/// The streams of a process that is to be run, and the pipes that lead to them.
struct Connected {
    streams: Streams,
    /// From where it writes, to where that is read.
    output: Vec<(OwnedFd, OwnedFd)>,
    /// From where a client writes, to where it reads.
    input: Option<(OwnedFd, OwnedFd)>,
}

/// The ways of a process's streams.
struct Taps {
    output: Option<Tap>,
    input: Option<Tap>,
}

/// How long an answer waits for what the process wrote, nanoseconds: a relay may be stuck.
const DELIVERY_TIME: u64 = 1_000_000_000;
/// How long the answer for a command that is out of time waits for its end, nanoseconds:
/// the kernel gives a process that ended to its tracer first, and that may keep it.
const ENDING_TIME: u64 = 2_000_000_000;

/// A process that was run.
#[derive(Debug)]
pub(crate) struct Exec {
    /// The container's id.
    container: String,
    /// The process, or until it is born the one that makes it.
    pid: Pid,
    /// Who is born, until that is known.
    note: Option<Note>,
    /// How what was born has ended before that was known.
    ended_early: Option<WaitStatus>,
    /// Why it could not be, where that is known already.
    problem: Option<Problem>,
    /// Missing once its program runs and another build of the monitor went on.
    plan: Option<Plan>,
    report: SharedEnd,
    deadline: Option<u64>,
    timed_out: bool,
    killed: bool,
    /// Who asked, until the answer.
    reply: Option<ReplyTo>,
    /// What it writes, on its way; missing with a terminal, and where an early build of
    /// the monitor ran it.
    tap: Option<Tap>,
    /// What a client writes, on its way to it.
    input: Option<Tap>,
    /// Whether the answer waits for as long as its streams are read.
    streaming: bool,
}

/// Children of the monitor.
struct Children {
    known: Vec<i32>,
    /// Containers in which a command is being born: the kernel shows it as a child before
    /// it says who it is.
    births: BTreeSet<String>,
}

impl Children {
    /// All that are in a container, if all are known.
    fn all_of(&self, container: &str) -> Option<&[i32]> {
        (!self.births.contains(container)).then_some(&self.known)
    }
}

/// The answer of a process that has ended, while what it wrote is on its way.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) tap: Tap,
    reply: ReplyTo,
    result: Result<Body, Failure>,
    /// When the answer waits no longer, monotonic nanoseconds.
    pub(crate) deadline: u64,
}

impl Exec {
    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.killed = true;
        let _gone = send_signal(self.pid, KILL);
    }

    /// When its time is up, or after that, when the answer waits no longer for its end.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let deadline = self.deadline?;
        match (self.timed_out, &self.reply) {
            (false, _) => Some(deadline),
            (true, Some(_)) => Some(deadline.saturating_add(ENDING_TIME)),
            (true, None) => None,
        }
    }

    /// Its streams' ways.
    pub(crate) fn taps(&self) -> impl Iterator<Item = &Tap> {
        self.tap.iter().chain(&self.input)
    }

    /// The same, to be changed.
    pub(crate) fn taps_mut(&mut self) -> impl Iterator<Item = &mut Tap> {
        self.tap.iter_mut().chain(&mut self.input)
    }

    /// Whether the process itself is known.
    pub(crate) fn is_born(&self) -> bool {
        self.note.is_none()
    }

    /// Who was born, while the one that made it has not ended.
    fn newborn(&self) -> Option<Pid> {
        self.note.as_ref()?.born()
    }

    /// Ends it with all that descends from it, of the monitor's children too. Before its birth there is nothing that
    /// does: the one that makes it ends, and what it has just made ends with it.
    fn end(&mut self, children: &Children) {
        self.killed = true;
        if self.is_born() {
            let known = children.all_of(&self.container);
            descent::kill(self.pid, known, &self.container);
        }
        let _gone = send_signal(self.pid, KILL);
    }

    /// Reads what was said until now.
    fn listen(&mut self) {
        if let Some(problem) = Problem::read(&self.report) {
            self.problem.get_or_insert(problem);
        }
    }
}

impl Monitor {
    /// Runs a process; the answer follows when it ended.
    pub(crate) fn exec(&mut self, request: &protocol::Exec, fds: Fds, mut reply: ReplyTo) {
        match self.begin_exec(request, fds) {
            Ok((plan, begun, taps)) => {
                reply.step("clone");
                let Begun { pid, note, report } = begun;
                let deadline =
                    (request.timeout > 0).then(|| monotonic_now().saturating_add(request.timeout));
                let exec = Exec {
                    container: request.id.clone(),
                    pid,
                    note: Some(note),
                    ended_early: None,
                    problem: None,
                    plan: Some(plan),
                    report,
                    deadline,
                    timed_out: false,
                    killed: false,
                    reply: Some(reply),
                    tap: taps.output,
                    input: taps.input,
                    streaming: request.streaming,
                };
                self.execs.insert(raw(pid), exec);
            }
            Err(failure) => self.reply(reply, Err(failure)),
        }
    }

    fn begin_exec(
        &mut self,
        request: &protocol::Exec,
        mut fds: Fds,
    ) -> Result<(Plan, Begun, Taps), Failure> {
        let key = self.find(&request.id)?;
        let failed = |message: String| Failure::new(FailureKind::Launch, "exec", message);
        let Connected {
            streams,
            output,
            input,
        } = self.take_streams(key, request, &mut fds)?;
        let not_running =
            || Failure::new(FailureKind::NotRunning, &request.id, "it is not running");
        let container = self.containers.get(&key).ok_or_else(not_running)?;
        let pidfd = container.running().ok_or_else(not_running)?;
        let process = request.process.as_ref().ok_or_else(|| {
            Failure::new(FailureKind::Protocol, "exec", "there is no process to run")
        })?;
        let pod = self.pod.as_ref();
        let user_space = again(pod.and_then(|pod| pod.user_space.as_ref()))?;
        let filter = container.seccomp.as_deref();
        let plan = Plan::new(process, &request.cgroup_files, filter)
            .and_then(|plan| plan.with_keyring(&request.id, &container.keyring, process))
            .map_err(|error| failed(error.to_string()))?;
        let plan = plan.with_seccomp_flags(container.seccomp_flags);
        let mut plan = plan.within(user_space);
        let begun = match exec::spawn(&plan, pidfd.as_fd(), &streams) {
            // The container has cgroups of its own below its cgroup of the v2 tree, which
            // then takes no processes: the first process's takes them.
            Err(problem) if problem.errno == Errno::BUSY => {
                let first = container.pid().ok_or_else(not_running)?;
                plan.be_born_beside(first).map_err(&failed)?;
                exec::spawn(&plan, pidfd.as_fd(), &streams)
            }
            other => other,
        };
        let begun = begun.map_err(|problem| {
            let message = problem.errno.to_string();
            Failure::new(FailureKind::Launch, problem.step.name(), message)
        })?;
        // Its ends are the process's alone now: who reads them sees its end.
        drop(streams);
        match self.tap_streams(output, input) {
            Ok(taps) => Ok((plan, begun, taps)),
            Err(errno) => {
                let _gone = send_signal(begun.pid, KILL);
                Err(failed(format!("watch its streams: {errno}")))
            }
        }
    }

    fn tap_streams(
        &mut self,
        output: Vec<(OwnedFd, OwnedFd)>,
        input: Option<(OwnedFd, OwnedFd)>,
    ) -> Result<Taps, Errno> {
        let keys = (self.new_key(), self.new_key());
        let reactor = &mut self.reactor;
        let output = match output.is_empty() {
            true => None,
            false => Some(Tap::new(keys.0, output, reactor)?),
        };
        let input = input.map(|(from, to)| Tap::into_container(keys.1, from, to, reactor));
        match input.transpose() {
            Ok(input) => Ok(Taps { output, input }),
            Err(errno) => {
                if let Some(output) = output {
                    output.close(&mut self.reactor);
                }
                Err(errno)
            }
        }
    }

    /// Ends what nobody waits for any more.
    pub(crate) fn end_unwanted_execs(&mut self, is_unwanted: impl Fn(&ReplyTo) -> bool) {
        let unwanted = |exec: &Exec| exec.reply.as_ref().is_some_and(&is_unwanted);
        if !self.execs.values().any(unwanted) {
            return;
        }
        let children = self.children();
        for exec in self.execs.values_mut().filter(|exec| unwanted(exec)) {
            exec.end(&children);
        }
    }

    /// The children that the monitor knows, in containers or on their way into one.
    fn children(&self) -> Children {
        let execs = self.execs.values();
        let execs = execs.flat_map(|exec| [Some(exec.pid), exec.newborn()]);
        let containers = self.containers.values();
        let containers = containers
            .flat_map(|container| [container.pid(), container.newborn(), container.helper()]);
        let births = self.execs.values().filter(|exec| !exec.is_born());
        Children {
            known: execs.chain(containers).flatten().map(raw).collect(),
            births: births.map(|exec| exec.container.clone()).collect(),
        }
    }

    fn take_streams(
        &mut self,
        key: Key,
        request: &protocol::Exec,
        fds: &mut Fds,
    ) -> Result<Connected, Failure> {
        let streams = request.streams.clone().unwrap_or_default();
        let failed =
            |error: ProtocolError| Failure::new(FailureKind::Protocol, "exec", error.to_string());
        if let Some(socket) = fds.take_optional(streams.tty, "tty").map_err(failed)? {
            return Ok(Connected {
                streams: Streams::Terminal(socket),
                output: Vec::new(),
                input: None,
            });
        }
        let container = self.containers.get_mut(&key);
        let no_pipe =
            |errno: Errno| Failure::new(FailureKind::Launch, "make pipes", errno.to_string());
        let (stdin, input) = match fds.take_optional(streams.stdin, "stdin").map_err(failed)? {
            Some(from) => {
                let (read, to) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(no_pipe)?;
                (read, Some((from, to)))
            }
            None => {
                let null = container.map_or(Err(Errno::SRCH), Container::null);
                let null = null.map_err(|errno| {
                    Failure::new(FailureKind::Launch, "open a null device", errno.to_string())
                })?;
                (null, None)
            }
        };
        let to = fds.take(streams.stdout, "stdout").map_err(failed)?;
        let err_to = fds.take(streams.stderr, "stderr").map_err(failed)?;
        let (from, stdout) = tap::pipe().map_err(no_pipe)?;
        let (err_from, stderr) = tap::pipe().map_err(no_pipe)?;
        let stdio = Stdio {
            stdin,
            stdout,
            stderr,
        };
        Ok(Connected {
            streams: Streams::Given(stdio),
            output: vec![(from, to), (err_from, err_to)],
            input,
        })
    }

    /// A process that was run, or the one that made it, was reaped.
    pub(crate) fn exec_ended(&mut self, pid: Pid, status: WaitStatus) {
        let Some(mut exec) = self.execs.remove(&raw(pid)) else {
            return;
        };
        exec.listen();
        // The one that made it has ended: whoever was born is noted.
        let Some(note) = exec.note.take() else {
            return self.born_ended(exec, status);
        };
        let Some(pid) = note.born() else {
            if exec.problem.is_none() && !exec.timed_out {
                exec.problem = Some(Problem {
                    step: Step::Birth,
                    errno: note.failed().unwrap_or(Errno::CHILD),
                });
            }
            return self.exec_over(exec, exit_code(status));
        };
        if let Some(status) = exec.ended_early.take() {
            return self.born_ended(exec, status);
        }
        exec.pid = pid;
        if let Some(reply) = &mut exec.reply {
            reply.step("birth");
        }
        if exec.killed {
            exec.end(&self.children());
        }
        self.execs.insert(raw(pid), exec);
    }

    /// What was born has ended. A process of the container may have written to its report,
    /// too: only what it can have met itself is believed, and only if it ended so.
    fn born_ended(&mut self, mut exec: Exec, status: WaitStatus) {
        let code = exit_code(status);
        let met = |problem: &Problem| problem.step.follows_birth() && code == NOT_RUN;
        exec.problem = exec.problem.filter(met);
        self.exec_over(exec, code);
    }

    /// A newborn process was reaped before the one that made it. `false`: it is none.
    pub(crate) fn newborn_ended(&mut self, pid: Pid, status: WaitStatus) -> bool {
        let mut all = self.execs.values_mut();
        if let Some(exec) = all.find(|exec| exec.newborn() == Some(pid)) {
            exec.ended_early = Some(status);
            return true;
        }
        let mut all = self.containers.values_mut();
        match all.find(|container| container.newborn() == Some(pid)) {
            Some(container) => {
                container.ended_early = Some(status);
                true
            }
            None => false,
        }
    }

    /// Ends those that made somebody and have nothing left to do: a process of the
    /// container may have stopped them, and who they made is told when they end.
    pub(crate) fn end_makers(&mut self) {
        let execs = self.execs.values();
        let execs = execs.filter(|exec| exec.newborn().is_some());
        let launches = self.containers.values();
        let launches = launches.filter(|container| container.newborn().is_some());
        let makers = execs.map(|exec| exec.pid);
        for maker in makers.chain(launches.filter_map(Container::helper)) {
            let _gone = send_signal(maker, KILL);
        }
    }

    /// All of a process that was run is known.
    fn exec_over(&mut self, mut exec: Exec, code: i32) {
        if let Some(input) = exec.input.take() {
            input.close(&mut self.reactor);
        }
        let Some(mut reply) = exec.reply.take() else {
            // It was answered before it ended, and its streams were let go.
            return;
        };
        reply.step("run");
        let result = match exec.problem {
            Some(problem) if !exec.timed_out && self.is_end_of_container(problem, &exec) => {
                let message = "it ended before it was entered";
                Err(Failure::new(
                    FailureKind::NotRunning,
                    &exec.container,
                    message,
                ))
            }
            Some(problem) if !exec.timed_out => {
                let explained = exec.plan.map(|plan| plan.explain(problem));
                let (message, not_found) =
                    explained.unwrap_or_else(|| (problem.errno.to_string(), false));
                let step = problem.step.name();
                Err(Failure {
                    not_found,
                    ..Failure::new(FailureKind::Launch, step, message)
                })
            }
            _ => Ok(Body::ExecEnded(ExecEnded {
                code,
                timed_out: exec.timed_out,
            })),
        };
        let patience = match exec.streaming {
            true => u64::MAX,
            false => DELIVERY_TIME,
        };
        let tap = exec.tap.take();
        self.deliver(tap, patience, reply, result);
    }

    /// Answers when what the process wrote has come to whoever reads it.
    fn deliver(
        &mut self,
        tap: Option<Tap>,
        patience: u64,
        reply: ReplyTo,
        result: Result<Body, Failure>,
    ) {
        let Some(mut tap) = tap else {
            return self.reply(reply, result);
        };
        if tap.finish(&mut self.reactor) {
            tap.close(&mut self.reactor);
            return self.reply(reply, result);
        }
        self.delivered.push(Delivery {
            tap,
            reply,
            result,
            deadline: monotonic_now().saturating_add(patience),
        });
    }

    /// Answers those whose output has come, or has taken too long.
    pub(crate) fn deliver_all(&mut self, now: u64) {
        for mut delivery in std::mem::take(&mut self.delivered) {
            let finished = delivery.tap.finish(&mut self.reactor);
            if !finished && delivery.deadline > now {
                self.delivered.push(delivery);
                continue;
            }
            let Delivery {
                tap, reply, result, ..
            } = delivery;
            tap.close(&mut self.reactor);
            let result = result.and_then(|body| match body {
                // What is said of its output would be false.
                Body::ExecEnded(ExecEnded {
                    timed_out: false, ..
                }) if !finished => {
                    let message = "it ended, and its output is kept from being read";
                    Err(Failure::new(FailureKind::Launch, "exec", message))
                }
                other => Ok(other),
            });
            self.reply(reply, result);
        }
    }

    /// Whether a process could not enter the container because its first process was
    /// gone by then: the namespaces of one that ended cannot be entered, and its pid
    /// namespace takes nobody.
    fn is_end_of_container(&self, problem: Problem, exec: &Exec) -> bool {
        match (problem.step, problem.errno) {
            (Step::Namespaces, Errno::SRCH) => true,
            (Step::Birth, Errno::NOMEM) => {
                let key = self.find(&exec.container).ok();
                let container = key.and_then(|key| self.containers.get(&key));
                container.and_then(Container::running).is_none_or(has_ended)
            }
            _ => false,
        }
    }

    /// Ends what has had its time. The answer follows when it is reaped, or when that
    /// takes too long.
    pub(crate) fn end_overdue_execs(&mut self, now: u64) {
        let is_due = |exec: &Exec| exec.deadline().is_some_and(|deadline| deadline <= now);
        if !self.execs.values().any(is_due) {
            return;
        }
        let children = self.children();
        let mut late = Vec::new();
        for exec in self.execs.values_mut().filter(|exec| is_due(exec)) {
            if exec.timed_out {
                late.extend(exec.reply.take());
                if let Some(tap) = exec.tap.take() {
                    tap.close(&mut self.reactor);
                }
            } else {
                exec.timed_out = true;
                exec.end(&children);
                // The others have their turn when the rest of the pod has had one.
                break;
            }
        }
        for reply in late {
            let ended = ExecEnded {
                code: 128 + KILL,
                timed_out: true,
            };
            self.reply(reply, Ok(Body::ExecEnded(ended)));
        }
    }
}
