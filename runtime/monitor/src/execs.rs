//! Processes that are run in containers beside their first ones.
//!
//! Owns them until they are reaped. A timeout kills the whole session that the
//! process leads, not only the process.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use runtime::exec::{self, Plan, Problem, Running, Stdio, Step};
use runtime::protocol::{
    self, Body, ExecEnded, Failure, FailureKind, Fds, ProtocolError, monotonic_now,
};
use runtime::ways::PROCS;
use rustix::io::Errno;
use rustix::process::Pid;

use crate::connection::ReplyTo;
use crate::container::{KILL, raw, send_signal};
use crate::monitor::Monitor;

/// A second look finds what was born between a look and its kill; what has a
/// kill pending cannot have children any more.
const KILL_ROUNDS: usize = 3;

/// A process that was run.
#[derive(Debug)]
pub(crate) struct Exec {
    /// The container's id.
    container: String,
    pid: Pid,
    plan: Plan,
    report: OwnedFd,
    /// Where its session is searched; `None`: among all processes.
    procs: Option<PathBuf>,
    deadline: Option<u64>,
    timed_out: bool,
    reply: ReplyTo,
}

impl Exec {
    /// Kills it.
    pub(crate) fn kill(&self) {
        let _gone = send_signal(self.pid, KILL);
    }

    /// When its time is up; `None`: never, or it was killed for that.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.deadline.filter(|_| !self.timed_out)
    }
}

impl Monitor {
    /// Runs a process; the answer follows when it ended.
    pub(crate) fn exec(&mut self, request: &protocol::Exec, fds: Fds, mut reply: ReplyTo) {
        match self.begin_exec(request, fds) {
            Ok((plan, running)) => {
                reply.step("clone");
                let Running {
                    pid,
                    pidfd: _,
                    report,
                } = running;
                let procs = request
                    .cgroup_files
                    .first()
                    .map(|path| bytes_path(path).with_file_name(PROCS));
                let deadline =
                    (request.timeout > 0).then(|| monotonic_now().saturating_add(request.timeout));
                let exec = Exec {
                    container: request.id.clone(),
                    pid,
                    plan,
                    report,
                    procs,
                    deadline,
                    timed_out: false,
                    reply,
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
    ) -> Result<(Plan, Running), Failure> {
        let key = self.find(&request.id)?;
        let not_running =
            || Failure::new(FailureKind::NotRunning, &request.id, "it is not running");
        let container = self.containers.get(&key).ok_or_else(not_running)?;
        let pidfd = container.running().ok_or_else(not_running)?;
        let process = request.process.as_ref().ok_or_else(|| {
            Failure::new(FailureKind::Protocol, "exec", "there is no process to run")
        })?;
        let plan = Plan::new(process, &request.cgroup_files, container.seccomp.as_deref())
            .map_err(|error| Failure::new(FailureKind::Launch, "exec", error.to_string()))?;
        let stdio = self.take_streams(request, &mut fds)?;
        let place = exec::Container {
            pidfd: pidfd.as_fd(),
            own_pid_namespace: self.descriptors.pid_namespace.as_fd(),
        };
        let running = exec::spawn(&plan, place, &stdio).map_err(|problem| {
            // A pid namespace whose first process died takes no others.
            let message = problem.errno.to_string();
            Failure::new(FailureKind::NotRunning, &request.id, message)
        })?;
        Ok((plan, running))
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
        let Some(mut exec) = self.execs.remove(&raw(pid)) else {
            return;
        };
        exec.reply.step("run");
        let result = match Problem::read(exec.report.as_fd()) {
            Some(problem) if !exec.timed_out && is_end_of_container(problem) => Err(Failure::new(
                FailureKind::NotRunning,
                &exec.container,
                "it ended before it was entered",
            )),
            Some(problem) if !exec.timed_out => {
                let (message, not_found) = exec.plan.explain(problem);
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
        self.reply(exec.reply, result);
    }

    /// Kills what nobody waits for any more.
    pub(crate) fn end_unwanted_execs(&mut self, is_unwanted: impl Fn(&ReplyTo) -> bool) {
        let all = self.execs.values_mut();
        for exec in all.filter(|exec| is_unwanted(&exec.reply)) {
            exec.timed_out = true;
            kill_session(exec.pid, exec.procs.as_deref());
        }
    }

    /// Kills what has had its time. The answer follows when it is reaped.
    pub(crate) fn end_overdue_execs(&mut self, now: u64) {
        for exec in self.execs.values_mut() {
            if exec.deadline().is_some_and(|deadline| deadline <= now) {
                exec.timed_out = true;
                kill_session(exec.pid, exec.procs.as_deref());
            }
        }
    }
}

/// Whether a process could not enter the container because its first process
/// was gone by then.
fn is_end_of_container(problem: Problem) -> bool {
    problem.step == Step::Namespaces && problem.errno == Errno::SRCH
}

/// Kills all processes of the session that a child leads.
fn kill_session(leader: Pid, procs: Option<&Path>) {
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
