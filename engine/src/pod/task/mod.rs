//! The one owner of a pod: takes commands, events of the monitor and results of
//! its own jobs one by one, steps the state machines, writes the records and
//! publishes the view.
//!
//! It waits for nothing but its own records: everything else that takes time is a
//! job whose result comes back as a message. A caller that goes away takes nothing
//! with it: only its reply channel is lost. A crash leaves the records as of the last
//! transition; a task that panics is started again from them.

mod commands;
mod ending;
mod keeping;
mod link;
mod orphans;
mod removal;
mod reply;
mod results;
mod resume;
mod slot;

pub(crate) use keeping::keep_all;
pub(crate) use reply::Reply;
pub(crate) use results::{exit_of, exit_record_of};
pub(crate) use resume::{Restored, RestoredContainer, resume};

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use runtime::client::Reached;
use runtime::client::steps::{self, Mark, Steps};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::backoff::Backoff;
use super::container::{CreatedContainer, NotCreated};
use super::error::PodError;
use super::index::Inbox;
use super::launch::{Launched, NotLaunched};
use super::machine::{Phase, PhaseInput, State};
use super::record::{PodDir, PodRecord};
use super::restore;
use super::view::{ContainerView, PodView};
use crate::clock::now;
use crate::context::Engine;
use crate::ids::{ContainerId, PodId};
use crate::model::{ContainerConfig, ContainerKey, Resources, SandboxConfig};
use crate::threads::on_disk;
use link::Link;
use removal::{Removal, Retry, Teardown};
use reply::{Answers, steps_of};
use slot::Slot;

/// A task that panics at once whenever it is started must not keep a core busy.
const AFTER_PANIC: Duration = Duration::from_secs(1);

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
    /// The engine ends: write down what could not be written before.
    Keep(Reply<()>),
}

/// What a job came to.
enum Done {
    Launched(Result<Box<Launched>, Box<NotLaunched>>),
    /// A start of the sandbox that an earlier engine had begun was undone.
    Undone(Result<(), PodError>),
    /// The monitor of an earlier engine answers; `None`: it is dead.
    Reached(Option<Box<Reached>>),
    Created(ContainerId, Result<Box<CreatedContainer>, Box<NotCreated>>),
    Started(ContainerId, Result<i64, PodError>),
    GraceOver(ContainerId),
    /// SIGKILL was sent some time ago, and the end of the container was not reported.
    KillOverdue(ContainerId),
    /// The engine killed the cgroup itself.
    CgroupKilled(ContainerId, Result<(), PodError>),
    /// A signal was sent, or a cgroup given back; nothing follows from it.
    Quiet,
    Updated(ContainerId, Result<(), PodError>, Reply<()>),
    ContainerRemoved(ContainerId, Result<(), PodError>),
    /// Time to try again to give a container back that could not be made.
    RetryRemoval(ContainerId),
    /// What these containers left without a monitor was killed, as far as it was.
    Orphaned(Vec<(ContainerId, Result<(), PodError>)>),
    /// Time to try again to kill what these left.
    RetryOrphans(Vec<ContainerId>),
    /// The sandbox's parts were given back, or not yet.
    TornDown(Result<(), PodError>),
    /// All records of the sandbox were removed.
    Removed(Result<(), PodError>),
    /// Time to try again to give the sandbox's parts back.
    RetryTeardown,
    /// Time to write records again that a disk did not take.
    Rewrite,
}

