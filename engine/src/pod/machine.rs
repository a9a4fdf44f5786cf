//! What a container and a sandbox may become. Pure: a step takes the state and
//! an input, and returns the next state and the work to do.
//!
//! ```text
//!            Made          StartAsked        Started
//! Creating ───────▶ Created ───────▶ Starting ───────▶ Running
//!    │ CreateFailed    │                │                │ StopAsked
//!    │                 │ Exited         │ StartFailed    ▼
//!    ▼                 ▼                ▼             Stopping ── GraceOver ─▶ Killing
//!  Exited            Exited ◀───────── Exited ◀──────────┴──── Exited ───────────┘
//!
//! Starting ──▶ Ready ──▶ Failed        (sandbox; its monitor or PID 1 died)
//!     │          └──────────┴──▶ Stopping ──▶ Stopped
//!     └─ failed: the sandbox is undone and forgotten
//! ```
//!
//! A container never leaves Exited, whatever is asked or reported later.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a container ended. Times are nanoseconds since the epoch, 0 = never.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) started_at: i64,
    pub(crate) finished_at: i64,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    /// Its creation was begun; not listed yet.
    Creating,
    /// Its process waits to be started.
    Created,
    /// Start was ordered.
    Starting,
    Running {
        started_at: i64,
    },
    /// The stop signal was sent, the grace period runs.
    Stopping {
        started_at: i64,
    },
    /// SIGKILL was sent.
    Killing {
        started_at: i64,
    },
    Exited(Exit),
}

/// What happens to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    Made,
    /// It could not be made, nor could all that was made of it be given back.
    CreateFailed {
        at: i64,
        message: String,
    },
    StartAsked,
    Started {
        at: i64,
    },
    StartFailed {
        at: i64,
        message: String,
    },
    /// A grace of zero kills at once.
    StopAsked {
        grace: Duration,
    },
    GraceOver,
    Exited(Exit),
}

/// What a step orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Start,
    /// Send the stop signal.
    Signal,
    /// Send SIGKILL to everything in the container.
    Kill,
    /// Say so when this time is over.
    Grace(Duration),
    /// The container has ended: answer those who wait, give its cgroup back.
    Ended,
}

/// Why a step is not possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the container is {0}")]
pub(crate) struct Refused(pub(crate) &'static str);

impl State {
    /// The state in one word, for messages.
    pub(crate) const fn word(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "being started",
            Self::Running { .. } => "running",
            Self::Stopping { .. } | Self::Killing { .. } => "being stopped",
            Self::Exited(_) => "exited",
        }
    }

    /// Whether a process of the container may exist and serve requests.
    pub(crate) const fn is_running(&self) -> bool {
        matches!(
            self,
            Self::Running { .. } | Self::Stopping { .. } | Self::Killing { .. }
        )
    }

    /// When the process was started; 0 if it was not.
    pub(crate) const fn started_at(&self) -> i64 {
        match self {
            Self::Creating | Self::Created | Self::Starting => 0,
            Self::Running { started_at }
            | Self::Stopping { started_at }
            | Self::Killing { started_at } => *started_at,
            Self::Exited(exit) => exit.started_at,
        }
    }

    /// One step.
    pub(crate) fn step(self, input: Input) -> Result<(Self, Vec<Work>), Refused> {
        match (self, input) {
            (Self::Creating, Input::Made) => Ok((Self::Created, vec![])),
            (Self::Creating, Input::CreateFailed { at, message }) => Ok((
                Self::Exited(never_ran("CreateError", at, message)),
                vec![Work::Ended],
            )),
            (Self::Created, Input::StartAsked) => Ok((Self::Starting, vec![Work::Start])),
            (Self::Starting, Input::Started { at }) => {
                Ok((Self::Running { started_at: at }, vec![]))
            }
            (Self::Stopping { started_at: 0 }, Input::Started { at }) => {
                Ok((Self::Stopping { started_at: at }, vec![]))
            }
            (Self::Killing { started_at: 0 }, Input::Started { at }) => {
                Ok((Self::Killing { started_at: at }, vec![]))
            }
            (
                Self::Starting | Self::Stopping { .. } | Self::Killing { .. },
                Input::StartFailed { at, message },
            ) => Ok((
                Self::Exited(never_ran("StartError", at, message)),
                vec![Work::Ended],
            )),
            (state @ (Self::Starting | Self::Running { .. }), Input::StopAsked { grace }) => {
                Ok(state.stop(grace))
            }
            (Self::Stopping { started_at }, Input::GraceOver) => {
                Ok((Self::Killing { started_at }, vec![Work::Kill]))
            }
            (Self::Stopping { started_at }, Input::StopAsked { grace }) if grace.is_zero() => {
                Ok((Self::Killing { started_at }, vec![Work::Kill]))
            }
            // A second stop may bring a shorter grace: its own timer runs beside the first.
            (state @ Self::Stopping { .. }, Input::StopAsked { grace }) => {
                Ok((state, vec![Work::Grace(grace)]))
            }
            // Someone asks again: the kill may have met a process that was just born.
            (state @ Self::Killing { .. }, Input::StopAsked { .. }) => {
                Ok((state, vec![Work::Kill]))
            }
            // The end of a process that never became the container's program is
            // reported before the reason why it did not.
            (Self::Exited(exit), Input::StartFailed { message, .. }) if exit.started_at == 0 => {
                let exit = never_ran("StartError", exit.finished_at, message);
                Ok((Self::Exited(exit), vec![]))
            }
            (Self::Exited(exit), _) => Ok((Self::Exited(exit), vec![])),
            (_, Input::Exited(exit)) => Ok((Self::Exited(exit), vec![Work::Ended])),
            // CRI: stopping what does not run is no error.
            (state @ (Self::Created | Self::Creating), Input::StopAsked { .. }) => {
                Ok((state, vec![]))
            }
            (state, Input::StartAsked) => Err(Refused(state.word())),
            (
                state,
                Input::Made
                | Input::CreateFailed { .. }
                | Input::Started { .. }
                | Input::StartFailed { .. }
                | Input::GraceOver,
            ) => Ok((state, vec![])),
        }
    }

    fn stop(self, grace: Duration) -> (Self, Vec<Work>) {
        let started_at = self.started_at();
        if grace.is_zero() {
            return (Self::Killing { started_at }, vec![Work::Kill]);
        }
        let work = vec![Work::Signal, Work::Grace(grace)];
        (Self::Stopping { started_at }, work)
    }
}

