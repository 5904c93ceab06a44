//! Identical queries that run at one time share one exchange.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::ResolveError;
use crate::cache::entry::Entry;
use crate::cache::key::{Key, KeyBuffer};

/// What an exchange ends with, for all who wait.
pub type Outcome = Result<Arc<Entry>, ResolveError>;

/// The exchanges that run, by key.
#[derive(Default)]
pub struct InFlight(Arc<Mutex<Table>>);

/// Where those who follow wait, by key.
type Table = HashMap<Key, watch::Receiver<Option<Outcome>>>;

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
    table: Arc<Mutex<Table>>,
    sender: watch::Sender<Option<Outcome>>,
}

/// A place in the queue for somebody else's outcome.
pub struct Follow(watch::Receiver<Option<Outcome>>);

impl InFlight {
    /// Joins the exchange for `key`, or begins it.
    pub fn join(&self, key: &KeyBuffer) -> Role {
        let mut table = lock(&self.0);
        if let Some(receiver) = table.get(key.as_slice()) {
            return Role::Follow(Follow(receiver.clone()));
        }
        let (sender, receiver) = watch::channel(None);
        table.insert(key.to_key(), receiver);
        Role::Lead(Lead { key: key.to_key(), table: Arc::clone(&self.0), sender })
    }

    /// Makes later queries begin exchanges of their own; who waits already goes on waiting.
    pub fn forget_all(&self) {
        lock(&self.0).clear();
    }
}

impl Lead {
    /// Hands the outcome to all who wait.
    pub fn finish(self, outcome: &Outcome) {
        self.sender.send_replace(Some(outcome.clone()));
    }
}

impl Drop for Lead {
    /// Ends the exchange: later queries begin a new one, and who waited without an outcome is woken.
    fn drop(&mut self) {
        let (mut table, own) = (lock(&self.table), self.sender.subscribe());
        // Forgotten, it may have a successor already.
        if table.get(&self.key).is_some_and(|held| held.same_channel(&own)) {
            table.remove(&self.key);
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
