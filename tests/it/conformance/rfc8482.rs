//! ANY: a small answer by UDP, never an amplifier.

use crate::harness::wire;
use crate::harness::{Knot, Setup, ask, needs, qtype, rcode};

#[test]
fn any_by_udp_gets_a_small_answer_without_an_error() {
    needs!("knotd");
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).start();
    for name in ["example.org", "big.example.org", "nobody.example.org"] {
        let answer = wire::udp(daemon.address(), &ask(name, qtype::ANY));
        assert_eq!(answer.rcode(), rcode::NOERROR, "{name}");
        assert_eq!(answer.answers.len(), 1, "{name}");
        let record = &answer.answers[0];
        assert_eq!((record.rtype, record.owner.as_str()), (13, &*format!("{name}.")), "HINFO");
        assert_eq!(record.data, "0752464338343832".to_owned() + "00", "\"RFC8482\" \"\"");
        assert!(answer.wire.len() < 120, "{} bytes", answer.wire.len());
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
