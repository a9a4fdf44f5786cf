//! A container's life, as its monitor sees it.
//!
//! ```text
//! Launching ──▶ Created ──▶ Starting ──▶ Running ──▶ Exited
//!     │            └────────────┴───────────────────────▲
//!     └─▶ (gone: the launch failed)
//! ```
//! Owns the first process and everything that is known of the container. The
//! exit is written down before anybody is told.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use runtime::exit::ExitRecord;
use runtime::launcher::{Launch, Launcher, Libcontainer, Order, Ready, StartGate, StartOutcome};
use runtime::protocol::{
    self, Body, Create, Created, Exited, Failure, FailureKind, Fds, Started, monotonic_now,
    wall_now,
};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

use crate::connection::ReplyTo;
use crate::monitor::Monitor;
use crate::output::Output;
use crate::reactor::{Key, Reactor, Source, Token};

/// How long a launcher may take: far beyond what any takes on a busy machine.
const LAUNCH_TIME: u64 = 120_000_000_000;
/// SIGKILL.
const KILL: i32 = 9;
/// How often a cgroup is searched for processes that were born meanwhile.
const KILL_ROUNDS: usize = 10;

/// A container's first process: a child of the monitor.
#[derive(Debug)]
pub(crate) struct Init {
    pid: Pid,
    pidfd: OwnedFd,
}

/// Where a container is in its life.
#[derive(Debug)]
pub(crate) enum State {
    /// A launcher makes it.
    Launching {
        /// The launcher's work.
        launch: Box<dyn Launch>,
        /// Its watch.
        token: Token,
        /// Who asked.
        reply: Option<ReplyTo>,
        /// When it has taken too long, monotonic nanoseconds.
        deadline: u64,
    },
    /// It waits for its start.
    Created {
        /// Its first process.
        init: Init,
        /// Lets it go.
        gate: StartGate,
    },
    /// It was let go.
    Starting {
        /// Its first process.
        init: Init,
        /// Tells what becomes of it.
        gate: StartGate,
        /// The gate's watch.
        token: Token,
        /// Who asked; answered already when the program cannot be executed.
        reply: Option<ReplyTo>,
    },
    /// Its program runs.
    Running {
        /// Its first process.
        init: Init,
        /// Since when, wall clock nanoseconds.
        started_at: i64,
    },
    /// Its first process ended.
    Exited(ExitRecord),
}

/// The container's cgroups, by the files that matter here.
#[derive(Debug)]
struct Cgroups {
    procs: Option<Vec<u8>>,
    oom: Option<Vec<u8>>,
    kill: Option<Vec<u8>>,
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its id.
    pub(crate) id: String,
    /// Where it is in its life.
    pub(crate) state: State,
    /// Its streams and log.
    pub(crate) output: Output,
    /// The filter of processes that are run in it.
    pub(crate) seccomp: Option<Vec<u8>>,
    /// Who wants it gone, once its first process is.
    pub(crate) deletes: Vec<ReplyTo>,
    cgroups: Cgroups,
    helper: Option<Pid>,
    own_pid_namespace: bool,
}

impl Container {
    /// Starts making a container.
    pub(crate) fn begin(
        key: Key,
        mut create: Create,
        fds: Fds,
        launcher: &mut Libcontainer,
        reactor: &mut Reactor,
    ) -> Result<Self, Failure> {
        // Exec uses the filter; the launcher makes its own of the spec.
        let seccomp = create.seccomp_bpf.take();
        let id = create.id.clone();
        let cgroups = Cgroups {
            procs: create.cgroup_procs.first().cloned(),
            oom: create.cgroup_oom.clone(),
            kill: create.cgroup_kill.clone(),
        };
        let (mut output, stdio) = Output::open(key, &create, reactor)?;
        let launch = match launcher.begin(Order { create, fds, stdio }) {
            Ok(launch) => launch,
            Err(error) => {
                output.close(reactor);
                return Err(error.into());
            }
        };
        let helper = launch.helper();
        let token = match reactor.watch(launch.descriptor(), Source::Launch(key)) {
            Ok(token) => token,
            Err(errno) => {
                output.close(reactor);
                if let Some(helper) = helper {
                    let _gone = send_signal(helper, KILL);
                }
                let message = errno.to_string();
                return Err(Failure::new(
                    FailureKind::Launch,
                    "watch the launcher",
                    message,
                ));
            }
        };
        let deadline = monotonic_now().saturating_add(LAUNCH_TIME);
        Ok(Self {
            id,
            state: State::Launching {
                launch,
                token,
                reply: None,
                deadline,
            },
            output,
            seccomp,
            deletes: Vec::new(),
            cgroups,
            helper,
            own_pid_namespace: true,
        })
    }

