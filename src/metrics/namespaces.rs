//! Queries by the namespace of the pod that asked: at most so many namespaces, whatever comes and goes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Namespaces with a count of their own. A node has some hundred pods at most.
const LIMIT: usize = 256;

/// The count of those who are no known pod.
pub const UNKNOWN: u16 = 0;

/// The count of all namespaces beyond the limit.
const OTHERS: u16 = 1;

/// What the two are called, where namespaces stand; no namespace can be.
const UNNAMED: [&str; 2] = ["", "*"];

/// The counts. Numbers are given for good: a namespace whose last pod went may come back.
#[derive(Debug)]
pub struct ByNamespace {
    names: Mutex<Vec<Box<str>>>,
    counts: [AtomicU64; LIMIT],
}

impl Default for ByNamespace {
    /// None counted.
    fn default() -> Self {
        let names = UNNAMED.map(Box::from).into();
        Self { names: Mutex::new(names), counts: [const { AtomicU64::new(0) }; LIMIT] }
    }
}

impl ByNamespace {
    /// The number under which the queries of a namespace are counted.
    pub fn number(&self, namespace: &[u8]) -> u16 {
        let mut names = self.names();
        let known = names.iter().position(|name| name.as_bytes() == namespace);
        let number = known.unwrap_or(names.len());
        if number >= LIMIT {
            return OTHERS;
        }
        if known.is_none() {
            names.push(String::from_utf8_lossy(namespace).into());
        }
        u16::try_from(number).unwrap_or(OTHERS)
    }

    /// Counts one query. Allocates nothing.
    pub fn count(&self, number: u16) {
        if let Some(count) = self.counts.get(usize::from(number)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every namespace that has a number, with its count.
    pub fn read(&self) -> Vec<(Box<str>, u64)> {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        self.names().iter().cloned().zip(counts).collect()
    }

    /// The names, by number.
    fn names(&self) -> MutexGuard<'_, Vec<Box<str>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_namespace_has_its_count_until_there_are_too_many() {
        let counts = ByNamespace::default();
        let (shop, pay) = (counts.number(b"shop"), counts.number(b"pay"));
        assert_eq!(counts.number(b"shop"), shop);
        for number in [shop, pay, shop, UNKNOWN] {
            counts.count(number);
        }
        let read = counts.read();
        let of = |name: &str| read.iter().find(|(known, _)| &**known == name).map(|(_, n)| *n);
        assert_eq!((of("shop"), of("pay"), of(""), of("*")), (Some(2), Some(1), Some(1), Some(0)));
        let many: Vec<_> = (0..300).map(|n| counts.number(format!("n{n}").as_bytes())).collect();
        assert_eq!(many.iter().filter(|number| **number == OTHERS).count(), 300 - (LIMIT - 4));
        assert_eq!(counts.read().len(), LIMIT);
        assert_eq!(counts.number(b"pay"), pay, "who had one keeps it");
    }
}
