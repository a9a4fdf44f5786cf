//! The driver's side of D-Bus against a manager of the tests' own, over a socket pair.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use zbus::connection::Builder;
use zbus::{Connection, Guid, Message, OwnedObjectPath, OwnedVariant, interface};

use super::super::{CgroupPath, Hierarchies, Selection};
use super::Systemd;
use super::error::SystemdError;
use super::manager::{First, INTERFACE, Manager, OBJECT, Scope};

/// For what is to happen.
const LONG: Duration = Duration::from_secs(20);
/// For what never happens.
const SHORT: Duration = Duration::from_millis(300);
const UNIT: &str = "slipway-1.scope";

/// What the manager does with the next call that starts a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// The job ends so.
    End(&'static str),
    /// The job of another unit ends first, and another job of this one.
    EndAmongOthers,
    /// Somebody else on the bus says that the job failed, and that he is systemd now.
    Forged,
    /// systemd begins anew and has another name on the bus when the job ends.
    Anew,
    /// The job never ends.
    Hang,
    /// Another unit has the name.
    Exists,
    /// It was made; the connection ends before that is told.
    Cut,
    /// Properties like PIDFDs are not known.
    Old,
    Refuse,
}

#[derive(Default)]
struct State {
    acts: Mutex<Vec<Act>>,
    /// Properties of the units that were asked for.
    asked: Mutex<Vec<HashMap<String, OwnedVariant>>>,
    stopped: Mutex<Vec<String>>,
    connections: AtomicUsize,
    /// The manager's ends of all connections.
    ends: Mutex<Vec<Connection>>,
}

struct Fake(Arc<State>);

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop")]
enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    #[zbus(name = "systemd1.UnitExists")]
    UnitExists(String),
    #[zbus(name = "systemd1.NoSuchUnit")]
    NoSuchUnit(String),
    #[zbus(name = "DBus.Error.PropertyReadOnly")]
    UnknownProperty(String),
    #[zbus(name = "DBus.Error.NotSupported")]
    NotSupported(String),
}

async fn removed(connection: &Connection, number: u32, unit: &str, result: &str) {
    let body = (number, job(number), unit, result);
    let told = connection.emit_signal(None::<&str>, OBJECT, INTERFACE, "JobRemoved", &body);
    told.await.unwrap();
}

/// Tells as whoever has this name on the bus: nobody is kept from sending signals there.
async fn tell<B>(connection: &Connection, from: &str, signal: (&str, &str, &str), body: &B)
where
    B: serde::ser::Serialize + zbus::Type,
{
    let (path, interface, member) = signal;
    let message = Message::signal(path, interface, member).sender(from);
    let message = message.build(body).unwrap();
    connection.send(&message).await.unwrap();
}

const BUS: (&str, &str, &str) = (
    "/org/freedesktop/DBus",
    "org.freedesktop.DBus",
    "NameOwnerChanged",
);
const REMOVED: (&str, &str, &str) = (OBJECT, INTERFACE, "JobRemoved");

