//! A container's life, as its monitor sees it.
//!
//! ```text
//! Launching ──▶ Created ──▶ Starting ──▶ Running ──▶ Exited
//!     │            └────────────┴───────────────────────▲
//!     └─▶ (gone: the launch failed)
//! ```
//! Owns the first process and everything that is known of the container. What
//! leads from one state to the next is in `life`.

mod handover;

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use runtime::exec::keyring;
use runtime::exit::ExitRecord;
use runtime::frozen;
use runtime::joining::PROCS;
use runtime::launcher::{Launch, Launcher, Order, SharedPids, StartGate, null};
use runtime::protocol::{self, Create, Exited, Failure, FailureKind, Fds, monotonic_now};
use runtime::user_space::UserSpace;
use runtime::{pidfd, subtree};
use rustix::io::Errno;
use rustix::process::{Pid, WaitStatus};

use crate::connection::ReplyTo;
use crate::log::Log;
use crate::output::Output;
use crate::pids::Wanted;
use crate::process::{KILL, raw, send_signal};
use crate::reactor::{Key, Reactor, Source, Token};
use crate::start::Start;

/// How long a launcher may take: far beyond what any takes on a busy machine.
const LAUNCH_TIME: u64 = 120_000_000_000;
/// The first pause before an exit record is written again, and the longest: nanoseconds.
const REWRITE_PAUSE: u64 = 1_000_000_000;
const LONGEST_REWRITE_PAUSE: u64 = 60_000_000_000;
/// Exit code of a process that was killed, and of an init that passes on what
/// became of its child: a shell, tini.
const KILLED: i32 = 128 + KILL;
/// How often a cgroup without a freezer is searched for processes that were born meanwhile.
const KILL_ROUNDS: usize = 10;
/// How long all in a cgroup may take to be frozen and killed: the pod's other containers
/// wait as long. What is left after it is the engine's.
const FREEZING: Duration = Duration::from_millis(500);
/// How long a cgroup may be searched for processes at once.
const LOOKING: Duration = Duration::from_millis(200);

/// A container's first process: a child of the monitor.
#[derive(Debug)]
pub(crate) struct Init {
    /// Its id, its own until it is reaped.
    pub(crate) pid: Pid,
    /// A descriptor of it.
    pub(crate) pidfd: OwnedFd,
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
    Starting(Start),
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
    procs: Option<PathBuf>,
    oom: Option<Vec<u8>>,
    kill: Option<Vec<u8>>,
    freezer: Option<PathBuf>,
}

/// Processes that outlive a first process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lingering {
    /// When they are looked for again, monotonic nanoseconds.
    pub(crate) look: u64,
    /// How long after that the next time.
    pub(crate) pause: u64,
}

/// An exit record that a disk did not take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unwritten {
    /// When it is written again, monotonic nanoseconds.
    at: u64,
    /// How long after that the next time.
    pause: u64,
}

impl Unwritten {
    /// It is written again at once.
    fn now() -> Self {
        Self {
            at: 0,
            pause: REWRITE_PAUSE,
        }
    }
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
    /// The kernel's flags for it.
    pub(crate) seccomp_flags: u32,
    /// How its first process has ended before it was known to be that.
    pub(crate) ended_early: Option<WaitStatus>,
    /// The null device of those that have no input: the container's own.
    null: Option<OwnedFd>,
    /// Who wants it gone, once its first process is.
    pub(crate) deletes: Vec<ReplyTo>,
    /// Its first process has ended and others have not yet: they are killed again and
    /// looked for.
    pub(crate) lingering: Option<Lingering>,
    /// Its exit waits for its log: until when, monotonic nanoseconds.
    pub(crate) untold: Option<u64>,
    /// Writes its exit record.
    pub(crate) recorder: Option<Pid>,
    /// Its exit record is not written yet, though that was tried.
    pub(crate) unwritten: Option<Unwritten>,
    cgroups: Cgroups,
    helper: Option<Pid>,
    /// Whether the engine had it killed.
    killed: bool,
    /// The secret in the name of its session keyring.
    pub(crate) keyring: String,
    /// Where its first process has to live.
    pub(crate) wanted_pids: Wanted,
    /// Whether the kernel ends its processes with its first one.
    pub(crate) own_pid_namespace: bool,
}

