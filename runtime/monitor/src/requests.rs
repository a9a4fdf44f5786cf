//! What engines ask for, one function per request.
//!
//! Each answers at once or puts the reply address where the work ends.

use std::os::fd::AsFd;

use runtime::launcher::Launcher;
use runtime::protocol::{
    Attach, Body, Containers, Create, Empty, Failure, FailureKind, Fds, Features, LauncherKind,
    ProtocolError, ReopenLog, Signal, Welcome, monotonic_now,
};
use runtime::terminal;
use runtime::user_space::UserSpace;
use rustix::io::Errno;

use crate::connection::ReplyTo;
use crate::container::{Container, State};
use crate::monitor::Monitor;
use crate::output::{self, ClientStreams};

const DONE: Body = Body::Done(Empty {});
/// How long after a creation what it needed of memory is given back, in nanoseconds:
/// most pods get all their containers at once.
const REST: u64 = 1_000_000_000;

fn no_log(id: &str) -> Failure {
    Failure::new(FailureKind::WrongState, id, "it has no log")
}

impl Monitor {
    /// Does what was asked for, or begins it.
    pub(crate) fn request(&mut self, body: Body, fds: Fds, reply: ReplyTo) {
        let result = match body {
            Body::Hello(_) => return self.greet(reply),
            Body::List(_) => Ok(Body::Containers(self.list())),
            Body::Signal(signal) => self.signal(&signal).map(|()| DONE),
            Body::Attach(order) => self.attach(&order, fds).map(|()| DONE),
            Body::SettleLog(name) => return self.settle_log(&name.id, reply),
            Body::ReopenLog(order) => self.reopen_log(&order, fds).map(|()| DONE),
            Body::CancelExec(order) => {
                let connection = reply.connection;
                self.end_unwanted_execs(|asked| asked.is(connection, order.request));
                Ok(DONE)
            }
            Body::Upgrade(order) => return self.upgrade(&order, fds, reply),
            Body::Setup(setup) => return self.begin_setup(*setup, fds, reply),
            Body::Create(create) => return self.create(*create, fds, reply),
            Body::Start(order) => return self.start(&order, reply),
            Body::Exec(exec) => return self.exec(&exec, fds, reply),
            Body::Delete(name) => return self.delete(&name.id, reply),
            Body::Shutdown(_) => return self.begin_shutdown(reply),
            _ => Err(Failure::new(
                FailureKind::Protocol,
                "request",
                "that is no request",
            )),
        };
        self.reply(reply, result);
    }

    /// Who comes late is told of the logs that stall behind the answer.
    fn greet(&mut self, reply: ReplyTo) {
        let connection = reply.connection;
        self.reply(reply, Ok(Body::Welcome(self.welcome())));
        self.tell_stalled_logs(connection);
    }

