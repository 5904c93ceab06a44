//! The daemon answers: every kind of query, both transports, both families, with and without configuration.

use std::process::Command;
use std::time::Duration;

use crate::harness::message::Answer;
use crate::harness::process::command;
use crate::harness::{
    Daemon, Knot, Place, Setup, ask, http, namespace, needs, qtype, rcode, until, wire,
};

/// Name, type, RCODE and the number of answer records that are expected from knot's zones.
const KINDS: &[(&str, u16, u16, usize)] = &[
    ("www.example.org", qtype::A, rcode::NOERROR, 1),
    ("www.example.org", qtype::AAAA, rcode::NOERROR, 1),
    ("_http._tcp.example.org", qtype::SRV, rcode::NOERROR, 2),
    ("txt.example.org", qtype::TXT, rcode::NOERROR, 1),
    ("1.2.0.192.in-addr.arpa", qtype::PTR, rcode::NOERROR, 1),
    (
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
        qtype::PTR,
        rcode::NOERROR,
        1,
    ),
    ("example.org", qtype::MX, rcode::NOERROR, 2),
    ("example.org", qtype::NS, rcode::NOERROR, 1),
    ("example.org", qtype::SOA, rcode::NOERROR, 1),
    ("alias.example.org", qtype::A, rcode::NOERROR, 2),
    ("chain1.example.org", qtype::AAAA, rcode::NOERROR, 4),
    ("alias.example.org", qtype::CNAME, rcode::NOERROR, 1),
    ("some.wild.example.org", qtype::A, rcode::NOERROR, 1),
    ("a.old.example.org", qtype::A, rcode::NOERROR, 3),
    ("odd.example.org", 65_280, rcode::NOERROR, 1),
    ("https.example.org", 65, rcode::NOERROR, 1),
    ("many.example.org", qtype::A, rcode::NOERROR, 20),
    ("v4.example.org", qtype::AAAA, rcode::NOERROR, 0),
    ("empty.example.org", qtype::A, rcode::NOERROR, 0),
    ("nobody.example.org", qtype::A, rcode::NXDOMAIN, 0),
    ("nobody.example.org", qtype::SRV, rcode::NXDOMAIN, 0),
];

/// Asserts what came for one line of [`KINDS`].
fn assert_kind(answer: &Answer, kind: &(&str, u16, u16, usize)) {
    let (name, qtype, rcode, count) = *kind;
    assert_eq!((answer.rcode(), answer.answers.len()), (rcode, count), "{name} {qtype}");
    if count == 0 {
        let soa: Vec<_> = answer.authority.iter().map(|record| record.rtype).collect();
        assert_eq!(soa, [qtype::SOA], "{name} {qtype}: a negative response carries its SOA");
    }
}

#[test]
fn every_kind_of_query_is_answered_by_udp_and_tcp_from_both_families() {
    needs!("::1", "knotd");
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).start();
    for kind in KINDS {
        let ask = ask(kind.0, kind.1);
        let reference = wire::tcp(knot.address, &ask);
        for address in [daemon.address(), daemon.address6()] {
            for answer in [wire::udp(address, &ask), wire::tcp(address, &ask)] {
                assert_kind(&answer, kind);
                let mut ours: Vec<_> = answer.answers.iter().map(|record| &record.data).collect();
                let mut knots: Vec<_> =
                    reference.answers.iter().map(|record| &record.data).collect();
                ours.sort();
                knots.sort();
                assert_eq!(ours, knots, "{} {}", kind.0, kind.1);
            }
        }
    }
}

#[test]
fn dig_is_answered() {
    needs!("knotd", "dig");
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).start();
    let port = daemon.port.to_string();
    for (arguments, expected) in [
        (vec!["www.example.org", "A"], "192.0.2.1"),
        (vec!["www.example.org", "AAAA", "+tcp"], "2001:db8::1"),
        (vec!["-x", "192.0.2.1"], "www.example.org."),
        (vec!["_dns._udp.example.org", "SRV"], "0 0 53 ns1.example.org."),
        (vec!["txt.example.org", "TXT", "+cookie"], "\"one\" \"two\" \"three and a longer one\""),
    ] {
        let mut dig = command("dig");
        dig.args(["@127.0.0.1", "-p", &port, "+short"]).args(arguments);
        let output = dig.output().expect("dig runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected, "{dig:?}");
    }
    let mut dig = command("dig");
    let output = dig.args(["@127.0.0.1", "-p", &port, "nobody.example.org"]).output();
    let text = String::from_utf8_lossy(&output.expect("dig runs").stdout).into_owned();
    assert!(text.contains("status: NXDOMAIN") && text.contains("SOA"), "{text}");
    assert!(!text.contains("WARNING"), "dig has nothing to complain about: {text}");
}

