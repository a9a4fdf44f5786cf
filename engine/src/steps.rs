//! The last calls of each pod, with their steps: what `slipway trace` shows.
//!
//! Owns a bounded memory of calls that ended; a call that runs owns its steps
//! itself. Nothing of it is written down: a restart begins anew.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use runtime::client::steps::{Place, Step, Steps};
use runtime::protocol::monotonic_now;
use serde_json::{Value, json};

use crate::clock::now;

/// The most pods whose calls are remembered; the one seen first goes first.
const MOST_PODS: usize = 1000;

/// Calls whose steps are recorded: those that work on a pod. Lists and statuses
/// answer from memory and have none.
const TRACED: [&str; 9] = [
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "UpdateContainerResources",
    "ExecSync",
];

tokio::task_local! {
    static CALL: Arc<Call>;
}

/// What a running call is about, as its handler finds out.
#[derive(Debug, Default)]
struct Subject {
    pod: Option<String>,
    container: Option<String>,
}

/// A call that runs.
#[derive(Debug)]
pub(crate) struct Call {
    rpc: &'static str,
    began_at: i64,
    began: u64,
    steps: Steps,
    subject: Mutex<Subject>,
}

impl Call {
    /// A call of this name, if its steps are worth recording.
    pub(crate) fn begin(rpc: &str) -> Option<Arc<Self>> {
        let rpc = TRACED.into_iter().find(|known| *known == rpc)?;
        Some(Arc::new(Self {
            rpc,
            began_at: now(),
            began: monotonic_now(),
            steps: Steps::default(),
            subject: Mutex::default(),
        }))
    }

    /// Lets the handler's marks belong to this call.
    pub(crate) async fn follow<F: Future>(call: Option<Arc<Self>>, work: F) -> F::Output {
        match call {
            Some(call) => {
                let steps = call.steps.clone();
                CALL.scope(call, Steps::follow(Some(steps), work)).await
            }
            None => work.await,
        }
    }

    fn subject(&self) -> MutexGuard<'_, Subject> {
        self.subject.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of it.
    pub(crate) fn end(&self, code: i32) -> Trace {
        Trace {
            rpc: self.rpc,
            began_at: self.began_at,
            began: self.began,
            // On the clock of the steps, so that none is longer.
            took: Duration::from_nanos(monotonic_now().saturating_sub(self.began)),
            code,
            container: self.subject().container.clone(),
            steps: self.steps.recorded(),
        }
    }

    /// The pod that it was about, as far as the handler told.
    pub(crate) fn pod(&self) -> Option<String> {
        self.subject().pod.clone()
    }
}

/// Tells what the current call is about; `field` is `pod` or `container`.
pub(crate) fn about(field: &str, id: &str) {
    // Outside of a traced call there is nobody to tell.
    let _told = CALL.try_with(|call| {
        let mut subject = call.subject();
        match field {
            "pod" => subject.pod = Some(id.to_owned()),
            "container" => subject.container = Some(id.to_owned()),
            _ => {}
        }
    });
}

/// A call that ended.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    pub(crate) rpc: &'static str,
    /// Nanoseconds since the epoch.
    pub(crate) began_at: i64,
    /// Monotonic nanoseconds, the clock of the steps.
    pub(crate) began: u64,
    pub(crate) took: Duration,
    /// gRPC's number; 0: well.
    pub(crate) code: i32,
    pub(crate) container: Option<String>,
    pub(crate) steps: Vec<Step>,
}

impl Trace {
    /// The call as `slipway trace` reads it; times of steps are nanoseconds since
    /// the call's beginning.
    fn json(&self) -> Value {
        let since = |at: u64| at.saturating_sub(self.began);
        let steps = self.steps.iter().map(|step| {
            json!({
                "name": step.name,
                "place": match step.place { Place::Engine => "engine", Place::Monitor => "monitor" },
                "start": since(step.start),
                "end": since(step.end),
                "parent": step.parent,
            })
        });
        json!({
            "rpc": self.rpc,
            "beganAt": self.began_at,
            "took": u64::try_from(self.took.as_nanos()).unwrap_or(u64::MAX),
            "code": self.code,
            "container": self.container,
            "steps": steps.collect::<Vec<_>>(),
        })
    }
}

#[derive(Default)]
struct Memory {
    pods: HashMap<String, BTreeMap<&'static str, Trace>>,
    order: VecDeque<String>,
}

/// The last call of each kind, of each pod.
#[derive(Default)]
pub(crate) struct Traces(Mutex<Memory>);

impl Traces {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a call in the place of the one before.
    pub(crate) fn keep(&self, pod: &str, trace: Trace) {
        let mut memory = self.memory();
        if !memory.pods.contains_key(pod) {
            if memory.order.len() >= MOST_PODS
                && let Some(oldest) = memory.order.pop_front()
            {
                memory.pods.remove(&oldest);
            }
            memory.order.push_back(pod.to_owned());
        }
        let calls = memory.pods.entry(pod.to_owned()).or_default();
        calls.insert(trace.rpc, trace);
    }

    /// Forgets a pod that was removed.
    pub(crate) fn forget(&self, pod: &str) {
        let mut memory = self.memory();
        if memory.pods.remove(pod).is_some() {
            memory.order.retain(|known| known != pod);
        }
    }

    /// A pod's calls in the order in which they began.
    pub(crate) fn json(&self, pod: &str) -> Value {
        let memory = self.memory();
        let mut calls: Vec<&Trace> = memory
            .pods
            .get(pod)
            .into_iter()
            .flat_map(BTreeMap::values)
            .collect();
        calls.sort_by_key(|trace| trace.began);
        calls.into_iter().map(Trace::json).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(rpc: &str) -> Trace {
        let call = Call::begin(rpc).expect("a traced call");
        call.end(0)
    }

    #[test]
    fn of_each_kind_the_last_call_is_remembered_until_the_pod_is_gone() {
        let traces = Traces::default();
        traces.keep("a", trace("RunPodSandbox"));
        traces.keep("a", trace("ExecSync"));
        let mut last = trace("ExecSync");
        last.code = 4;
        traces.keep("a", last);
        let calls = traces.json("a");
        assert_eq!(calls.as_array().map(Vec::len), Some(2));
        assert_eq!(
            (&calls[1]["rpc"], &calls[1]["code"]),
            (&json!("ExecSync"), &json!(4))
        );
        traces.forget("a");
        assert_eq!(traces.json("a"), json!([]));
    }

    #[test]
    fn the_memory_is_bounded_and_drops_the_oldest_pod() {
        let traces = Traces::default();
        for pod in 0..=MOST_PODS {
            traces.keep(&pod.to_string(), trace("RunPodSandbox"));
        }
        assert_eq!(traces.json("0"), json!([]));
        assert_eq!(traces.memory().pods.len(), MOST_PODS);
    }

    #[tokio::test]
    async fn a_handler_tells_what_its_call_is_about() {
        let call = Call::begin("StartContainer").expect("a traced call");
        let work = async {
            about("pod", "p");
            about("container", "c");
            drop(runtime::client::steps::mark("work"));
        };
        Call::follow(Some(Arc::clone(&call)), work).await;
        about("pod", "of nobody");
        let trace = call.end(0);
        assert_eq!(
            (call.pod().as_deref(), trace.container.as_deref()),
            (Some("p"), Some("c"))
        );
        assert_eq!(trace.steps.len(), 1);
        assert!(Call::begin("ListContainers").is_none());
    }
}
