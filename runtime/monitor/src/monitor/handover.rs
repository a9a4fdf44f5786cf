//! What a monitor hands over to the build that goes on in its place.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use runtime::launcher::{Libcontainer, Native};
use runtime::protocol::{Handover, HandoverPod, IdRange};
use runtime::sys::fds::Inherited;
use runtime::user_space::UserSpace;
use rustix::io::Errno;
use rustix::process::Pid;

use super::{Monitor, Pod, SocketFile};
use crate::connection::{Connection, ReplyTo};
use crate::container::{Container, State};
use crate::execs::Exec;
use crate::handover::Kept;
use crate::log::Log;
use crate::output::{Output, Scratch};
use crate::process::raw;
use crate::reactor::{Reactor, Source};
use crate::startup::Descriptors;

impl Monitor {
    /// Why nothing can be handed over now. Other than the first, all pass soon.
    pub(crate) fn is_busy(&self) -> Option<&'static str> {
        let settled = |container: &Container| {
            matches!(
                container.state,
                State::Created { .. } | State::Running { .. } | State::Exited(_)
            )
        };
        if self.pod.is_none() {
            Some("it has no pod")
        } else if self.shutdown.is_some() {
            Some("it is being shut down")
        } else if !self.containers.values().all(settled) || !self.unknown_exits.is_empty() {
            Some("a container is being made or started")
        } else if self.containers.values().any(|one| one.recorder.is_some()) {
            Some("an exit is being written down")
        } else if self.is_settling() {
            Some("a log is being written out")
        } else if !self.delivered.is_empty() || !self.execs.values().all(Exec::runs) {
            Some("a process is being run")
        } else {
            None
        }
    }

    fn is_settling(&self) -> bool {
        let mut logs = self.containers.values().filter_map(|one| one.output.log());
        logs.any(Log::is_settling)
    }

    /// All of it, for the next program.
    pub(crate) fn hand_over(&self, asked: &ReplyTo, kept: &mut Kept) -> Handover {
        Handover {
            version: self.handover_version(),
            build: self.build.clone(),
            pod: self.pod.as_ref().map(|pod| HandoverPod {
                procfs: self.native.kept().map(|procfs| kept.add(&procfs)),
                ..pod.hand_over(kept)
            }),
            connections: self
                .connections
                .iter()
                .map(|(number, connection)| connection.hand_over(*number, kept))
                .collect(),
            containers: self
                .containers
                .iter()
                .map(|(key, container)| container.hand_over(*key, kept))
                .collect(),
            leaving: self.leaving.iter().map(|one| one.hand_over(kept)).collect(),
            execs: self.execs.values().map(|one| one.hand_over(kept)).collect(),
            dying: self.dying.iter().copied().map(raw).collect(),
            last_key: self.next_key,
            asked: Some(asked.hand_over()),
        }
    }

    /// A monitor of what the program before gave.
    pub(crate) fn resume(
        state: Handover,
        descriptors: Descriptors,
        fds: &mut Inherited,
    ) -> Result<Self, Errno> {
        let Handover {
            version: _,
            build,
            pod,
            connections,
            containers,
            leaving,
            execs,
            dying,
            last_key,
            asked,
        } = state;
        let mut reactor = Reactor::new()?;
        reactor.watch(descriptors.signals.as_fd(), Source::Signals)?;
        let mut pod = pod.ok_or(Errno::BADMSG)?;
        let procfs = pod
            .procfs
            .take()
            .map(|number| fds.take(number))
            .transpose()?;
        let pod = Pod::resume(pod, fds)?;
        let native = match (pod.init, procfs) {
            // An init that has just ended leaves nobody to share with.
            (Some(init), Some(procfs)) => Native::resume(init, procfs).unwrap_or_default(),
            _ => Native::default(),
        };
        reactor.watch(pod.socket.listener.as_fd(), Source::Listener)?;
        let mut monitor = Self {
            reactor,
            descriptors,
            connections: BTreeMap::new(),
            native,
            pod: Some(pod),
            setup_tried: true,
            containers: BTreeMap::new(),
            leaving: VecDeque::new(),
            execs: BTreeMap::new(),
            delivered: Vec::new(),
            unknown_exits: Vec::new(),
            dying: dying.into_iter().filter_map(Pid::from_raw).collect(),
            shutdown: None,
            scratch: Scratch::default(),
            trim_at: None,
            next_key: last_key,
            build,
            asked,
        };
        for connection in connections {
            let resumed = Connection::resume(&connection, fds, &mut monitor.reactor)?;
            monitor.connections.insert(connection.number, resumed);
        }
        for container in containers {
            let key = container.key;
            let resumed = Container::resume(container, fds, &mut monitor.reactor)?;
            monitor.containers.insert(key, resumed);
        }
        for output in leaving {
            let key = output.log.as_ref().map_or(0, |log| log.key);
            let resumed = Output::resume(key, output, fds, &mut monitor.reactor)?;
            monitor.leaving.push_back(resumed);
        }
        for exec in execs {
            let (pid, exec) = Exec::resume(exec, fds, &mut monitor.reactor)?;
            monitor.execs.insert(raw(pid), exec);
        }
        Ok(monitor)
    }
}

impl Pod {
    fn hand_over(&self, kept: &mut Kept) -> HandoverPod {
        let launcher = self.launcher.as_ref().map(Libcontainer::parts);
        let user = self.user_space.as_ref().map(UserSpace::parts);
        HandoverPod {
            id: self.id.clone(),
            exit_dir: self.exit_dir.as_os_str().as_bytes().to_vec(),
            state_dir: kept.add(&self.socket.directory),
            listener: kept.add(&self.socket.listener),
            init: self.init.map(raw),
            launcher: launcher.map(|(executable, _)| kept.add(&executable)),
            work_dir: launcher.map_or_else(Vec::new, |(_, dir)| dir.to_vec()),
            procfs: None,
            userns: user.as_ref().map(|(namespace, ..)| kept.add(namespace)),
            user_ids: user.map(|(_, first, length)| IdRange { first, length }),
        }
    }

    fn resume(pod: HandoverPod, fds: &mut Inherited) -> Result<Self, Errno> {
        let HandoverPod {
            id,
            exit_dir,
            state_dir,
            listener,
            init,
            launcher,
            work_dir,
            procfs: _,
            userns,
            user_ids,
        } = pod;
        let user_space = match (userns, user_ids) {
            (Some(number), Some(IdRange { first, length })) => {
                Some(UserSpace::new(fds.take(number)?, first, length))
            }
            (None, None) => None,
            _ => return Err(Errno::BADMSG),
        };
        let launcher = match launcher {
            Some(executable) => Some(Libcontainer::new(fds.take(executable)?, work_dir)),
            None => None,
        };
        Ok(Self {
            id,
            exit_dir: PathBuf::from(std::ffi::OsString::from_vec(exit_dir)),
            socket: SocketFile {
                directory: fds.take(state_dir)?,
                listener: fds.take(listener)?,
            },
            launcher,
            init: init.and_then(Pid::from_raw),
            user_space,
        })
    }
}
