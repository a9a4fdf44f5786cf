//! Going on as another build of the monitor, in place.
//!
//! ```text
//! old: busy? ──▶ state into a memfd ──▶ rehearsal: a child executes the new build, which
//!                                       reads the state and ends
//!                                   ──▶ execve ──▶ new: state from the memfd, answer, serve
//! ```
//! The process stays: its children, its namespaces and cgroups, its socket and its
//! connections. Owns the way from one program to the next; what each part of the
//! monitor hands over stands beside it (`*/handover.rs`). Nothing is given up before
//! the new program runs: whatever fails until then leaves the old one as it was. The
//! rehearsal finds a build that does not start or does not understand the state.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

use runtime::protocol::{
    self, Body, Failure, FailureKind, Fds, HANDOVER_VERSION, HANDOVER_WITHOUT_USER_NAMESPACE,
    Handover, Upgrade, sealed_memfd,
};
use runtime::sys::execve::{CStrings, execve};
use runtime::sys::fds::{Inherited, keep_on_exec};
use runtime::sys::fork::{self, NewNamespaces};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};
use rustix::time::Timespec;

use crate::connection::ReplyTo;
use crate::monitor::Monitor;
use crate::process::{KILL, send_signal};
use crate::startup;

/// Argument of a program that goes on for real; the descriptor of the state follows.
pub(crate) const GO_ON: &str = "--go-on";
/// Argument of a program that only tries.
pub(crate) const REHEARSE: &str = "--rehearse";
/// Tells a monitor which build it is.
pub(crate) const BUILD: &str = "SLIPWAY_MONITOR_BUILD";
/// What else of its environment a monitor passes on.
const PASSED_ON: &str = "GLIBC_TUNABLES";
/// How long a rehearsal may take: nothing else is done meanwhile.
const REHEARSAL_TIME: Timespec = Timespec {
    tv_sec: 3,
    tv_nsec: 0,
};

/// Descriptors that the next program inherits.
#[derive(Debug, Default)]
pub(crate) struct Kept(Vec<RawFd>);

impl Kept {
    /// Notes one and gives its number.
    pub(crate) fn add(&mut self, fd: &impl AsRawFd) -> i32 {
        let number = fd.as_raw_fd();
        self.0.push(number);
        number
    }
}

/// What executing needs, prepared before: no allocation behind a fork.
struct Program {
    path: CString,
    rehearsal: CStrings,
    real: CStrings,
    environment: CStrings,
}

impl Program {
    fn new(executable: &OwnedFd, state: &OwnedFd, build: &str) -> Option<Self> {
        let text = |text: String| CString::new(text).ok();
        let arguments = |how: &str| {
            let name = text(runtime::launcher::MONITOR_NAME.to_owned())?;
            let state = text(state.as_raw_fd().to_string())?;
            Some(CStrings::new(vec![name, text(how.to_owned())?, state]))
        };
        let mut environment = vec![text(format!("{BUILD}={build}"))?];
        if let Some(value) = std::env::var_os(PASSED_ON) {
            let mut line = format!("{PASSED_ON}=").into_bytes();
            line.extend(value.into_vec());
            environment.push(CString::new(line).ok()?);
        }
        Some(Self {
            path: text(format!("/proc/self/fd/{}", executable.as_raw_fd()))?,
            rehearsal: arguments(REHEARSE)?,
            real: arguments(GO_ON)?,
            environment: CStrings::new(environment),
        })
    }

    /// Replaces this process; returns only when that failed.
    fn execute(&self, arguments: &CStrings) -> Errno {
        execve(
            &self.path,
            arguments.pointers(),
            self.environment.pointers(),
        )
    }
}

impl Monitor {
    /// Which version its state has.
    pub(crate) fn handover_version(&self) -> u32 {
        let user_space = self.pod.as_ref().and_then(|pod| pod.user_space.as_ref());
        user_space.map_or(HANDOVER_WITHOUT_USER_NAMESPACE, |_| HANDOVER_VERSION)
    }

    /// Goes on as another build; comes back only when that failed.
    pub(crate) fn upgrade(&mut self, order: &Upgrade, fds: Fds, reply: ReplyTo) {
        let failure = self.try_upgrade(order, fds, &reply);
        self.reply(reply, Err(failure));
    }

