//! Things that take time to make, kept ready for whoever needs one next.
//!
//! Owns idle items only: who takes one has it for good. Never makes anything on
//! the way of a caller unless nothing is ready; a pool that ran dry only costs
//! time. How many are kept follows from how many were taken at once lately, so a
//! node that starts one pod an hour keeps little and one that starts dozens at
//! once is ready for the next dozens. Items end with the pool.

use std::collections::VecDeque;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Takes that are this close together are one burst: about as long as a pod's
/// start takes, in which nothing can be refilled.
const BURST: Duration = Duration::from_millis(250);
/// After this time without one like it, a burst counts half.
const HALF_LIFE: Duration = Duration::from_secs(20);
/// While something is ready, refilling leaves the processors to what the taken
/// item is for.
const COURTESY: Duration = Duration::from_millis(15);

/// Makes items.
pub(crate) trait Maker: std::fmt::Debug + Send + Sync + 'static {
    /// What is made.
    type Item: std::fmt::Debug + Send + 'static;
    /// Why it could not be made.
    type Error: Display + Send;

    /// Names the item in warnings.
    const WHAT: &'static str;

    /// Makes one.
    fn make(&self) -> impl Future<Output = Result<Self::Item, Self::Error>> + Send;

    /// Whether one that was made earlier is still good.
    fn is_good(item: &Self::Item) -> bool;
}

/// Items that are ready.
#[derive(Debug)]
pub(crate) struct Pool<M: Maker>(Arc<Shared<M>>);

#[derive(Debug)]
struct Shared<M: Maker> {
    maker: M,
    state: Mutex<State<M::Item>>,
}

#[derive(Debug)]
struct State<T> {
    idle: VecDeque<T>,
    demand: Demand,
    /// One task fills.
    filling: bool,
    /// One task waits to give back what is not needed any more.
    trimming: bool,
    /// Why the last one could not be made; nothing after one that could.
    failure: Option<String>,
}

impl<M: Maker> Pool<M> {
    /// What makes the items.
    pub(crate) fn maker(&self) -> &M {
        &self.0.maker
    }

    /// A pool that keeps as many as `kept` allows, from the first
    /// [`Pool::take`] or [`Pool::refill`] on.
    pub(crate) fn new(maker: M, kept: RangeInclusive<usize>) -> Self {
        let state = State {
            idle: VecDeque::new(),
            demand: Demand::new(kept),
            filling: false,
            trimming: false,
            failure: None,
        };
        Self(Arc::new(Shared {
            maker,
            state: Mutex::new(state),
        }))
    }

    /// One that is ready, or else a new one.
    pub(crate) async fn take(&self) -> Result<M::Item, M::Error> {
        let ready = self.0.pop();
        self.refill();
        match ready {
            Some(item) => Ok(item),
            None => self.0.make().await,
        }
    }

    /// Makes what is missing, in the background.
    pub(crate) fn refill(&self) {
        {
            let mut state = self.0.state();
            if state.filling || !state.lacks(Instant::now()) {
                return;
            }
            state.filling = true;
        }
        tokio::spawn(fill(Arc::clone(&self.0)));
    }

    /// Why the last one could not be made, unless one is ready all the same.
    pub(crate) fn last_failure(&self) -> Option<String> {
        let state = self.0.state();
        match state.idle.iter().any(M::is_good) {
            true => None,
            false => state.failure.clone(),
        }
    }
}

impl<T> State<T> {
    fn lacks(&self, now: Instant) -> bool {
        self.idle.len() < self.demand.wanted(now)
    }
}

impl<M: Maker> Shared<M> {
    /// The lock is held for a moment only, never across an await.
    fn state(&self) -> MutexGuard<'_, State<M::Item>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pop(&self) -> Option<M::Item> {
        let mut state = self.state();
        state.demand.taken(Instant::now());
        while let Some(item) = state.idle.pop_front() {
            if M::is_good(&item) {
                return Some(item);
            }
        }
        None
    }

    /// Makes one and remembers how that went.
    async fn make(&self) -> Result<M::Item, M::Error> {
        let made = self.maker.make().await;
        self.state().failure = made.as_ref().err().map(ToString::to_string);
        made
    }
}

/// Makes one after the other until enough are there. A failure ends it; the next
/// take begins again.
async fn fill<M: Maker>(shared: Arc<Shared<M>>) {
    if !shared.state().idle.is_empty() {
        tokio::time::sleep(COURTESY).await;
    }
    loop {
        let made = shared.make().await;
        let mut state = shared.state();
        match made {
            Ok(item) => state.idle.push_back(item),
            Err(error) => {
                tracing::warn!(%error, "{} is not kept ready", M::WHAT);
                state.filling = false;
                return;
            }
        }
        if !state.lacks(Instant::now()) {
            state.filling = false;
            if !state.trimming && state.idle.len() > *state.demand.kept.start() {
                state.trimming = true;
                tokio::spawn(trim(Arc::downgrade(&shared)));
            }
            return;
        }
    }
}

