//! Work that several callers want at the same time and that is done once.
//!
//! The work runs as a task of its own, so that no caller's end harms another.
//! It is aborted when the last caller is gone. Owns the tasks; a task that has
//! ended is out of the table before its result is seen, so that whoever comes
//! later begins anew.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Work in progress, by what it is for.
pub(crate) struct Joins<K, V> {
    table: Arc<Mutex<Table<K, V>>>,
}

struct Table<K, V> {
    running: HashMap<K, (u64, Weak<Running<V>>)>,
    /// Tells a run from the one before it under the same key.
    next: u64,
}

struct Running<V> {
    result: watch::Receiver<Option<V>>,
    task: AbortHandle,
}

impl<V> Drop for Running<V> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A result, and whether someone else had begun the work.
pub(crate) struct Joined<V> {
    /// `None` when the work ended without a result: a panic, or the end of the
    /// runtime.
    pub(crate) value: Option<V>,
    pub(crate) shared: bool,
}

impl<K, V> Joins<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self {
            table: Arc::new(Mutex::new(Table {
                running: HashMap::new(),
                next: 0,
            })),
        }
    }

    /// Waits for the work under this key, and begins it if nobody has.
    pub(crate) async fn join<F>(&self, key: K, begin: impl FnOnce() -> F) -> Joined<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (running, shared) = self.find_or_begin(key, begin);
        let mut result = running.result.clone();
        let value = match result.wait_for(Option::is_some).await {
            Ok(value) => (*value).clone(),
            Err(_) => None,
        };
        // Kept until here: dropping it gives the work up.
        drop(running);
        Joined { value, shared }
    }

    fn find_or_begin<F>(&self, key: K, begin: impl FnOnce() -> F) -> (Arc<Running<V>>, bool)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut table = lock(&self.table);
        table
            .running
            .retain(|_, (_, running)| running.strong_count() > 0);
        if let Some(running) = table.running.get(&key).and_then(|(_, r)| r.upgrade()) {
            return (running, true);
        }
        let (sender, result) = watch::channel(None);
        let work = begin();
        let (entries, name) = (Arc::clone(&self.table), key.clone());
        let number = table.next;
        table.next += 1;
        let task = tokio::spawn(async move {
            let value = work.await;
            let mut entries = lock(&entries);
            if entries
                .running
                .get(&name)
                .is_some_and(|(n, _)| *n == number)
            {
                entries.running.remove(&name);
            }
            drop(entries);
            // Without receivers everyone is gone, which is fine.
            drop(sender.send(Some(value)));
        });
        let running = Arc::new(Running {
            result,
            task: task.abort_handle(),
        });
        table
            .running
            .insert(key, (number, Arc::downgrade(&running)));
        (running, false)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio::sync::Notify;

    #[tokio::test]
    async fn two_callers_share_one_run_and_a_third_begins_anew() {
        let joins = Joins::<&str, usize>::new();
        let (runs, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let begin = || {
            let (runs, gate) = (Arc::clone(&runs), Arc::clone(&gate));
            move || async move {
                let run = runs.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                run
            }
        };
        let first = joins.join("k", begin());
        let second = joins.join("k", begin());
        let open = async {
            while runs.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            gate.notify_one();
        };
        let (first, second, ()) = tokio::join!(first, second, open);
        assert_eq!((first.value, first.shared), (Some(0), false));
        assert_eq!((second.value, second.shared), (Some(0), true));
        gate.notify_one();
        assert_eq!(joins.join("k", begin()).await.value, Some(1));
    }

    #[tokio::test]
    async fn one_callers_end_harms_no_other_and_the_last_ones_ends_the_work() {
        struct Alive(Arc<AtomicUsize>);
        impl Drop for Alive {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let joins = Arc::new(Joins::<u8, u8>::new());
        let alive = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Notify::new());
        let spawn = || {
            let (joins, alive, gate) = (Arc::clone(&joins), Arc::clone(&alive), Arc::clone(&gate));
            tokio::spawn(async move {
                let work = || async move {
                    alive.fetch_add(1, Ordering::SeqCst);
                    let _alive = Alive(alive);
                    gate.notified().await;
                    7
                };
                joins.join(1, work).await.value
            })
        };
        let (a, b) = (spawn(), spawn());
        let wait = async |count: usize| {
            tokio::time::timeout(Duration::from_secs(10), async {
                while alive.load(Ordering::SeqCst) != count {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .unwrap();
        };
        wait(1).await;
        a.abort();
        drop(a.await);
        assert_eq!(alive.load(Ordering::SeqCst), 1);
        gate.notify_one();
        assert_eq!(b.await.unwrap(), Some(7));
        let c = spawn();
        wait(1).await;
        c.abort();
        wait(0).await;
    }

    #[tokio::test]
    async fn a_panic_of_the_work_reaches_callers_as_no_result() {
        let joins = Joins::<u8, u8>::new();
        let joined = joins.join(1, || async { panic!("on purpose") }).await;
        assert_eq!(joined.value, None);
        assert_eq!(joins.join(1, || async { 3 }).await.value, Some(3));
    }
}
