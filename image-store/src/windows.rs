//! Memory for the windows of zstd decoders, over all layers.
//!
//! Owns the budget for large windows and the order in which it is given. A
//! window of up to [`ORDINARY`], which any builder's default stays below, is
//! had without asking: the number of places (see `places`) bounds those. What
//! is larger comes from [`BUDGET`], of which the layers of one registry have
//! half at most, and the registries take turns: next is the layer that waits
//! longest of the registry that has had nothing for longest. A layer whose
//! registry has its share holds up none of another.
//!
//! Whoever waits has those told to leave their place who hold a large window
//! and let the network drip, so that a turn of one that drips takes three
//! seconds. A layer that waits for longer than [`PATIENCE`]
//! fails, with the window it asked for. Blocks the thread that decodes, which
//! ends when nobody wants its layer any more. A crash leaves nothing.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::places::{Places, Transfer};

/// The largest window that is had without asking: what the format's
/// specification recommends every decoder to support.
const ORDINARY: u64 = 8 << 20;
/// Bytes of all larger windows together. Twice the largest there may be.
const BUDGET: u64 = 128 << 20;
/// How long a layer waits for a part of it. Long: a healthy image has several
/// layers that take their time one after the other.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often a thread that waits looks whether its layer is wanted.
const TICK: Duration = Duration::from_millis(250);

/// Why a layer got no window.
#[derive(Debug, thiserror::Error)]
#[error(
    "a zstd frame asks for a window of {window} bytes, and of the {budget} bytes for windows above {ORDINARY} not so many were free within {} s",
    waited.as_secs()
)]
pub(crate) struct WindowError {
    window: u64,
    budget: u64,
    waited: Duration,
}

/// The budget.
pub(crate) struct Windows {
    places: Arc<Places>,
    bounds: Bounds,
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    budget: u64,
    patience: Duration,
}

/// One layer's way to the budget.
pub(crate) struct Purse<'a> {
    pub(crate) windows: &'a Windows,
    pub(crate) transfer: &'a Arc<Transfer>,
    /// Set when nobody wants the layer any more.
    pub(crate) stop: &'a AtomicBool,
}

/// A part of the budget; given back when dropped.
pub(crate) struct Taken<'a> {
    windows: &'a Windows,
    number: u64,
    bytes: u64,
}

#[derive(Default)]
struct Table {
    next: u64,
    /// In the order of their arrival.
    waiting: Vec<Entry>,
    taken: Vec<Entry>,
    /// The registries of all these, those that were given something last at the
    /// end. One that is not here has had nothing.
    turns: Vec<String>,
}

struct Entry {
    number: u64,
    transfer: Arc<Transfer>,
    bytes: u64,
}

impl Windows {
    pub(crate) fn new(places: Arc<Places>) -> Self {
        let bounds = Bounds {
            budget: BUDGET,
            patience: PATIENCE,
        };
        Self::within(places, bounds)
    }

    fn within(places: Arc<Places>, bounds: Bounds) -> Self {
        Self {
            places,
            bounds,
            table: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has those told to leave who hold what others wait for, and drip.
    fn hurry(&self, now: Instant) {
        let holders: Vec<_> = {
            let table = self.table();
            table
                .taken
                .iter()
                .map(|t| Arc::clone(&t.transfer))
                .collect()
        };
        self.places.stop_idle(&holders, now);
    }
}

impl<'a> Purse<'a> {
    /// The part of the budget that a window of so many bytes takes, once it is
    /// free; `None` for an ordinary one.
    pub(crate) fn take(&self, bytes: u64) -> io::Result<Option<Taken<'a>>> {
        if is_ordinary(bytes) {
            return Ok(None);
        }
        let number = {
            let mut table = self.windows.table();
            table.next += 1;
            let (number, transfer) = (table.next, Arc::clone(self.transfer));
            table.waiting.push(Entry {
                number,
                transfer,
                bytes,
            });
            number
        };
        self.transfer.parked(true);
        let taken = self.wait(number, bytes);
        self.transfer.parked(false);
        if taken.is_err() {
            let mut table = self.windows.table();
            table.waiting.retain(|entry| entry.number != number);
        }
        // Whoever comes behind may be next.
        self.windows.changed.notify_all();
        taken.map(Some)
    }

    fn wait(&self, number: u64, bytes: u64) -> io::Result<Taken<'a>> {
        let (windows, began) = (self.windows, Instant::now());
        loop {
            let mut table = windows.table();
            if table.take(number, windows.bounds.budget) {
                return Ok(Taken {
                    windows,
                    number,
                    bytes,
                });
            }
            let waited = windows.changed.wait_timeout(table, TICK);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("nobody wants the layer any more"));
            }
            let waited = began.elapsed();
            if waited >= windows.bounds.patience {
                return Err(io::Error::other(WindowError {
                    window: bytes,
                    budget: windows.bounds.budget,
                    waited,
                }));
            }
            windows.hurry(Instant::now());
        }
    }
}

