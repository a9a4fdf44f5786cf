//! Places: how many layers are on their way at the same time, over all pulls.
//!
//! Owns the places and the order in which they are given. A layer holds one
//! until the thread that unpacks it has ended, so their number bounds the
//! connections, threads, buffers and descriptors of all layers together. There
//! are quick places, where every layer begins and of which one registry has
//! half at most, and half as many slow ones. Of the layers that wait, the next
//! is one whose registry holds the fewest places.
//!
//! While nobody waits, nobody is judged. Whoever waits looks at the holders once
//! a second. A layer that brought too little twice in a row goes on in a slow
//! place, and loses nothing. When those are all taken, the slowest of them (or
//! else one that waits for memory, see `windows`) is told to leave, if it drips
//! or its registry holds more places than that of one that waits: a line that is
//! slow for all layers is no reason to throw away what it brought. Who was told to
//! leave begins anew in a slow place, or in a quick one that nobody else waits
//! for; has a turn there, which is twice as long with each try, so that each
//! ends at last. What is too little doubles each second that somebody waits,
//! three times at most.
//!
//! The bound: a layer of a registry that holds no place waits for three seconds
//! at most while all others drip, and for three more with each full set of
//! quick places for which layers of other registries without a place have
//! waited before it. A layer of a registry that drips itself waits behind its
//! own. Whoever wants to keep all places needs a registry for each, or two and
//! [`LEAST`] times eight bytes a second for each place.
//!
//! Places are in memory alone: a crash leaves nothing.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

/// How often somebody who waits looks at the holders.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row at which a layer was slow, until that has consequences.
const SLOW_LOOKS: u32 = 2;
/// Bytes a second that are too little as soon as somebody waits.
const LEAST: u64 = 32 << 10;
/// Bytes a second that are a drip: no line is so slow that its layers would not
/// rather come one after the other.
const DRIP: u64 = 8 << 10;
/// How often the bound doubles: once a second.
const DOUBLINGS: u32 = 3;
/// How long a layer that was told to leave waits until another slow one, which
/// has had its turn, is told to leave for it; and the first turn.
const TURN: Duration = Duration::from_secs(30);
/// How often a turn doubles.
const LONGEST_TURN: u32 = 10;

/// Which kind of place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Quick,
    Slow,
}

/// How many places there are.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    quick: usize,
    slow: usize,
    /// Quick places of one registry.
    share: usize,
}

/// What a layer on its way lets others see of it.
pub(crate) struct Transfer {
    registry: Arc<str>,
    arrived: AtomicU64,
    /// The network waits for the disk or the processor and not they for it.
    busy: AtomicBool,
    /// It waits for memory, which is no work either.
    parked: AtomicBool,
    leave: Notify,
}

/// All places.
pub(crate) struct Places {
    table: Mutex<Table>,
}

/// A place of one layer; given back when dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    transfer: Arc<Transfer>,
}

struct Table {
    sizes: Sizes,
    held: Vec<Held>,
    /// In the order of their arrival.
    waiting: Vec<Waiter>,
    /// Tells one that waits from all others.
    next: u64,
    looked: Option<Instant>,
}

struct Held {
    transfer: Arc<Transfer>,
    lane: Lane,
    since: Instant,
    /// For so long it need not leave for others that were told to.
    turn: Duration,
    /// Bytes that had arrived at the last look.
    marked: u64,
    /// Bytes a second between the last two looks.
    speed: u64,
    slow_looks: u32,
    /// The same without those at which the layer was busy.
    idle_looks: u32,
    /// Told to leave: it is about to end, and counts no more.
    leaving: bool,
}

struct Waiter {
    number: u64,
    registry: Arc<str>,
    /// How often it was told to leave.
    tries: u32,
    since: Instant,
    grant: oneshot::Sender<Place>,
}

/// A place's holder, and where it is told so.
type Grant = (oneshot::Sender<Place>, Arc<Transfer>);

impl Transfer {
    pub(crate) fn new(registry: Arc<str>) -> Self {
        Self {
            registry,
            arrived: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            leave: Notify::new(),
        }
    }

