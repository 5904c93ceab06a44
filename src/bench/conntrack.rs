//! What the kernel's connection tracking counted in the network namespace of the calling thread.

use std::fs;

use serde::{Deserialize, Serialize};

/// Counters since the namespace began, all CPUs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Entries that could not be confirmed: their packet was dropped.
    pub insert_failed: u64,
    /// Packets dropped, for whatever reason.
    pub drop: u64,
    /// Clashes that the kernel repaired.
    pub clash_resolve: u64,
    /// Entries thrown out of a full table.
    pub early_drop: u64,
}

impl Counters {
    /// Reads them; `None` where the kernel does not show them.
    pub fn read() -> Option<Self> {
        Self::from_text(&fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack").ok()?)
    }

    /// Adds the lines of all CPUs up, by the names of the first line.
    fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let names = lines.next()?;
        let rows: Vec<_> = lines.collect();
        let sum = |name: &str| {
            let column = names.iter().position(|one| *one == name)?;
            let number = |row: &Vec<&str>| u64::from_str_radix(row.get(column)?, 16).ok();
            Some(rows.iter().filter_map(number).sum())
        };
        Some(Self {
            insert_failed: sum("insert_failed")?,
            drop: sum("drop")?,
            // Before Linux 5.10 the column was called "searched" and counted something else.
            clash_resolve: sum("clashres").unwrap_or_default(),
            early_drop: sum("early_drop")?,
        })
    }

    /// What was counted since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            insert_failed: self.insert_failed.saturating_sub(before.insert_failed),
            drop: self.drop.saturating_sub(before.drop),
            clash_resolve: self.clash_resolve.saturating_sub(before.clash_resolve),
            early_drop: self.early_drop.saturating_sub(before.early_drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_all_cpus_by_the_names_of_their_columns() {
        let text = "entries  clashres found new insert_failed drop early_drop\n\
                    00000002  0000000a 0 0 00000001 00000002 00000000\n\
                    00000002  00000001 0 0 0000000f 00000001 00000003\n";
        let counters = Counters::from_text(text).expect("well-formed");
        let expected = Counters { insert_failed: 16, drop: 3, clash_resolve: 11, early_drop: 3 };
        assert_eq!(counters, expected);
        assert_eq!(Counters::from_text("entries\n"), None);
    }
}