impl Taken<'_> {
    /// Whether it is enough for a window of so many bytes, and not too much for
    /// an ordinary one.
    pub(crate) fn suits(&self, bytes: u64) -> bool {
        !is_ordinary(bytes) && bytes <= self.bytes
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut table = self.windows.table();
        table.taken.retain(|entry| entry.number != self.number);
        drop(table);
        self.windows.changed.notify_all();
    }
}

impl Table {
    /// Takes what this one waits for, if it is the one's turn.
    fn take(&mut self, number: u64, budget: u64) -> bool {
        let free = budget - self.taken.iter().map(|t| t.bytes).sum::<u64>();
        let may = |entry: &&Entry| self.has_share(entry, budget / 2);
        // It is not overtaken, so that small ones do not keep a large one waiting.
        let Some(next) = self.waiting.iter().filter(may).min_by_key(|e| self.turn(e)) else {
            return false;
        };
        if next.number != number || next.bytes > free {
            return false;
        }
        let given: Vec<_> = self
            .waiting
            .extract_if(.., |entry| entry.number == number)
            .collect();
        self.taken.extend(given);
        self.turned();
        true
    }

    fn turn(&self, entry: &Entry) -> Option<usize> {
        let registry = entry.transfer.registry();
        self.turns.iter().position(|turn| turn == registry)
    }

    /// Puts the registry of the last one given to the end, and forgets those of
    /// which nobody is left.
    fn turned(&mut self) {
        let Some(last) = self.taken.last() else {
            return;
        };
        let last = last.transfer.registry();
        let is_left = |turn: &String| {
            let mut all = self.waiting.iter().chain(&self.taken);
            turn != last && all.any(|entry| entry.transfer.registry() == turn)
        };
        self.turns.retain(is_left);
        self.turns.push(last.to_owned());
    }

    fn has_share(&self, entry: &Entry, share: u64) -> bool {
        let own = |t: &&Entry| t.transfer.registry() == entry.transfer.registry();
        let taken: u64 = self.taken.iter().filter(own).map(|t| t.bytes).sum();
        taken + entry.bytes <= share
    }
}

