//! The monitor: its state and its loop.
//!
//! Owns connections, containers, processes that were run in them, and the pod.
//! Never waits for anything but events: a request that takes time leaves its
//! reply address where the work ends. When the monitor dies, first processes
//! that still wait for their start end too; running ones are the engine's to
//! kill, by their cgroups.

mod handover;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use runtime::launcher::{Libcontainer, Native};
use runtime::protocol::{
    self, Body, Envelope, Failure, FailureKind, Features, Incoming, Received, VERSION,
    monotonic_now,
};
use runtime::user_space::UserSpace;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{Pid, WaitStatus};

use crate::connection::{Connection, ReplyTo, Sent};
use crate::container::Container;
use crate::execs::{Delivery, Exec};
use crate::handover as upgrade;
use crate::logs;
use crate::output::{Output, Scratch};
use crate::reactor::{Key, Reactor, Source};
use crate::startup::Descriptors;

/// How long a shutdown waits for processes that were killed.
const SHUTDOWN_TIME: Duration = Duration::from_secs(5);

/// A pod that is set up.
#[derive(Debug)]
pub(crate) struct Pod {
    /// Its id.
    pub(crate) id: String,
    /// Where its exit records go.
    pub(crate) exit_dir: PathBuf,
    /// The path of the monitor's socket, short and by descriptor.
    pub(crate) socket: SocketFile,
    /// Makes its containers.
    pub(crate) launcher: Option<Libcontainer>,
    /// PID 1 of its own pid namespace.
    pub(crate) init: Option<Pid>,
    /// The user namespace that all of its processes are made in.
    pub(crate) user_space: Option<UserSpace>,
}

/// The socket's name in the file system.
#[derive(Debug)]
pub(crate) struct SocketFile {
    /// The pod's state directory.
    pub(crate) directory: OwnedFd,
    /// Listens.
    pub(crate) listener: OwnedFd,
}

/// A shutdown that was asked for.
#[derive(Debug)]
pub(crate) struct Shutdown {
    /// Who asked.
    pub(crate) replies: Vec<ReplyTo>,
    /// When it is over in any case, monotonic nanoseconds.
    pub(crate) deadline: u64,
    /// Whether only logs are waited for.
    pub(crate) only_logs: bool,
}

/// A monitor.
#[derive(Debug)]
pub(crate) struct Monitor {
    /// What is waited for.
    pub(crate) reactor: Reactor,
    /// Descriptors from its start.
    pub(crate) descriptors: Descriptors,
    connections: BTreeMap<u64, Connection>,
    /// Makes containers without a helper.
    pub(crate) native: Native,
    /// The pod, once there is one.
    pub(crate) pod: Option<Pod>,
    /// Whether a setup was tried: there is no second one.
    pub(crate) setup_tried: bool,
    /// Containers in order of creation.
    pub(crate) containers: BTreeMap<Key, Container>,
    /// What forgotten containers wrote, as long as their logs have not taken it.
    pub(crate) leaving: VecDeque<Output>,
    /// Processes that were run in containers.
    pub(crate) execs: BTreeMap<i32, Exec>,
    /// Processes that were run and have ended, while what they wrote is on its way.
    pub(crate) delivered: Vec<Delivery>,
    /// Children that ended while a launcher might still tell who they are.
    pub(crate) unknown_exits: Vec<(Pid, WaitStatus)>,
    /// Helpers of launches that were given up or are not quite over: killed, not
    /// reaped.
    pub(crate) dying: Vec<Pid>,
    /// Set when it is asked to end.
    pub(crate) shutdown: Option<Shutdown>,
    /// Buffers for output.
    pub(crate) scratch: Scratch,
    /// When memory that a launch needed is given back, monotonic nanoseconds.
    pub(crate) trim_at: Option<u64>,
    next_key: Key,
    /// Which build this is.
    pub(crate) build: String,
    /// Who asked for the upgrade that led to this program.
    asked: Option<protocol::HandoverReply>,
}