    /// Notes bytes that came from the network.
    pub(crate) fn arrived(&self, bytes: u64) {
        self.arrived.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that the network waits for whoever unpacks, or does no more.
    pub(crate) fn busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    /// Notes that the layer waits for memory, or does no more.
    pub(crate) fn parked(&self, parked: bool) {
        self.parked.store(parked, Ordering::Relaxed);
    }

    /// The registry of the image's name.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) && !self.is_parked()
    }

    fn is_parked(&self) -> bool {
        self.parked.load(Ordering::Relaxed)
    }
}

impl Place {
    /// What to tell of the layer.
    pub(crate) fn transfer(&self) -> &Arc<Transfer> {
        &self.transfer
    }

    /// Ends when the place is needed for another layer.
    pub(crate) async fn told_to_leave(&self) {
        self.transfer.leave.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let granted = {
            let mut table = self.places.table();
            let is_other = |held: &Held| !Arc::ptr_eq(&held.transfer, &self.transfer);
            table.held.retain(is_other);
            table.grant(Instant::now())
        };
        Places::hand_over(&self.places, granted);
    }
}

impl Places {
    /// As many as suit a machine with so many processors.
    pub(crate) fn for_cores(cores: usize) -> Self {
        let quick = cores.saturating_mul(4).clamp(24, 64);
        Self::new(Sizes {
            quick,
            slow: quick / 2,
            share: quick / 2,
        })
    }

    fn new(sizes: Sizes) -> Self {
        Self {
            table: Mutex::new(Table {
                sizes,
                held: Vec::new(),
                waiting: Vec::new(),
                next: 0,
                looked: None,
            }),
        }
    }

    /// Waits for a place for a layer of this registry, which was told to leave
    /// so often. `None`: there is nobody left who could give it.
    pub(crate) async fn take(self: &Arc<Self>, registry: &str, tries: u32) -> Option<Place> {
        let (grant, mut granted) = oneshot::channel();
        let _waiting = self.enter(registry, tries, grant);
        loop {
            match tokio::time::timeout(LOOK, &mut granted).await {
                Ok(place) => return place.ok(),
                Err(_) => self.look(Instant::now()),
            }
        }
    }

    fn enter(
        self: &Arc<Self>,
        registry: &str,
        tries: u32,
        grant: oneshot::Sender<Place>,
    ) -> Waiting<'_> {
        let now = Instant::now();
        let mut table = self.table();
        let number = table.next;
        table.next += 1;
        table.waiting.push(Waiter {
            number,
            registry: registry.into(),
            tries,
            since: now,
            grant,
        });
        let granted = table.grant(now);
        drop(table);
        let took_none = granted.is_empty();
        Self::hand_over(self, granted);
        if took_none {
            self.look(now);
        }
        Waiting {
            places: self,
            number,
        }
    }

    /// Judges the holders, at most once in [`LOOK`].
    fn look(self: &Arc<Self>, now: Instant) {
        let granted = {
            let mut table = self.table();
            table.look(now);
            table.grant(now)
        };
        Self::hand_over(self, granted);
    }

    /// Tells those of these to leave that drip: they hold something else that
    /// others wait for.
    pub(crate) fn stop_idle(self: &Arc<Self>, transfers: &[Arc<Transfer>], now: Instant) {
        self.look(now);
        let granted = {
            let mut table = self.table();
            let meant = |held: &Held| transfers.iter().any(|t| Arc::ptr_eq(t, &held.transfer));
            let idle: Vec<_> = table.idle(|(_, held)| meant(held)).collect();
            for at in idle {
                table.held[at].stop();
            }
            table.grant(now)
        };
        Self::hand_over(self, granted);
    }

    /// Outside of the lock: a place whose taker is gone comes back at once.
    fn hand_over(places: &Arc<Self>, granted: Vec<Grant>) {
        for (grant, transfer) in granted {
            drop(grant.send(Place {
                places: Arc::clone(places),
                transfer,
            }));
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who waits; leaves the queue when dropped.
struct Waiting<'a> {
    places: &'a Places,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut table = self.places.table();
        table.waiting.retain(|waiter| waiter.number != self.number);
    }
}

