//! Keeps responses: one store, one byte budget, one law of lifetimes.
//!
//! What owns what: [`key`] names a response, [`entry`] is one with its times, [`policy`] is the law
//! (how long, how stale), [`epoch`] makes a changed name's old answers unservable at once, `store`
//! is where they lie, found through `index`, and decides what has to go: from `probation` what was asked
//! for once, from moka what is asked for least.
//! It refuses to ask anybody: a miss is a miss, `resolve` decides what follows.
//!
//! Freshness is decided by the caller's `now`; moka weighs, admits and evicts.

pub mod entry;
pub mod epoch;
mod index;
pub mod key;
pub mod policy;
mod probation;
mod store;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use self::entry::{Entry, State};
use self::epoch::{Epoch, Epochs};
use self::key::{Key, KeyBuffer, Lookup};
use self::policy::Lifetime;
use self::store::Store;
use crate::config::{self, TtlBounds};
use crate::dns::name::{Name, suffixes};
use crate::dns::response::Encoded;
use crate::metrics::{CacheMetrics, Origin, ZoneId};

/// What a lookup finds.
#[derive(Clone, Debug)]
pub enum Found {
    /// Within its lifetime.
    Fresh(Arc<Entry>),
    /// Past its lifetime, but servable when upstreams fail.
    Stale(Arc<Entry>),
    Absent,
}

/// The response cache of a process.
pub struct Cache {
    store: Store,
    policy: ArcSwap<config::Cache>,
    epochs: Epochs,
    metrics: CacheMetrics,
}

/// A response to be stored, with the TTL bounds of its zone where it has some.
pub struct Offer {
    pub encoded: Encoded,
    pub ttl: TtlBounds,
}

impl From<Encoded> for Offer {
    /// Under the cache's own TTL bounds.
    fn from(encoded: Encoded) -> Self {
        Self { encoded, ttl: TtlBounds::default() }
    }
}

/// Where a response comes from, for the one who stores it.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    pub zone: ZoneId,
    pub origin: Origin,
    /// The epoch of the name when the work on the response began.
    pub epoch: Epoch,
}

impl Cache {
    /// An empty cache under `policy`, whose `size` is its byte budget from now on.
    pub fn new(policy: config::Cache, metrics: CacheMetrics) -> Self {
        let store = Store::new(policy.size, &metrics);
        Self { store, policy: ArcSwap::from_pointee(policy), epochs: Epochs::default(), metrics }
    }

    /// Takes over another policy; a changed `size` needs a new process and is left as it was.
    pub fn set_policy(&self, policy: config::Cache) {
        self.policy.store(Arc::new(policy));
    }

    /// The entry under `key` that may be served at `now` without asking anybody; the hot path's question.
    ///
    /// Allocates nothing.
    pub fn fresh(&self, key: &KeyBuffer, now: Instant) -> Option<Arc<Entry>> {
        let entry = self.store.find(key)?;
        let servable = entry.state(now) == State::Fresh && self.epochs.is_current(&entry);
        servable.then_some(entry)
    }

    /// The entry under `key`, with how it stands at `now`.
    pub fn lookup(&self, key: &KeyBuffer, now: Instant) -> Found {
        let Some(entry) = self.store.find(key) else { return Found::Absent };
        if !self.epochs.is_current(&entry) {
            return Found::Absent;
        }
        match entry.state(now) {
            State::Fresh => Found::Fresh(entry),
            // A reload may have shortened the stale time since the entry was stored.
            State::Stale if entry.overdue(now) < self.policy.load().stale => Found::Stale(entry),
            State::Stale | State::Dead => Found::Absent,
        }
    }

    /// The cluster domains, within which names change with what they are made of: see [`epoch`].
    pub fn set_cluster_domains(&self, domains: Vec<Name>) {
        self.epochs.set_domains(domains);
    }

    /// The epoch of a name (folded wire form); read it before work on a response begins.
    pub fn epoch(&self, qname: &[u8]) -> Epoch {
        self.epochs.of(qname)
    }

    /// The epoch of a key's name; read it before work on a response begins.
    pub fn epoch_of(&self, key: &impl Lookup) -> Epoch {
        self.epochs.at(key.qname(), key.name_hash())
    }

    /// Stores a response if the law lets it live; gives back the entry in either case, to be served once.
    ///
    /// TTLs are brought within the bounds of the zone, or else of the policy, first. A response whose
    /// name has changed since
    /// `source.epoch` was read is not stored.
    pub fn store(
        &self,
        key: &impl Lookup,
        offer: impl Into<Offer>,
        source: Source,
        now: Instant,
    ) -> Arc<Entry> {
        let policy = self.policy.load();
        let Offer { encoded, ttl } = offer.into();
        let (encoded, lifetime) = policy::admit(encoded, &policy, ttl.over(&policy), source.origin);
        let entry = Arc::new(Entry::new(encoded, lifetime, source, now));
        let current = self.epochs.is_current(&entry);
        if lifetime != Lifetime::NONE && current && policy.size > 0 {
            self.insert(key, &entry);
        } else if current && source.origin == Origin::Forward {
            self.outdate(key);
        }
        entry
    }

