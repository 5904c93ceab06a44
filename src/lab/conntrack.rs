//! What the kernel's connection tracking counted in one namespace, and which entries it holds.

use std::fs;
use std::net::IpAddr;

use serde::Serialize;

use super::LabError;
use super::namespace::Namespace;
pub use crate::bench::conntrack::Counters;

/// Entries at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Entries {
    pub all: u64,
    /// Those that a pod's query made.
    pub of_pods: u64,
}

/// Reads the counters of a namespace; `None` where the kernel does not show them.
///
/// # Errors
/// When the namespace cannot be entered.
pub(super) fn counters(namespace: &Namespace) -> Result<Option<Counters>, LabError> {
    namespace.run(|| Ok(Counters::read()))
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
    fn an_entry_belongs_to_whoever_sent_its_first_packet() {
        let text = "ipv4 2 udp 17 30 src=10.244.0.10 dst=10.96.0.10 sport=1 dport=53 src=10.245.1.2 \
                    dst=10.245.1.1 sport=53 dport=1 use=2\n\
                    ipv4 2 udp 17 30 src=10.245.1.1 dst=10.245.1.2 sport=1 dport=53 src=10.245.1.2 \
                    dst=10.244.0.10 sport=53 dport=1 use=2\n";
        let pods = ["10.244.0.10".parse().expect("v4")];
        assert_eq!(Entries::from_text(text, &pods), Entries { all: 2, of_pods: 1 });
    }
}
