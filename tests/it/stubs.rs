//! Real stub resolvers: what programs linked against glibc and musl get.

use crate::harness::stubs::{Libc, Stub};
use crate::harness::{Daemon, Knot, Place, Setup, ask, namespace, needs, qtype, wire};

/// Runs `check` with a compiled stub resolver whose resolv.conf names the daemon on 127.0.0.1:53.
fn with_stub(library: Libc, options: &str, check: impl FnOnce(&Stub, &Daemon) + Send) {
    let stub = Stub::compile(library);
    let place = Place::new();
    let file = place.write("resolv.conf", &format!("nameserver 127.0.0.1\n{options}\n"));
    namespace::inside(|| {
        namespace::bind_over(&file, "/etc/resolv.conf");
        let knot = Knot::start();
        let daemon = Setup::towards(knot.address).port(53).start();
        check(&stub, &daemon);
        drop(knot);
    });
}

/// What every C library must get.
fn assert_resolves(stub: &Stub) {
    for _ in 0..3 {
        assert_eq!(stub.addresses("www.example.org"), ["192.0.2.1", "2001:db8::1"], "A and AAAA");
        assert_eq!(stub.addresses("v4.example.org"), ["192.0.2.4"], "A alone");
        assert_eq!(stub.addresses("v6.example.org"), ["2001:db8::6"], "AAAA alone");
        assert_eq!(stub.addresses("chain1.example.org"), ["192.0.2.1", "2001:db8::1"], "aliases");
        assert_eq!(stub.addresses("MIXED.example.org"), ["192.0.2.11"]);
        assert_eq!(stub.addresses("many.example.org").len(), 20);
        assert_eq!(stub.addresses("www"), ["192.0.2.1", "2001:db8::1"], "by the search list");
        assert_eq!(stub.addresses("localhost."), ["127.0.0.1", "::1"]);
        let nobody = stub.addresses("nobody.example.org");
        assert!(nobody.len() == 1 && nobody[0].starts_with("error"), "{nobody:?}");
        assert_eq!(stub.name_of("192.0.2.1"), "www.example.org");
        assert_eq!(stub.name_of("2001:db8::6"), "v6.example.org");
        assert!(stub.name_of("192.0.2.99").starts_with("error"));
    }
}

#[test]
fn a_glibc_program_gets_addresses_names_and_errors() {
    needs!("knotd", "gcc", "ip");
    with_stub(Libc::Glibc, "search example.org", |stub, _| assert_resolves(stub));
}

#[test]
fn a_musl_program_gets_addresses_names_and_errors() {
    needs!("knotd", "musl-gcc", "ip");
    with_stub(Libc::Musl, "search example.org", |stub, _| assert_resolves(stub));
}

#[test]
fn a_pods_search_list_of_five_dots_ends_in_the_right_address() {
    needs!("knotd", "gcc", "musl-gcc", "ip");
    let options = "search default.svc.example.org svc.example.org example.org\noptions ndots:5";
    for library in [Libc::Glibc, Libc::Musl] {
        with_stub(library, options, |stub, _| {
            assert_eq!(stub.addresses("www"), ["192.0.2.1", "2001:db8::1"], "{library:?}");
            assert_eq!(stub.addresses("www.example.net"), ["198.51.100.1", "2001:db8:1::1"]);
        });
    }
}

#[test]
fn glibc_with_edns_trust_ad_and_tcp_options_is_served() {
    needs!("knotd", "gcc", "ip");
    for options in ["options edns0 trust-ad", "options use-vc", "options single-request-reopen"] {
        with_stub(Libc::Glibc, options, |stub, daemon| {
            let www = stub.addresses("www.example.org");
            assert_eq!(www, ["192.0.2.1", "2001:db8::1"], "{options}");
            assert_eq!(stub.addresses("many.example.org").len(), 20, "{options}");
            assert_eq!(wire::udp(daemon.address(), &ask("www.example.org", qtype::A)).rcode(), 0);
        });
    }
}
