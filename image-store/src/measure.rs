//! Measurements of writable layers, behind those who ask for them.
//!
//! How long a measurement takes is up to the container that fills the layer. So nobody
//! waits for one for longer than a moment, there is one of a layer at a time whoever
//! asks, each has a bound, and all of them run on two threads of their own. Owns the
//! figures.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::sync::watch;

use crate::usage::{Counted, Effort, Usage};

/// A figure is measured anew after this,
const AGE: Duration = Duration::from_secs(10);
/// or after so many times what it took to measure it, if that is longer: one layer
/// keeps a thread busy for a tenth of the time.
const PAUSE: u32 = 10;
/// So long the first figure of a layer is waited for.
const MOMENT: Duration = Duration::from_millis(500);
/// A layer that is measured in less is no slow one.
const PROMPT: Duration = Duration::from_millis(500);

/// Which thread measures a layer: those that are slow to measure wait for one another,
/// and no other layer waits for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Quick,
    Thorough,
}

impl Pace {
    fn effort(self) -> Effort {
        match self {
            Self::Quick => Effort::new(Duration::from_secs(1), 200_000),
            Self::Thorough => Effort::new(Duration::from_secs(30), 5_000_000),
        }
    }
}

/// Measures one layer.
type Measure = Box<dyn FnOnce(&mut Effort) -> Result<Counted, Errno> + Send>;

/// The figures of all layers that were asked for, by owner. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Measurements(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    layers: HashMap<String, Layer>,
    lanes: Lanes,
}

/// What each thread has to do.
#[derive(Default)]
struct Lanes {
    quick: Lane,
    thorough: Lane,
}

impl Lanes {
    fn of(&mut self, pace: Pace) -> &mut Lane {
        match pace {
            Pace::Quick => &mut self.quick,
            Pace::Thorough => &mut self.thorough,
        }
    }
}

/// What one thread has to do.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<(String, Measure)>,
    /// The thread is there.
    runs: bool,
}

struct Layer {
    /// The last figure; none before the first.
    figure: watch::Sender<Option<Usage>>,
    pace: Pace,
    /// It is measured anew from then on.
    due: Instant,
    /// Since when a measurement waits or runs.
    asked: Option<Instant>,
}

impl Measurements {
    /// The last figure of an owner's layer, which is measured anew if it is old. Before
    /// the first one it is waited for, for a moment from when somebody first asked.
    pub(crate) async fn figure<M>(&self, owner: &str, measure: M) -> Option<Usage>
    where
        M: FnOnce(&mut Effort) -> Result<Counted, Errno> + Send + 'static,
    {
        let (mut figure, patience) = self.ask(owner, measure);
        let last = *figure.borrow();
        if last.is_some() {
            return last;
        }
        let first = tokio::time::timeout(patience, figure.wait_for(Option::is_some));
        first.await.ok()?.ok().and_then(|first| *first)
    }

    /// Forgets a layer that is gone.
    pub(crate) fn forget(&self, owner: &str) {
        self.lock().layers.remove(owner);
    }

    /// Has a layer measured if its figure is old; tells how long a first one may be
    /// waited for.
    fn ask<M>(&self, owner: &str, measure: M) -> (watch::Receiver<Option<Usage>>, Duration)
    where
        M: FnOnce(&mut Effort) -> Result<Counted, Errno> + Send + 'static,
    {
        let now = Instant::now();
        let mut table = self.lock();
        let Table { layers, lanes } = &mut *table;
        let layer = layers.entry(owner.to_owned()).or_insert_with(|| Layer {
            figure: watch::Sender::new(None),
            pace: Pace::Quick,
            due: now,
            asked: None,
        });
        let lane = lanes.of(layer.pace);
        if layer.asked.is_none() && layer.due <= now {
            layer.asked = Some(now);
            lane.waiting
                .push_back((owner.to_owned(), Box::new(measure)));
        }
        if !lane.runs && !lane.waiting.is_empty() {
            lane.runs = self.begin(layer.pace);
        }
        let until = layer.asked.map_or(now, |asked| asked + MOMENT);
        let patience = until.saturating_duration_since(now);
        (layer.figure.subscribe(), patience)
    }

    /// Starts the thread of a lane. Without one the lane waits for who asks next.
    fn begin(&self, pace: Pace) -> bool {
        let all = self.clone();
        let thread = std::thread::Builder::new().name("layer-usage".to_owned());
        let started = thread.spawn(move || all.work(pace));
        started
            .inspect_err(|error| tracing::warn!(%error, "no thread to measure layers"))
            .is_ok()
    }

    fn work(&self, pace: Pace) {
        while let Some((owner, measure)) = self.next(pace) {
            let began = Instant::now();
            let measured = measure(&mut pace.effort());
            self.note(&owner, pace, began.elapsed(), measured);
        }
    }