impl Table {
    /// Gives all places that can be given.
    fn grant(&mut self, now: Instant) -> Vec<Grant> {
        let mut granted = Vec::new();
        while let Some((at, lane)) = self.next_waiter() {
            let waiter = self.waiting.remove(at);
            let transfer = Arc::new(Transfer::new(waiter.registry));
            self.held.push(Held {
                transfer: Arc::clone(&transfer),
                lane,
                since: now,
                turn: TURN * (1 << waiter.tries.min(LONGEST_TURN)),
                marked: 0,
                speed: 0,
                slow_looks: 0,
                idle_looks: 0,
                leaving: false,
            });
            granted.push((waiter.grant, transfer));
        }
        granted
    }

    /// Who is next, and where.
    fn next_waiter(&self) -> Option<(usize, Lane)> {
        self.poorest(|waiter| {
            (waiter.is_new() && self.has_quick_place(waiter)).then_some(Lane::Quick)
        })
        .or_else(|| {
            self.poorest(|waiter| match waiter.is_new() {
                true => None,
                false if self.has_slow_place() => Some(Lane::Slow),
                false => self.has_quick_place(waiter).then_some(Lane::Quick),
            })
        })
    }

    /// Of those that find room, the one whose registry holds the fewest places.
    fn poorest(&self, room: impl Fn(&Waiter) -> Option<Lane>) -> Option<(usize, Lane)> {
        let waiting = self.waiting.iter().enumerate();
        let with_room = waiting.filter_map(|(at, waiter)| Some((at, room(waiter)?)));
        with_room.min_by_key(|(at, _)| self.count_of(&self.waiting[*at].registry))
    }

    fn has_quick_place(&self, waiter: &Waiter) -> bool {
        let own = self.held_by(&waiter.registry);
        self.in_lane(Lane::Quick).count() < self.sizes.quick
            && own.filter(|held| held.lane == Lane::Quick).count() < self.sizes.share
    }

    /// The places of a registry.
    fn count_of(&self, registry: &str) -> usize {
        self.held_by(registry).count()
    }

    fn has_slow_place(&self) -> bool {
        self.in_lane(Lane::Slow).count() < self.sizes.slow
    }

    fn in_lane(&self, lane: Lane) -> impl Iterator<Item = &Held> {
        let in_lane = move |held: &&Held| held.lane == lane && !held.leaving;
        self.held.iter().filter(in_lane)
    }

    fn held_by(&self, registry: &str) -> impl Iterator<Item = &Held> {
        let own = move |held: &&Held| *held.transfer.registry == *registry && !held.leaving;
        self.held.iter().filter(own)
    }

    fn look(&mut self, now: Instant) {
        let early = |before: Instant| now.saturating_duration_since(before) < LOOK;
        if self.looked.is_some_and(early) {
            return;
        }
        if let Some(before) = self.looked.replace(now) {
            self.measure((before, now));
            self.slow_down();
            self.take_turns(now);
        }
        for held in &mut self.held {
            held.marked = held.transfer.arrived.load(Ordering::Relaxed);
        }
    }

    fn measure(&mut self, (before, now): (Instant, Instant)) {
        let least = self.least(now);
        let millis = now.saturating_duration_since(before).as_millis().max(1);
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        for held in self.held.iter_mut().filter(|held| held.since <= before) {
            let arrived = held.transfer.arrived.load(Ordering::Relaxed);
            held.speed = (arrived - held.marked).saturating_mul(1000) / millis;
            let slow = held.speed < least;
            let idle = slow && !held.transfer.is_busy();
            held.slow_looks = if slow { held.slow_looks + 1 } else { 0 };
            held.idle_looks = if idle { held.idle_looks + 1 } else { 0 };
        }
    }