    /// Takes out what lies under a key whose newest response may not be kept: it is older, and served stale
    /// it would bring back what holds no longer.
    fn outdate(&self, key: &impl Lookup) {
        let key = key.to_key();
        if self.store.holds(&key) {
            self.store.remove(&key);
        }
    }

    /// A response that is served to those who wait for it and not stored.
    pub fn once(encoded: Encoded, source: Source, now: Instant) -> Arc<Entry> {
        Arc::new(Entry::new(encoded, Lifetime::NONE, source, now))
    }

    /// Puts an entry into the store.
    fn insert(&self, key: &impl Lookup, entry: &Arc<Entry>) {
        self.store.insert(key.to_key(), Arc::clone(entry));
        // A flush that began meanwhile may have looked for its names before this one was here.
        if self.epochs.is_overtaken(entry.epoch()) {
            self.epochs.bump(key.qname());
        }
    }

    /// Remembers that resolving `key` failed, apart from any answer under the same key.
    ///
    /// Source: RFC 9520 §3.2
    pub fn store_failure(&self, key: &KeyBuffer, failure: Encoded, source: Source, now: Instant) {
        let policy = self.policy.load();
        if policy.size == 0 {
            return;
        }
        let lifetime = Lifetime { fresh: policy.failure_ttl, stale: Duration::ZERO };
        let entry = Arc::new(Entry::new(failure, lifetime, source, now));
        self.metrics.failures_cached.inc();
        self.insert(&key.for_failure(), &entry);
    }

    /// The remembered failure of `key`, if it still holds.
    pub fn failure(&self, key: &KeyBuffer, now: Instant) -> Option<Arc<Entry>> {
        self.fresh(&key.for_failure(), now)
    }

    /// Makes every stored response to questions for `name` unservable at once, whatever the type; and
    /// within a cluster domain those to names that change with it.
    pub fn flush(&self, name: &Name) {
        self.metrics.flushes.inc();
        self.epochs.bump(name.as_wire());
    }

    /// Removes every response to questions for `name` and names below it; gives back how many.
    ///
    /// Visits every entry; for operators and reloads. What exchanges in flight bring afterwards is
    /// not kept, whatever their names.
    pub fn flush_within(&self, name: &Name) -> usize {
        self.metrics.flushes.inc();
        self.epochs.begin_flush();
        let within = |key: &Key| suffixes(key.qname()).any(|suffix| suffix == name.as_wire());
        let doomed = self.store.keys(within);
        doomed.iter().for_each(|key| self.epochs.bump(key.qname()));
        self.store.remove_all(&doomed);
        doomed.len()
    }

    /// Removes every remembered failure: other upstreams may do better.
    pub fn forget_failures(&self) {
        self.forget(Key::is_failure);
    }

    /// Removes what lies under every key for which `is_such`.
    pub fn forget(&self, is_such: impl Fn(&Key) -> bool) {
        self.store.remove_all(&self.store.keys(is_such));
    }

