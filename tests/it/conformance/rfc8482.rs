//! ANY: a small answer by UDP, never an amplifier.

use crate::harness::wire;
use crate::harness::{Knot, Setup, ask, needs, qtype, rcode};

#[test]
fn any_by_udp_gets_the_addresses_or_an_hinfo_and_never_everything() {
    needs!("knotd");
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).start();
    let any = |name| wire::udp(daemon.address(), &ask(name, qtype::ANY));
    for _ in 0..2 {
        let addresses = any("www.example.org");
        assert_eq!(addresses.data(qtype::A), ["192.0.2.1"]);
        assert_eq!(addresses.data(qtype::AAAA), ["2001:db8::1"]);
        assert_eq!(addresses.answers.len(), 2, "a subset: RFC 8482 §4.1");
        assert_eq!(any("example.org").answers.len(), 1, "the address, not MX, TXT, CAA, NS, SOA");
        let none = any("big.example.org");
        assert_eq!((none.rcode(), none.answers.len()), (rcode::NOERROR, 1));
        let hinfo = &none.answers[0];
        assert_eq!((hinfo.rtype, hinfo.owner.as_str()), (13, "big.example.org."), "RFC 8482 §4.2");
        assert_eq!(hinfo.data, "075246433834383200", "\"RFC8482\" \"\"");
        assert!(none.wire.len() < 120, "{} bytes", none.wire.len());
        assert_eq!(any("nobody.example.org").rcode(), rcode::NXDOMAIN);
    }
}

#[test]
fn any_by_tcp_is_answered_without_an_error() {
    needs!("knotd");
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).start();
    let answer = wire::tcp(daemon.address(), &ask("www.example.org", qtype::ANY));
    assert_eq!(answer.rcode(), rcode::NOERROR);
    assert!(!answer.answers.is_empty());
}
