//! The one owner of a pod: takes commands, events of the monitor and results of
//! its own jobs one by one, steps the state machines, writes the records and
//! publishes the view.
//!
//! It never waits: everything that takes time is a job whose result comes back
//! as a message. A caller that goes away takes nothing with it: only its reply
//! channel is lost. A crash leaves the records as of the last transition.

mod commands;
mod ending;
mod reply;
mod results;

pub(crate) use reply::Reply;
pub(crate) use results::exit_of;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use runtime::client::steps::{self, Mark, Steps};
use runtime::client::{Event, Monitor};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::container::Made;
use super::error::PodError;
use super::index::Inbox;
use super::launch::Launched;
use super::machine::{Phase, State};
use super::record::{ContainerRecord, PodDir, PodRecord};
use super::view::{ContainerView, PodView};
use crate::engine::{Engine, now};
use crate::ids::{ContainerId, PodId};
use crate::model::{ContainerConfig, ContainerKey, Resources, SandboxConfig};
use reply::{answer, respond, steps_of};

/// What a pod's task can be asked.
pub(crate) enum Command {
    /// Answer the id once the sandbox is ready.
    Join(Reply<PodId>),
    Create(Box<ContainerConfig>, Reply<ContainerId>),
    Start(ContainerId, Reply<()>),
    Stop(ContainerId, Duration, Reply<()>),
    RemoveContainer(ContainerId, Reply<()>),
    Update(ContainerId, Resources, Reply<()>),
    ReopenLog(ContainerId, Reply<()>),
    StopPod(Reply<()>),
    RemovePod(Reply<()>),
}

/// What a job came to.
enum Done {
    Launched(Result<Box<Launched>, PodError>),
    Created(ContainerId, Result<Box<Made>, PodError>),
    Started(ContainerId, Result<i64, PodError>),
    GraceOver(ContainerId),
    /// A signal was sent, or a cgroup given back; nothing follows from it.
    Quiet,
    Updated(ContainerId, Resources, Result<(), PodError>, Reply<()>),
    ContainerRemoved(ContainerId, Result<(), PodError>),
    /// What a dead monitor left was killed.
    /// Names the containers whose processes are still there.
    Orphaned(Result<Vec<ContainerId>, PodError>),
    Down(Result<(), PodError>),
    Removed(Result<(), PodError>),
    /// Time to try again what failed.
    Retry,
    RetryOrphans,
}

/// A container of this pod.
struct Slot {
    record: ContainerRecord,
    pid: Option<i32>,
    view: Option<Arc<ContainerView>>,
    creating: Vec<Reply<ContainerId>>,
    starting: Vec<Reply<()>>,
    stopping: Vec<Reply<()>>,
    /// Not empty: it is removed as soon as it has ended.
    removing: Vec<Reply<()>>,
    removal_runs: bool,
    /// Updates wait for each other: each starts from what the last one left.
    updates: VecDeque<(Resources, Reply<()>)>,
    update_runs: bool,
    /// Whether its log takes nothing for the time being.
    log_stalled: bool,
}

impl Slot {
    fn new(record: ContainerRecord, pid: Option<i32>) -> Self {
        Self {
            record,
            pid,
            view: None,
            creating: Vec::new(),
            starting: Vec::new(),
            stopping: Vec::new(),
            removing: Vec::new(),
            removal_runs: false,
            updates: VecDeque::new(),
            update_runs: false,
            log_stalled: false,
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.record.state, State::Exited(_))
    }
}

/// A pod's task.
pub(crate) struct Task {
    engine: Arc<Engine>,
    record: PodRecord,
    dir: PodDir,
    inbox: mpsc::UnboundedReceiver<Command>,
    events: Option<mpsc::UnboundedReceiver<Event>>,
    monitor: Option<Monitor>,
    /// Boxed: a node of the map has room for eleven, and most pods have one or two.
    slots: BTreeMap<ContainerId, Box<Slot>>,
    keys: HashMap<ContainerKey, ContainerId>,
    jobs: JoinSet<Done>,
    /// Commands that wait until the sandbox is started.
    deferred: Vec<Command>,
    joining: Vec<Reply<PodId>>,
    stopping: Vec<Reply<()>>,
    removing: Vec<Reply<()>>,
    teardown_runs: bool,
    removal_runs: bool,
    /// The sandbox is forgotten; the task ends.
    finished: bool,
    /// Of the call that the work of this moment is for.
    steps: Option<Steps>,
}

/// What a restart found of a pod.
pub(crate) struct Restored {
    pub(crate) record: PodRecord,
    pub(crate) containers: Vec<(ContainerRecord, Option<i32>)>,
    pub(crate) monitor: Option<(Monitor, mpsc::UnboundedReceiver<Event>)>,
}

/// Starts the task of a new pod, which launches the sandbox first.
pub(crate) fn start(
    engine: Arc<Engine>,
    record: PodRecord,
    inbox: mpsc::UnboundedReceiver<Command>,
) {
    let mut task = Task::new(engine, record, inbox);
    task.steps = Steps::current();
    let launch = super::launch::launch(Arc::clone(&task.engine), task.record.clone());
    task.job(async move { launch.await.map(Box::new) }, Done::Launched);
    tokio::spawn(Box::new(task).run());
}