fn job(number: u32) -> OwnedObjectPath {
    let path = format!("/org/freedesktop/systemd1/job/{number}");
    path.try_into().unwrap()
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Fake {
    async fn subscribe(&self) {}

    #[expect(clippy::too_many_arguments, reason = "the arguments are systemd's")]
    async fn start_transient_unit(
        &self,
        name: String,
        _mode: String,
        properties: Vec<(String, OwnedVariant)>,
        _aux: Vec<(String, Vec<(String, OwnedVariant)>)>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Refusal> {
        let act = self.0.acts.lock().unwrap().remove(0);
        let properties: HashMap<_, _> = properties.into_iter().collect();
        if act == Act::Old && properties.contains_key("PIDFDs") {
            return Err(Refusal::UnknownProperty("PIDFDs".to_owned()));
        }
        self.0.asked.lock().unwrap().push(properties);
        match act {
            Act::End(result) => removed(connection, 7, &name, result).await,
            Act::EndAmongOthers => {
                removed(connection, 5, "other.service", "failed").await;
                removed(connection, 6, &name, "canceled").await;
                removed(connection, 7, &name, "done").await;
            }
            Act::Forged => {
                let body = ("org.freedesktop.systemd1", "", ":1.666");
                tell(connection, ":1.666", BUS, &body).await;
                let body = (7_u32, job(7), &name, "failed");
                tell(connection, ":1.666", REMOVED, &body).await;
                removed(connection, 7, &name, "done").await;
            }
            Act::Anew => {
                let body = ("org.freedesktop.systemd1", "", ":1.7");
                tell(connection, "org.freedesktop.DBus", BUS, &body).await;
                let body = (7_u32, job(7), &name, "done");
                tell(connection, ":1.7", REMOVED, &body).await;
            }
            Act::Hang | Act::Old => {}
            Act::Exists => return Err(Refusal::UnitExists(name)),
            Act::Cut => {
                connection.clone().close().await.unwrap();
            }
            Act::Refuse => return Err(Refusal::NotSupported(name)),
        }
        Ok(job(7))
    }

    async fn stop_unit(
        &self,
        name: String,
        _mode: String,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Refusal> {
        if name != UNIT {
            return Err(Refusal::NoSuchUnit(name));
        }
        removed(connection, 9, &name, "done").await;
        self.0.stopped.lock().unwrap().push(name);
        Ok(job(9))
    }

    async fn reset_failed_unit(&self, name: String) -> Result<(), Refusal> {
        Err(Refusal::NoSuchUnit(name))
    }

    #[zbus(property)]
    async fn version(&self) -> String {
        "257-of-the-tests".to_owned()
    }
}

/// A manager that acts so, and what it was asked.
fn manager(acts: &[Act]) -> (Manager, Arc<State>) {
    let state = Arc::new(State::default());
    acts.clone_into(&mut state.acts.lock().unwrap());
    let served = Arc::clone(&state);
    let dial = move || -> futures::future::BoxFuture<'static, _> {
        let state = Arc::clone(&served);
        Box::pin(async move {
            let (ours, theirs) = UnixStream::pair()?;
            state.connections.fetch_add(1, Ordering::SeqCst);
            let server = Builder::unix_stream(theirs)
                .server(Guid::generate())
                .p2p()
                .serve_at(OBJECT, Fake(Arc::clone(&state)));
            let client = Builder::unix_stream(ours).p2p();
            let (server, client) = tokio::try_join!(server.build(), client.build())?;
            state.ends.lock().unwrap().push(server);
            Ok(client)
        })
    };
    (Manager::new(Box::new(dial)), state)
}

fn scope<'a>(unit: &'a str, first: First<'a>) -> Scope<'a> {
    let slice = "a.slice";
    Scope { unit, slice, first }
}

async fn start(manager: &Manager, limit: Duration, is_it: bool) -> Result<(), SystemdError> {
    let first = First::Number(std::process::id());
    manager
        .start_scope(scope(UNIT, first), limit, &|| is_it)
        .await
}

#[tokio::test]
async fn a_scope_is_asked_for_and_its_own_job_awaited() {
    let (manager, state) = manager(&[Act::EndAmongOthers]);
    start(&manager, LONG, false).await.unwrap();
    let asked = state.asked.lock().unwrap();
    let text = |name: &str| String::try_from(asked[0][name].try_clone().unwrap()).unwrap();
    let flag = |name: &str| bool::try_from(asked[0][name].try_clone().unwrap()).unwrap();
    assert_eq!(text("Slice"), "a.slice");
    assert_eq!(text("CollectMode"), "inactive-or-failed");
    assert!(flag("Delegate") && !flag("DefaultDependencies"));
    let pids = Vec::<u32>::try_from(asked[0]["PIDs"].try_clone().unwrap()).unwrap();
    assert_eq!(pids, [std::process::id()]);
    assert_eq!(manager.trouble(), None);
}

#[tokio::test]
async fn a_job_that_fails_is_told_with_its_result() {
    for result in ["failed", "canceled", "timeout", "dependency"] {
        let (manager, _state) = manager(&[Act::End(result)]);
        let error = start(&manager, LONG, true).await.unwrap_err();
        let SystemdError::Job { result: told, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(told, result);
        assert!(error.to_string().contains(UNIT), "{error}");
        // systemd answers.
        assert_eq!(manager.trouble(), None);
    }
}

#[tokio::test]
async fn only_systemd_itself_is_believed_how_a_job_ended() {
    let (manager, _state) = manager(&[Act::Forged]);
    start(&manager, LONG, false).await.unwrap();
}

#[tokio::test]
async fn a_systemd_that_has_begun_anew_is_believed() {
    let (manager, _state) = manager(&[Act::Anew]);
    start(&manager, LONG, false).await.unwrap();
}

#[tokio::test]
async fn a_refusal_is_told_at_once() {
    let (manager, _state) = manager(&[Act::Refuse]);
    let error = start(&manager, LONG, false).await.unwrap_err();
    assert!(matches!(error, SystemdError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_manager_that_never_answers_holds_up_nobody_else() {
    let (manager, _state) = manager(&[Act::Hang, Act::End("done"), Act::End("done")]);
    let other = async {
        // Another unit of the same manager, over the same connection, while the first waits.
        let first = First::Number(1);
        let yes = || true;
        let started = manager.start_scope(scope("slipway-2.scope", first), LONG, &yes);
        started.await.unwrap();
    };
    let (hung, ()) = tokio::join!(start(&manager, SHORT, false), other);
    let error = hung.unwrap_err();
    assert!(matches!(error, SystemdError::Timeout { .. }), "{error}");
    assert!(error.to_string().contains(UNIT), "{error}");
    assert!(error.is_silence());
    let trouble = manager.trouble().unwrap();
    assert!(trouble.contains(UNIT), "{trouble}");
    start(&manager, LONG, false).await.unwrap();
    assert_eq!(manager.trouble(), None);
}

#[tokio::test]
async fn a_unit_that_exists_is_taken_only_where_it_is_the_one_asked_for() {
    let (manager, _state) = manager(&[Act::Exists, Act::Exists]);
    start(&manager, LONG, true).await.unwrap();
    let error = start(&manager, LONG, false).await.unwrap_err();
    assert!(matches!(error, SystemdError::Exists(_)), "{error}");
}

#[tokio::test]
async fn a_lost_connection_is_made_again_and_the_call_repeated() {
    let (manager, state) = manager(&[Act::Cut, Act::Exists]);
    // It was made by the first call.
    start(&manager, LONG, true).await.unwrap();
    assert_eq!(state.connections.load(Ordering::SeqCst), 2);
    assert_eq!(state.asked.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_connection_that_ends_while_nothing_is_asked_is_made_again() {
    let (manager, state) = manager(&[Act::End("done"), Act::End("done")]);
    start(&manager, LONG, false).await.unwrap();
    let end = state.ends.lock().unwrap().remove(0);
    end.close().await.unwrap();
    start(&manager, LONG, false).await.unwrap();
    assert_eq!(state.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_connection_that_ends_while_a_job_is_awaited_is_made_again() {
    let (manager, state) = manager(&[Act::Hang, Act::Exists]);
    let cut = async {
        while state.asked.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let end = state.ends.lock().unwrap().remove(0);
        end.close().await.unwrap();
    };
    let (started, ()) = tokio::join!(start(&manager, LONG, true), cut);
    started.unwrap();
}

#[tokio::test]
async fn no_bus_is_trouble_until_there_is_one() {
    let away = || -> futures::future::BoxFuture<'static, _> {
        Box::pin(async { Err(std::io::Error::from(std::io::ErrorKind::NotFound).into()) })
    };
    let manager = Manager::new(Box::new(away));
    let error = start(&manager, SHORT, false).await.unwrap_err();
    assert!(matches!(error, SystemdError::Unreachable(_)), "{error}");
    assert!(manager.trouble().unwrap().contains("D-Bus"));
}

#[tokio::test]
async fn an_older_systemd_says_that_it_takes_no_descriptors() {
    use std::os::fd::AsFd;
    let (manager, _state) = manager(&[Act::Old]);
    let own = rustix::process::getpid();
    let pidfd = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
    let first = First::Descriptor(pidfd.as_fd());
    let started = manager.start_scope(scope(UNIT, first), LONG, &|| false);
    let error = started.await.unwrap_err();
    assert!(matches!(error, SystemdError::NoDescriptors), "{error}");
}

#[tokio::test]
async fn a_unit_is_stopped_and_one_that_is_not_there_is_none() {
    let (manager, state) = manager(&[]);
    assert!(manager.stop(UNIT, LONG).await.unwrap());
    assert_eq!(*state.stopped.lock().unwrap(), [UNIT]);
    assert!(!manager.stop("slipway-3.scope", LONG).await.unwrap());
    assert_eq!(manager.version(LONG).await.unwrap(), "257-of-the-tests");
}

#[tokio::test]
async fn no_stranger_is_named_to_a_systemd_that_counts_otherwise() {
    let (manager, state) = manager(&[Act::Old, Act::EndAmongOthers]);
    let hierarchies = Hierarchies::detect(Selection::All).unwrap();
    let systemd = Systemd {
        same_numbers: false,
        ..Systemd::with(hierarchies, manager, LONG).unwrap()
    };
    let scope = "/a.slice/slipway-1.scope".parse::<CgroupPath>().unwrap();
    let own = std::process::id().cast_signed();
    let error = systemd.make_scope(&scope, own).await.unwrap_err();
    assert!(matches!(error, SystemdError::OtherNumbers), "{error}");
    assert!(
        state.asked.lock().unwrap().is_empty(),
        "nothing is asked for"
    );
}
