//! EDNS client subnet: stripped both ways.

use crate::harness::message::Opt;
use crate::harness::wire;
use crate::harness::{Setup, Sink, ask, qtype, sink};

/// 198.51.100.0/24 as an option's data.
const SUBNET: [u8; 7] = [0, 1, 24, 0, 198, 51, 100];

#[test]
fn a_client_subnet_goes_neither_up_nor_down() {
    let sink = Sink::start(|seen| {
        let mut opt = Opt::new(1232);
        opt.options = vec![(8, [0, 1, 24, 24, 198, 51, 100].to_vec()), (10, vec![7; 16])];
        sink::ordinary(seen).additional(&opt.to_wire()).now()
    });
    let daemon = Setup::towards(sink.address).start();
    for _ in 0..2 {
        let answer = wire::udp(
            daemon.address(),
            &ask("www.example.org", qtype::A).option(8, &SUBNET).option(10, &[1; 8]),
        );
        assert_eq!(answer.data(qtype::A), ["192.0.2.7"]);
        let options = answer.opt.expect("an OPT record").options;
        assert!(
            options.is_empty(),
            "nothing of the upstream's or the asker's options: {options:?}"
        );
    }
    let seen = sink.seen_for("www.example.org.");
    assert_eq!(seen.len(), 1, "the subnet is no part of the key");
    let opt = seen[0].behind_question();
    assert!(opt.is_empty() || opt.ends_with(&[0, 0]), "an OPT record without options: {opt:02x?}");
}

#[test]
fn a_broken_client_subnet_makes_no_difference_between_a_miss_and_a_hit() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let daemon = Setup::towards(sink.address).start();
    for attempt in ["a miss", "a hit"] {
        let broken = ask("www.example.org", qtype::A).option(8, &[0, 9, 200, 0, 1]);
        let answer = wire::udp(daemon.address(), &broken);
        assert_eq!(answer.data(qtype::A), ["192.0.2.7"], "{attempt}");
    }
}