impl Monitor {
    /// A monitor with one connection.
    pub(crate) fn new(
        mut reactor: Reactor,
        descriptors: Descriptors,
        channel: OwnedFd,
    ) -> Result<Self, Errno> {
        reactor.watch(descriptors.signals.as_fd(), Source::Signals)?;
        let mut monitor = Self {
            reactor,
            descriptors,
            connections: BTreeMap::new(),
            native: Native::default(),
            pod: None,
            setup_tried: false,
            containers: BTreeMap::new(),
            leaving: VecDeque::new(),
            execs: BTreeMap::new(),
            delivered: Vec::new(),
            unknown_exits: Vec::new(),
            dying: Vec::new(),
            shutdown: None,
            scratch: Scratch::default(),
            trim_at: None,
            next_key: 0,
            build: std::env::var(upgrade::BUILD).unwrap_or_default(),
            asked: None,
        };
        monitor.connect(channel)?;
        Ok(monitor)
    }

    /// Serves until it is shut down or, without a pod, left alone.
    pub(crate) fn run(mut self) -> Result<(), Errno> {
        self.live()
    }

    /// Serves where another build was.
    pub(crate) fn go_on_with(mut self) -> Result<(), Errno> {
        let asked = self.asked.take();
        upgrade::begin(&mut self, asked);
        self.live()
    }

    /// Goes on as a copy of the process that made this monitor: what it waited for
    /// is waited for anew, since what it heard was about its own children.
    pub(crate) fn go_on(&mut self) -> Result<(), Errno> {
        rustix::process::setsid()?;
        let mut reactor = Reactor::new()?;
        reactor.watch(self.descriptors.signals.as_fd(), Source::Signals)?;
        for (number, connection) in &mut self.connections {
            let source = Source::Connection(*number);
            connection.token = reactor.watch(connection.socket(), source)?;
        }
        self.reactor = reactor;
        Ok(())
    }

    pub(crate) fn live(&mut self) -> Result<(), Errno> {
        while !self.is_done() {
            let timeout = self
                .next_deadline()
                .map(|deadline| Duration::from_nanos(deadline.saturating_sub(monotonic_now())));
            for source in self.reactor.wait(timeout)? {
                self.handle(source);
            }
            self.meet_deadlines();
        }
        self.say_goodbye();
        Ok(())
    }

    /// A number that no container of this monitor had.
    pub(crate) fn new_key(&mut self) -> Key {
        self.next_key += 1;
        self.next_key
    }

    /// The number of a container.
    pub(crate) fn find(&self, id: &str) -> Result<Key, Failure> {
        self.containers
            .iter()
            .find(|(_, container)| container.id == id)
            .map(|(key, _)| *key)
            .ok_or_else(|| Failure::new(FailureKind::UnknownContainer, id, "no such container"))
    }

    /// Answers a request.
    pub(crate) fn reply(&mut self, to: ReplyTo, result: Result<Body, Failure>) {
        let connection = to.connection;
        self.send(connection, to.answer(result));
    }

    /// Whether an engine is still there.
    pub(crate) fn is_connected(&self, connection: u64) -> bool {
        self.connections.contains_key(&connection)
    }

    /// Tells every engine that is connected.
    pub(crate) fn broadcast(&mut self, body: &Body) {
        let all: Vec<u64> = self.connections.keys().copied().collect();
        for connection in all {
            self.tell(connection, body.clone());
        }
    }

