//! conntrack: forgets the entry of one UDP flow.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::attr::Attributes;
use super::channel::{ACK, Channel, NetlinkError, REQUEST, put_message};

/// Connection tracking among netfilter's parts, and its message that deletes.
const DELETE: u16 = 1 << 8 | 2;

/// Sequence numbers of what nobody waits for, and of what somebody does.
const UNASKED: u32 = 0;
const ASKED: u32 = 1;

/// A UDP flow as its first packet left: nothing translated yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

/// A socket to connection tracking of the network namespace that it was opened in.
pub struct Conntrack(Channel);

impl Conntrack {
    /// Opens a socket; it is not passed on to programs that we start.
    ///
    /// # Errors
    /// [`NetlinkError::Open`]
    pub fn open() -> Result<Self, NetlinkError> {
        Channel::open(NETLINK_NETFILTER).map(Self)
    }

    /// Deletes the flow's entry, if there is one; what the kernel says to that waits in the socket for the
    /// next [`Conntrack::remove`].
    ///
    /// # Errors
    /// `Io` when the message could not be sent.
    pub fn forget(&self, flow: &Flow) -> Result<(), NetlinkError> {
        self.0.send(&deletion(flow, 0, UNASKED))
    }

    /// Deletes the flow's entry; tells whether there was one, and how many of those forgotten since the last
    /// call were not deleted. One thread at a time.
    ///
    /// # Errors
    /// `Refused` without CAP_NET_ADMIN, or where the kernel has no such interface.
    pub fn remove(&self, flow: &Flow) -> Result<(bool, u64), NetlinkError> {
        let answers = self.0.exchange(&deletion(flow, ACK, ASKED))?;
        // Of what nobody asked about it tells failures alone.
        let failed = answers.iter().filter(|answer| answer.sequence == UNASKED).count() as u64;
        let answer = answers.iter().find(|answer| answer.sequence == ASKED);
        match answer.map(|answer| answer.refusal("delete a conntrack entry")) {
            Some(None) => Ok((true, failed)),
            Some(Some(error)) if error.is_missing() => Ok((false, failed)),
            Some(Some(error)) => Err(error),
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }
}

/// The message that deletes the entry of a flow.
fn deletion(flow: &Flow, flags: u16, sequence: u32) -> Vec<u8> {
    // CTA_TUPLE_ORIG of CTA_TUPLE_IP and CTA_TUPLE_PROTO, as linux/nfnetlink_conntrack.h numbers them.
    let mut body = Attributes::default();
    body.put_list(1, |tuple| {
        tuple.put_list(1, |ip| {
            for (kind, address) in [(1, flow.from.ip()), (2, flow.to.ip())] {
                match address {
                    IpAddr::V4(address) => ip.put(kind, &address.octets()),
                    IpAddr::V6(address) => ip.put(kind + 2, &address.octets()),
                };
            }
        });
        tuple.put_list(2, |protocol| {
            protocol.put(1, &[17]);
            protocol.put(2, &flow.from.port().to_be_bytes());
            protocol.put(3, &flow.to.port().to_be_bytes());
        });
    });
    let family = if flow.to.is_ipv4() { 2 } else { 10 };
    let body = [&[family, 0, 0, 0], body.as_bytes()].concat();
    let mut bytes = Vec::with_capacity(128);
    put_message(&mut bytes, (DELETE, REQUEST | flags, sequence), &body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_names_the_tuple_as_the_kernel_numbers_it() {
        let flow = |from: &str, to: &str| Flow {
            from: from.parse().expect("an address"),
            to: to.parse().expect("an address"),
        };
        let four = deletion(&flow("192.0.2.1:40000", "198.18.1.2:53"), ACK, ASKED);
        let mut expected = vec![72, 0, 0, 0, 2, 1, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
        expected.extend([52, 0, 1, 0x80, 20, 0, 1, 0x80]);
        expected.extend([8, 0, 1, 0, 192, 0, 2, 1, 8, 0, 2, 0, 198, 18, 1, 2]);
        expected.extend([28, 0, 2, 0x80, 5, 0, 1, 0, 17, 0, 0, 0]);
        expected.extend([6, 0, 2, 0, 0x9c, 0x40, 0, 0, 6, 0, 3, 0, 0, 53, 0, 0]);
        assert_eq!(four, expected);
        let six = deletion(&flow("[2001:db8::1]:40000", "[2001:db8::2]:53"), 0, UNASKED);
        assert_eq!((six.len(), six[16], six[8]), (96, 10, 0));
        assert_eq!(six[28..34], [20, 0, 3, 0, 0x20, 1]);
    }
}