    /// Applies pending inserts and evictions, tells the store what was read, refreshes the gauges.
    ///
    /// Called from the resolver runtime, so that no hit pays for any of it.
    pub fn maintain(&self, now: Instant) {
        self.store.maintain(now);
        let (entries, bytes) = self.fill();
        self.metrics.entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.metrics.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Entries and bytes as of the last [`Cache::maintain`].
    pub fn fill(&self) -> (u64, u64) {
        self.store.fill()
    }

    /// The counters that belong to the cache.
    pub fn metrics(&self) -> &CacheMetrics {
        &self.metrics
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<config::Cache> {
        self.policy.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::query::Query;
    use crate::dns::testing::{Record, message};
    use crate::dns::{Qtype, Rcode};
    use crate::metrics::Metrics;

    fn policy(size: u64) -> config::Cache {
        let inputs = config::Inputs {
            file: None,
            environment: &[],
            flags: &config::Flags::default(),
            host: &config::host::Host::sample(),
        };
        let config = config::load(&inputs).expect("the built-in configuration is right");
        config::Cache { size, ..config.cache }
    }

    /// The key of `number`'s question.
    fn key(number: usize) -> KeyBuffer {
        let name = Name::from_text(&format!("n{number}.example.org")).expect("name");
        KeyBuffer::from_query(&Query::new(name, Qtype::TXT))
    }

    /// Stores `number`'s answer, about 1 KiB, which lives for 300 s.
    fn put(cache: &Cache, number: usize, now: Instant) {
        let name = format!("n{number}.example.org");
        let text = [&[200][..], &[b'x'; 200]].concat();
        let records = [Record::answer(&name, Qtype::TXT, 300, &text); 5];
        let wire = message(&name, Qtype::TXT, Rcode::NOERROR, &records);
        let encoded = Encoded::from_wire(&wire).expect("well-formed");
        let key = key(number);
        let epoch = cache.epoch(key.qname());
        let source = Source { zone: ZoneId::NONE, origin: Origin::Forward, epoch };
        cache.store(&key, encoded, source, now);
    }

    /// Stores few names often and many names seldom, and flushes now and then.
    fn fight(cache: &Cache, thread: usize) {
        for round in 0..4000 {
            let number = (round * 7 + thread) % if round % 2 == 0 { 50 } else { 3000 };
            put(cache, number, crate::clock::now());
            if round % 500 == 0 {
                cache.flush_within(&Name::from_text("example.org").expect("name"));
            }
        }
    }

    #[test]
    fn index_and_store_hold_the_same_entries_after_a_fight_over_the_same_keys() {
        let cache = Cache::new(policy(1 << 20), Metrics::new().cache.clone());
        std::thread::scope(|scope| {
            (0..4).for_each(|thread| {
                drop(scope.spawn({
                    let cache = &cache;
                    move || fight(cache, thread)
                }))
            });
        });
        cache.store.assert_parts_agree(1 << 20);
    }

    #[test]
    fn what_is_asked_for_once_pushes_nothing_out_and_who_comes_back_stays() {
        let cache = Cache::new(policy(256 << 10), Metrics::new().cache.clone());
        let now = crate::clock::now();
        let is_there = |number| matches!(cache.lookup(&key(number), now), Found::Fresh(_));
        let flood = |first: usize| {
            for number in first..first + 1000 {
                put(&cache, number, now);
                if number % 50 == 0 {
                    cache.maintain(now);
                }
            }
        };
        flood(1000);
        let seen: Vec<_> = (1000..2000).filter(|number| is_there(*number)).collect();
        assert!((100..250).contains(&seen.len()), "{} fill the room", seen.len());
        (0..10).for_each(|number| put(&cache, number, now));
        // Few enough that who left is still remembered, and enough that those have left.
        (2000..2090).for_each(|number| put(&cache, number, now));
        assert!(!(0..10).any(is_there), "asked for once");
        // moka weighs each against the one that would go first: where that is thought much asked for, by bad luck of
        // hashes, it takes more than two askings.
        for round in 0..8 {
            (0..10).filter(|number| !is_there(*number)).for_each(|number| put(&cache, number, now));
            let first = 10_000 + 90 * round;
            (first..first + 90).for_each(|number| put(&cache, number, now));
            cache.maintain(now);
        }
        flood(3000);
        let back = (0..10).filter(|number| is_there(*number)).count();
        assert!(back >= 7, "{back} of 10 are left that were asked for again and again");
        let left = seen.iter().filter(|number| is_there(**number)).count();
        // Some waited in line themselves when they were seen, and were read there: they moved on.
        assert!(left * 10 >= seen.len() * 8, "{left} of {} are left", seen.len());
    }

    #[test]
    fn names_in_demand_survive_a_flood_of_others_although_they_are_stale() {
        let cache = Cache::new(policy(256 << 10), Metrics::new().cache.clone());
        let start = crate::clock::now();
        // The store begins to count when it is half full.
        (0..120).for_each(|number| put(&cache, number, start));
        let is_there = |number, now| matches!(cache.lookup(&key(number), now), Found::Stale(_));
        let late = start + Duration::from_secs(400);
        // From the tenth second on 200 names a second, each asked for twice and then never again; there is room for
        // some 150.
        let count =
            |names: std::ops::Range<usize>, now| names.filter(|n| is_there(*n, now)).count();
        for second in 0..20 {
            let now = late + Duration::from_secs(second as u64);
            let hot = count(0..20, now);
            assert!(hot >= 15, "{hot} of 20 are left after {second} s");
            cache.maintain(now);
            for _ in 0..if second < 10 { 0 } else { 2 } {
                (0..200).for_each(|number| put(&cache, 1000 + 200 * second + number, now));
                cache.maintain(now);
            }
        }
        let fill = cache.fill().1;
        assert!((100 << 10..=256 << 10).contains(&fill), "{fill} bytes");
        let cold = count(20..120, late + Duration::from_secs(20));
        assert!(cold <= 60, "{cold} of 100 cold ones are left");
    }
}