/// What the kubelet shows for a container whose program never ran.
fn never_ran(reason: &str, at: i64, message: String) -> Exit {
    Exit {
        code: 128,
        reason: reason.to_owned(),
        message,
        started_at: 0,
        finished_at: at,
    }
}

/// Where a sandbox is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Its intents are recorded, its parts are being made; not listed yet.
    Starting,
    Ready,
    /// It cannot run containers any more; its parts still have to be given back.
    Failed {
        reason: String,
    },
    Stopping,
    /// Nothing of it is left but its records.
    Stopped,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PhaseInput {
    Launched,
    /// It could not be launched, nor could all that was made of it be given back.
    NotLaunched,
    /// What it cannot be without has ended.
    Lost {
        reason: String,
    },
    StopAsked,
    /// All of it was given back but its records.
    GivenBack,
}

impl Phase {
    /// One step; it never goes back.
    #[must_use]
    pub(crate) fn step(self, input: PhaseInput) -> Self {
        match (self, input) {
            (Self::Starting, PhaseInput::Launched) => Self::Ready,
            (Self::Stopping | Self::Stopped, PhaseInput::GivenBack) => Self::Stopped,
            // A start that failed, or was cut off, is undone without a stop.
            (Self::Starting, PhaseInput::GivenBack) => Self::Stopped,
            (Self::Starting | Self::Ready | Self::Failed { .. }, PhaseInput::Lost { reason }) => {
                Self::Failed { reason }
            }
            (
                Self::Starting | Self::Ready | Self::Failed { .. } | Self::Stopping,
                PhaseInput::StopAsked | PhaseInput::NotLaunched,
            ) => Self::Stopping,
            (
                phase,
                PhaseInput::Launched
                | PhaseInput::NotLaunched
                | PhaseInput::Lost { .. }
                | PhaseInput::StopAsked
                | PhaseInput::GivenBack,
            ) => phase,
        }
    }

    /// Whether the API says READY.
    pub(crate) const fn is_ready(&self) -> bool {
        matches!(self, Self::Ready)
    }

    /// The phase in one word, for messages.
    pub(crate) const fn word(&self) -> &'static str {
        match self {
            Self::Starting => "being started",
            Self::Ready => "ready",
            Self::Failed { .. } => "failed",
            Self::Stopping => "being stopped",
            Self::Stopped => "stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exit() -> Exit {
        Exit {
            code: 0,
            reason: "Completed".into(),
            message: String::new(),
            started_at: 1,
            finished_at: 2,
        }
    }

    fn step(state: State, input: Input) -> (State, Vec<Work>) {
        state.step(input).expect("possible")
    }