    /// Keeps the address for the launch's answer.
    pub(crate) fn expect_launch(&mut self, to: ReplyTo) {
        if let State::Launching { reply, .. } = &mut self.state {
            *reply = Some(to);
        }
    }

    /// Keeps the address for the start's answer.
    pub(crate) fn expect_start(&mut self, to: ReplyTo) {
        if let State::Starting { reply, .. } = &mut self.state {
            *reply = Some(to);
        }
    }

    /// Its first process, as long as it is not reaped.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.init().map(|init| init.pid)
    }

    /// A descriptor of its first process while its program runs.
    pub(crate) fn running(&self) -> Option<&OwnedFd> {
        match &self.state {
            State::Running { init, .. } => Some(&init.pidfd),
            _ => None,
        }
    }

    /// Whether nothing of it is left to end.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Exited(_))
    }

    /// When its launcher has taken too long.
    pub(crate) fn deadline(&self) -> Option<u64> {
        match self.state {
            State::Launching { deadline, .. } => Some(deadline),
            _ => None,
        }
    }

    /// Forgets the launcher's helper if this is it: it was reaped.
    pub(crate) fn helper_ended(&mut self, pid: Pid) -> bool {
        let is_it = self.helper == Some(pid);
        if is_it {
            self.helper = None;
        }
        is_it
    }

    /// Kills all of it: those that are gone already are fine.
    pub(crate) fn kill(&self) {
        if let Some(helper) = self.helper {
            let _gone = send_signal(helper, KILL);
        }
        if let Some(pid) = self.pid() {
            let _gone = send_signal(pid, KILL);
        }
        self.kill_group();
    }

    /// Its line of a list.
    pub(crate) fn report(&self) -> protocol::Container {
        let (state, started_at) = match &self.state {
            State::Launching { .. } | State::Created { .. } | State::Starting { .. } => {
                (protocol::State::Created, 0)
            }
            State::Running { started_at, .. } => (protocol::State::Running, *started_at),
            State::Exited(record) => (protocol::State::Exited, record.started_at),
        };
        let exit = match &self.state {
            State::Exited(record) => Some(Exited::from(record)),
            _ => None,
        };
        protocol::Container {
            id: self.id.clone(),
            state: state.into(),
            pid: self.pid().map_or(0, raw),
            started_at,
            exit,
            lost_log_bytes: self.output.lost(),
        }
    }

    fn init(&self) -> Option<&Init> {
        match &self.state {
            State::Created { init, .. }
            | State::Starting { init, .. }
            | State::Running { init, .. } => Some(init),
            State::Launching { .. } | State::Exited(_) => None,
        }
    }

    /// Kills every process in its cgroups.
    fn kill_group(&self) {
        if let Some(kill) = &self.cgroups.kill
            && write(path(kill), b"1").is_ok()
        {
            return;
        }
        let Some(procs) = &self.cgroups.procs else {
            return;
        };
        for _ in 0..KILL_ROUNDS {
            let pids = crate::execs::processes(path(procs));
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                let _gone = send_signal(pid, KILL);
            }
        }
    }

    /// Whether the kernel killed something in it for lack of memory.
    fn was_oom_killed(&self) -> bool {
        let Some(file) = &self.cgroups.oom else {
            return false;
        };
        std::fs::read_to_string(path(file)).is_ok_and(|text| oom_kills(&text) > 0)
    }
}

impl Monitor {
    /// Goes on with a container in the making.
    pub(crate) fn launch_progress(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let State::Launching { launch, .. } = &mut container.state else {
            return;
        };
        match launch.progress() {
            Ok(None) => {}
            Ok(Some(ready)) => {
                if let Err(failure) = self.launched(key, ready) {
                    self.launch_failed(key, failure);
                }
            }
            Err(error) => self.launch_failed(key, error.into()),
        }
    }

    /// Gives up a container in the making.
    pub(crate) fn launch_failed(&mut self, key: Key, failure: Failure) {
        let Some(container) = self.containers.get(&key) else {
            return;
        };
        container.kill();
        let Some(mut container) = self.remove(key) else {
            return;
        };
        if let State::Launching { reply, .. } = &mut container.state
            && let Some(reply) = reply.take()
        {
            self.reply(reply, Err(failure));
        }
        self.forget_unknown_exits();
    }

