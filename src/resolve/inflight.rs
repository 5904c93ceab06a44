//! Identical queries that run at one time share one exchange.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::ResolveError;
use crate::cache::entry::Entry;
use crate::cache::key::{ByCarried, Key, KeyBuffer, Lookup};

/// What an exchange ends with, for all who wait.
pub type Outcome = Result<Arc<Entry>, ResolveError>;

/// The exchanges that run, by key.
#[derive(Default)]
pub struct InFlight(Arc<Mutex<Table>>);

/// Where the outcome is told to those who follow; made when the first of them comes, since most
/// exchanges have none.
type Teller = watch::Sender<Option<Outcome>>;

/// Every exchange that runs, numbered.
#[derive(Default)]
struct Table {
    /// Those that others may join.
    open: HashMap<Key, Running, ByCarried>,
    /// Those that nobody joins any more, but that some wait for.
    forgotten: HashMap<u64, Teller>,
    next: u64,
}

/// One that others may join.
struct Running {
    number: u64,
    teller: Option<Teller>,
    /// Somebody has waited for it in vain as long as one waits who has a stale answer.
    is_outlasted: bool,
}

/// What joining an exchange gives.
pub enum Role {
    /// Nobody asks yet: do it, then [`Lead::finish`].
    Lead(Lead),
    /// Somebody asks already.
    Follow(Follow),
}

/// The duty to finish an exchange that others may wait for.
pub struct Lead {
    key: Key,
    number: u64,
    table: Arc<Mutex<Table>>,
    has_left: bool,
}

/// A place in the queue for somebody else's outcome.
pub struct Follow(watch::Receiver<Option<Outcome>>);

impl InFlight {
    /// Joins the exchange for `key`, or begins it.
    pub fn join(&self, key: &KeyBuffer) -> Role {
        let mut table = lock(&self.0);
        if let Some(running) = table.open.get_mut(key as &dyn Lookup) {
            let teller = running.teller.get_or_insert_with(|| watch::Sender::new(None));
            return Role::Follow(Follow(teller.subscribe()));
        }
        let (key, number) = (key.to_key(), table.next);
        table.next += 1;
        let running = Running { number, teller: None, is_outlasted: false };
        table.open.insert(key.clone(), running);
        Role::Lead(Lead { key, number, table: Arc::clone(&self.0), has_left: false })
    }

    /// Notes that the exchange for `key` takes longer than one waits who has a stale answer.
    pub fn outlast(&self, key: &KeyBuffer) {
        if let Some(running) = lock(&self.0).open.get_mut(key as &dyn Lookup) {
            running.is_outlasted = true;
        }
    }

    /// Tells whether [`InFlight::outlast`] was said of the exchange that runs for `key`.
    pub fn is_outlasted(&self, key: &KeyBuffer) -> bool {
        let table = lock(&self.0);
        table.open.get(key as &dyn Lookup).is_some_and(|running| running.is_outlasted)
    }

    /// Makes later queries begin exchanges of their own; who waits already goes on waiting.
    pub fn forget_all(&self) {
        let table = &mut *lock(&self.0);
        let awaited =
            table.open.drain().filter_map(|(_, running)| Some((running.number, running.teller?)));
        table.forgotten.extend(awaited);
    }
}

impl Lead {
    /// What is asked for.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Hands the outcome to all who wait.
    pub fn finish(mut self, outcome: &Outcome) {
        if let Some(teller) = self.leave() {
            teller.send_replace(Some(outcome.clone()));
        }
    }

    /// Ends the exchange: later queries begin a new one. Gives back where others wait, if they do.
    fn leave(&mut self) -> Option<Teller> {
        self.has_left = true;
        let mut table = lock(&self.table);
        // Forgotten, it may have a successor already.
        match table.open.get(&self.key) {
            Some(running) if running.number == self.number => table.open.remove(&self.key)?.teller,
            _ => table.forgotten.remove(&self.number),
        }
    }
}

impl Drop for Lead {
    /// Without an outcome: who waited is woken when the teller goes.
    fn drop(&mut self) {
        if !self.has_left {
            self.leave();
        }
    }
}

impl Follow {
    /// The shared outcome; `None` when the one who asked vanished without one.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn outcome(mut self) -> Option<Outcome> {
        let seen = self.0.wait_for(Option::is_some).await.ok()?;
        seen.clone()
    }
}

/// Locks the table; a panic elsewhere leaves it as good as it was.
fn lock(table: &Mutex<Table>) -> std::sync::MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::Qtype;
    use crate::dns::name::Name;
    use crate::dns::query::Query;

    fn key() -> KeyBuffer {
        let name = Name::from_text("example.org").expect("name");
        KeyBuffer::from_query(&Query::new(name, Qtype::A))
    }

    #[tokio::test]
    async fn all_who_wait_get_the_outcome_and_the_next_asks_anew() {
        let in_flight = InFlight::default();
        let Role::Lead(lead) = in_flight.join(&key()) else { panic!("the first leads") };
        let Role::Follow(follow) = in_flight.join(&key()) else { panic!("the second follows") };
        lead.finish(&Err(ResolveError::Internal));
        assert!(matches!(follow.outcome().await, Some(Err(ResolveError::Internal))));
        assert!(matches!(in_flight.join(&key()), Role::Lead(_)));
    }

    #[tokio::test]
    async fn a_forgotten_exchange_serves_its_own_and_leaves_its_successor_alone() {
        let in_flight = InFlight::default();
        let Role::Lead(old) = in_flight.join(&key()) else { panic!("the first leads") };
        let Role::Follow(follow) = in_flight.join(&key()) else { panic!("the second follows") };
        in_flight.forget_all();
        let Role::Lead(_new) = in_flight.join(&key()) else { panic!("a new one begins") };
        old.finish(&Err(ResolveError::Internal));
        assert!(matches!(follow.outcome().await, Some(Err(ResolveError::Internal))));
        assert!(matches!(in_flight.join(&key()), Role::Follow(_)), "the new one still runs");
    }

    #[tokio::test]
    async fn a_leader_that_vanishes_wakes_those_who_wait() {
        let in_flight = InFlight::default();
        let Role::Lead(lead) = in_flight.join(&key()) else { panic!("the first leads") };
        let Role::Follow(follow) = in_flight.join(&key()) else { panic!("the second follows") };
        drop(lead);
        assert!(follow.outcome().await.is_none());
    }
}