    #[test]
    fn stop_twice_is_quiet_and_a_shorter_grace_gets_its_timer() {
        let stop = |seconds| Input::StopAsked {
            grace: Duration::from_secs(seconds),
        };
        let (state, work) = step(State::Running { started_at: 1 }, stop(30));
        let grace = Work::Grace(Duration::from_secs(30));
        assert_eq!(work, [Work::Signal, grace]);
        let (state, work) = step(state, stop(5));
        assert_eq!(work, [Work::Grace(Duration::from_secs(5))]);
        let (state, work) = step(state, stop(0));
        assert_eq!(
            (state, work),
            (State::Killing { started_at: 1 }, vec![Work::Kill])
        );
    }

    #[test]
    fn an_exit_that_overtakes_the_start_answer_stays() {
        let (state, work) = step(State::Starting, Input::Exited(exit()));
        assert_eq!(work, [Work::Ended]);
        assert_eq!(step(state.clone(), Input::Started { at: 9 }).0, state);
    }

    #[test]
    fn a_failed_start_is_exit_128() {
        let failed = Input::StartFailed {
            at: 5,
            message: "no such file".into(),
        };
        let (state, work) = step(State::Starting, failed);
        assert_eq!(work, [Work::Ended]);
        assert!(
            matches!(state, State::Exited(exit) if exit.code == 128 && exit.reason == "StartError")
        );
    }

    #[test]
    fn the_reason_of_a_failed_start_may_come_after_the_end() {
        let mut unborn = exit();
        unborn.started_at = 0;
        let failed = Input::StartFailed {
            at: 5,
            message: "no such file".into(),
        };
        let (state, work) = step(State::Exited(unborn), failed);
        assert!(work.is_empty());
        assert!(matches!(state, State::Exited(exit) if exit.reason == "StartError"));
    }

    #[test]
    fn only_a_created_container_can_be_started() {
        for state in [
            State::Creating,
            State::Starting,
            State::Running { started_at: 1 },
        ] {
            assert!(state.step(Input::StartAsked).is_err());
        }
    }

    fn inputs() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Made),
            (1..100_i64).prop_map(|at| Input::CreateFailed {
                at,
                message: "m".into()
            }),
            Just(Input::StartAsked),
            (1..100_i64).prop_map(|at| Input::Started { at }),
            (1..100_i64).prop_map(|at| Input::StartFailed {
                at,
                message: "m".into()
            }),
            (0..2_u64).prop_map(|seconds| Input::StopAsked {
                grace: Duration::from_secs(seconds),
            }),
            Just(Input::GraceOver),
            Just(Input::Exited(exit())),
        ]
    }

    fn phase_inputs() -> impl Strategy<Value = PhaseInput> {
        prop_oneof![
            Just(PhaseInput::Launched),
            Just(PhaseInput::NotLaunched),
            Just(PhaseInput::Lost { reason: "r".into() }),
            Just(PhaseInput::StopAsked),
            Just(PhaseInput::GivenBack),
        ]
    }

    fn rank_of_phase(phase: &Phase) -> u8 {
        match phase {
            Phase::Starting => 0,
            Phase::Ready => 1,
            Phase::Failed { .. } => 2,
            Phase::Stopping => 3,
            Phase::Stopped => 4,
        }
    }

    #[test]
    fn a_sandbox_that_runs_is_stopped_before_it_is_given_back() {
        for phase in [
            Phase::Ready,
            Phase::Failed {
                reason: String::new(),
            },
        ] {
            assert_eq!(phase.clone().step(PhaseInput::GivenBack), phase);
            let stopping = phase.step(PhaseInput::StopAsked);
            assert_eq!(stopping.step(PhaseInput::GivenBack), Phase::Stopped);
        }
    }

    fn rank(state: &State) -> u8 {
        match state {
            State::Creating => 0,
            State::Created => 1,
            State::Starting => 2,
            State::Running { .. } => 3,
            State::Stopping { .. } => 4,
            State::Killing { .. } => 5,
            State::Exited(_) => 6,
        }
    }

    proptest! {
        #[test]
        fn a_sandbox_never_goes_back(inputs in prop::collection::vec(phase_inputs(), 0..20)) {
            let mut phase = Phase::Starting;
            for input in inputs {
                let before = rank_of_phase(&phase);
                phase = phase.step(input);
                prop_assert!(rank_of_phase(&phase) >= before);
            }
        }

        #[test]
        fn a_container_never_goes_back(inputs in prop::collection::vec(inputs(), 0..40)) {
            let mut state = State::Creating;
            let mut ended = 0;
            for input in inputs {
                let before = rank(&state);
                let Ok((next, work)) = state.clone().step(input) else { continue };
                prop_assert!(rank(&next) >= before);
                ended += work.iter().filter(|work| **work == Work::Ended).count();
                state = next;
            }
            prop_assert_eq!(ended, usize::from(matches!(state, State::Exited(_))));
        }
    }
}