/// Starts the task of a pod that an earlier engine left.
pub(crate) fn resume(
    engine: Arc<Engine>,
    restored: Restored,
    inbox: mpsc::UnboundedReceiver<Command>,
) {
    let Restored {
        record,
        containers,
        monitor,
    } = restored;
    let mut task = Task::new(engine, record, inbox);
    if let Some((monitor, events)) = monitor {
        task.monitor = Some(monitor);
        task.events = Some(events);
    }
    for (record, pid) in containers {
        task.keys
            .insert(record.config.key.clone(), record.id.clone());
        let slot = Box::new(Slot::new(record, pid));
        task.slots.insert(slot.record.id.clone(), slot);
    }
    let ids: Vec<ContainerId> = task.slots.keys().cloned().collect();
    for id in ids {
        task.refresh(&id);
    }
    task.publish();
    task.carry_on();
    tokio::spawn(Box::new(task).run());
}

/// Answers everything that is asked of a sandbox whose record cannot be read.
pub(crate) async fn refuse_all(id: PodId, mut inbox: mpsc::UnboundedReceiver<Command>) {
    while let Some(command) = inbox.recv().await {
        let refusal = || PodError::State {
            what: format!("pod sandbox {id}"),
            state: "left alone, since its record cannot be read".to_owned(),
        };
        match command {
            Command::Join(reply) => respond(reply, Err(refusal())),
            Command::Create(_, reply) => respond(reply, Err(refusal())),
            Command::Start(_, reply)
            | Command::Stop(_, _, reply)
            | Command::RemoveContainer(_, reply)
            | Command::Update(_, _, reply)
            | Command::ReopenLog(_, reply)
            | Command::StopPod(reply)
            | Command::RemovePod(reply) => respond(reply, Err(refusal())),
        }
    }
}

impl Task {
    fn new(
        engine: Arc<Engine>,
        record: PodRecord,
        inbox: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        Self {
            dir: engine.pod_dir(&record.id),
            engine,
            record,
            inbox,
            events: None,
            monitor: None,
            slots: BTreeMap::new(),
            keys: HashMap::new(),
            jobs: JoinSet::new(),
            deferred: Vec::new(),
            joining: Vec::new(),
            stopping: Vec::new(),
            removing: Vec::new(),
            teardown_runs: false,
            removal_runs: false,
            finished: false,
            steps: None,
        }
    }