    fn try_upgrade(&mut self, order: &Upgrade, mut fds: Fds, reply: &ReplyTo) -> Failure {
        let version = self.handover_version();
        if order.reads < version {
            let message = format!("this monitor hands over version {version}");
            return Failure::new(FailureKind::Unsupported, "upgrade", message);
        }
        if let Some(busy) = self.is_busy() {
            return Failure::new(FailureKind::WrongState, "monitor", busy);
        }
        let failed = |step: &str, error: String| Failure::new(FailureKind::Internal, step, error);
        let given = fds
            .take(order.executable, "the executable")
            .and_then(|program| {
                let launcher = fds.take_optional(order.launcher_fd, "the launcher")?;
                Ok((program, launcher))
            });
        let (executable, launcher) = match given {
            Ok(given) => given,
            Err(error) => return failed("take the new build", error.to_string()),
        };
        let mut kept = Kept::default();
        let mut state = self.hand_over(reply, &mut kept);
        state.build.clone_from(&order.build);
        if let (Some(launcher), Some(pod)) = (&launcher, &mut state.pod) {
            pod.launcher = Some(kept.add(launcher));
        }
        match self.execute(&executable, &state, kept, &order.build) {
            Ok(never) => match never {},
            Err((step, errno)) => failed(step, errno.to_string()),
        }
    }

    fn execute(
        &mut self,
        executable: &OwnedFd,
        state: &Handover,
        mut kept: Kept,
        build: &str,
    ) -> Result<std::convert::Infallible, (&'static str, Errno)> {
        let state = sealed_memfd("handover", &state.to_bytes())
            .map_err(|errno| ("write the state", errno))?;
        kept.add(&state);
        let program = Program::new(executable, &state, build);
        let program = program.ok_or(("name the new build", Errno::INVAL))?;
        self.rehearse(&program, &kept)
            .map_err(|errno| ("rehearse the new build", errno))?;
        let executed = keep_on_exec(&kept.0, true)
            .err()
            .unwrap_or_else(|| program.execute(&program.real));
        // Their owners are all here: none of them is missing.
        let _restored = keep_on_exec(&kept.0, false);
        Err(("execute the new build", executed))
    }

    /// Has a child do all that the new program would do, short of serving.
    fn rehearse(&mut self, program: &Program, kept: &Kept) -> Result<(), Errno> {
        let child = fork::spawn(NewNamespaces::default(), || {
            if keep_on_exec(&kept.0, true).is_ok() {
                let _failed = program.execute(&program.rehearsal);
            }
            127
        })?;
        let mut ended = [PollFd::new(&child.pidfd, PollFlags::IN)];
        let polled =
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut ended, Some(&REHEARSAL_TIME)));
        if polled != Ok(1) {
            let _gone = send_signal(child.pid, KILL);
            self.dying.push(child.pid);
            return Err(Errno::TIMEDOUT);
        }
        let id = WaitId::PidFd(child.pidfd.as_fd());
        let status = rustix::process::waitid(id, WaitIdOptions::EXITED)?;
        match status.and_then(|status| status.exit_status()) {
            Some(0) => Ok(()),
            _ => Err(Errno::NOEXEC),
        }
    }
}

/// Makes a monitor of what the program before this one left.
pub(crate) fn resume(state: &str) -> Result<Monitor, Errno> {
    let mut fds = Inherited::at_start();
    let state: RawFd = state.parse().map_err(|_| Errno::INVAL)?;
    let state = fds.take(state)?;
    let state = Handover::read(&state).map_err(|_| Errno::BADMSG)?;
    if !(HANDOVER_WITHOUT_USER_NAMESPACE..=HANDOVER_VERSION).contains(&state.version) {
        return Err(Errno::PROTO);
    }
    let descriptors = startup::take_on()?;
    Monitor::resume(state, descriptors, &mut fds)
}

/// Tells who asked for it that another build goes on.
pub(crate) fn begin(monitor: &mut Monitor, asked: Option<protocol::HandoverReply>) {
    // Children that ended meanwhile may have told the program before.
    monitor.reap();
    if let Some(asked) = asked {
        let welcome = monitor.welcome();
        monitor.reply(ReplyTo::resume(asked), Ok(Body::Welcome(welcome)));
    }
}