    /// The bytes a second that are too little now.
    fn least(&self, now: Instant) -> u64 {
        let quick = self.waiting.iter().filter(|w| w.is_new());
        let longest = quick.map(|w| now.saturating_duration_since(w.since)).max();
        let seconds = longest.map_or(0, |waited| waited.as_secs());
        LEAST << seconds.min(u64::from(DOUBLINGS))
    }

    /// Empties quick places. What is merely busy loses no work for that.
    fn slow_down(&mut self) {
        let new = self.waiting.iter().filter(|waiter| waiter.is_new());
        let mut wanted = new.clone().count();
        let poorest = new.map(|waiter| self.count_of(&waiter.registry)).min();
        let slow = |held: &Held| {
            held.lane == Lane::Quick && held.slow_looks >= SLOW_LOOKS && !held.leaving
        };
        let mut moving: Vec<usize> = (0..self.held.len())
            .filter(|&at| slow(&self.held[at]))
            .collect();
        moving.sort_by_key(|&at| self.held[at].speed);
        for at in moving {
            if !self.has_slow_place() {
                let of_all = |(n, held): &(usize, &Held)| {
                    let has_more = Some(self.count_of(&held.transfer.registry)) > poorest;
                    let may_leave = has_more || held.speed < DRIP;
                    may_leave && (held.lane == Lane::Slow || *n == at)
                };
                let Some(slowest) = self.idle(of_all).min_by_key(|&n| self.worth(n)) else {
                    continue;
                };
                if wanted == 0 {
                    return;
                }
                self.held[slowest].stop();
            }
            wanted = wanted.saturating_sub(1);
            self.held[at].lane = Lane::Slow;
        }
    }

    /// Lets those have a turn who were told to leave long ago.
    fn take_turns(&mut self, now: Instant) {
        let overdue = |w: &&Waiter| !w.is_new() && now.saturating_duration_since(w.since) >= TURN;
        let overdue = self.waiting.iter().filter(overdue);
        let overdue: Vec<_> = overdue.map(|w| Arc::clone(&w.registry)).collect();
        for registry in overdue {
            if self.has_slow_place() {
                return;
            }
            let count = self.count_of(&registry);
            let had_it = |(_, held): &(usize, &Held)| {
                let had = now.saturating_duration_since(held.since) >= held.turn;
                let has_more = self.count_of(&held.transfer.registry) > count;
                held.lane == Lane::Slow && had && has_more
            };
            let age = |n: &usize| (self.held[*n].transfer.is_parked(), self.held[*n].since);
            let Some(oldest) = self.idle(had_it).min_by_key(age) else {
                return;
            };
            self.held[oldest].stop();
        }
    }

    /// What is least is told to leave first: the slowest, and only behind all that
    /// drip what waits for memory, of the registry that holds the most places.
    fn worth(&self, at: usize) -> (bool, Reverse<usize>, u64) {
        let held = &self.held[at];
        let parked = held.transfer.is_parked();
        let places = match parked {
            true => self.held_by(&held.transfer.registry).count(),
            false => 0,
        };
        (parked, Reverse(places), held.speed)
    }

    /// Those that have waited for their network for some time.
    fn idle(&self, which: impl Fn(&(usize, &Held)) -> bool) -> impl Iterator<Item = usize> {
        let idle = |held: &Held| held.idle_looks >= SLOW_LOOKS && !held.leaving;
        let held = self.held.iter().enumerate();
        held.filter(move |one| idle(one.1) && which(one))
            .map(|(n, _)| n)
    }
}

impl Waiter {
    /// Was never told to leave.
    fn is_new(&self) -> bool {
        self.tries == 0
    }
}

