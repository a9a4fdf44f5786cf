//! Processes that are run in containers beside their first ones.
//!
//! Owns them until they are reaped: those that the monitor makes itself and those
//! that it asks a parked process for (`parking`). A timeout kills the whole session that the
//! process leads, not only the process.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use runtime::exec::{self, Birth, Plan, Problem, Running, Stdio, Step};
use runtime::protocol::{
    self, Body, ExecEnded, Failure, FailureKind, Fds, ProtocolError, monotonic_now,
};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::connection::ReplyTo;
use crate::container::{Container, KILL, raw, send_signal};
use crate::monitor::Monitor;
use crate::reactor::{Key, Source, Token};

/// A second look finds what was born between a look and its kill; what has a
/// kill pending cannot have children any more.
const KILL_ROUNDS: usize = 3;

/// What an engine asked for.
#[derive(Debug)]
struct Wish {
    /// The container's id.
    container: String,
    plan: Plan,
    /// The container's `cgroup.procs` files.
    procs: Vec<Vec<u8>>,
    deadline: Option<u64>,
    timed_out: bool,
    reply: ReplyTo,
}

impl Wish {
    /// When its time is up; `None`: never, or that was seen to.
    fn deadline(&self) -> Option<u64> {
        self.deadline.filter(|_| !self.timed_out)
    }

    /// Whether its time is just up.
    fn times_out(&mut self, now: u64) -> bool {
        let up = self.deadline().is_some_and(|deadline| deadline <= now);
        self.timed_out |= up;
        up
    }

    /// What an engine is told of a step that failed.
    fn failure(&self, problem: Problem) -> Failure {
        if is_end_of_container(problem) {
            let message = "it ended before it was entered";
            return Failure::new(FailureKind::NotRunning, &self.container, message);
        }
        let (message, not_found) = self.plan.explain(problem);
        Failure {
            not_found,
            ..Failure::new(FailureKind::Launch, problem.step.name(), message)
        }
    }
}

/// A process that was run.
#[derive(Debug)]
pub(crate) struct Exec {
    wish: Wish,
    report: OwnedFd,
}

/// A process that a parked one is to make.
#[derive(Debug)]
pub(crate) struct Unborn {
    wish: Wish,
    /// Kept for the case that nobody makes it.
    stdio: Stdio,
    report: OwnedFd,
    token: Token,
}

impl Monitor {
    /// Runs a process; the answer follows when it ended.
    pub(crate) fn exec(&mut self, request: &protocol::Exec, fds: Fds, reply: ReplyTo) {
        let (plan, stdio) = match self.prepare_exec(request, fds) {
            Ok(prepared) => prepared,
            Err(failure) => return self.reply(reply, Err(failure)),
        };
        let deadline =
            (request.timeout > 0).then(|| monotonic_now().saturating_add(request.timeout));
        let mut wish = Wish {
            container: request.id.clone(),
            plan,
            procs: request.cgroup_procs.clone(),
            deadline,
            timed_out: false,
            reply,
        };
        let key = self.new_key();
        match self.ask_parked(key, request, &stdio) {
            Some((report, token)) => {
                wish.reply.step("ask");
                let unborn = Unborn {
                    wish,
                    stdio,
                    report,
                    token,
                };
                self.unborn.insert(key, unborn);
            }
            None => self.spawn_exec(wish, &stdio),
        }
    }

    /// Checks what is to be run, and where.
    fn prepare_exec(
        &self,
        request: &protocol::Exec,
        mut fds: Fds,
    ) -> Result<(Plan, Stdio), Failure> {
        let container = self.running(&request.id)?;
        let process = request.process.as_ref().ok_or_else(|| {
            Failure::new(FailureKind::Protocol, "exec", "there is no process to run")
        })?;
        let filter = container.seccomp.as_deref();
        let plan = Plan::born_in(&request.cgroup_procs, process, filter)
            .map_err(|error| Failure::new(FailureKind::Launch, "exec", error.to_string()))?;
        Ok((plan, self.take_streams(request, &mut fds)?))
    }

    /// A container whose program runs.
    fn running(&self, id: &str) -> Result<&Container, Failure> {
        let key = self.find(id)?;
        let container = self.containers.get(&key);
        container
            .filter(|container| container.running().is_some())
            .ok_or_else(|| Failure::new(FailureKind::NotRunning, id, "it is not running"))
    }