fn is_ordinary(bytes: u64) -> bool {
    bytes <= ORDINARY
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const DEADLINE: Duration = Duration::from_secs(20);

    /// 64 MiB, of which each registry has half.
    pub(crate) fn windows(patience: Duration) -> Windows {
        let bounds = Bounds {
            budget: 64 * MIB,
            patience,
        };
        Windows::within(Arc::new(Places::for_cores(1)), bounds)
    }

    /// The bytes that are taken now.
    pub(crate) fn in_use(windows: &Windows) -> u64 {
        windows.table().taken.iter().map(|t| t.bytes).sum()
    }

    pub(crate) fn layer_of(registry: &str) -> Arc<Transfer> {
        Arc::new(Transfer::new(registry.into()))
    }

    fn eventually(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    static GO: AtomicBool = AtomicBool::new(false);

    fn purse<'a>(windows: &'a Windows, transfer: &'a Arc<Transfer>) -> Purse<'a> {
        Purse {
            windows,
            transfer,
            stop: &GO,
        }
    }

    #[test]
    fn ordinary_windows_are_had_without_asking() {
        let (windows, a) = (windows(DEADLINE), layer_of("a"));
        let asked: Vec<_> = (0..100)
            .map(|_| purse(&windows, &a).take(8 * MIB).unwrap())
            .collect();
        assert!(asked.iter().all(Option::is_none));
        assert_eq!(in_use(&windows), 0);
    }

    #[test]
    fn a_registry_that_has_its_half_holds_up_none_of_another() {
        let windows = windows(DEADLINE);
        let (a, b) = (layer_of("a"), layer_of("b"));
        std::thread::scope(|scope| {
            let first = purse(&windows, &a).take(32 * MIB).unwrap();
            let second = scope.spawn(|| purse(&windows, &a).take(32 * MIB).map(drop));
            eventually(|| !windows.table().waiting.is_empty());
            drop(purse(&windows, &b).take(32 * MIB).unwrap());
            assert!(!second.is_finished());
            drop(first);
            second.join().unwrap().unwrap();
        });
        assert_eq!(in_use(&windows), 0);
    }

    #[test]
    fn registries_take_turns_whoever_has_more_layers_that_wait() {
        let windows = windows(DEADLINE);
        let layers: Vec<_> = ["a", "a", "a", "b", "a", "c"].map(layer_of).into();
        let mut table = windows.table();
        for (number, transfer) in layers.into_iter().enumerate() {
            table.waiting.push(Entry {
                number: number as u64,
                transfer,
                bytes: 32 * MIB,
            });
        }
        let mut order = Vec::new();
        while !table.waiting.is_empty() {
            let given = (0..6).find(|&number| table.take(number, 64 * MIB));
            order.push(given.unwrap());
            // One at a time.
            table.taken.clear();
        }
        assert_eq!(order, [0, 3, 5, 1, 2, 4]);
        assert_eq!(table.turns, ["a"]);
    }

    #[test]
    fn small_ones_do_not_overtake_a_large_one() {
        let windows = windows(DEADLINE);
        let layers: Vec<_> = ["a", "b", "c", "d"].map(layer_of).into();
        let hold = |n: usize, mebibytes| {
            purse(&windows, &layers[n])
                .take(mebibytes * MIB)
                .unwrap()
                .unwrap()
        };
        let (first, second) = (hold(0, 32), hold(1, 20));
        std::thread::scope(|scope| {
            let large = scope.spawn(|| hold(2, 32).bytes);
            eventually(|| windows.table().waiting.len() == 1);
            let small = scope.spawn(|| hold(3, 10).bytes);
            eventually(|| windows.table().waiting.len() == 2);
            // There is room for the small one.
            let mut table = windows.table();
            let number = table.waiting[1].number;
            assert!(!table.take(number, 64 * MIB));
            drop(table);
            drop(second);
            assert_eq!(large.join().unwrap(), 32 * MIB);
            assert_eq!(small.join().unwrap(), 10 * MIB);
            drop(first);
        });
    }

    #[test]
    fn who_waits_too_long_fails_with_the_window_and_the_budget() {
        let windows = windows(Duration::ZERO);
        let a = layer_of("a");
        let _first = purse(&windows, &a).take(32 * MIB).unwrap();
        let Err(error) = purse(&windows, &a).take(31 * MIB) else {
            panic!("more than the half");
        };
        let text = error.to_string();
        assert!(error.downcast::<WindowError>().is_ok());
        assert!(
            text.contains("window of 32505856 bytes") && text.contains("67108864"),
            "{text}"
        );
        assert!(windows.table().waiting.is_empty());
    }

    #[test]
    fn whose_layer_nobody_wants_waits_no_longer() {
        let windows = windows(DEADLINE);
        let (a, stop) = (layer_of("a"), AtomicBool::new(false));
        let _first = purse(&windows, &a).take(32 * MIB).unwrap();
        std::thread::scope(|scope| {
            let unwanted = Purse {
                stop: &stop,
                ..purse(&windows, &a)
            };
            let waits = scope.spawn(move || unwanted.take(32 * MIB).is_err());
            eventually(|| !windows.table().waiting.is_empty());
            stop.store(true, Ordering::Relaxed);
            assert!(waits.join().unwrap());
        });
        assert_eq!(in_use(&windows), 32 * MIB);
    }
}