    fn next(&self, pace: Pace) -> Option<(String, Measure)> {
        let mut table = self.lock();
        let Table { layers, lanes } = &mut *table;
        let lane = lanes.of(pace);
        let mut waiting = std::iter::from_fn(|| lane.waiting.pop_front());
        let next = waiting.find(|(owner, _)| layers.contains_key(owner));
        lane.runs = next.is_some();
        next
    }

    fn note(&self, owner: &str, pace: Pace, took: Duration, measured: Result<Counted, Errno>) {
        let mut table = self.lock();
        // It is gone by now.
        let Some(layer) = table.layers.get_mut(owner) else {
            return;
        };
        let now = Instant::now();
        layer.asked = None;
        layer.due = now + AGE.max(took * PAUSE);
        match measured {
            Ok(Counted { usage, whole: true }) => {
                layer.pace = match took < PROMPT {
                    true => Pace::Quick,
                    false => Pace::Thorough,
                };
                layer.figure.send_replace(Some(usage));
            }
            // Of the figures that are too low the highest is the best.
            Ok(Counted { usage, .. }) => {
                let last = layer.figure.borrow().unwrap_or_default();
                let at_least = Usage {
                    bytes: usage.bytes.max(last.bytes),
                    inodes: usage.inodes.max(last.inodes),
                };
                layer.figure.send_replace(Some(at_least));
                if pace == Pace::Quick {
                    layer.pace = Pace::Thorough;
                    layer.due = now;
                }
            }
            Err(error) => {
                tracing::debug!(%error, owner, "measure a writable layer");
                // Whoever waits for a first figure need not wait any longer.
                let last = *layer.figure.borrow();
                layer.figure = watch::Sender::new(last);
            }
        }
    }

    /// The lock is held for memory only, never while a layer is measured.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const SOME: Usage = Usage {
        bytes: 7,
        inodes: 3,
    };

    #[expect(clippy::unnecessary_wraps, reason = "what a measurement returns")]
    fn counted(usage: Usage, whole: bool) -> Result<Counted, Errno> {
        Ok(Counted { usage, whole })
    }

    async fn eventually(all: &Measurements, owner: &str, wanted: Option<Usage>) {
        for _ in 0..1000 {
            if all.figure(owner, |_| Err(Errno::IO)).await == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{owner} never had {wanted:?}");
    }

    #[tokio::test]
    async fn many_callers_of_a_slow_measurement_begin_one_and_wait_for_a_moment_only() {
        let all = Measurements::default();
        let walks = Arc::new(AtomicUsize::new(0));
        let (go_on, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let ask = || {
            let (walks, held) = (Arc::clone(&walks), Arc::clone(&held));
            all.figure("slow", move |_| {
                walks.fetch_add(1, Ordering::SeqCst);
                assert!(held.lock().unwrap().recv().is_ok());
                counted(SOME, true)
            })
        };
        let began = Instant::now();
        let first = futures::future::join_all((0..1000).map(|_| ask())).await;
        assert!(first.iter().all(Option::is_none));
        // Nobody waits for it again, and others' layers are measured next to it.
        for _ in 0..1000 {
            assert_eq!(ask().await, None);
        }
        assert!(began.elapsed() < MOMENT * 10, "{:?}", began.elapsed());
        go_on.send(()).unwrap();
        eventually(&all, "slow", Some(SOME)).await;
        assert_eq!(ask().await, Some(SOME));
        assert_eq!(walks.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_layer_that_is_slow_to_measure_keeps_no_other_waiting() {
        let all = Measurements::default();
        let (go_on, held) = mpsc::channel::<()>();
        let cut = all.figure("slow", |_| counted(SOME, false)).await;
        assert_eq!(cut, Some(SOME), "what was counted is told");
        let again = all.figure("slow", move |_| {
            assert!(held.recv().is_err(), "until nobody holds it up");
            counted(Usage::default(), false)
        });
        assert_eq!(again.await, Some(SOME));
        for number in 0..100 {
            let other = format!("other{number}");
            let figure = all.figure(&other, |_| counted(SOME, true)).await;
            assert_eq!(figure, Some(SOME), "{other}");
        }
        drop(go_on);
        eventually(&all, "slow", Some(SOME)).await;
    }

    #[tokio::test]
    async fn what_cannot_be_measured_has_no_figure_and_is_not_waited_for() {
        let all = Measurements::default();
        let began = Instant::now();
        assert_eq!(all.figure("gone", |_| Err(Errno::NOENT)).await, None);
        all.forget("gone");
        assert_eq!(
            all.figure("gone", |_| counted(SOME, true)).await,
            Some(SOME)
        );
        assert!(began.elapsed() < MOMENT * 2);
        all.forget("gone");
        assert!(all.lock().layers.is_empty());
    }
}