    /// Makes it in this process's cgroups; it joins the container's itself.
    fn spawn_exec(&mut self, mut wish: Wish, stdio: &Stdio) {
        let id = &wish.container;
        let spawned = self.running(id).and_then(|container| {
            let not_running = |message: String| Failure::new(FailureKind::NotRunning, id, message);
            let pidfd = container
                .running()
                .ok_or_else(|| not_running("it is not running".to_owned()))?;
            let place = exec::Container {
                pidfd: pidfd.as_fd(),
                own_pid_namespace: self.descriptors.pid_namespace.as_fd(),
            };
            // A pid namespace whose first process died takes no others.
            exec::spawn(&wish.plan, place, stdio)
                .map_err(|problem| not_running(problem.errno.to_string()))
        });
        match spawned {
            Ok(Running {
                pid,
                pidfd: _,
                report,
            }) => {
                wish.reply.step("clone");
                self.execs.insert(raw(pid), Exec { wish, report });
            }
            Err(failure) => self.reply(wish.reply, Err(failure)),
        }
    }

    /// Has the container's parked process make it, if there is one.
    fn ask_parked(
        &mut self,
        key: Key,
        request: &protocol::Exec,
        stdio: &Stdio,
    ) -> Option<(OwnedFd, Token)> {
        self.parking.find(&request.id)?;
        let (report, theirs) = exec::report_pair().ok()?;
        // Before it is asked: afterwards there is no way back.
        let watched = self.reactor.watch(report.as_fd(), Source::Born(key));
        let token = watched.ok()?;
        let asked = self.running(&request.id).ok().and_then(|container| {
            let parked = self.parking.find(&request.id)?;
            let pidfd = container.running()?.as_fd();
            parked.run(request, pidfd, stdio, theirs.as_fd()).ok()
        });
        if asked.is_none() {
            self.reactor.unwatch(report.as_fd(), token);
            return None;
        }
        self.parking.used(&request.id);
        Some((report, token))
    }

    /// A process that a parked one was to make is there, or will not be.
    pub(crate) fn born(&mut self, key: Key) {
        let Some(unborn) = self.unborn.get(&key) else {
            return;
        };
        let Some(birth) = Birth::read(unborn.report.as_fd()) else {
            return;
        };
        let Some(unborn) = self.unborn.remove(&key) else {
            return;
        };
        let Unborn {
            mut wish,
            stdio,
            report,
            token,
        } = unborn;
        self.reactor.unwatch(report.as_fd(), token);
        match birth {
            Birth::Born(pid) => {
                wish.reply.step("clone");
                if wish.timed_out {
                    kill_session(pid, wish.procs.first());
                }
                self.execs.insert(raw(pid), Exec { wish, report });
                self.end_if_known(pid);
            }
            Birth::Nobody if wish.timed_out => {
                let ended = ExecEnded {
                    code: 128 + KILL,
                    timed_out: true,
                };
                self.reply(wish.reply, Ok(Body::ExecEnded(ended)));
            }
            // It never was, so this is not the second time.
            Birth::Nobody => self.spawn_exec(wish, &stdio),
            Birth::Failed(problem) => {
                let failure = wish.failure(problem);
                self.reply(wish.reply, Err(failure));
            }
        }
        self.forget_unknown_exits();
    }

    fn take_streams(&self, request: &protocol::Exec, fds: &mut Fds) -> Result<Stdio, Failure> {
        let streams = request.streams.clone().unwrap_or_default();
        if streams.tty.is_some() {
            let message = "not in this version";
            return Err(Failure::new(
                FailureKind::Unsupported,
                "terminal of exec",
                message,
            ));
        }
        let failed =
            |error: ProtocolError| Failure::new(FailureKind::Protocol, "exec", error.to_string());
        let stdin = match fds.take_optional(streams.stdin, "stdin").map_err(failed)? {
            Some(stdin) => stdin,
            None => rustix::io::fcntl_dupfd_cloexec(&self.descriptors.null, 3)
                .map_err(|errno| Failure::new(FailureKind::Launch, "exec", errno.to_string()))?,
        };
        let stdout = fds.take(streams.stdout, "stdout").map_err(failed)?;
        let stderr = fds.take(streams.stderr, "stderr").map_err(failed)?;
        Ok(Stdio {
            stdin,
            stdout,
            stderr,
        })
    }

