//! Special-use names: answered here, never sent upstream (also RFC 7686, 8375, 6762).

use crate::harness::wire;
use crate::harness::{Setup, Sink, ask, qtype, rcode, sink};

#[test]
fn localhost_and_the_names_below_it_are_the_loopback_addresses() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let daemon = Setup::towards(sink.address).start();
    for name in ["localhost.", "LocalHost.", "app.localhost."] {
        let four = wire::udp(daemon.address(), &ask(name, qtype::A));
        assert_eq!((four.rcode(), four.data(qtype::A)), (rcode::NOERROR, vec!["127.0.0.1"]));
        let six = wire::udp(daemon.address(), &ask(name, qtype::AAAA));
        assert_eq!((six.rcode(), six.data(qtype::AAAA)), (rcode::NOERROR, vec!["::1"]));
        let other = wire::udp(daemon.address(), &ask(name, qtype::MX));
        assert_eq!((other.rcode(), other.answers.len()), (rcode::NOERROR, 0), "{name} MX");
        assert!(sink.seen_for(&name.to_lowercase()).is_empty());
    }
    let reverse = wire::udp(daemon.address(), &ask("1.0.0.127.in-addr.arpa", qtype::PTR));
    assert_eq!(reverse.data(qtype::PTR), ["localhost."]);
    let six = format!("1.{}ip6.arpa.", "0.".repeat(31));
    let reverse = wire::udp(daemon.address(), &ask(&six, qtype::PTR));
    assert_eq!(reverse.data(qtype::PTR), ["localhost."]);
}

#[test]
fn names_that_cannot_exist_are_denied_without_asking() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let daemon = Setup::towards(sink.address).start();
    // The apex itself has an SOA and is NODATA, as in the empty zones of RFC 6303.
    for (name, expected) in [
        ("invalid.", rcode::NOERROR),
        ("a.invalid.", rcode::NXDOMAIN),
        ("b.A.InVaLiD.", rcode::NXDOMAIN),
        ("hidden.onion.", rcode::NXDOMAIN),
    ] {
        let answer = wire::udp(daemon.address(), &ask(name, qtype::A));
        assert_eq!((answer.rcode(), answer.answers.len()), (expected, 0), "{name}");
        let soa: Vec<_> = answer.authority.iter().map(|record| record.rtype).collect();
        assert_eq!(soa, [qtype::SOA], "{name}: it can be cached below us");
        assert!(sink.seen_for(&name.to_lowercase()).is_empty(), "{name}");
    }
}

#[test]
fn names_that_only_look_special_are_forwarded() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let daemon = Setup::towards(sink.address).start();
    for name in ["invalid.example.org.", "notlocalhost.", "localhost.example.org."] {
        let answer = wire::udp(daemon.address(), &ask(name, qtype::A));
        assert_eq!(answer.data(qtype::A), ["192.0.2.7"], "{name}");
        assert_eq!(sink.seen_for(name).len(), 1, "{name}");
    }
}