/// A pod's task.
pub(crate) struct Task {
    engine: Arc<Engine>,
    record: PodRecord,
    /// Whether the disk has an older record than this.
    stale: bool,
    dir: PodDir,
    inbox: mpsc::UnboundedReceiver<Command>,
    link: Link,
    /// Boxed: a node of the map has room for eleven, and most pods have one or two.
    slots: BTreeMap<ContainerId, Box<Slot>>,
    keys: HashMap<ContainerKey, ContainerId>,
    jobs: JoinSet<Done>,
    /// Commands that wait until the sandbox is started.
    deferred: Vec<Command>,
    joining: Vec<Reply<PodId>>,
    stopping: Vec<Reply<()>>,
    teardown: Teardown,
    /// How often the sandbox's parts could not be given back.
    failed_teardowns: Backoff,
    removal: Removal,
    /// How often what containers left without a monitor could not be killed.
    failed_kills: Backoff,
    /// The next try to write records that the disk did not take.
    rewrite: Retry,
    /// The sandbox is forgotten; the task ends.
    finished: bool,
    /// What lists say.
    published: Option<Arc<PodView>>,
    /// What is to be answered once lists say it.
    answers: Answers,
    /// Steps of the RPC whose command or job is being handled.
    steps: Option<Steps>,
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
    task.job(async move { Ok(launch.await) }, |launched| {
        Done::Launched(launched.unwrap_or_else(|panic| Err(NotLaunched::panicked(panic))))
    });
    supervise(Box::new(task));
}

/// Runs a task; one that panics is started again from the records.
fn supervise(task: Box<Task>) {
    let (engine, id) = (Arc::clone(&task.engine), task.record.id.clone());
    tokio::spawn(async move {
        let Err(panic) = AssertUnwindSafe(task.run()).catch_unwind().await else {
            return;
        };
        let panic = panic_text(&*panic);
        tracing::error!(pod = %id, panic, "the task of the pod failed, it starts again from its records");
        tokio::time::sleep(AFTER_PANIC).await;
        restore::again(&engine, &id).await;
    });
}

