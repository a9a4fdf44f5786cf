//! systemd's manager, as it is asked over D-Bus.
//!
//! Owns one connection, made when it is needed, shared by all calls and made again after it
//! broke: when the message bus or systemd starts anew. Jobs are waited for by the signal
//! `JobRemoved`, which one task for each connection hands to whoever waits for the unit;
//! nothing is queued for those who do not, so that no burst of jobs stops the connection. A
//! system bus lets everybody send signals, so that only those of the name's owner count. No
//! lock is held while systemd is waited for. A crash loses the connection and nothing else.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zbus::message::Type;
use zbus::names::{OwnedUniqueName, UniqueName};
use zbus::{Connection, DBusError, Fd, MatchRule, MessageStream, OwnedObjectPath, Variant};

use super::error::{SystemdError, causes};

const SERVICE: &str = "org.freedesktop.systemd1";
pub(super) const OBJECT: &str = "/org/freedesktop/systemd1";
pub(super) const INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// The bus itself, as an interface and as a sender.
const BUS: &str = "org.freedesktop.DBus";
const BUS_OBJECT: &str = "/org/freedesktop/DBus";

/// The first pause before a broken connection is made again, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Errors of the bus that say that systemd is away for a moment: it starts anew, or the bus.
const PASSING: [&str; 5] = [
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.Disconnected",
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.Timeout",
];
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
/// What systemd says of properties that it does not know.
const UNKNOWN_PROPERTY: &str = "org.freedesktop.DBus.Error.PropertyReadOnly";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// Makes a connection.
pub(super) type Dial = Box<dyn Fn() -> BoxFuture<'static, zbus::Result<Connection>> + Send + Sync>;

/// The end of a job: the job, and systemd's word for how it ended.
type End = (OwnedObjectPath, String);

/// How systemd is told of the process that a scope begins with.
#[derive(Debug, Clone, Copy)]
pub(super) enum First<'a> {
    /// By a descriptor, which is never another's: newer systemds.
    Descriptor(BorrowedFd<'a>),
    /// By its number in systemd's namespace of processes.
    Number(u32),
}

impl<'a> First<'a> {
    fn property(self) -> (&'static str, Variant<'a>) {
        match self {
            Self::Descriptor(pidfd) => ("PIDFDs", Variant::from(vec![Fd::from(pidfd)])),
            Self::Number(pid) => ("PIDs", Variant::from(vec![pid])),
        }
    }
}

/// A scope to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    /// Its name.
    pub(super) unit: &'a str,
    /// The name of the slice that it goes into.
    pub(super) slice: &'a str,
    /// The process that it begins with.
    pub(super) first: First<'a>,
}

/// systemd's manager.
pub(super) struct Manager {
    dial: Dial,
    link: tokio::sync::Mutex<Option<Arc<Link>>>,
    trouble: Mutex<Option<String>>,
}

impl fmt::Debug for Manager {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Manager").finish_non_exhaustive()
    }
}

/// One connection.
struct Link {
    connection: Connection,
    jobs: Arc<Jobs>,
    listening: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Who waits for jobs, by unit. `None` once the connection has ended.
struct Jobs(Mutex<Option<HashMap<String, mpsc::UnboundedSender<End>>>>);

impl Jobs {
    fn with<T>(
        &self,
        work: impl FnOnce(&mut Option<HashMap<String, mpsc::UnboundedSender<End>>>) -> T,
    ) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends of jobs of this unit from now on. A second wait for a unit ends the first.
    fn of(self: &Arc<Self>, unit: &str) -> Wait {
        let (sender, ends) = mpsc::unbounded_channel();
        self.with(|waiting| {
            waiting
                .as_mut()
                .map(|waiting| waiting.insert(unit.to_owned(), sender.clone()))
        });
        Wait {
            jobs: Arc::clone(self),
            unit: unit.to_owned(),
            sender: sender.downgrade(),
            ends,
        }
    }

