//! What a zone's own rules make of an answer: AAAA policy, DNS64, TTL bounds, turns, rebinding protection.

use super::*;

const DNS64: &str = "dns64 = \"64:ff9b::/96\"";

#[tokio::test]
async fn aaaa_gets_nodata_without_asking_and_a_is_forwarded() {
    let stage = Stage::of("", "aaaa = \"nodata\"", well_behaved).await;
    for _ in 0..2 {
        assert_eq!(stage.answer("example.org", Qtype::AAAA).await, (Rcode::NOERROR, vec![]));
    }
    assert_eq!(stage.upstream.count(), 0);
    let response = stage.ask("example.org", Qtype::AAAA).await.expect("answered");
    let encoded = response.entry.encoded();
    assert_eq!(encoded.negative_ttl(), Some(Ttl::from_wire(60)));
    assert!(stage.resolver.cached(&query("example.org", Qtype::AAAA)).is_some());
    stage.ask("example.org", Qtype::A).await.expect("answered");
    assert_eq!(stage.upstream.count(), 1);
}

#[tokio::test]
async fn aaaa_auto_follows_the_routes_of_the_node_within_seconds() {
    let v6: &[u8] = &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let script = move |seen: &Seen| by_type(seen, &[(Qtype::AAAA, &[(Qtype::AAAA, 60, v6)])]);
    let stage = Stage::of("", "aaaa = \"auto\"", script).await;
    assert_eq!(stage.answer("example.org", Qtype::AAAA).await, (Rcode::NOERROR, vec![]));
    assert_eq!(stage.upstream.count(), 0);
    assert!(stage.reach.set_node(true));
    skip(10 * SECOND).await;
    let (_, answer) = stage.answer("example.org", Qtype::AAAA).await;
    assert_eq!(answer, ["example.org. AAAA 2001:db8::1"]);
    // And back, whatever the TTL of what is cached; a renewal that was claimed before brings nothing back.
    assert!(stage.reach.set_node(false));
    stage.resolver.forget_ipv6();
    let sent = stage.upstream.count();
    stage.resolver.prefetch(query("example.org", Qtype::AAAA));
    for _ in 0..2 {
        assert_eq!(stage.answer("example.org", Qtype::AAAA).await, (Rcode::NOERROR, vec![]));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(stage.upstream.count(), sent);
}

#[tokio::test]
async fn aaaa_auto_forwards_while_the_cluster_has_an_ipv6_address_although_the_node_has_no_route() {
    let v6: &[u8] = &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let script = move |seen: &Seen| by_type(seen, &[(Qtype::AAAA, &[(Qtype::AAAA, 60, v6)])]);
    let mut stage = Stage::of("", "aaaa = \"auto\"", script).await;
    let cluster = Arc::new(Cluster::new(cluster_settings()));
    stage.reach = Arc::new(Reach::within(Some(Arc::clone(&cluster))));
    let config = config_of("", "aaaa = \"auto\"", &stage.upstream);
    let upstreams = Upstreams::new(config.upstream_ports.clone(), 0, Arc::clone(&stage.metrics));
    stage.resolver.set_routes(routes(&config, &Arc::new(upstreams), &stage.reach));
    let service = |addresses: &str| {
        let text = format!(
            r#"{{"metadata":{{"name":"web","namespace":"shop"}},"spec":{{"clusterIPs":[{addresses}]}}}}"#
        );
        let service = serde_json::from_str(&text).expect("a Service");
        crate::cluster::object::Object::Service(service)
    };
    let applied = |addresses: &str| {
        let event =
            crate::cluster::Event::Applied(crate::cluster::Stream::Services, service(addresses));
        drop(cluster.apply(vec![event]));
    };
    let (dual, single) = (r#""198.18.0.1","2001:db8::1""#, r#""198.18.0.1""#);
    for (n, (addresses, forwarded)) in [(single, 0), (dual, 1), (single, 0)].into_iter().enumerate()
    {
        applied(addresses);
        let (_, answer) = stage.answer(&format!("n{n}.example.org"), Qtype::AAAA).await;
        assert_eq!(answer.len(), forwarded, "{addresses}");
    }
}

#[tokio::test]
async fn addresses_are_synthesised_where_there_are_none_and_the_a_answer_is_shared() {
    let stage = Stage::of("", DNS64, well_behaved).await;
    let (_, answer) = stage.answer("example.org", Qtype::AAAA).await;
    assert_eq!(answer, ["example.org. AAAA 64:ff9b::c000:201"]);
    assert_eq!(stage.upstream.count(), 2);
    stage.ask("example.org", Qtype::A).await.expect("answered");
    let again = stage.ask("example.org", Qtype::AAAA).await.expect("answered");
    assert_eq!(stage.upstream.count(), 2, "both are cached by now");
    assert_eq!(ttls(&again), [60]);
    assert!(!again.entry.encoded().is_negative());
}

#[tokio::test]
async fn a_synthesised_answer_lives_no_longer_than_the_a_record_or_the_nodata() {
    for (a_ttl, age, expected) in [(30, 0, 30), (300, 0, 90), (100, 40, 60)] {
        let script =
            move |seen: &Seen| by_type(seen, &[(Qtype::A, &[(Qtype::A, a_ttl, &[192, 0, 2, 1])])]);
        let stage = Stage::of("", DNS64, script).await;
        if age > 0 {
            stage.ask("example.org", Qtype::A).await.expect("answered");
            skip(age * SECOND).await;
        }
        let response = stage.ask("example.org", Qtype::AAAA).await.expect("answered");
        assert_eq!(ttls(&response), [expected], "{a_ttl} {age}");
    }
    let bare = |seen: &Seen| match seen.qtype() {
        Qtype::A => vec![Act::Send(message::answer_a(&seen.wire, [192, 0, 2, 1], 3600))],
        _ => vec![Act::Send(message::empty(&seen.wire, Rcode::NOERROR))],
    };
    let stage = Stage::of("", DNS64, bare).await;
    let response = stage.ask("example.org", Qtype::AAAA).await.expect("answered");
    assert_eq!(ttls(&response), [600], "without an SOA");
}

#[tokio::test]
async fn aliases_stay_in_a_synthesised_answer() {
    let script = |seen: &Seen| {
        let alias: &[u8] = b"\x03www\x07example\x03net\0";
        let mut records = vec![message::record(&[0xc0, 12], Qtype::CNAME, 50, alias)];
        if seen.qtype() == Qtype::A {
            records.push(message::record(alias, Qtype::A, 40, &[192, 0, 2, 1]));
        }
        vec![Act::Send(message::with_records(&seen.wire, Rcode::NOERROR, [&records, &[]]))]
    };
    let stage = Stage::of("", DNS64, script).await;
    let (_, answer) = stage.answer("example.org", Qtype::AAAA).await;
    let expected =
        ["example.org. CNAME www.example.net.", "www.example.net. AAAA 64:ff9b::c000:201"];
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn real_addresses_win_over_synthesised_ones_and_mapped_ones_are_none() {
    let real: &[u8] = &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mapped: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 9];
    let aaaa = |data| (Qtype::AAAA, 60, data);
    for (records, expected, asked) in [
        (vec![aaaa(real)], "2001:db8::1", 1),
        (vec![aaaa(mapped), aaaa(real)], "2001:db8::1", 1),
        (vec![aaaa(mapped)], "64:ff9b::c000:201", 2),
    ] {
        let script = move |seen: &Seen| {
            let a: &[_] = &[(Qtype::A, 60, &[192u8, 0, 2, 1][..])];
            by_type(seen, &[(Qtype::AAAA, &records), (Qtype::A, a)])
        };
        let stage = Stage::of("", DNS64, script).await;
        let (_, answer) = stage.answer("example.org", Qtype::AAAA).await;
        assert_eq!(answer, [format!("example.org. AAAA {expected}")]);
        assert_eq!(stage.upstream.count(), asked);
    }
}

#[tokio::test]
async fn without_an_a_record_the_answer_is_upstreams_own() {
    let nothing = |seen: &Seen| by_type(seen, &[]);
    let stage = Stage::of("", DNS64, nothing).await;
    let response = stage.ask("example.org", Qtype::AAAA).await.expect("answered");
    assert_eq!(response.entry.encoded().negative_ttl(), Some(Ttl::from_wire(90)));
    stage
        .upstream
        .behave(|seen| vec![Act::Send(message::negative(&seen.wire, Rcode::NXDOMAIN, 60))]);
    let before = stage.upstream.count();
    assert_eq!(stage.answer("no.example.org", Qtype::AAAA).await, (Rcode::NXDOMAIN, vec![]));
    assert_eq!(stage.upstream.count(), before + 1, "nobody asks for A of a name that is none");
}

#[tokio::test]
async fn an_upstream_that_fails_for_aaaa_alone_is_no_obstacle() {
    let script = |seen: &Seen| match seen.qtype() {
        Qtype::A => well_behaved(seen),
        _ => vec![Act::Send(message::empty(&seen.wire, Rcode::SERVFAIL))],
    };
    let stage = Stage::of("", DNS64, script).await;
    let (_, answer) = stage.answer("example.org", Qtype::AAAA).await;
    assert_eq!(answer, ["example.org. AAAA 64:ff9b::c000:201"]);
    stage.upstream.behave(|seen| match seen.qtype() {
        Qtype::A => well_behaved(seen),
        _ => Vec::new(),
    });
    let (_, answer) = stage.answer("b.example.org", Qtype::AAAA).await;
    assert_eq!(answer, ["b.example.org. AAAA 64:ff9b::c000:201"], "silence leaves time for A");
}

#[tokio::test]
async fn who_sets_do_and_cd_gets_what_upstream_says() {
    let stage = Stage::of("", DNS64, well_behaved).await;
    let asked =
        Query { dnssec_ok: true, checking_disabled: true, ..query("example.org", Qtype::AAAA) };
    let response = stage.resolver.resolve(&asked, Carrier::Datagram).await.expect("answered");
    assert!(response.entry.encoded().is_negative());
    assert_eq!(stage.upstream.count(), 1);
}

#[tokio::test]
async fn a_synthesised_answer_is_not_signed() {
    let script = |seen: &Seen| {
        let signature: &[u8] = &[&[0, 1, 8, 2][..], &[0; 14], b"\0", &[7; 16]].concat();
        let alias: &[u8] = &[&[0, 5, 8, 2][..], &[0; 14], b"\0", &[7; 16]].concat();
        let rrsig = |data| (Qtype::RRSIG, 60, data);
        let a = [(Qtype::A, 60, &[192, 0, 2, 1][..]), rrsig(signature), rrsig(alias)];
        let mut acts = by_type(seen, &[(Qtype::A, &a)]);
        if let Act::Send(bytes) = &mut acts[0] {
            bytes[3] |= 0x20; // AD
        }
        acts
    };
    let stage = Stage::of("", &format!("{DNS64}\ntrust_ad = true"), script).await;
    let asked = Query { dnssec_ok: true, ..query("example.org", Qtype::AAAA) };
    let response = stage.resolver.resolve(&asked, Carrier::Datagram).await.expect("answered");
    let encoded = response.entry.encoded();
    let types: Vec<Qtype> = encoded.answer_types().collect();
    assert_eq!(types, [Qtype::AAAA, Qtype::RRSIG], "the alias' signature may stay");
    assert_eq!(encoded.as_wire()[3] & 0x20, 0, "AD");
}

#[tokio::test]
async fn reverse_names_of_synthesised_addresses_lead_to_those_of_the_real_ones() {
    let script = |seen: &Seen| {
        let target: &[u8] = b"\x04host\x07example\x03org\0";
        by_type(seen, &[(Qtype::PTR, &[(Qtype::PTR, 60, target)])])
    };
    let stage = Stage::of("", DNS64, script).await;
    let address: std::net::IpAddr = "64:ff9b::192.0.2.1".parse().expect("address");
    let name = Name::reverse_of(address).to_string();
    let (_, answer) = stage.answer(&name, Qtype::PTR).await;
    let expected = [
        format!("{name} CNAME 1.2.0.192.in-addr.arpa."),
        "1.2.0.192.in-addr.arpa. PTR host.example.org.".to_owned(),
    ];
    assert_eq!(answer, expected);
    let (_, answer) = stage.answer("ipv4only.arpa", Qtype::AAAA).await;
    assert_eq!(answer.len(), 2);
    assert_eq!(stage.upstream.count(), 1, "the well-known name is our own");
}

#[tokio::test]
async fn a_zones_own_ttl_bounds_replace_the_caches() {
    let text = "[cache]\nmin_ttl = \"100s\"\nmax_ttl = \"1000s\"";
    for (keys, ttl, expected) in [
        ("", 7, 100),
        ("min_ttl = \"0s\"", 7, 7),
        ("min_ttl = \"200s\"", 7, 200),
        ("max_ttl = \"500s\"", 5000, 500),
        ("max_ttl = \"2h\"", 5000, 5000),
    ] {
        let script =
            move |seen: &Seen| vec![Act::Send(message::answer_a(&seen.wire, [192, 0, 2, 1], ttl))];
        let stage = Stage::of(text, keys, script).await;
        let response = stage.ask("example.org", Qtype::A).await.expect("answered");
        assert_eq!(ttls(&response), [expected], "{keys}");
        skip(u64::from(expected - 1) as u32 * SECOND).await;
        // More than one where a busy machine answered later than the first retransmission.
        let sent = stage.upstream.count();
        stage.ask("example.org", Qtype::A).await.expect("answered");
        assert_eq!(stage.upstream.count(), sent, "{keys}: the lifetime follows");
        skip(2 * SECOND).await;
        stage.ask("example.org", Qtype::A).await.expect("answered");
        assert!(stage.upstream.count() > sent, "{keys}");
    }
}

#[tokio::test]
async fn shuffled_addresses_come_from_the_cache_in_another_order() {
    let script = |seen: &Seen| {
        let a = |n: &'static [u8]| (Qtype::A, 60, n);
        by_type(seen, &[(Qtype::A, &[a(&[192, 0, 2, 1]), a(&[192, 0, 2, 2]), a(&[192, 0, 2, 3])])])
    };
    for (keys, distinct) in [("", 1), ("shuffle = true", 3)] {
        let stage = Stage::of("", keys, script).await;
        let asked = query("example.org", Qtype::A);
        let response = stage.resolver.resolve(&asked, Carrier::Datagram).await.expect("answered");
        let firsts: std::collections::BTreeSet<[u8; 4]> = (0..9)
            .map(|id| {
                let wire = asked.to_wire(id, asked.qname.as_wire(), true);
                let view = crate::dns::query::QueryView::parse(&wire).expect("well-formed");
                let mut out = [0; 512];
                let encoded = response.entry.encoded();
                let (_, first) = encoded.records().next().expect("three");
                encoded.fit(&view, response.aging, 512, &mut out);
                *out[first.rdata..].first_chunk().expect("an address")
            })
            .collect();
        assert_eq!(firsts.len(), distinct, "{keys}");
    }
}

#[tokio::test]
async fn addresses_that_rebind_are_withheld_counted_and_cached_as_nodata() {
    let script = |seen: &Seen| {
        let a: &[_] = &[(Qtype::A, 60, &[10u8, 0, 0, 1][..])];
        by_type(seen, &[(Qtype::A, a)])
    };
    let keys = "rebind_protection = true\nrebind_allow = [\"in.example.org\"]";
    let stage = Stage::of("", keys, script).await;
    let response = stage.ask("evil.example.org", Qtype::A).await.expect("answered");
    let encoded = response.entry.encoded();
    assert!(encoded.is_negative() && encoded.rcode() == Rcode::NOERROR);
    assert_eq!(encoded.ede().map(|ede| ede.code), Some(crate::dns::ede::EdeCode::BLOCKED));
    stage.ask("evil.example.org", Qtype::A).await.expect("cached");
    assert_eq!(stage.upstream.count(), 1);
    assert_eq!(stage.metrics.forward.rebind_blocked.get(), 1);
    let (_, answer) = stage.answer("db.in.example.org", Qtype::A).await;
    assert_eq!(answer, ["db.in.example.org. A 10.0.0.1"]);
    assert_eq!(stage.metrics.forward.rebind_blocked.get(), 1);
}

#[tokio::test]
async fn the_target_of_an_alias_is_screened_by_the_zones_own_rules() {
    let stage = Stage::of("", "rebind_protection = true", |seen| {
        vec![Act::Send(match seen.wire[13].to_ascii_lowercase() {
            b'a' => {
                message::answer(&seen.wire, &[(Qtype::CNAME, 60, b"\x01b\x07example\x03org\0")])
            }
            _ => message::answer_a(&seen.wire, [10, 0, 0, 1], 60),
        })]
    })
    .await;
    let (_, answer) = stage.answer("a.example.org", Qtype::A).await;
    assert!(!answer.iter().any(|record| record.contains("10.0.0.1")), "{answer:?}");
}

#[tokio::test]
async fn a_failure_of_the_a_query_is_a_failure_and_hides_no_name() {
    // What is asked is seen in the answer to A alone: AAAA is NODATA for 90 s all the time.
    let a_fails = |seen: &Seen| match seen.qtype() {
        Qtype::A => vec![Act::Send(message::empty(&seen.wire, Rcode::SERVFAIL))],
        _ => by_type(seen, &[]),
    };
    let stage = Stage::of("", DNS64, well_behaved).await;
    stage.ask("example.org", Qtype::AAAA).await.expect("answered");
    stage.upstream.behave(a_fails);
    skip(61 * SECOND).await;
    let stale = stage.ask("example.org", Qtype::AAAA).await.expect("stale");
    assert_eq!((stale.aging, stale.entry.encoded().is_negative()), (Aging::Stale, false));
    let failed = stage.ask("new.example.org", Qtype::AAAA).await;
    assert!(matches!(failed, Err(ResolveError::Exchange(_))), "{failed:?}");
    let sent = stage.upstream.count();
    let again = stage.ask("new.example.org", Qtype::AAAA).await;
    assert!(matches!(again, Err(ResolveError::Remembered { .. })), "{again:?}");
    assert_eq!(stage.upstream.count(), sent);
    stage.upstream.behave(well_behaved);
    skip(2 * SECOND).await;
    for name in ["example.org", "new.example.org"] {
        let (_, answer) = stage.answer(name, Qtype::AAAA).await;
        assert_eq!(answer, [format!("{name}. AAAA 64:ff9b::c000:201")]);
    }
}

#[tokio::test]
async fn real_addresses_that_are_stale_win_over_those_made_of_a_while_aaaa_fails() {
    let real: &[u8] = &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let both = move |seen: &Seen| {
        let a: &[_] = &[(Qtype::A, 600, &[192u8, 0, 2, 1][..])];
        by_type(seen, &[(Qtype::AAAA, &[(Qtype::AAAA, 60, real)]), (Qtype::A, a)])
    };
    let stage = Stage::of("", DNS64, both).await;
    for qtype in [Qtype::A, Qtype::AAAA] {
        stage.ask("example.org", qtype).await.expect("answered");
    }
    stage.upstream.behave(|seen| vec![Act::Send(message::empty(&seen.wire, Rcode::SERVFAIL))]);
    for _ in 0..3 {
        skip(61 * SECOND).await;
        let (_, answer) = stage.answer("example.org", Qtype::AAAA).await;
        assert_eq!(answer, ["example.org. AAAA 2001:db8::1"]);
    }
}

#[tokio::test]
async fn who_waits_for_a_is_not_sent_back_when_the_time_for_addresses_is_over() {
    let silent_for_a = |seen: &Seen| match seen.qtype() {
        Qtype::A => Vec::new(),
        _ => [vec![Act::Wait(Duration::from_millis(100))], by_type(seen, &[])].concat(),
    };
    let stage = Stage::of("", DNS64, silent_for_a).await;
    let (aaaa, a) = tokio::join!(stage.ask("example.org", Qtype::AAAA), async {
        while !stage.upstream.seen().iter().any(|seen| seen.qtype() == Qtype::A) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stage.ask("example.org", Qtype::A).await
    });
    assert!(aaaa.is_err() && a.is_err());
    // One exchange of 300 ms for A, whose end both have seen: a second one would leave no failure behind.
    assert_eq!(stage.metrics.cache.coalesced.get(), 1);
    let sent = stage.upstream.count();
    let again = stage.ask("example.org", Qtype::A).await;
    assert!(matches!(again, Err(ResolveError::Remembered { .. })), "{again:?}");
    assert_eq!(stage.upstream.count(), sent);
}