/// Answers a command with an error.
pub(crate) fn refuse(command: Command, error: impl FnOnce() -> PodError) {
    match command {
        Command::Join(reply) => reply.answer(Err(error())),
        Command::Create(_, reply) => reply.answer(Err(error())),
        Command::Start(_, reply)
        | Command::Stop(_, _, reply)
        | Command::RemoveContainer(_, reply)
        | Command::Update(_, _, reply)
        | Command::ReopenLog(_, reply)
        | Command::StopPod(reply)
        | Command::RemovePod(reply)
        | Command::Keep(reply) => reply.answer(Err(error())),
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
            stale: false,
            inbox,
            link: Link::Down,
            slots: BTreeMap::new(),
            keys: HashMap::new(),
            jobs: JoinSet::new(),
            deferred: Vec::new(),
            joining: Vec::new(),
            stopping: Vec::new(),
            teardown: Teardown::default(),
            failed_teardowns: Backoff::default(),
            removal: Removal::default(),
            failed_kills: Backoff::default(),
            rewrite: Retry::default(),
            finished: false,
            published: None,
            answers: Answers::default(),
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
                Some(event) = self.link.event() => self.event(event),
                Some(done) = self.jobs.join_next() => {
                    let done = done.unwrap_or(Done::Quiet);
                    self.steps = self.waiting_for(&done);
                    self.done(done);
                }
            }
            self.commit();
            self.steps = None;
        }
    }

    /// Runs work beside the task. A panic in it becomes an error like any other.
    fn job<T: Send + 'static>(
        &mut self,
        work: impl Future<Output = Result<T, PodError>> + Send + 'static,
        wrap: impl FnOnce(Result<T, PodError>) -> Done + Send + 'static,
    ) -> AbortHandle {
        let steps = self.steps.clone();
        self.jobs.spawn(async move {
            let work = AssertUnwindSafe(Steps::follow(steps, work));
            let result = work.catch_unwind().await;
            wrap(result.unwrap_or_else(|panic| Err(PodError::Defect(panic_text(&*panic)))))
        })
    }

    /// Has a message arrive later.
    fn timer(&mut self, pause: Duration, done: Done) -> AbortHandle {
        self.jobs.spawn(async move {
            tokio::time::sleep(pause).await;
            done
        })
    }

    /// Begins a step of the RPC whose command or job is being handled.
    fn mark(&self, name: &'static str) -> Option<Mark> {
        self.steps.as_ref().map(|steps| steps.mark(name))
    }

    /// Steps the sandbox's phase; writing it down is the caller's.
    fn step_phase(&mut self, input: PhaseInput) {
        let before = std::mem::replace(&mut self.record.phase, Phase::Stopped);
        let from = before.word();
        self.record.phase = before.step(input);
        let to = self.record.phase.word();
        if from != to {
            tracing::debug!(pod = %self.record.id, from, to, "transition");
        }
    }

    /// The steps of the call that waits for what a job came to.
    fn waiting_for(&self, done: &Done) -> Option<Steps> {
        let slot = |id: &ContainerId| self.slots.get(id);
        match done {
            Done::Launched(_) => steps_of(&self.joining),
            Done::Created(id, _) => steps_of(&slot(id)?.creating),
            Done::Started(id, _) => steps_of(&slot(id)?.starting),
            Done::ContainerRemoved(id, _) => steps_of(slot(id)?.removal.waiting()),
            Done::Updated(_, _, reply) => reply.steps.clone(),
            Done::TornDown(_) | Done::Removed(_) => self.of_the_ending(),
            Done::GraceOver(_) | Done::KillOverdue(_) | Done::CgroupKilled(..) => None,
            Done::Quiet | Done::Orphaned(_) | Done::Undone(_) | Done::Reached(_) => None,
            Done::RetryTeardown | Done::RetryRemoval(_) | Done::RetryOrphans(_) => None,
            Done::Rewrite => None,
        }
    }

    /// The steps of the call that waits for the end of the sandbox.
    fn of_the_ending(&self) -> Option<Steps> {
        steps_of(&self.stopping).or_else(|| steps_of(self.removal.waiting()))
    }

    /// Renews what lists say of a container; one that is being made is not listed.
    fn refresh(&mut self, id: &ContainerId) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        let record = &slot.record;
        slot.view = (record.state != State::Creating).then(|| {
            let mut view = ContainerView {
                pid: slot.pid,
                log_stalled: slot.log_stalled,
                ..ContainerView::of(record, &self.record.id)
            };
            if let Some(limits) = &slot.limits_in_force {
                view.resources.clone_from(limits);
            }
            Arc::new(view)
        });
    }

    /// The one place where what has become of the pod is told: lists say it first, if it
    /// is something new, and then whoever asked is answered.
    fn commit(&mut self) {
        if self.record.phase != Phase::Starting && !self.finished {
            let view = self.view();
            if !self
                .published
                .as_ref()
                .is_some_and(|old| old.says_as(&view))
            {
                let view = Arc::new(PodView {
                    transition: self.engine.index.next_transition(),
                    ..view
                });
                self.engine.index.publish(&view);
                self.published = Some(view);
            }
        }
        self.answers.send();
    }

    /// What lists are to say of the pod, without the number of the transition.
    fn view(&self) -> PodView {
        let reason = match &self.record.phase {
            Phase::Failed { reason } => Some(reason),
            _ => self.record.trouble.as_ref(),
        };
        PodView {
            id: self.record.id.clone(),
            transition: 0,
            ready: self.record.phase.is_ready(),
            reason: reason.cloned().unwrap_or_default(),
            config: Arc::clone(&self.record.config),
            handler: self.record.handler.clone(),
            created_at: self.record.created_at,
            cgroup: Some(self.record.cgroup.clone()),
            netns: self.record.netns.clone(),
            ips: self.record.ips.clone(),
            monitor: self.link.monitor().cloned(),
            containers: self
                .slots
                .values()
                .filter_map(|slot| slot.view.clone())
                .collect(),
        }
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
    let (inbox, receiver) = Inbox::new(&id);
    if let Err(owner) = engine.index.claim(&config.key, &inbox) {
        return join(&owner, reply);
    }
    match on_disk(|| intend(engine, &id, config, handler)) {
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
        cgroup: engine.pod_cgroup(&config.cgroup_parent, id)?,
        netns: own_network.then(|| engine.netns(id)),
        attachment,
        ips: Vec::new(),
        init_pid: None,
        trouble: None,
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