impl Held {
    fn stop(&mut self) {
        self.leaving = true;
        self.transfer.leave.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use super::*;

    fn places() -> Arc<Places> {
        Arc::new(Places::new(Sizes {
            quick: 4,
            slow: 2,
            share: 2,
        }))
    }

    type Taking<'a> = Pin<Box<dyn Future<Output = Option<Place>> + 'a>>;

    fn taking<'a>(places: &'a Arc<Places>, registry: &'a str, tries: u32) -> Taking<'a> {
        Box::pin(places.take(registry, tries))
    }

    async fn ready(taking: &mut Taking<'_>) -> Option<Place> {
        match futures::poll!(taking) {
            std::task::Poll::Ready(place) => Some(place.unwrap()),
            std::task::Poll::Pending => None,
        }
    }

    async fn all_taken<const N: usize>(places: &Arc<Places>, registries: [&str; N]) -> Vec<Place> {
        let mut all = Vec::new();
        for registry in registries {
            all.push(taken(places, registry).await);
        }
        all
    }

    async fn taken(places: &Arc<Places>, registry: &str) -> Place {
        ready(&mut taking(places, registry, 0)).await.unwrap()
    }

    /// Looks at these seconds, long after all that a test does.
    fn look(places: &Arc<Places>, start: Instant, seconds: std::ops::RangeInclusive<u64>) {
        for second in seconds {
            places.look(start + Duration::from_secs(100 + second));
        }
    }

    fn lanes(places: &Places) -> (usize, usize) {
        let table = places.table();
        let count = |lane| table.in_lane(lane).count();
        (count(Lane::Quick), count(Lane::Slow))
    }

    fn leaves(place: &Place) -> bool {
        let mut told = Box::pin(place.told_to_leave());
        futures::FutureExt::now_or_never(&mut told).is_some()
    }

    #[tokio::test]
    async fn one_registry_has_half_of_the_quick_places_and_the_poorest_is_next() {
        let places = places();
        let _a = (taken(&places, "a").await, taken(&places, "a").await);
        let mut third = taking(&places, "a", 0);
        assert!(ready(&mut third).await.is_none());
        let b = (taken(&places, "b").await, taken(&places, "b").await);
        let mut more = taking(&places, "b", 0);
        let mut other = taking(&places, "c", 0);
        assert!(ready(&mut more).await.is_none() && ready(&mut other).await.is_none());
        drop(b.0);
        assert!(ready(&mut more).await.is_none() && ready(&mut third).await.is_none());
        assert!(ready(&mut other).await.is_some());
    }

    #[tokio::test]
    async fn a_place_whose_taker_is_gone_comes_back() {
        let places = places();
        let mut all = all_taken(&places, ["a", "a", "b", "b"]).await;
        let mut gone = taking(&places, "c", 0);
        let mut late = taking(&places, "d", 0);
        assert!(ready(&mut gone).await.is_none() && ready(&mut late).await.is_none());
        // Given, and never seen by whoever waited.
        all.pop();
        drop(gone);
        assert!(ready(&mut late).await.is_some());
        drop(all);
        assert_eq!(lanes(&places), (0, 0));
        assert!(places.table().waiting.is_empty());
    }

    #[tokio::test]
    async fn while_nobody_waits_nobody_is_slow() {
        let (places, start) = (places(), Instant::now());
        let place = taken(&places, "a").await;
        look(&places, start, 0..=20);
        assert!(!leaves(&place));
        assert_eq!(places.table().held.len(), 1);
    }

    #[tokio::test]
    async fn a_drip_makes_room_without_a_loss_and_a_fast_one_stays() {
        let (places, start) = (places(), Instant::now());
        let all = all_taken(&places, ["a", "a", "b", "b"]).await;
        let mut waits = taking(&places, "c", 0);
        assert!(ready(&mut waits).await.is_none());
        for second in 0..3 {
            for place in &all[1..] {
                place.transfer().arrived(1 << 20);
            }
            look(&places, start, second..=second);
        }
        let _c = ready(&mut waits).await.unwrap();
        assert_eq!(lanes(&places), (4, 1));
        assert!(all.iter().all(|place| !leaves(place)));
        let table = places.table();
        let slow = |held: &&Held| held.lane == Lane::Slow;
        let slow = table.held.iter().find(slow).unwrap();
        assert!(Arc::ptr_eq(&slow.transfer, &all[0].transfer));
    }

    #[tokio::test]
    async fn when_slow_places_are_taken_the_slowest_leaves_and_the_busy_never_does() {
        let (places, start) = (places(), Instant::now());
        let mut all = all_taken(&places, ["a", "b", "c", "d"]).await;
        let mut waiters: Vec<_> = ["e", "f", "g"]
            .map(|registry| taking(&places, registry, 0))
            .into();
        for waiter in &mut waiters {
            assert!(ready(waiter).await.is_none());
        }
        all[0].transfer().busy(true);
        for second in 0..3 {
            for (n, place) in all.iter().enumerate() {
                place.transfer().arrived(n as u64);
            }
            look(&places, start, second..=second);
        }
        let mut got = Vec::new();
        for waiter in &mut waiters {
            got.push(ready(waiter).await.unwrap());
        }
        // Of the first three, two have slow places and the slowest that waits
        // for its network leaves.
        let leaving: Vec<_> = all.iter().map(leaves).collect();
        assert_eq!(leaving, [false, true, false, false]);
        assert_eq!(lanes(&places), (4, 2));
        // What has left comes again when there is a slow place.
        let mut again = taking(&places, "b", 1);
        assert!(ready(&mut again).await.is_none());
        drop(all.remove(0));
        assert!(ready(&mut again).await.is_some());
    }

    #[tokio::test]
    async fn what_waits_for_memory_leaves_behind_all_that_drip() {
        let (places, start) = (places(), Instant::now());
        let all = all_taken(&places, ["a", "b", "b", "d"]).await;
        for place in &all[..3] {
            place.transfer().parked(true);
            place.transfer().busy(true);
        }
        let mut waits = ["e", "f", "g", "h"].map(|r| taking(&places, r, 0));
        for waits in &mut waits {
            assert!(ready(waits).await.is_none());
        }
        for second in 0..3 {
            all[3].transfer().arrived(1000);
            look(&places, start, second..=second);
        }
        // The one that drips, and one of the registry that has two.
        let leaving: Vec<_> = all.iter().map(leaves).collect();
        assert!(!leaving[0] && leaving[3] && leaving[1] != leaving[2]);
    }

    #[tokio::test]
    async fn those_who_left_have_their_turn_in_the_end() {
        let (places, start) = (places(), Instant::now());
        let _others = all_taken(&places, ["d", "d", "e", "e"]).await;
        // One has a long turn, after many tries.
        let first = ready(&mut taking(&places, "a", 10)).await.unwrap();
        let second = ready(&mut taking(&places, "b", 1)).await.unwrap();
        let mut third = taking(&places, "c", 1);
        assert!(ready(&mut third).await.is_none());
        look(&places, start, 0..=2);
        let third = ready(&mut third).await.unwrap();
        assert!(!leaves(&first) && leaves(&second) && !leaves(&third));
    }

    #[tokio::test]
    async fn those_who_left_have_quick_places_that_nobody_waits_for() {
        let places = places();
        let mut slow = Vec::new();
        for registry in ["a", "a"] {
            slow.push(ready(&mut taking(&places, registry, 1)).await.unwrap());
        }
        let third = ready(&mut taking(&places, "a", 1)).await.unwrap();
        assert_eq!(lanes(&places), (1, 2));
        drop(third);
        assert_eq!(lanes(&places), (0, 2));
    }

    /// A slow line is slow for all layers: none is begun anew for another of them.
    #[tokio::test]
    async fn layers_of_one_registry_never_make_one_another_leave() {
        let (places, start) = (places(), Instant::now());
        let mut all = vec![taken(&places, "a").await, taken(&places, "a").await];
        let mut waiters: Vec<_> = (0..6).map(|_| taking(&places, "a", 0)).collect();
        for second in 0..60 {
            for place in &all {
                place.transfer().arrived(20 << 10);
            }
            look(&places, start, second..=second);
            let mut waiting = Vec::new();
            for mut waiter in waiters {
                match ready(&mut waiter).await {
                    Some(place) => all.push(place),
                    None => waiting.push(waiter),
                }
            }
            waiters = waiting;
        }
        assert!(all.iter().all(|place| !leaves(place)));
        // Half of the quick places, and all slow ones.
        assert_eq!((lanes(&places), waiters.len()), ((2, 2), 4));
    }
}
