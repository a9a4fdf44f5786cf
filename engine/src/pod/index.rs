//! All pods: who has which identity, whom to send commands to, and the views
//! that lists answer from.
//!
//! The lock is held for a map operation at a time, never across an await and
//! never during I/O.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::mpsc;

use super::events::Events;
use super::task::Command;
use super::view::{ContainerView, PodView};
use crate::ids::{ContainerId, PodId};
use crate::model::{PodResources, SandboxKey};

/// The way to a pod's task.
#[derive(Debug, Clone)]
pub(crate) struct Inbox {
    pod: PodId,
    sender: mpsc::UnboundedSender<Command>,
}

/// A pod's task has ended.
#[derive(Debug)]
pub(crate) struct TaskEnded;

impl Inbox {
    /// The way to a new task of the pod, and what the task takes from it.
    pub(crate) fn new(pod: &PodId) -> (Self, mpsc::UnboundedReceiver<Command>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let pod = pod.clone();
        (Self { pod, sender }, receiver)
    }

    /// Whose task it leads to.
    pub(crate) fn pod(&self) -> &PodId {
        &self.pod
    }

    /// Sends a command.
    pub(crate) fn send(&self, command: Command) -> Result<(), TaskEnded> {
        self.sender.send(command).map_err(|_| TaskEnded)
    }
}

struct Entry {
    key: SandboxKey,
    inbox: Inbox,
    view: View,
    /// In memory only: nothing is done with it.
    resources: Option<Arc<PodResources>>,
}

/// What lists say of a pod; absent while it is being started.
type View = Option<Arc<PodView>>;

#[derive(Default)]
struct Maps {
    pods: BTreeMap<PodId, Entry>,
    keys: HashMap<SandboxKey, PodId>,
    containers: BTreeMap<ContainerId, PodId>,
}

impl Maps {
    /// Lets a pod have an identity, whichever it had before; what lists say of it.
    fn take_over(&mut self, key: &SandboxKey, id: &PodId) -> Result<View, Inbox> {
        let owner = self.keys.get(key).filter(|owner| *owner != id);
        if let Some(entry) = owner.and_then(|owner| self.pods.get(owner)) {
            return Err(entry.inbox.clone());
        }
        let before = self.pods.get(id);
        let view = before.and_then(|entry| entry.view.clone());
        if let Some(before) = before.map(|entry| entry.key.clone()) {
            self.keys.remove(&before);
        }
        self.keys.insert(key.clone(), id.clone());
        Ok(view)
    }
}

/// The index of all pods.
#[derive(Default)]
pub(crate) struct Index {
    maps: RwLock<Maps>,
    /// Told under the lock, in the order of what they are about.
    events: Events,
    transitions: AtomicU64,
}

/// What a text that should be an id turned out to be.
pub(crate) enum Lookup<T> {
    Found(T),
    Unknown,
    /// A prefix that several ids have.
    Ambiguous,
}

impl<T> Lookup<T> {
    /// The one thing, or nothing.
    pub(crate) fn found(self) -> Option<T> {
        match self {
            Self::Found(thing) => Some(thing),
            Self::Unknown | Self::Ambiguous => None,
        }
    }
}

fn by_prefix<'a, K: Ord + AsRef<str>, V>(
    map: &'a BTreeMap<K, V>,
    prefix: &str,
) -> Lookup<(&'a K, &'a V)> {
    if prefix.is_empty() {
        return Lookup::Unknown;
    }
    // Ids are few and short; a range over a borrowed prefix would need a wrapper type.
    let mut matching = map.iter().filter(|(id, _)| id.as_ref().starts_with(prefix));
    match (matching.next(), matching.next()) {
        (Some(one), None) => Lookup::Found(one),
        (None, _) => Lookup::Unknown,
        (Some(_), Some(_)) => Lookup::Ambiguous,
    }
}

impl AsRef<str> for PodId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for ContainerId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl Index {
    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        // A panic while the lock is held cannot leave a map half changed.
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.maps.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happens to pods.
    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// How many transitions there were.
    pub(crate) fn transitions(&self) -> u64 {
        self.transitions.load(Ordering::Relaxed)
    }