    /// A process that was run was reaped.
    pub(crate) fn exec_ended(&mut self, pid: Pid, code: i32) {
        let Some(Exec { mut wish, report }) = self.execs.remove(&raw(pid)) else {
            return;
        };
        wish.reply.step("run");
        let timed_out = wish.timed_out;
        let result = match Problem::read(report.as_fd()) {
            Some(problem) if !timed_out => Err(wish.failure(problem)),
            _ => Ok(Body::ExecEnded(ExecEnded { code, timed_out })),
        };
        let Wish {
            container,
            procs,
            reply,
            ..
        } = wish;
        self.reply(reply, result);
        self.park_for_next(&container, &procs);
    }

    /// Where one process was run lately another will be, as probes are.
    fn park_for_next(&mut self, id: &str, procs: &[Vec<u8>]) {
        let Ok(key) = self.find(id) else {
            return;
        };
        let container = self.containers.get(&key);
        let Some(container) = container.filter(|container| container.running().is_some()) else {
            return;
        };
        let seccomp = container.seccomp.as_deref();
        // Without one the next process takes longer, no more.
        let replaced = self.parking.park(id, procs, seccomp).unwrap_or_default();
        self.dying.extend(replaced);
    }

    /// The next moment at which a process has had its time.
    pub(crate) fn next_exec_deadline(&self) -> Option<u64> {
        let born = self.execs.values().map(|exec| &exec.wish);
        let unborn = self.unborn.values().map(|unborn| &unborn.wish);
        born.chain(unborn).filter_map(Wish::deadline).min()
    }

    /// Kills what has had its time. The answer follows when it is reaped.
    pub(crate) fn end_overdue_execs(&mut self, now: u64) {
        for (pid, exec) in &mut self.execs {
            if exec.wish.times_out(now)
                && let Some(pid) = Pid::from_raw(*pid)
            {
                kill_session(pid, exec.wish.procs.first());
            }
        }
        for unborn in self.unborn.values_mut() {
            if unborn.wish.times_out(now) {
                // The end of the report tells that nobody makes it any more.
                self.dying.extend(self.parking.end(&unborn.wish.container));
            }
        }
    }

    /// Kills all processes that were run.
    pub(crate) fn kill_execs(&self) {
        for pid in self.execs.keys().copied().filter_map(Pid::from_raw) {
            let _gone = send_signal(pid, KILL);
        }
    }
}

/// Whether a process could not enter the container because its first process
/// was gone by then.
fn is_end_of_container(problem: Problem) -> bool {
    problem.step == Step::Namespaces && problem.errno == Errno::SRCH
}

/// Kills all processes of the session that a child leads.
fn kill_session(leader: Pid, procs: Option<&Vec<u8>>) {
    let procs = procs.map(|path| bytes_path(path));
    for _ in 0..KILL_ROUNDS {
        let pids = procs.map_or_else(all_processes, processes);
        for pid in pids {
            if rustix::process::getsid(Some(pid)) == Ok(leader) {
                let _gone = send_signal(pid, KILL);
            }
        }
    }
    let _gone = send_signal(leader, KILL);
}

/// Processes of a cgroup, by its `cgroup.procs`. None that cannot be told.
pub(crate) fn processes(procs: &Path) -> Vec<Pid> {
    let text = std::fs::read_to_string(procs).unwrap_or_default();
    // Processes outside of this pid namespace are listed as 0.
    text.lines()
        .filter_map(|line| line.parse().ok().and_then(Pid::from_raw))
        .collect()
}

fn all_processes() -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            entry
                .ok()?
                .file_name()
                .to_str()?
                .parse()
                .ok()
                .and_then(Pid::from_raw)
        })
        .filter(|pid| raw(*pid) > 1)
        .collect()
}

fn bytes_path(bytes: &[u8]) -> &Path {
    Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_ends_while_it_is_entered_is_not_running() {
        let problem = |step, errno| is_end_of_container(Problem { step, errno });
        assert!(problem(Step::Namespaces, Errno::SRCH));
        assert!(!problem(Step::Namespaces, Errno::PERM));
        assert!(!problem(Step::Cgroup, Errno::SRCH));
    }
}