    /// Boxed, or the future would hold it twice.
    async fn run(mut self: Box<Self>) {
        while !self.finished {
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(command) => self.command(command),
                    // The index forgot the pod; only this task makes it do so.
                    None => return,
                },
                Some(event) = next(&mut self.events) => self.event(event),
                Some(done) = self.jobs.join_next() => {
                    let done = done.unwrap_or(Done::Quiet);
                    self.steps = self.waiting_for(&done);
                    self.done(done);
                }
            }
            self.steps = None;
        }
    }

    /// Runs work beside the task. A panic in it becomes an error like any other.
    fn job<T: Send + 'static>(
        &mut self,
        work: impl Future<Output = Result<T, PodError>> + Send + 'static,
        wrap: impl FnOnce(Result<T, PodError>) -> Done + Send + 'static,
    ) {
        let steps = self.steps.clone();
        self.jobs.spawn(async move {
            let work = AssertUnwindSafe(Steps::follow(steps, work));
            let result = work.catch_unwind().await;
            wrap(result.unwrap_or_else(|panic| Err(PodError::Defect(panic_text(&*panic)))))
        });
    }

    /// A step of the call that the work of this moment is for.
    fn mark(&self, name: &'static str) -> Option<Mark> {
        self.steps.as_ref().map(|steps| steps.mark(name))
    }

    /// Writes the sandbox's record with the number of this transition.
    fn write_pod(&mut self) -> Result<(), PodError> {
        let _step = self.mark("record");
        self.record.transition = self.engine.index.next_transition();
        Ok(self.dir.write_pod(&self.record)?)
    }

    /// The same where a failure cannot be answered to anyone.
    fn keep_pod(&mut self) {
        if let Err(error) = self.write_pod() {
            tracing::error!(pod = %self.record.id, %error, "the sandbox's record is stale");
        }
    }

    /// Writes a container's record and renews its view.
    fn keep(&mut self, id: &ContainerId) {
        let _step = self.mark("record");
        let transition = self.engine.index.next_transition();
        if let Some(slot) = self.slots.get_mut(id) {
            slot.record.transition = transition;
            if let Err(error) = self.dir.write_container(&slot.record) {
                tracing::error!(container = %id, %error, "the container's record is stale");
            }
        }
        self.refresh(id);
    }

    /// The steps of the call that waits for what a job came to.
    fn waiting_for(&self, done: &Done) -> Option<Steps> {
        let slot = |id: &ContainerId| self.slots.get(id);
        match done {
            Done::Launched(_) => steps_of(&self.joining),
            Done::Created(id, _) => steps_of(&slot(id)?.creating),
            Done::Started(id, _) => steps_of(&slot(id)?.starting),
            Done::ContainerRemoved(id, _) => steps_of(&slot(id)?.removing),
            Done::Updated(_, _, _, reply) => reply.steps.clone(),
            Done::Down(_) | Done::Removed(_) => self.of_the_ending(),
            Done::GraceOver(_) | Done::Quiet | Done::Orphaned(_) => None,
            Done::Retry | Done::RetryOrphans => None,
        }
    }

    /// The steps of the call that waits for the end of the sandbox.
    fn of_the_ending(&self) -> Option<Steps> {
        steps_of(&self.stopping).or_else(|| steps_of(&self.removing))
    }

    /// Renews what lists say of a container; one that is being made is not listed.
    fn refresh(&mut self, id: &ContainerId) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        let record = &slot.record;
        slot.view = (record.state != State::Creating).then(|| {
            Arc::new(ContainerView {
                id: id.clone(),
                pod: self.record.id.clone(),
                state: record.state.clone(),
                config: Arc::clone(&record.config),
                resources: record.config.resources.clone(),
                image_id: record.image_id.clone(),
                image_ref: record.image_ref.clone(),
                created_at: record.created_at,
                cgroup: record.cgroup.clone(),
                log_path: record.log_path.clone(),
                log_stalled: slot.log_stalled,
                stop_signal: record.stop_signal,
                user: record.user.clone(),
                pid: slot.pid,
                process: record.process.clone(),
            })
        });
    }

    /// Replaces what lists say of the pod.
    fn publish(&self) {
        if self.record.phase == Phase::Starting {
            return;
        }
        let reason = match &self.record.phase {
            Phase::Failed { reason } => reason.clone(),
            _ => String::new(),
        };
        self.engine.index.publish(&Arc::new(PodView {
            id: self.record.id.clone(),
            transition: self.engine.index.next_transition(),
            ready: self.record.phase.is_ready(),
            reason,
            config: Arc::clone(&self.record.config),
            handler: self.record.handler.clone(),
            created_at: self.record.created_at,
            cgroup: self.record.cgroup.clone(),
            netns: self.record.netns.clone(),
            ips: self.record.ips.clone(),
            monitor: self.monitor.clone(),
            containers: self
                .slots
                .values()
                .filter_map(|slot| slot.view.clone())
                .collect(),
        }));
    }
}

async fn next(events: &mut Option<mpsc::UnboundedReceiver<Event>>) -> Option<Event> {
    match events {
        Some(events) => match events.recv().await {
            Some(event) => Some(event),
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a job panicked".to_owned())
}

/// Enters a new sandbox, or joins the one that has this identity already.
pub(crate) fn run_or_join(
    engine: &Arc<Engine>,
    config: SandboxConfig,
    handler: String,
    reply: Reply<PodId>,
) -> Result<(), PodError> {
    let join = |inbox: &Inbox, reply| {
        inbox
            .send(Command::Join(reply))
            .map_err(|_| PodError::ShuttingDown)
    };
    if let Some(owner) = engine.index.owner(&config.key) {
        return join(&owner, reply);
    }
    let id = PodId::random();
    let (inbox, receiver) = mpsc::unbounded_channel();
    if let Err(owner) = engine.index.claim(&config.key, &id, &inbox) {
        return join(&owner, reply);
    }
    match intend(engine, &id, config, handler) {
        Ok(record) => {
            start(Arc::clone(engine), record, receiver);
            join(&inbox, reply)
        }
        Err(error) => {
            engine.index.forget(&id);
            Err(error)
        }
    }
}

/// Writes down what the sandbox will consist of, before any of it is made.
fn intend(
    engine: &Engine,
    id: &PodId,
    config: SandboxConfig,
    handler: String,
) -> Result<PodRecord, PodError> {
    let _step = steps::mark("intent");
    let own_network = config.network == crate::model::NetworkMode::Pod;
    let attachment = if own_network {
        engine.network.plan(id, &config)?
    } else {
        None
    };
    let record = PodRecord {
        version: super::record::version(),
        boot_id: engine.boot_id.clone(),
        transition: engine.index.next_transition(),
        id: id.clone(),
        handler,
        created_at: now(),
        phase: Phase::Starting,
        cgroup: Engine::pod_cgroup(&config.cgroup_parent, id),
        netns: own_network.then(|| engine.netns(id)),
        attachment,
        ips: Vec::new(),
        init_pid: None,
        config: Arc::new(config),
    };
    let dir = engine.pod_dir(id);
    dir.create()?;
    if let Err(error) = dir.write_pod(&record) {
        if let Err(error) = dir.remove() {
            tracing::warn!(pod = %id, %error, "a folder without a record stays");
        }
        return Err(error.into());
    }
    crate::failpoint::hit("run-intent");
    Ok(record)
}