    /// Tells one engine.
    pub(crate) fn tell(&mut self, connection: u64, body: Body) {
        let envelope = Envelope {
            version: VERSION,
            sent_at: monotonic_now(),
            body: Some(body),
            ..Envelope::default()
        };
        self.send(connection, envelope);
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Signals => self.reap(),
            Source::Listener => self.accept(),
            Source::Connection(number) => self.serve(number),
            Source::Launch(key) => self.launch_progress(key),
            Source::Start(key) => self.start_progress(key),
            Source::Output(key, stream) => self.read_output(key, stream),
            Source::Log(key) => self.log_has_room(key),
            Source::Tap(key) => self.look_at_tap(key),
            Source::Client(key, client) => self.look_at_client((key, client)),
        }
    }

    /// Takes over a connected socket.
    fn connect(&mut self, socket: OwnedFd) -> Result<(), Errno> {
        let number = self.new_key();
        let token = self
            .reactor
            .watch(socket.as_fd(), Source::Connection(number))?;
        self.connections
            .insert(number, Connection::new(socket, token));
        Ok(())
    }

    fn accept(&mut self) {
        let Some(pod) = &self.pod else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        if let Ok(socket) = rustix::net::accept_with(&pod.socket.listener, flags) {
            // One that cannot be watched is closed: its engine sees that.
            let _closed = self.connect(socket);
        }
    }

    /// Reads one packet; epoll tells if there are more.
    fn serve(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let sent = connection.flush();
        let received = protocol::receive(connection.socket());
        self.after_send(number, sent);
        match received {
            Ok(Received::Packet(incoming)) => self.receive(number, *incoming),
            Ok(Received::Nothing) => {}
            Ok(Received::Closed) | Err(_) => self.disconnect(number),
        }
    }

    fn receive(&mut self, number: u64, incoming: Incoming) {
        let Incoming { envelope, fds, at } = incoming;
        let reply = ReplyTo::new(number, envelope.request, at);
        if !protocol::understands(envelope.version) {
            let message = format!(
                "monitor {} speaks version {VERSION}, the engine {}",
                env!("CARGO_PKG_VERSION"),
                envelope.version
            );
            return self.reply(
                reply,
                Err(Failure::new(FailureKind::Protocol, "version", message)),
            );
        }
        let required = Features::from_bits(envelope.requires);
        if !Features::known().has(required) {
            let missing = required.missing_in(Features::known()).join(", ");
            let failure = Failure::new(FailureKind::Unsupported, &missing, "not in this monitor");
            return self.reply(reply, Err(failure));
        }
        match envelope.body {
            Some(body) => self.request(body, fds, reply),
            None => {
                let failure = Failure::new(
                    FailureKind::Protocol,
                    "request",
                    "this monitor knows none such",
                );
                self.reply(reply, Err(failure));
            }
        }
    }

    fn send(&mut self, number: u64, envelope: Envelope) {
        if let Some(connection) = self.connections.get_mut(&number) {
            let sent = connection.send(envelope);
            self.after_send(number, sent);
        }
    }

    fn after_send(&mut self, number: u64, sent: Sent) {
        let Some(connection) = self.connections.get(&number) else {
            return;
        };
        let socket = connection.socket();
        let watched = self
            .reactor
            .want_room(socket, connection.token, sent == Sent::Waiting);
        if sent == Sent::Broken || watched.is_err() {
            self.disconnect(number);
        }
    }

    fn disconnect(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            self.reactor.unwatch(connection.socket(), connection.token);
            self.end_unwanted_execs(|asked| asked.connection == number);
        }
    }

    /// Begins to end: kills everything, answers when all is reaped.
    pub(crate) fn begin_shutdown(&mut self, reply: ReplyTo) {
        if let Some(shutdown) = &mut self.shutdown {
            shutdown.replies.push(reply);
            return;
        }
        let nanoseconds = u64::try_from(SHUTDOWN_TIME.as_nanos()).unwrap_or(u64::MAX);
        let deadline = monotonic_now().saturating_add(nanoseconds);
        self.shutdown = Some(Shutdown {
            replies: vec![reply],
            deadline,
            only_logs: false,
        });
        self.kill_everything();
    }

    fn is_done(&mut self) -> bool {
        let Some(shutdown) = &self.shutdown else {
            // An idle monitor lives as long as its engine wants it.
            return self.pod.is_none() && self.connections.is_empty();
        };
        if monotonic_now() >= shutdown.deadline {
            return true;
        }
        if !self.is_empty() {
            return false;
        }
        // Nobody writes any more; what was written may wait for a disk.
        if self.wind_up_logs() {
            return true;
        }
        let latest = monotonic_now().saturating_add(logs::PATIENCE);
        if let Some(shutdown) = &mut self.shutdown
            && !std::mem::replace(&mut shutdown.only_logs, true)
        {
            shutdown.deadline = shutdown.deadline.min(latest);
        }
        false
    }

    fn is_empty(&self) -> bool {
        let no_init = self.pod.as_ref().is_none_or(|pod| pod.init.is_none());
        no_init
            && self.execs.is_empty()
            && self.delivered.is_empty()
            && self.dying.is_empty()
            && self.containers.values().all(Container::is_over)
            && self
                .containers
                .values()
                .all(|container| container.helper().is_none())
    }

    fn say_goodbye(&mut self) {
        self.tell_all_exits();
        if let Some(pod) = &self.pod {
            crate::setup::remove_files(pod);
        }
        for reply in self
            .shutdown
            .take()
            .map(|shutdown| shutdown.replies)
            .unwrap_or_default()
        {
            self.reply(reply, Ok(Body::Done(protocol::Empty {})));
        }
    }
}
