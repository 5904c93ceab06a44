//! Who answers: our own data, the longest suffix, an alias's target, or nobody.

use super::*;

#[tokio::test]
async fn our_own_data_is_answered_without_asking_anybody() {
    let text = "[local]\nttl = \"60s\"\nprivate_reverse = true\nrecords = [\
        \"db.example.org 300 A 192.0.2.5\", \"www.example.org CNAME db.example.org\"]";
    let stage = Stage::new(text, well_behaved).await;
    let (ok, nx) = (Rcode::NOERROR, Rcode::NXDOMAIN);
    for (name, qtype, rcode, answer) in [
        ("db.example.org", Qtype::A, ok, &["db.example.org. A 192.0.2.5"][..]),
        ("db.example.org", Qtype::AAAA, ok, &[]),
        (
            "www.example.org",
            Qtype::A,
            ok,
            &["www.example.org. CNAME db.example.org.", "db.example.org. A 192.0.2.5"],
        ),
        ("www.example.org", Qtype::AAAA, ok, &["www.example.org. CNAME db.example.org."]),
        ("dn7.example.org", Qtype::A, ok, &["dn7.example.org. A 198.18.0.7"]),
        ("dn7", Qtype::A, ok, &["dn7. A 198.18.0.7"]),
        (
            "7.0.18.198.in-addr.arpa",
            Qtype::PTR,
            ok,
            &["7.0.18.198.in-addr.arpa. PTR dn7.example.org."],
        ),
        ("localhost", Qtype::A, ok, &["localhost. A 127.0.0.1"]),
        ("x.localhost", Qtype::AAAA, ok, &["x.localhost. AAAA ::1"]),
        ("localhost", Qtype::MX, ok, &[]),
        ("1.0.0.127.in-addr.arpa", Qtype::PTR, ok, &["1.0.0.127.in-addr.arpa. PTR localhost."]),
        ("9.0.0.127.in-addr.arpa", Qtype::PTR, nx, &[]),
        ("a.invalid", Qtype::A, nx, &[]),
        ("home.arpa", Qtype::A, ok, &[]),
        ("1.0.168.192.in-addr.arpa", Qtype::PTR, nx, &[]),
    ] {
        let expected = (rcode, answer.iter().map(ToString::to_string).collect());
        assert_eq!(stage.answer(name, qtype).await, expected, "{name} {qtype}");
        let again = stage.answer(name, qtype).await;
        assert_eq!(again, expected, "{name} {qtype} from the cache");
    }
    assert_eq!(stage.upstream.count(), 0);
}

#[tokio::test]
async fn aliases_lead_to_upstreams_and_loops_of_them_end() {
    let text = "[local]\nrecords = [\"a.example.org CNAME far.example.net\", \
        \"x.example.org CNAME y.example.org\", \"y.example.org CNAME x.example.org\"]";
    let stage = Stage::new(text, well_behaved).await;
    let (rcode, answer) = stage.answer("a.example.org", Qtype::A).await;
    assert_eq!(rcode, Rcode::NOERROR);
    assert_eq!(answer, ["a.example.org. CNAME far.example.net.", "far.example.net. A 192.0.2.1"]);
    assert!(matches!(stage.ask("x.example.org", Qtype::A).await, Err(ResolveError::AliasChain)));
    assert!(stage.ask("x.example.org", Qtype::CNAME).await.is_ok());
}

#[tokio::test]
async fn any_by_udp_gets_the_addresses_or_a_word_that_there_are_none() {
    let stage = Stage::new("", well_behaved).await;
    let (_, answer) = stage.answer("example.org", Qtype::ANY).await;
    assert_eq!(answer, ["example.org. A 192.0.2.1"]);
    stage
        .upstream
        .behave(|seen| vec![Act::Send(message::negative(&seen.wire, Rcode::NOERROR, 60))]);
    let (_, answer) = stage.answer("text.example.org", Qtype::ANY).await;
    assert_eq!(answer.len(), 1);
    assert!(answer[0].contains("RFC8482"), "{answer:?}");
    stage
        .upstream
        .behave(|seen| vec![Act::Send(message::negative(&seen.wire, Rcode::NXDOMAIN, 60))]);
    assert_eq!(stage.answer("no.example.org", Qtype::ANY).await, (Rcode::NXDOMAIN, vec![]));
}

#[tokio::test]
async fn what_no_cache_answers_is_refused_by_its_kind() {
    let stage = Stage::new("", well_behaved).await;
    for (qtype, rcode) in [
        (Qtype::AXFR, Rcode::REFUSED),
        (Qtype::IXFR, Rcode::REFUSED),
        (Qtype::TKEY, Rcode::NOTIMP),
        (Qtype::OPT, Rcode::NOTIMP),
        (Qtype::NXNAME, Rcode::FORMERR),
    ] {
        let error = stage.ask("example.org", qtype).await.expect_err("refused");
        assert_eq!(error.rcode(), rcode, "{qtype}");
    }
    let chaos = Query { qclass: Qclass::CH, ..query("version.bind", Qtype::TXT) };
    let error = stage.resolver.resolve(&chaos, Carrier::Datagram).await.expect_err("hidden");
    assert_eq!(error.rcode(), Rcode::REFUSED);
    let open = Stage::new("[local]\nversion = \"ours\"", well_behaved).await;
    let told = open.resolver.resolve(&chaos, Carrier::Datagram).await.expect("told");
    assert!(told.entry.encoded().as_wire().ends_with(b"\x04ours"));
}