    fn launched(&mut self, key: Key, ready: Ready) -> Result<(), Failure> {
        let Ready {
            pid,
            gate,
            console,
            warnings,
        } = ready;
        let failed = |message: String| {
            Failure::new(FailureKind::Launch, "container's first process", message)
        };
        let init = adopt(pid).map_err(|errno| {
            // The number may have been another process's before.
            let died = self
                .unknown_exits
                .iter()
                .rev()
                .find(|(known, _)| *known == pid);
            failed(died.map_or_else(|| errno.to_string(), |(_, how)| format!("it died: {how:?}")))
        })?;
        let pod_init = self.pod.as_ref().and_then(|pod| pod.init);
        let Some(container) = self.containers.get_mut(&key) else {
            return Ok(());
        };
        if let Some(console) = console {
            container
                .output
                .attach_console(key, console, &mut self.reactor)
                .map_err(|errno| failed(format!("watch its terminal: {errno}")))?;
        }
        container.own_pid_namespace = has_own_pid_namespace(pid, pod_init);
        let created = State::Created { init, gate };
        let former = std::mem::replace(&mut container.state, created);
        if let State::Launching {
            launch,
            token,
            reply,
            ..
        } = former
        {
            self.reactor.unwatch(launch.descriptor(), token);
            if let Some(mut reply) = reply {
                reply.step("launched");
                self.reply(
                    reply,
                    Ok(Body::Created(Created {
                        pid: raw(pid),
                        warnings,
                    })),
                );
            }
        }
        self.forget_unknown_exits();
        Ok(())
    }

    /// Lets a created container go.
    pub(crate) fn begin_start(&mut self, key: Key) -> Result<Key, Failure> {
        let Some(container) = self.containers.get_mut(&key) else {
            return Ok(key);
        };
        let wrong = |message: &str| Failure::new(FailureKind::WrongState, &container.id, message);
        match &container.state {
            State::Created { .. } if !container.deletes.is_empty() => {
                return Err(wrong("it is being deleted"));
            }
            State::Created { gate, .. } => {
                gate.open().map_err(|_| wrong("its first process died"))?;
            }
            State::Launching { .. } => return Err(wrong("it is being created")),
            State::Starting { .. } | State::Running { .. } => return Err(wrong("it was started")),
            State::Exited(_) => return Err(wrong("it has exited")),
        }
        let State::Created { gate, .. } = &container.state else {
            return Ok(key);
        };
        let token = self
            .reactor
            .watch(gate.as_fd(), Source::Start(key))
            .map_err(|errno| {
                Failure::new(FailureKind::Internal, "watch the start", errno.to_string())
            })?;
        container.change(|state| match state {
            State::Created { init, gate } => State::Starting {
                init,
                gate,
                token,
                reply: None,
            },
            other => other,
        });
        Ok(key)
    }

    /// Learns what became of a container that was let go.
    pub(crate) fn start_progress(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let State::Starting {
            gate, token, reply, ..
        } = &mut container.state
        else {
            return;
        };
        let Some(outcome) = gate.outcome() else {
            return;
        };
        // Without one the answer was given: the program cannot be executed,
        // and the end of the socket behind that says nothing new.
        let Some(reply) = reply.take() else {
            return;
        };
        self.reactor.unwatch(gate.as_fd(), *token);
        let result = match outcome {
            StartOutcome::Running => {
                let started_at = wall_now();
                container.change(|state| match state {
                    State::Starting { init, .. } => State::Running { init, started_at },
                    other => other,
                });
                Ok(Body::Started(Started { started_at }))
            }
            StartOutcome::Failed { message, not_found } => Err(Failure {
                not_found,
                ..Failure::new(FailureKind::Launch, "start", message)
            }),
        };
        self.reply(reply, result);
    }

    /// A container's first process was reaped.
    pub(crate) fn container_exited(&mut self, key: Key, code: i32, signal: Option<i32>) {
        let finished_at = wall_now();
        // Whether its program ran at all is known by now: its end of the
        // socket is closed.
        self.start_progress(key);
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let oom_killed = container.was_oom_killed();
        if !container.own_pid_namespace {
            container.kill_group();
        }
        container.output.drain(&mut self.scratch, &mut self.reactor);
        let started_at = match container.state {
            State::Running { started_at, .. } => started_at,
            _ => 0,
        };
        let record = ExitRecord {
            container: container.id.clone(),
            exit_code: code,
            signal,
            oom_killed,
            started_at,
            finished_at,
        };
        let deletes = std::mem::take(&mut container.deletes);
        let exited = Exited::from(&record);
        container.state = State::Exited(record);
        if deletes.is_empty() {
            self.write_record(key);
            self.broadcast(&Body::Exited(exited));
            return;
        }
        self.remove(key);
        for reply in deletes {
            self.reply(reply, Ok(Body::Done(protocol::Empty {})));
        }
    }

