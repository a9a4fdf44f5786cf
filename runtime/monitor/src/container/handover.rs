//! What a container hands over. One that is being made or started is not handed
//! over: the upgrade waits.

use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use runtime::exit::ExitRecord;
use runtime::launcher::StartGate;
use runtime::protocol::{Exited, HandoverContainer, HandoverInit};
use runtime::sys::fds::Inherited;
use rustix::io::Errno;
use rustix::process::Pid;

use super::{Cgroups, Container, Init, Lingering, State, Unwritten};
use crate::connection::ReplyTo;
use crate::handover::Kept;
use crate::output::Output;
use crate::pids::Wanted;
use crate::process::raw;
use crate::reactor::{Key, Reactor};

fn bytes(path: &std::path::Path) -> Vec<u8> {
    path.to_path_buf().into_os_string().into_vec()
}

fn path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

impl Container {
    /// The container, for the next program.
    pub(crate) fn hand_over(&self, key: Key, kept: &mut Kept) -> HandoverContainer {
        let init = self.init().map(|init| HandoverInit {
            pid: raw(init.pid),
            pidfd: kept.add(&init.pidfd),
        });
        let gate = match &self.state {
            State::Created { gate, .. } => gate.parts().map(|part| kept.add(&part)).to_vec(),
            _ => Vec::new(),
        };
        let (started_at, exited) = match &self.state {
            State::Running { started_at, .. } => (*started_at, None),
            State::Exited(record) => (0, Some(Exited::from(record))),
            _ => (0, None),
        };
        HandoverContainer {
            key,
            id: self.id.clone(),
            init,
            gate,
            started_at,
            exited,
            output: Some(self.output.hand_over(kept)),
            seccomp: self.seccomp.clone(),
            seccomp_flags: self.seccomp_flags,
            deletes: self.deletes.iter().map(ReplyTo::hand_over).collect(),
            untold: self.untold,
            killed: self.killed,
            own_pid_namespace: self.own_pid_namespace,
            helper: self.helper.map(raw),
            cgroup_procs: self.cgroups.procs.as_deref().map(bytes),
            cgroup_oom: self.cgroups.oom.clone(),
            cgroup_kill: self.cgroups.kill.clone(),
            cgroup_freezer: self.cgroups.freezer.as_deref().map(bytes),
            keyring: self.keyring.clone(),
            lingering: self.lingering.is_some(),
            unwritten: self.unwritten.is_some(),
        }
    }

    /// The container that the program before gave.
    pub(crate) fn resume(
        container: HandoverContainer,
        fds: &mut Inherited,
        reactor: &mut Reactor,
    ) -> Result<Self, Errno> {
        let HandoverContainer {
            key,
            id,
            init,
            gate,
            started_at,
            exited,
            output,
            seccomp,
            seccomp_flags,
            deletes,
            untold,
            killed,
            own_pid_namespace,
            helper,
            cgroup_procs,
            cgroup_oom,
            cgroup_kill,
            cgroup_freezer,
            keyring,
            lingering,
            unwritten,
        } = container;
        let init = init.map(|init| resume_init(init, fds)).transpose()?;
        let state = match (init, gate.as_slice(), exited) {
            (None, [], Some(exited)) => State::Exited(ExitRecord::from(exited)),
            (Some(init), [go, words], None) => {
                let gate = StartGate::resume([fds.take(*go)?, fds.take(*words)?]);
                State::Created { init, gate }
            }
            (Some(init), [], None) => State::Running { init, started_at },
            _ => return Err(Errno::BADMSG),
        };
        let mut output = Output::resume(key, output.unwrap_or_default(), fds, reactor)?;
        if matches!(state, State::Exited(_)) && untold.is_none() {
            output.is_late();
        }
        Ok(Self {
            id,
            state,
            output,
            seccomp,
            seccomp_flags,
            ended_early: None,
            null: None,
            deletes: deletes.into_iter().map(ReplyTo::resume).collect(),
            lingering: lingering.then_some(Lingering { look: 0, pause: 1 }),
            untold,
            recorder: None,
            unwritten: unwritten.then(Unwritten::now),
            cgroups: Cgroups {
                procs: cgroup_procs.map(path),
                oom: cgroup_oom,
                kill: cgroup_kill,
                freezer: cgroup_freezer.map(path),
            },
            helper: helper.and_then(Pid::from_raw),
            keyring,
            // It is made.
            wanted_pids: Wanted::Anywhere,
            killed,
            own_pid_namespace,
        })
    }
}

fn resume_init(init: HandoverInit, fds: &mut Inherited) -> Result<Init, Errno> {
    Ok(Init {
        pid: Pid::from_raw(init.pid).ok_or(Errno::BADMSG)?,
        pidfd: fds.take(init.pidfd)?,
    })
}