#[tokio::test]
async fn every_forward_zone_is_listed_once_and_the_roots_first() {
    let zone = "[[forward]]\nzone = \"corp.example.org\"\nupstreams = [\"192.0.2.9\"]\n";
    let routes = Stage::new(zone, well_behaved).await.resolver.routes();
    let names: Vec<_> = routes.zones().map(|zone| zone.name.to_string()).collect();
    assert_eq!(names, [".", "corp.example.org."]);
}

#[tokio::test]
async fn the_longest_suffix_decides_and_a_written_zone_beats_a_special_name() {
    let other =
        Scripted::start(|seen| vec![Act::Send(message::answer_a(&seen.wire, [192, 0, 2, 9], 60))])
            .await;
    let zones: String = ["corp.example.org", "test"]
        .map(|zone| {
            format!("[[forward]]\nzone = \"{zone}\"\nupstreams = [\"{}\"]\n", other.address)
        })
        .concat();
    let stage = Stage::new(&zones, well_behaved).await;
    for (name, address) in [
        ("example.org", "192.0.2.1"),
        ("xcorp.example.org", "192.0.2.1"),
        ("corp.example.org", "192.0.2.9"),
        ("a.b.corp.example.org", "192.0.2.9"),
        ("a.test", "192.0.2.9"),
    ] {
        let (_, answer) = stage.answer(name, Qtype::A).await;
        assert_eq!(answer, [format!("{name}. A {address}")]);
    }
}

#[tokio::test]
async fn a_ring_of_aliases_in_one_answer_is_handed_on_and_asks_nobody_again() {
    let stage = Stage::new("", |seen| {
        let alias = |owner: &[u8], target: &[u8]| message::record(owner, Qtype::CNAME, 60, target);
        let (a, b) = (b"\x01a\x07example\x03org\0", b"\x01b\x07example\x03org\0");
        let records = match seen.wire[13].to_ascii_lowercase() {
            b'a' => vec![alias(&[0xc0, 12], b), alias(b, a)],
            _ => vec![alias(&[0xc0, 12], b"\xc0\x0c")],
        };
        vec![Act::Send(message::with_records(&seen.wire, Rcode::NOERROR, [&records, &[]]))]
    })
    .await;
    for (name, records) in [("a.example.org", 2), ("self.example.org", 1)] {
        let before = stage.upstream.count();
        let (rcode, answer) = stage.answer(name, Qtype::A).await;
        assert_eq!((rcode, answer.len()), (Rcode::NOERROR, records), "{answer:?}");
        assert_eq!(stage.upstream.count(), before + 1, "{name}");
    }
}

#[tokio::test]
async fn an_alias_whose_target_the_upstream_left_out_is_followed() {
    // Authoritative: says the alias, and of its target only when that is asked for.
    let stage = Stage::new("", |seen| {
        let alias = |target: &[u8]| message::answer(&seen.wire, &[(Qtype::CNAME, 60, target)]);
        vec![Act::Send(match seen.wire[13].to_ascii_lowercase() {
            b'a' => alias(b"\x01b\x07example\x03org\0"),
            b'b' => alias(b"\x01c\x07example\x03org\0"),
            b'c' => message::answer_a(&seen.wire, [192, 0, 2, 7], 60),
            b'r' => alias(b"\x01s\x07example\x03org\0"),
            b's' => alias(b"\x01r\x07example\x03org\0"),
            _ => message::negative(&seen.wire, Rcode::NXDOMAIN, 60),
        })]
    })
    .await;
    let (rcode, answer) = stage.answer("a.example.org", Qtype::A).await;
    assert_eq!((rcode, answer.len()), (Rcode::NOERROR, 3), "{answer:?}");
    assert_eq!(answer[2], "c.example.org. A 192.0.2.7");
    let asked = stage.upstream.count();
    stage.answer("a.example.org", Qtype::A).await;
    assert_eq!(stage.upstream.count(), asked, "kept whole");
    let (rcode, answer) = stage.answer("r.example.org", Qtype::A).await;
    assert_eq!((rcode, answer.len()), (Rcode::NOERROR, 1), "a ring stays as it came: {answer:?}");
    let (_, answer) = stage.answer("a.example.org", Qtype::CNAME).await;
    assert_eq!(answer.len(), 1, "who asks for the alias gets it");
}

#[tokio::test]
async fn any_by_udp_says_why_it_is_what_it_is_whichever_part_knows() {
    let keys = "rebind_protection = true";
    let inner: &[u8] = &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let script = move |seen: &Seen| {
        let a: &[_] = &[(Qtype::A, 600, &[192u8, 0, 2, 1][..])];
        by_type(seen, &[(Qtype::AAAA, &[(Qtype::AAAA, 60, inner)]), (Qtype::A, a)])
    };
    let stage = Stage::of("", keys, script).await;
    let ede = async || {
        let response = stage.ask("example.org", Qtype::ANY).await.expect("answered");
        response.entry.encoded().ede().map(|ede| ede.code)
    };
    assert_eq!(ede().await, Some(crate::dns::ede::EdeCode::BLOCKED), "of AAAA alone");
    stage.upstream.behave(|seen| vec![Act::Send(message::empty(&seen.wire, Rcode::SERVFAIL))]);
    skip(61 * SECOND).await;
    assert_eq!(
        ede().await,
        Some(crate::dns::ede::EdeCode::STALE_ANSWER),
        "AAAA is stale, A is not"
    );
}