    /// Takes a container out of the monitor: watches end, streams close.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Container> {
        let mut container = self.containers.remove(&key)?;
        container.output.flush(&mut self.scratch);
        container.output.close(&mut self.reactor);
        match &container.state {
            State::Launching { launch, token, .. } => {
                self.reactor.unwatch(launch.descriptor(), *token);
            }
            State::Starting { gate, token, .. } => self.reactor.unwatch(gate.as_fd(), *token),
            State::Created { .. } | State::Running { .. } | State::Exited(_) => {}
        }
        Some(container)
    }

    /// Kills all processes of the pod.
    pub(crate) fn kill_everything(&mut self) {
        for exec in self.execs.values() {
            exec.kill();
        }
        let mut launching = Vec::new();
        for (key, container) in &self.containers {
            if container.deadline().is_some() {
                launching.push(*key);
            } else if !container.is_over() {
                container.kill();
            }
        }
        for key in launching {
            let failure = Failure::new(FailureKind::Launch, "create", "the pod is shut down");
            self.launch_failed(key, failure);
        }
        if let Some(init) = self.pod.as_ref().and_then(|pod| pod.init) {
            let _gone = send_signal(init, KILL);
        }
    }

    fn write_record(&mut self, key: Key) {
        let (Some(pod), Some(container)) = (&self.pod, self.containers.get(&key)) else {
            return;
        };
        if let State::Exited(record) = &container.state {
            // An engine that is there is told; without one and without a
            // disk, the list of this monitor still has it.
            let _unwritten = record.write(&pod.exit_dir);
        }
    }

    /// Nobody will ask for these any more.
    fn forget_unknown_exits(&mut self) {
        if self
            .containers
            .values()
            .all(|container| container.deadline().is_none())
        {
            self.unknown_exits = Vec::new();
        }
    }
}

impl Container {
    /// Replaces the state by one made of its parts.
    fn change(&mut self, next: impl FnOnce(State) -> State) {
        // Only for the moment of the change: it owns nothing.
        let nothing = State::Exited(ExitRecord {
            container: String::new(),
            exit_code: 0,
            signal: None,
            oom_killed: false,
            started_at: 0,
            finished_at: 0,
        });
        self.state = next(std::mem::replace(&mut self.state, nothing));
    }
}

/// Signals a child that is not reaped; one that ended is fine.
pub(crate) fn send_signal(pid: Pid, signal: i32) -> Result<(), Errno> {
    match runtime::sys::signals::send(pid, signal) {
        Err(Errno::SRCH) => Ok(()),
        other => other,
    }
}

/// Makes sure that the process is a child of this one.
fn adopt(pid: Pid) -> Result<Init, Errno> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    rustix::process::waitid(WaitId::Pid(pid), options)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    Ok(Init { pid, pidfd })
}

/// When in doubt, the container's processes are killed one by one.
fn has_own_pid_namespace(pid: Pid, pod_init: Option<Pid>) -> bool {
    let namespace = |process: &str| {
        rustix::fs::stat(format!("/proc/{process}/ns/pid")).map(|stat| (stat.st_dev, stat.st_ino))
    };
    let Ok(its) = namespace(&raw(pid).to_string()) else {
        return false;
    };
    let pods = pod_init.map(|init| namespace(&raw(init).to_string()));
    namespace("self") != Ok(its) && pods != Some(Ok(its))
}

/// The counter of OOM kills in a v1 or v2 file.
fn oom_kills(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

fn write(path: &Path, text: &[u8]) -> Result<(), Errno> {
    use rustix::fs::{Mode, OFlags};
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, text).map(drop)
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

pub(crate) fn raw(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kills_are_counted_in_both_formats() {
        assert_eq!(
            oom_kills("low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n"),
            1
        );
        assert_eq!(
            oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            2
        );
        assert_eq!(oom_kills("oom_kill_disable 1\nunder_oom 0\n"), 0);
        assert_eq!(oom_kills(""), 0);
    }
}