impl Container {
    /// Starts making a container.
    pub(crate) fn begin(
        key: Key,
        (mut create, mut fds): (Create, Fds),
        ((wanted_pids, pids), user_space): ((Wanted, Option<SharedPids>), Option<UserSpace>),
        launcher: &mut dyn Launcher,
        reactor: &mut Reactor,
    ) -> Result<Self, Failure> {
        // For exec; a launcher without a plan makes its own of the spec.
        let seccomp = match create.plan {
            Some(_) => create.seccomp_bpf.clone(),
            None => create.seccomp_bpf.take(),
        };
        let seccomp_flags = create.seccomp_flags;
        let id = create.id.clone();
        let keyring = keyring::secret().map_err(|errno| {
            Failure::new(
                FailureKind::Internal,
                "name the session keyring",
                errno.to_string(),
            )
        })?;
        create.keyring.clone_from(&keyring);
        let cgroups = Cgroups {
            procs: create
                .cgroup_files
                .first()
                .map(|file| path(file).with_file_name(PROCS)),
            oom: create.cgroup_oom.clone(),
            kill: create.cgroup_kill.clone(),
            freezer: freezer(&create.cgroup_files),
        };
        let (mut output, stdio) = Output::open(key, &mut create, &mut fds, reactor)?;
        let launch = match launcher.begin(Order {
            create,
            fds,
            stdio,
            pids,
            user_space,
        }) {
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
            seccomp_flags,
            ended_early: None,
            null: None,
            deletes: Vec::new(),
            lingering: None,
            untold: None,
            recorder: None,
            unwritten: None,
            killed: false,
            cgroups,
            helper,
            keyring,
            wanted_pids,
            own_pid_namespace: true,
        })
    }

    /// Keeps the address for the launch's answer.
    pub(crate) fn expect_launch(&mut self, to: ReplyTo) {
        if let State::Launching { reply, .. } = &mut self.state {
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

    /// A null device for a process without input.
    pub(crate) fn null(&mut self) -> Result<OwnedFd, Errno> {
        let null = match &self.null {
            Some(null) => null,
            None => self.null.insert(null::open()?),
        };
        rustix::io::fcntl_dupfd_cloexec(null, 3)
    }

    /// Whether nothing of it is left to end.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Exited(_)) && self.lingering.is_none()
    }

    /// Whether a process is in its cgroup, whose first one has ended, or that cannot be
    /// told yet. Cgroups that it has made and left empty are removed on the way.
    pub(crate) fn has_processes(&self) -> bool {
        let Some(dir) = self.cgroups.procs.as_deref().and_then(Path::parent) else {
            return false;
        };
        let until = Instant::now() + LOOKING;
        // The first that lives ends the search.
        let look = |dir: BorrowedFd<'_>| {
            let list = subtree::read(dir, PROCS)?;
            match list.is_none_or(|list| list.trim().is_empty()) && Instant::now() < until {
                true => Ok(()),
                false => Err(Errno::BUSY.into()),
            }
        };
        subtree::visit_busy(dir, look).is_err()
    }

    /// When its launcher has taken too long.
    pub(crate) fn deadline(&self) -> Option<u64> {
        match self.state {
            State::Launching { deadline, .. } => Some(deadline),
            _ => None,
        }
    }

    /// Has its exit record written again after a pause.
    pub(crate) fn write_later(&mut self) {
        let longer = |before: Unwritten| (before.pause * 2).min(LONGEST_REWRITE_PAUSE);
        let pause = self.unwritten.map_or(REWRITE_PAUSE, longer);
        let at = monotonic_now().saturating_add(pause);
        self.unwritten = Some(Unwritten { at, pause });
    }

    /// When its exit record is to be written again.
    pub(crate) fn next_write(&self) -> Option<u64> {
        let unwritten = self.unwritten.filter(|_| self.recorder.is_none());
        unwritten.map(|unwritten| unwritten.at)
    }

    /// Its first process, while the one that made it has not ended.
    pub(crate) fn newborn(&self) -> Option<Pid> {
        match &self.state {
            State::Launching { launch, .. } => launch.born(),
            _ => None,
        }
    }

    /// The launcher's helper, as long as it is not reaped.
    pub(crate) fn helper(&self) -> Option<Pid> {
        self.helper
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
    pub(crate) fn kill(&mut self) {
        self.killed = true;
        if let Some(helper) = self.helper {
            let _gone = send_signal(helper, KILL);
        }
        if let Some(pid) = self.pid() {
            let _gone = send_signal(pid, KILL);
        }
        self.kill_group();
    }

    /// Its line of a list.
    pub(crate) fn report(&mut self) -> protocol::Container {
        let (state, started_at) = match &self.state {
            State::Launching { .. } | State::Created { .. } => (protocol::State::Created, 0),
            State::Starting(_) => (protocol::State::Starting, 0),
            State::Running { started_at, .. } => (protocol::State::Running, *started_at),
            // Not before its last process has ended.
            State::Exited(record) if self.lingering.is_some() => {
                (protocol::State::Running, record.started_at)
            }
            State::Exited(record) => (protocol::State::Exited, record.started_at),
        };
        let exit = match &self.state {
            State::Exited(record) if self.is_over() => Some(Exited::from(record)),
            _ => None,
        };
        let lost_log_bytes = self.output.log_mut().map_or(0, Log::lost);
        protocol::Container {
            id: self.id.clone(),
            state: state.into(),
            pid: self.pid().map_or(0, raw),
            started_at,
            exit,
            lost_log_bytes,
            log_stalled: self.output.log().is_some_and(Log::is_stalled),
        }
    }

    /// Replaces the state by one made of its parts.
    pub(crate) fn change(&mut self, next: impl FnOnce(State) -> State) {
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

    fn init(&self) -> Option<&Init> {
        match &self.state {
            State::Created { init, .. }
            | State::Starting(Start { init, .. })
            | State::Running { init, .. } => Some(init),
            State::Launching { .. } | State::Exited(_) => None,
        }
    }

    /// Kills every process in its cgroups.
    pub(crate) fn kill_group(&self) {
        let until = Instant::now() + FREEZING;
        let out_of_time = || Instant::now() >= until;
        let freezer = self.cgroups.freezer.as_deref();
        if let Some(kill) = &self.cgroups.kill
            && write(path(kill), b"1").is_ok()
        {
            // A container freezes processes of its own by the v1 freezer, which keeps them
            // from their end. What is not thawed in time is when they are looked for again.
            let _next_time = freezer.map(|dir| frozen::thaw(dir, out_of_time));
            return;
        }
        let frozen = freezer.map(|dir| frozen::kill(dir, until, out_of_time));
        if frozen.is_some_and(|killed| killed.is_ok()) {
            return;
        }
        let Some(procs) = &self.cgroups.procs else {
            return;
        };
        for _ in 0..KILL_ROUNDS {
            if !pidfd::kill_listed(|| pidfd::listed(procs)).unwrap_or(false) {
                return;
            }
        }
    }

    /// Signals its first process; one that ended is fine.
    pub(crate) fn signal(&mut self, signal: i32) -> Result<(), Errno> {
        self.killed |= signal == KILL;
        self.pid().map_or(Ok(()), |pid| send_signal(pid, signal))
    }

    /// Whether it ended, with this code, since the kernel killed for lack of memory.
    pub(crate) fn was_oom_killed(&self, code: i32) -> bool {
        if self.killed || code != KILLED {
            return false;
        }
        let Some(file) = &self.cgroups.oom else {
            return false;
        };
        std::fs::read_to_string(path(file)).is_ok_and(|text| oom_kills(&text) > 0)
    }
}

/// The directory in the v1 freezer's hierarchy: one of those is mounted by its name.
fn freezer(files: &[Vec<u8>]) -> Option<PathBuf> {
    let mut dirs = files.iter().filter_map(|file| path(file).parent());
    let is_freezers = |part: &OsStr| {
        part.as_bytes()
            .split(|byte| *byte == b',')
            .any(|name| name == b"freezer")
    };
    let dir = dirs.find(|dir| dir.iter().any(is_freezers))?;
    Some(dir.to_owned())
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