/// Runs `nodens run` without any argument, waits for an answer on 127.0.0.1:53, hands it over.
fn without_configuration(resolv_conf: &str, check: impl FnOnce(&Daemon) + Send) {
    let place = Place::new();
    let file = place.write("resolv.conf", resolv_conf);
    namespace::inside(|| {
        namespace::bind_over(&file, "/etc/resolv.conf");
        let knot = Knot::at("127.0.0.2:53".parse().expect("an address"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
        command.arg("run").env_clear();
        let daemon = Daemon::run(command, Place::new(), 53, String::new());
        let ready = until(Duration::from_secs(20), || {
            std::net::TcpStream::connect(daemon.address()).is_ok()
        });
        assert!(ready, "nobody listens on port 53:\n{}", daemon.log());
        check(&daemon);
        drop(knot);
    });
}

#[test]
fn no_configuration_at_all_works() {
    needs!("::1", "knotd", "ip");
    without_configuration("nameserver 127.0.0.2\noptions edns0\n", |daemon| {
        for kind in KINDS {
            assert_kind(&wire::udp(daemon.address(), &ask(kind.0, kind.1)), kind);
        }
        let six = wire::udp(daemon.address6(), &ask("www.example.org", qtype::AAAA));
        assert_eq!(six.data(qtype::AAAA), ["2001:db8::1"]);
        let admin = "127.0.0.1:9253".parse().expect("an address");
        let ready = until(Duration::from_secs(4), || {
            http::over_tcp(admin, "GET", "/readyz", "").is_some_and(|reply| reply.status == 200)
        });
        assert!(ready, "{}", daemon.log());
    });
}

#[test]
fn without_ipv6_the_default_addresses_are_those_that_exist() {
    needs!("knotd", "ip");
    let place = Place::new();
    let file = place.write("resolv.conf", "nameserver 127.0.0.2\n");
    namespace::inside(|| {
        namespace::bind_over(&file, "/etc/resolv.conf");
        namespace::ip(&["-6", "address", "del", "::1/128", "dev", "lo"]);
        let _knot = Knot::at("127.0.0.2:53".parse().expect("an address"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
        command.arg("run").env_clear();
        let daemon = Daemon::run(command, Place::new(), 53, String::new());
        let ready = until(Duration::from_secs(20), || {
            std::net::TcpStream::connect(daemon.address()).is_ok()
        });
        assert!(ready, "{}", daemon.log());
        let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
        assert_eq!(answer.data(qtype::A), ["192.0.2.1"]);
    });
}

#[test]
fn responses_leave_from_the_address_that_was_asked() {
    needs!("knotd", "ip");
    namespace::inside(|| {
        for address in ["192.0.2.77/32", "192.0.2.78/32", "2001:db8:77::1/128"] {
            namespace::ip(&["address", "add", address, "dev", "lo"]);
        }
        let knot = Knot::start();
        let daemon = Setup::towards(knot.address)
            .top("allow = [\"0.0.0.0/0\", \"::/0\"]")
            .listen("0.0.0.0")
            .listen("[::]")
            .start();
        // A connected socket receives only what comes from the address that it asked.
        for host in ["127.0.0.1", "127.0.0.9", "192.0.2.77", "192.0.2.78", "[2001:db8:77::1]"] {
            let address = format!("{host}:{}", daemon.port).parse().expect("an address");
            for _ in 0..2 {
                let answer = wire::udp(address, &ask("www.example.org", qtype::A));
                assert_eq!(answer.data(qtype::A), ["192.0.2.1"], "{host}");
            }
            assert_eq!(wire::tcp(address, &ask("www.example.org", qtype::A)).answers.len(), 1);
        }
    });
}

#[test]
fn lookup_asks_the_running_daemon_and_says_who_answered() {
    needs!("knotd");
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).start();
    let server = daemon.address().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_nodens"))
        .args(["lookup", "www.example.org", "AAAA", "--server", &server])
        .output()
        .expect("the executable runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("2001:db8::1"), "{output:?}");
    assert!(text.contains(&server), "who answered: {text}");
}