    fn ended(&self, unit: &str, end: End) {
        self.with(|waiting| {
            let waiter = waiting.as_ref().and_then(|waiting| waiting.get(unit));
            // Whoever does not listen any more needs nothing.
            waiter.is_some_and(|waiter| waiter.send(end).is_ok())
        });
    }
}

/// A wait for the jobs of a unit.
struct Wait {
    jobs: Arc<Jobs>,
    unit: String,
    sender: mpsc::WeakUnboundedSender<End>,
    ends: mpsc::UnboundedReceiver<End>,
}

impl Wait {
    /// How this job ended.
    async fn job(&mut self, job: &OwnedObjectPath) -> Result<String, SystemdError> {
        while let Some((path, result)) = self.ends.recv().await {
            if path == *job {
                return Ok(result);
            }
        }
        Err(SystemdError::Lost)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.jobs.with(|waiting| {
            let own = self.sender.upgrade();
            if let (Some(waiting), Some(own)) = (waiting, own)
                && waiting
                    .get(&self.unit)
                    .is_some_and(|there| there.same_channel(&own))
            {
                waiting.remove(&self.unit);
            }
        });
    }
}

/// What an error of the bus means.
enum Meaning {
    /// systemd is away for a moment.
    Passing,
    Exists,
    NoSuchUnit,
    /// A property is not known.
    Unknown,
    Refused,
}

fn meaning(error: &zbus::Error) -> Meaning {
    let name = match error {
        zbus::Error::MethodError(name, ..) => name.as_str().to_owned(),
        zbus::Error::FDO(error) => error.name().as_str().to_owned(),
        // The connection, whatever became of it.
        _ => return Meaning::Passing,
    };
    match name.as_str() {
        UNIT_EXISTS => Meaning::Exists,
        NO_SUCH_UNIT => Meaning::NoSuchUnit,
        UNKNOWN_PROPERTY => Meaning::Unknown,
        name if PASSING.contains(&name) => Meaning::Passing,
        _ => Meaning::Refused,
    }
}

/// One try.
enum Tried<T> {
    Done(T),
    /// The connection broke, or systemd is away.
    Again(SystemdError),
}

impl Manager {
    /// Connects when something is asked.
    pub(super) fn new(dial: Dial) -> Self {
        Self {
            dial,
            link: tokio::sync::Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    /// Why systemd could not be reached the last time it was tried.
    pub(super) fn trouble(&self) -> Option<String> {
        self.noted().clone()
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version that systemd tells.
    pub(super) async fn version(&self, limit: Duration) -> Result<String, SystemdError> {
        self.within(limit, "tell of", SERVICE, |link| {
            async move {
                let asked = link.connection.call_method(
                    Some(SERVICE),
                    OBJECT,
                    Some(PROPERTIES),
                    "Get",
                    &(INTERFACE, "Version"),
                );
                match asked.await {
                    Ok(answer) => {
                        let body = answer.body();
                        let version = body.deserialize::<Variant<'_>>();
                        let version = version.and_then(String::try_from);
                        version.map(Tried::Done).map_err(unreachable)
                    }
                    Err(error) => Ok(Tried::Again(unreachable(error))),
                }
            }
            .boxed()
        })
        .await
    }

    /// Has a scope made in a slice, for a process that it begins with, and waits until it
    /// is. Where a unit of this name is there already, `is_it` tells whether it is this one:
    /// a connection may have ended after systemd was asked.
    pub(super) async fn start_scope(
        &self,
        scope: Scope<'_>,
        limit: Duration,
        is_it: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), SystemdError> {
        let Scope { unit, slice, first } = scope;
        self.within(limit, "start", unit, |link| {
            async move {
                let mut wait = link.jobs.of(unit);
                let properties: Vec<(&str, Variant<'_>)> = vec![
                    (
                        "Description",
                        Variant::from(format!("Pod of Slipway, {unit}")),
                    ),
                    ("Slice", Variant::from(slice)),
                    first.property(),
                    // What is below it is the engine's, and no controller is taken away there.
                    ("Delegate", Variant::from(true)),
                    // Pods are ended by whoever runs them, not by a shutdown of units.
                    ("DefaultDependencies", Variant::from(false)),
                    // Gone once nothing is in it, however its processes ended.
                    ("CollectMode", Variant::from("inactive-or-failed")),
                    // The kubelet limits the pod by its slice.
                    ("TasksMax", Variant::from(u64::MAX)),
                ];
                let others: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
                let body = (unit, "fail", properties, others);
                let asked = link.connection.call_method(
                    Some(SERVICE),
                    OBJECT,
                    Some(INTERFACE),
                    "StartTransientUnit",
                    &body,
                );
                match asked.await {
                    Ok(answer) => finish(unit, &answer, &mut wait).await,
                    Err(error) => match meaning(&error) {
                        Meaning::Exists if is_it() => Ok(Tried::Done(())),
                        Meaning::Exists => Err(SystemdError::Exists(unit.to_owned())),
                        Meaning::Passing => Ok(Tried::Again(unreachable(error))),
                        Meaning::Unknown if matches!(first, First::Descriptor(_)) => {
                            Err(SystemdError::NoDescriptors)
                        }
                        Meaning::NoSuchUnit | Meaning::Unknown | Meaning::Refused => {
                            Err(SystemdError::Refused {
                                what: "start",
                                unit: unit.to_owned(),
                                source: Box::new(error),
                            })
                        }
                    },
                }
            }
            .boxed()
        })
        .await
    }

    /// Has a unit stopped and forgotten, and waits until it is; `false` where systemd knows
    /// none of this name.
    pub(super) async fn stop(&self, unit: &str, limit: Duration) -> Result<bool, SystemdError> {
        self.within(limit, "stop", unit, |link| {
            async move {
                let mut wait = link.jobs.of(unit);
                let body = (unit, "replace");
                let asked = link.connection.call_method(
                    Some(SERVICE),
                    OBJECT,
                    Some(INTERFACE),
                    "StopUnit",
                    &body,
                );
                let there = match asked.await {
                    Ok(answer) => match finish(unit, &answer, &mut wait).await? {
                        Tried::Done(()) => true,
                        Tried::Again(error) => return Ok(Tried::Again(error)),
                    },
                    Err(error) => match meaning(&error) {
                        Meaning::NoSuchUnit => false,
                        Meaning::Passing => return Ok(Tried::Again(unreachable(error))),
                        Meaning::Exists | Meaning::Unknown | Meaning::Refused => {
                            return Err(SystemdError::Refused {
                                what: "stop",
                                unit: unit.to_owned(),
                                source: Box::new(error),
                            });
                        }
                    },
                };
                // One that has failed keeps its name until it is reset, whatever its mode of
                // collection: nothing there is what is hoped for.
                let reset = link.connection.call_method(
                    Some(SERVICE),
                    OBJECT,
                    Some(INTERFACE),
                    "ResetFailedUnit",
                    &(unit),
                );
                if let Err(error) = reset.await {
                    tracing::trace!(unit, %error, "nothing to reset");
                }
                Ok(Tried::Done(there))
            }
            .boxed()
        })
        .await
    }

    /// Tries until it is done or refused, over a new connection where one broke.
    async fn within<'a, T>(
        &self,
        limit: Duration,
        what: &'static str,
        unit: &str,
        work: impl Fn(Arc<Link>) -> BoxFuture<'a, Result<Tried<T>, SystemdError>> + Send + Sync,
    ) -> Result<T, SystemdError> {
        let mut last = None;
        let trying = async {
            let (mut pause, longest) = PAUSES;
            loop {
                let link = self.link().await;
                let error = match link {
                    Ok(link) => match work(Arc::clone(&link)).await {
                        Ok(Tried::Done(done)) => return Ok(done),
                        Ok(Tried::Again(error)) => {
                            self.drop_link(&link).await;
                            error
                        }
                        Err(SystemdError::Lost) => {
                            self.drop_link(&link).await;
                            SystemdError::Lost
                        }
                        Err(error) => return Err(error),
                    },
                    Err(error) => unreachable(error),
                };
                tracing::debug!(unit, ?error, "systemd is asked again");
                last = Some(error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        };
        let result = match tokio::time::timeout(limit, trying).await {
            Ok(result) => result,
            Err(_) => Err(last.unwrap_or_else(|| SystemdError::Timeout {
                what,
                unit: unit.to_owned(),
                limit,
            })),
        };
        *self.noted() = match &result {
            Err(error) if error.is_silence() => Some(causes(error)),
            // It answers.
            _ => None,
        };
        result
    }

    /// The connection, made if there is none.
    async fn link(&self) -> zbus::Result<Arc<Link>> {
        let mut link = self.link.lock().await;
        if let Some(link) = &*link {
            return Ok(Arc::clone(link));
        }
        let made = Arc::new(Link::new((self.dial)().await?).await?);
        *link = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Gives up a connection, if another one is not there already.
    async fn drop_link(&self, broken: &Arc<Link>) {
        let mut link = self.link.lock().await;
        if link.as_ref().is_some_and(|link| Arc::ptr_eq(link, broken)) {
            *link = None;
        }
    }
}

fn unreachable(error: zbus::Error) -> SystemdError {
    SystemdError::Unreachable(Box::new(error))
}

/// Waits for the job that an answer names.
async fn finish(
    unit: &str,
    answer: &zbus::Message,
    wait: &mut Wait,
) -> Result<Tried<()>, SystemdError> {
    let job: OwnedObjectPath = match answer.body().deserialize() {
        Ok(job) => job,
        Err(error) => return Ok(Tried::Again(unreachable(error))),
    };
    match wait.job(&job).await?.as_str() {
        "done" => Ok(Tried::Done(())),
        result => Err(SystemdError::Job {
            unit: unit.to_owned(),
            result: result.to_owned(),
        }),
    }
}

impl Link {
    /// Has systemd tell ends of jobs, and listens for them.
    async fn new(connection: Connection) -> zbus::Result<Self> {
        let rule = |path, interface, member| {
            let rule = MatchRule::builder().msg_type(Type::Signal);
            rule.path(path).interface(interface).member(member)
        };
        let changes = rule(BUS_OBJECT, BUS, "NameOwnerChanged");
        let changes = changes.sender(BUS).arg(0, SERVICE).build()?;
        let changes = MessageStream::for_match_rule(changes, &connection, None).await?;
        let subscribed =
            connection.call_method(Some(SERVICE), OBJECT, Some(INTERFACE), "Subscribe", &());
        // The bus lets nobody answer but who was asked.
        let owner = Owner {
            name: sender(&subscribed.await?),
            changes,
        };
        let signals = rule(OBJECT, INTERFACE, "JobRemoved").build()?;
        let signals = MessageStream::for_match_rule(signals, &connection, None).await?;
        let jobs = Arc::new(Jobs(Mutex::new(Some(HashMap::new()))));
        let listening = tokio::spawn(listen(signals, owner, Arc::clone(&jobs)));
        Ok(Self {
            connection,
            jobs,
            listening,
        })
    }
}

/// Who systemd is on the bus: it gets another name there when it begins anew.
struct Owner {
    /// `None`: nobody, or there is no bus between.
    name: Option<OwnedUniqueName>,
    changes: MessageStream,
}

impl Owner {
    /// Whether a signal comes from it. What the bus has told before the signal is known.
    fn has_sent(&mut self, signal: &zbus::Message) -> bool {
        let sender = sender(signal);
        while sender != self.name
            && let Some(Some(Ok(change))) = self.changes.next().now_or_never()
        {
            self.note(&change);
        }
        sender == self.name
    }

    fn note(&mut self, change: &zbus::Message) {
        let is_bus = sender(change).is_some_and(|sender| sender.as_str() == BUS);
        type Change = (String, String, String);
        if is_bus
            && let Ok((name, _, owner)) = change.body().deserialize::<Change>()
            && name == SERVICE
        {
            self.name = UniqueName::try_from(owner).ok().map(Into::into);
        }
    }
}

fn sender(message: &zbus::Message) -> Option<OwnedUniqueName> {
    let header = message.header();
    header.sender().map(|sender| sender.to_owned().into())
}

/// Hands ends of jobs on until the connection ends.
async fn listen(mut signals: MessageStream, mut owner: Owner, jobs: Arc<Jobs>) {
    loop {
        let signal = tokio::select! {
            biased;
            Some(Ok(change)) = owner.changes.next() => {
                owner.note(&change);
                continue;
            }
            signal = signals.next() => signal,
        };
        let Some(Ok(signal)) = signal else { break };
        if !owner.has_sent(&signal) {
            continue;
        }
        type Removed = (u32, OwnedObjectPath, String, String);
        match signal.body().deserialize::<Removed>() {
            Ok((_, job, unit, result)) => jobs.ended(&unit, (job, result)),
            Err(error) => tracing::warn!(%error, "a signal of systemd's cannot be read"),
        }
    }
    // Whoever waits sees that nobody tells any more.
    jobs.with(|waiting| *waiting = None);
}
