//! Upstreams that are ourselves: found before the first query goes round.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use super::{Listen, Upstream};

/// An upstream whose queries would come back to one of our own addresses.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "the upstream {upstream} is nodens itself, which listens on {listen}: every query would go round; \
     name another upstream, or listen on another address"
)]
pub struct Loop {
    pub upstream: Upstream,
    pub listen: SocketAddr,
}

/// Finds the first upstream that one of our addresses answers.
///
/// A wildcard address answers the loopback addresses of its family; that it also answers the
/// host's others is not known here, and left to the probe.
pub fn loops(listen: &[Listen], upstreams: &[Upstream]) -> Option<Loop> {
    upstreams.iter().find_map(|upstream| {
        let ours = listen.iter().find(|listen| answers(listen, upstream.address))?;
        Some(Loop { upstream: upstream.clone(), listen: ours.address })
    })
}

/// Tells whether a datagram to `target` from this host arrives at `listen`.
fn answers(listen: &Listen, target: SocketAddr) -> bool {
    let (ours, theirs) = (listen.address.ip(), target.ip().to_canonical());
    if listen.address.port() != target.port() || ours.is_ipv4() != theirs.is_ipv4() {
        return false;
    }
    let same_link = match (listen.address, target) {
        (SocketAddr::V6(a), SocketAddr::V6(b)) => a.scope_id() == b.scope_id(),
        _ => true,
    };
    if theirs.is_unspecified() {
        // A datagram to the unspecified address goes to loopback.
        return ours.is_unspecified() || ours.is_loopback();
    }
    (ours == theirs && same_link) || (ours.is_unspecified() && reaches_loopback(listen, theirs))
}

/// Tells whether a wildcard socket hears the loopback address `target`, which a device may prevent.
fn reaches_loopback(listen: &Listen, target: IpAddr) -> bool {
    target.is_loopback() && listen.device.as_deref().is_none_or(|device| device == "lo")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address, with a device behind `@`.
    fn listen(text: &str) -> Listen {
        let (address, device) = text.split_once('@').map_or((text, None), |(a, d)| (a, Some(d)));
        let address = address.parse().expect("an address");
        Listen {
            address,
            device: device.map(str::to_owned),
            required: true,
            is_intercepted: false,
            is_led_to: false,
        }
    }

    #[test]
    fn an_upstream_that_we_answer_ourselves_is_a_loop() {
        for (ours, upstream, is_loop) in [
            ("127.0.0.1:53", "127.0.0.1:53", true),
            ("127.0.0.1:5300", "127.0.0.1:53", false),
            ("127.0.0.1:53", "127.0.0.53:53", false),
            ("127.0.0.1:53", "tcp://127.0.0.1:53", true),
            ("0.0.0.0:53", "127.0.0.53:53", true),
            ("0.0.0.0:53", "192.0.2.1:53", false),
            ("0.0.0.0:53@eth0", "127.0.0.1:53", false),
            ("0.0.0.0:53@lo", "127.0.0.1:53", true),
            ("[::]:53", "[::1]:53", true),
            ("[::]:53", "127.0.0.1:53", false),
            ("127.0.0.1:53", "[::ffff:127.0.0.1]:53", true),
            ("127.0.0.1:53", "0.0.0.0:53", true),
            ("192.0.2.1:53", "0.0.0.0:53", false),
            ("[fe80::1%2]:53", "[fe80::1%2]:53", true),
            ("[fe80::1%2]:53", "[fe80::1%3]:53", false),
        ] {
            let found = loops(&[listen(ours)], &[upstream.parse().expect(upstream)]);
            assert_eq!(found.is_some(), is_loop, "{ours} {upstream}");
        }
    }
}