    pub(crate) fn welcome(&self) -> Welcome {
        Welcome {
            monitor: env!("CARGO_PKG_VERSION").to_owned(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            pod: self
                .pod
                .as_ref()
                .map(|pod| pod.id.clone())
                .unwrap_or_default(),
            features: Features::known().bits(),
            build: self.build.clone(),
        }
    }

    fn list(&mut self) -> Containers {
        let all = self.containers.values_mut();
        Containers {
            containers: all.map(Container::report).collect(),
        }
    }

    /// Connects a client to a container's streams.
    fn attach(&mut self, order: &Attach, mut fds: Fds) -> Result<(), Failure> {
        let key = self.find(&order.id)?;
        let failed =
            |error: ProtocolError| Failure::new(FailureKind::Protocol, "attach", error.to_string());
        let slots = order.streams.clone().unwrap_or_default();
        let streams = ClientStreams {
            stdout: fds.take_optional(slots.stdout, "stdout").map_err(failed)?,
            stderr: fds.take_optional(slots.stderr, "stderr").map_err(failed)?,
            stdin: fds.take_optional(slots.stdin, "stdin").map_err(failed)?,
        };
        let socket = fds.take_optional(slots.tty, "tty").map_err(failed)?;
        let (client, input) = (self.new_key(), self.new_key());
        let refused = |kind, message: &str| Failure::new(kind, &order.id, message);
        let container = self.containers.get_mut(&key);
        let container = container.filter(|container| container.pid().is_some());
        let container =
            container.ok_or_else(|| refused(FailureKind::NotRunning, "it is not running"))?;
        let output = &mut container.output;
        if streams.stdin.is_some() && !output.has_input() {
            return Err(refused(FailureKind::WrongState, "it reads nothing"));
        }
        let launch = |errno: Errno| Failure::new(FailureKind::Launch, "attach", errno.to_string());
        if let Some(socket) = socket {
            let terminal = output.terminal();
            let terminal =
                terminal.ok_or_else(|| refused(FailureKind::WrongState, "it has no terminal"))?;
            terminal::send(socket.as_fd(), terminal).map_err(launch)?;
        }
        let reactor = &mut self.reactor;
        let attached = output.attach((key, client), streams, input, reactor);
        attached.map_err(launch)
    }

    fn signal(&mut self, signal: &Signal) -> Result<(), Failure> {
        let key = self.find(&signal.id)?;
        let Some(container) = self.containers.get_mut(&key) else {
            return Ok(());
        };
        container.signal(signal.signal).map_err(|errno| {
            let message = format!("signal {}: {errno}", signal.signal);
            Failure::new(FailureKind::WrongState, &signal.id, message)
        })
    }

    /// Lets a log come to rest; answers when it has.
    fn settle_log(&mut self, id: &str, reply: ReplyTo) {
        let key = match self.find(id) {
            Ok(key) => key,
            Err(failure) => return self.reply(reply, Err(failure)),
        };
        let container = self.containers.get_mut(&key);
        match container.and_then(|container| container.output.log_mut()) {
            Some(log) => log.settle(reply, monotonic_now(), &mut self.reactor),
            None => return self.reply(reply, Err(no_log(id))),
        }
        self.tell_settled(key);
    }

    fn reopen_log(&mut self, order: &ReopenLog, mut fds: Fds) -> Result<(), Failure> {
        let key = self.find(&order.id)?;
        let wrong = |message: String| Failure::new(FailureKind::WrongState, &order.id, message);
        let container = self.containers.get_mut(&key);
        let log = container.and_then(|container| container.output.log_mut());
        let log = log.ok_or_else(|| no_log(&order.id))?;
        let file = match order.log_fd {
            Some(slot) => fds
                .take(Some(slot), "the log")
                .map_err(|error| wrong(error.to_string()))?,
            None => output::open_log(log.path())?,
        };
        log.reopen(file, &mut self.reactor);
        self.log_has_room(key);
        Ok(())
    }

    fn create(&mut self, create: Create, fds: Fds, mut reply: ReplyTo) {
        match self.begin_create(create, fds) {
            Ok(key) => {
                reply.step("begin the launch");
                self.trim_at = Some(monotonic_now() + REST);
                if let Some(container) = self.containers.get_mut(&key) {
                    container.expect_launch(reply);
                }
            }
            Err(failure) => self.reply(reply, Err(failure)),
        }
    }

    fn begin_create(&mut self, create: Create, fds: Fds) -> Result<u64, Failure> {
        if create.id.is_empty() || self.find(&create.id).is_ok() {
            return Err(Failure::new(
                FailureKind::Exists,
                &create.id,
                "container exists",
            ));
        }
        refuse_unused_slots(&create)?;
        let no_pod = || Failure::new(FailureKind::Protocol, "create", "there is no pod");
        if self.shutdown.is_some() {
            return Err(Failure::new(
                FailureKind::Protocol,
                "create",
                "the pod is shut down",
            ));
        }
        let pids = self.pids_for(&create)?;
        let key = self.new_key();
        let pod = self.pod.as_mut().ok_or_else(no_pod)?;
        let user_space = again(pod.user_space.as_ref())?;
        let launcher: &mut dyn Launcher = match create.launcher() {
            LauncherKind::Libcontainer | LauncherKind::Oci if user_space.is_some() => {
                let message = "only the native launcher makes containers in one";
                let kind = FailureKind::Unsupported;
                return Err(Failure::new(kind, "user namespace", message));
            }
            LauncherKind::Libcontainer | LauncherKind::Oci => {
                pod.launcher.as_mut().ok_or_else(no_pod)?
            }
            LauncherKind::Native => &mut self.native,
            LauncherKind::Unspecified => {
                let message = "this monitor knows no such launcher";
                return Err(Failure::new(FailureKind::Unsupported, "launcher", message));
            }
        };
        let container = Container::begin(
            key,
            (create, fds),
            (pids, user_space),
            launcher,
            &mut self.reactor,
        )?;
        self.containers.insert(key, container);
        Ok(key)
    }

    fn delete(&mut self, id: &str, reply: ReplyTo) {
        let Ok(key) = self.find(id) else {
            return self.reply(reply, Ok(DONE));
        };
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        match &container.state {
            State::Running { .. } => {
                let failure = Failure::new(FailureKind::WrongState, id, "it is still running");
                self.reply(reply, Err(failure));
            }
            State::Exited(_) if container.lingering.is_some() => container.deletes.push(reply),
            State::Exited(_) => {
                self.tell_exit(key);
                self.remove(key);
                self.reply(reply, Ok(DONE));
            }
            State::Launching { .. } => {
                container.kill();
                let failure = Failure::new(FailureKind::Launch, "create", "it was deleted");
                self.launch_failed(key, failure);
                self.reply(reply, Ok(DONE));
            }
            State::Created { .. } | State::Starting(_) => {
                container.kill();
                container.deletes.push(reply);
            }
        }
    }
}

/// The pod's user namespace, for one more process.
pub(crate) fn again(user_space: Option<&UserSpace>) -> Result<Option<UserSpace>, Failure> {
    let again = user_space.map(UserSpace::again).transpose();
    again.map_err(|errno| {
        let message = errno.to_string();
        Failure::new(FailureKind::Internal, "user namespace", message)
    })
}

/// Slots that this version has but does not use: asking for them and getting
/// something else would be worse than a refusal.
fn refuse_unused_slots(create: &Create) -> Result<(), Failure> {
    let used = [
        ("streams from the beginning", create.streams.is_some()),
        (
            "id-mapped mount",
            create.mounts.iter().any(|mount| mount.idmap_fd.is_some()),
        ),
    ];
    match used.iter().find(|(_, used)| *used) {
        Some((what, _)) => Err(Failure::new(
            FailureKind::Unsupported,
            what,
            "not in this version",
        )),
        None => Ok(()),
    }
}
