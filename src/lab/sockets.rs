//! Datagrams that sockets of the lab threw away because their receive buffer was full: losses, but no races.

use std::fs;

use serde::Serialize;

use super::LabError;
use super::namespace::Namespace;
use super::net::Net;

/// Overruns since the lab began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Overruns {
    /// At pods and cluster DNS servers: the lab's own fault.
    pub lab: u64,
    /// On the node: nodens was too slow.
    pub node: u64,
}

impl Overruns {
    /// Reads the counters of all namespaces.
    ///
    /// # Errors
    /// When a namespace cannot be entered.
    pub(super) fn read(net: &Net) -> Result<Self, LabError> {
        let hosts = net.pods.iter().chain(&net.servers);
        let lab = hosts.map(|host| of(&host.namespace)).sum::<Result<u64, _>>()?;
        Ok(Self { lab, node: of(net.node())? })
    }

    /// What came on top of `before`.
    pub(super) fn since(self, before: Self) -> Self {
        Self { lab: self.lab - before.lab, node: self.node - before.node }
    }
}

/// Those of one namespace, both families together.
fn of(namespace: &Namespace) -> Result<u64, LabError> {
    namespace.run(|| {
        let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        Ok(udp4(&read("snmp").unwrap_or_default()) + udp6(&read("snmp6").unwrap_or_default()))
    })
}

/// Reads `RcvbufErrors` from two lines that begin with `Udp:`, the first with the names.
fn udp4(text: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    both.find(|(name, _)| *name == "RcvbufErrors")
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}

/// Reads it from a list of names with values.
fn udp6(text: &str) -> u64 {
    let mut values = text.lines().filter_map(|line| line.strip_prefix("Udp6RcvbufErrors"));
    values.next().and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_receive_buffers_are_counted_by_the_name_of_their_column() {
        let snmp = "Tcp: ActiveOpens RcvbufErrors\nTcp: 1 2\n\
                    Udp: InDatagrams NoPorts RcvbufErrors SndbufErrors\nUdp: 10 20 30 40\n\
                    UdpLite: InDatagrams RcvbufErrors\nUdpLite: 5 6\n";
        assert_eq!(udp4(snmp), 30);
        assert_eq!(udp4("Udp: InDatagrams\n"), 0);
        assert_eq!(udp6("Udp6InErrors \t 1\nUdp6RcvbufErrors   \t7\n"), 7);
    }
}
