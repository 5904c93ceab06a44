//! What the kernel's connection tracking counted in one namespace, and which entries it holds.

use std::fs;
use std::net::IpAddr;

use serde::Serialize;

use super::LabError;
use super::namespace::Namespace;

/// Counters since the namespace began, all CPUs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
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

/// Entries at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Entries {
    pub all: u64,
    /// Those that a pod's query made.
    pub of_pods: u64,
}

impl Counters {
    /// Reads the counters of a namespace; `None` where the kernel does not show them.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub(super) fn read(namespace: &Namespace) -> Result<Option<Self>, LabError> {
        let text = namespace
            .run(|| Ok(fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack").ok()))?;
        Ok(text.and_then(|text| Self::from_text(&text)))
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
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            insert_failed: self.insert_failed - before.insert_failed,
            drop: self.drop - before.drop,
            clash_resolve: self.clash_resolve - before.clash_resolve,
            early_drop: self.early_drop - before.early_drop,
        }
    }
}

impl Entries {
    /// Counts the entries of a namespace; `None` where the kernel does not show them.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub(super) fn read(namespace: &Namespace, pods: &[IpAddr]) -> Result<Option<Self>, LabError> {
        let text =
            namespace.run(|| Ok(fs::read_to_string("/proc/thread-self/net/nf_conntrack").ok()))?;
        Ok(text.map(|text| Self::from_text(&text, pods)))
    }

    /// Counts lines, and those whose first source is one of `pods`.
    fn from_text(text: &str, pods: &[IpAddr]) -> Self {
        let source = |line: &str| -> Option<IpAddr> {
            line.split_whitespace().find_map(|word| word.strip_prefix("src="))?.parse().ok()
        };
        let count = |lines: usize| u64::try_from(lines).unwrap_or(u64::MAX);
        let of_pods = text.lines().filter_map(source).filter(|source| pods.contains(source));
        Self { all: count(text.lines().count()), of_pods: count(of_pods.count()) }
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

    #[test]
    fn an_entry_belongs_to_whoever_sent_its_first_packet() {
        let text = "ipv4 2 udp 17 30 src=10.244.0.10 dst=10.96.0.10 sport=1 dport=53 src=10.245.1.2 \
                    dst=10.245.1.1 sport=53 dport=1 use=2\n\
                    ipv4 2 udp 17 30 src=10.245.1.1 dst=10.245.1.2 sport=1 dport=53 src=10.245.1.2 \
                    dst=10.244.0.10 sport=53 dport=1 use=2\n";
        let pods = ["10.244.0.10".parse().expect("v4")];
        assert_eq!(Entries::from_text(text, &pods), Entries { all: 2, of_pods: 1 });
    }
}
