//! What the kernel's connection tracking counted in one namespace, and which entries it holds.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::LabError;
use super::namespace::Namespace;
pub use crate::bench::conntrack::Counters;
use crate::netlink::conntrack::{Conntrack, Flow};

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

/// Deletes the entries of UDP flows that were translated to an address where nobody is any more, as kube-proxy
/// does after it has changed its rules: a stub resolver that asks again from the same port finds another server.
///
/// # Errors
/// When the namespace cannot be entered, or the kernel takes no message.
pub(super) fn forget_translated_to(gone: &[IpAddr], node: &Namespace) -> Result<(), LabError> {
    node.run(|| {
        let text = fs::read_to_string(ENTRIES).unwrap_or_default();
        let conntrack = Conntrack::open()?;
        for flow in text.lines().filter_map(|line| translated_flow(line, gone)) {
            // Whether it was still there does not matter.
            conntrack.remove(&flow)?;
        }
        Ok(())
    })
}

/// The flow of a UDP entry's first packet, if what answers it is at one of these addresses.
fn translated_flow(line: &str, answered_by: &[IpAddr]) -> Option<Flow> {
    // The first of each word is of the packet that began it, the second of the answer.
    let mut words = line.split_whitespace();
    let mut next = |key: &str| words.by_ref().find_map(|word| word.strip_prefix(key));
    let (source, target) = (next("src=")?.parse().ok()?, next("dst=")?.parse().ok()?);
    let (from, to) = (next("sport=")?.parse().ok()?, next("dport=")?.parse().ok()?);
    let answers = next("src=")?.parse().ok()?;
    let is_udp = line.split_whitespace().nth(2) == Some("udp");
    (is_udp && answered_by.contains(&answers))
        .then_some(Flow { from: SocketAddr::new(source, from), to: SocketAddr::new(target, to) })
}

/// Where the kernel shows the entries of the calling thread's namespace.
const ENTRIES: &str = "/proc/thread-self/net/nf_conntrack";

impl Entries {
    /// Counts the entries of a namespace; `None` where the kernel does not show them.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub(super) fn read(namespace: &Namespace, pods: &[IpAddr]) -> Result<Option<Self>, LabError> {
        let text = namespace.run(|| Ok(fs::read_to_string(ENTRIES).ok()))?;
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
        let server: IpAddr = "10.245.1.2".parse().expect("v4");
        let first = text.lines().next().expect("a line");
        let flow = translated_flow(first, &[server]).expect("it is translated");
        let expected = ("10.244.0.10:1".to_owned(), "10.96.0.10:53".to_owned());
        assert_eq!((flow.from.to_string(), flow.to.to_string()), expected);
        assert_eq!(translated_flow(first, &pods), None);
        assert_eq!(translated_flow(&first.replace("udp 17", "tcp 6"), &[server]), None);
    }
}