    /// The number of the next transition.
    pub(crate) fn next_transition(&self) -> u64 {
        self.transitions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Continues after a number that an earlier engine gave.
    pub(crate) fn continue_after(&self, transition: u64) {
        self.transitions.fetch_max(transition, Ordering::Relaxed);
    }

    /// Enters a pod under its identity, or answers who has it already. One that is known
    /// gets a new task: what lists say of it stays until that says something else.
    pub(crate) fn claim(&self, key: &SandboxKey, inbox: &Inbox) -> Result<(), Inbox> {
        let mut maps = self.write();
        let view = maps.take_over(key, &inbox.pod)?;
        let entry = Entry {
            key: key.clone(),
            inbox: inbox.clone(),
            view,
            resources: None,
        };
        maps.pods.insert(inbox.pod.clone(), entry);
        Ok(())
    }

    /// Gives a pod that is known its true identity, or answers who has that already.
    pub(crate) fn identify(&self, key: &SandboxKey, id: &PodId) -> Result<(), Inbox> {
        let mut maps = self.write();
        maps.take_over(key, id)?;
        if let Some(entry) = maps.pods.get_mut(id) {
            entry.key = key.clone();
        }
        Ok(())
    }

    /// Who has an identity.
    pub(crate) fn owner(&self, key: &SandboxKey) -> Option<Inbox> {
        let maps = self.read();
        maps.keys
            .get(key)
            .and_then(|id| maps.pods.get(id))
            .map(|entry| entry.inbox.clone())
    }

    /// Whether a pod is known.
    pub(crate) fn has(&self, id: &PodId) -> bool {
        self.read().pods.contains_key(id)
    }

    /// Keeps what the kubelet told of a pod's limits; whether the pod is known.
    pub(crate) fn tell_resources(&self, id: &PodId, told: PodResources) -> bool {
        let mut maps = self.write();
        let entry = maps.pods.get_mut(id);
        entry
            .map(|entry| entry.resources = Some(Arc::new(told)))
            .is_some()
    }

    /// What the kubelet told last of a pod's limits.
    pub(crate) fn told_resources(&self, id: &PodId) -> Option<Arc<PodResources>> {
        self.read().pods.get(id)?.resources.clone()
    }

    /// Replaces what lists say of a pod.
    pub(crate) fn publish(&self, view: &Arc<PodView>) {
        let mut maps = self.write();
        let Some(entry) = maps.pods.get_mut(&view.id) else {
            return;
        };
        let before = entry.view.replace(Arc::clone(view));
        self.events.tell(before.as_ref(), Some(view));
        for container in before.iter().flat_map(|before| &before.containers) {
            maps.containers.remove(&container.id);
        }
        for container in &view.containers {
            maps.containers
                .insert(container.id.clone(), view.id.clone());
        }
    }

    /// Forgets a pod.
    pub(crate) fn forget(&self, id: &PodId) {
        let mut maps = self.write();
        let Some(entry) = maps.pods.remove(id) else {
            return;
        };
        maps.keys.remove(&entry.key);
        self.events.tell(entry.view.as_ref(), None);
        for container in entry.view.iter().flat_map(|view| &view.containers) {
            maps.containers.remove(&container.id);
        }
    }

    /// All sandboxes that are listed.
    pub(crate) fn list(&self) -> Vec<Arc<PodView>> {
        self.read()
            .pods
            .values()
            .filter_map(|entry| entry.view.clone())
            .collect()
    }

    /// A sandbox by its id or a unique prefix.
    pub(crate) fn pod(&self, text: &str) -> Lookup<Arc<PodView>> {
        let maps = self.read();
        match by_prefix(&maps.pods, text) {
            Lookup::Found((_, entry)) => match &entry.view {
                Some(view) => Lookup::Found(Arc::clone(view)),
                None => Lookup::Unknown,
            },
            Lookup::Unknown => Lookup::Unknown,
            Lookup::Ambiguous => Lookup::Ambiguous,
        }
    }

    /// The ways to all tasks.
    pub(crate) fn inboxes(&self) -> Vec<Inbox> {
        let maps = self.read();
        maps.pods
            .values()
            .map(|entry| entry.inbox.clone())
            .collect()
    }

    /// The way to a sandbox's task by its id or a unique prefix.
    pub(crate) fn inbox(&self, text: &str) -> Lookup<Inbox> {
        let maps = self.read();
        match by_prefix(&maps.pods, text) {
            Lookup::Found((_, entry)) => Lookup::Found(entry.inbox.clone()),
            Lookup::Unknown => Lookup::Unknown,
            Lookup::Ambiguous => Lookup::Ambiguous,
        }
    }

    /// A container by its id or a unique prefix, with its sandbox.
    pub(crate) fn container(&self, text: &str) -> Lookup<(Arc<PodView>, Arc<ContainerView>)> {
        let maps = self.read();
        let (id, pod) = match by_prefix(&maps.containers, text) {
            Lookup::Found(found) => found,
            Lookup::Unknown => return Lookup::Unknown,
            Lookup::Ambiguous => return Lookup::Ambiguous,
        };
        let view = maps.pods.get(pod).and_then(|entry| entry.view.as_ref());
        match view.and_then(|view| Some((Arc::clone(view), Arc::clone(view.container(id)?)))) {
            Some(found) => Lookup::Found(found),
            None => Lookup::Unknown,
        }
    }
}