/// Gives back what the demand does not ask for any more, until the least is left.
async fn trim<M: Maker>(shared: std::sync::Weak<Shared<M>>) {
    loop {
        tokio::time::sleep(HALF_LIFE).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut state = shared.state();
        let wanted = state.demand.wanted(Instant::now());
        let surplus = state.idle.len().saturating_sub(wanted);
        let unneeded: Vec<_> = state.idle.drain(..surplus).collect();
        let least = state.idle.len() <= *state.demand.kept.start();
        state.trimming = !least;
        drop(state);
        drop(unneeded);
        if least {
            return;
        }
    }
}

/// How many were taken at once lately.
#[derive(Debug)]
struct Demand {
    kept: RangeInclusive<usize>,
    /// When the takes of the current burst were.
    burst: VecDeque<Instant>,
    peak: usize,
    peak_at: Option<Instant>,
}

impl Demand {
    fn new(kept: RangeInclusive<usize>) -> Self {
        Self {
            kept,
            burst: VecDeque::new(),
            peak: 0,
            peak_at: None,
        }
    }

    fn taken(&mut self, now: Instant) {
        while self.burst.front().is_some_and(|at| now - *at > BURST) {
            self.burst.pop_front();
        }
        // More than can be kept need not be counted.
        if self.burst.len() >= *self.kept.end() {
            self.burst.pop_front();
        }
        self.burst.push_back(now);
        if self.burst.len() >= self.decayed(now) {
            self.peak = self.burst.len();
            self.peak_at = Some(now);
        }
    }

    fn decayed(&self, now: Instant) -> usize {
        let Some(at) = self.peak_at else { return 0 };
        let halvings = now.saturating_duration_since(at).as_secs() / HALF_LIFE.as_secs();
        let halvings = u32::try_from(halvings).unwrap_or(u32::MAX);
        self.peak.checked_shr(halvings).unwrap_or(0)
    }

    fn wanted(&self, now: Instant) -> usize {
        self.decayed(now)
            .clamp(*self.kept.start(), *self.kept.end())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn demand_follows_the_largest_burst_and_forgets_it_slowly() {
        let start = Instant::now();
        let mut demand = Demand::new(2..=16);
        assert_eq!(demand.wanted(start), 2);
        for _ in 0..9 {
            demand.taken(start);
        }
        assert_eq!(demand.wanted(start), 9);
        // One by one is no burst, and does not make the last one forgotten.
        let later = start + HALF_LIFE / 2;
        demand.taken(later);
        assert_eq!(demand.wanted(later), 9);
        assert_eq!(demand.wanted(start + HALF_LIFE), 4);
        assert_eq!(demand.wanted(start + HALF_LIFE * 200), 2);
        for _ in 0..1000 {
            demand.taken(later);
        }
        assert_eq!(demand.wanted(later), 16);
    }

    #[derive(Debug, Default)]
    struct Numbers {
        made: AtomicUsize,
        broken: bool,
    }

    impl Maker for Numbers {
        type Item = usize;
        type Error = &'static str;
        const WHAT: &'static str = "a number";

        async fn make(&self) -> Result<usize, &'static str> {
            tokio::task::yield_now().await;
            if self.broken {
                return Err("none are left");
            }
            Ok(self.made.fetch_add(1, Ordering::Relaxed))
        }

        fn is_good(item: &usize) -> bool {
            *item != 0
        }
    }

    async fn until(pool: &Pool<Numbers>, idle: usize) {
        let enough = async {
            while pool.0.state().idle.len() != idle {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), enough)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_pool_grows_with_a_burst_and_shrinks_after_it() {
        let pool = Pool::new(Numbers::default(), 1..=4);
        pool.refill();
        until(&pool, 1).await;
        // The first, number 0, has gone bad meanwhile.
        assert_eq!(pool.take().await, Ok(1));
        for _ in 0..9 {
            pool.take().await.unwrap();
        }
        until(&pool, 4).await;
    }

    #[tokio::test]
    async fn a_failure_is_told_until_one_is_made_again() {
        let broken = Numbers {
            broken: true,
            ..Numbers::default()
        };
        let mut pool = Pool::new(broken, 0..=0);
        assert_eq!(pool.take().await, Err("none are left"));
        assert_eq!(pool.last_failure().as_deref(), Some("none are left"));
        let shared = Arc::get_mut(&mut pool.0).unwrap();
        shared.maker.broken = false;
        pool.take().await.unwrap();
        assert_eq!(pool.last_failure(), None);
    }

    #[tokio::test]
    async fn one_that_is_ready_makes_up_for_one_that_failed() {
        let pool = Pool::new(Numbers::default(), 2..=2);
        pool.refill();
        until(&pool, 2).await;
        pool.0.state().failure = Some("none are left".to_owned());
        assert_eq!(pool.last_failure(), None);
        pool.0.state().idle.clear();
        assert_eq!(pool.last_failure().as_deref(), Some("none are left"));
    }

    #[tokio::test]
    async fn a_pool_that_may_keep_nothing_makes_nothing_in_advance() {
        let pool = Pool::new(Numbers::default(), 0..=0);
        pool.refill();
        pool.take().await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(pool.0.maker.made.load(Ordering::Relaxed), 1);
    }
}
