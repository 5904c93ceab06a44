//! What is answered to everybody.

use super::*;

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_kind_of_service_is_answered_as_the_schema_says() {
    let cluster = cluster(PodNames::Disabled, objects());
    let (a, aaaa, srv, txt) = (Qtype::A, Qtype::AAAA, Qtype::SRV, Qtype::TXT);
    for (name, qtype, expected) in [
        ("web.shop.svc", a, "198.18.0.1"),
        ("WEB.Shop.SVC", a, "198.18.0.1"),
        ("web.shop.svc", aaaa, "2001:db8::1"),
        ("web.shop.svc", txt, "NODATA"),
        ("web.shop.svc", Qtype::MX, "NODATA"),
        ("web.shop.svc", Qtype::CNAME, "NODATA"),
        ("web.shop.svc", Qtype::NS, "NODATA"),
        ("web.shop.svc", Qtype::SOA, "NODATA"),
        ("web.shop.svc", Qtype::PTR, "NODATA"),
        ("web.shop.svc", Qtype::ANY, "198.18.0.1 | 2001:db8::1"),
        ("x.web.shop.svc", a, "NXDOMAIN"),
        ("*.shop.svc", a, "NXDOMAIN"),
        ("web.empty.svc", a, "NXDOMAIN"),
        ("web.absent.svc", a, "NXDOMAIN"),
        ("absent.shop.svc", a, "NXDOMAIN"),
        ("portless.shop.svc", a, "198.18.0.2"),
        ("portless.shop.svc", aaaa, "NODATA"),
        ("portless.shop.svc", srv, "NODATA"),
        ("pending.shop.svc", a, "NODATA"),
        ("1-digit.shop.svc", a, "198.18.0.3"),
        // Ports.
        (
            "_http._tcp.web.shop.svc",
            srv,
            "0 50 80 web.shop.svc.cluster.example. + 198.18.0.1 | 2001:db8::1",
        ),
        (
            "_dns._udp.web.shop.svc",
            srv,
            "0 50 53 web.shop.svc.cluster.example. + 198.18.0.1 | 2001:db8::1",
        ),
        ("_dns._tcp.web.shop.svc", srv, "NXDOMAIN"),
        ("_http._tcp.web.shop.svc", a, "198.18.0.1"),
        ("_http._tcp.web.shop.svc", txt, "NODATA"),
        ("_tcp.web.shop.svc", srv, "NODATA"),
        ("_sctp.web.shop.svc", srv, "NXDOMAIN"),
        (
            "web.shop.svc",
            srv,
            "0 25 53 web.shop.svc.cluster.example. | 0 25 80 web.shop.svc.cluster.example. + 198.18.0.1 | 2001:db8::1",
        ),
        // Headless.
        ("db.shop.svc", a, "192.0.2.1 | 192.0.2.2"),
        ("db.shop.svc", aaaa, "2001:db8::"),
        ("db-0.db.shop.svc", a, "192.0.2.1"),
        ("db-0.db.shop.svc", aaaa, "NODATA"),
        ("db-0.db.shop.svc", srv, "0 100 80 db-0.db.shop.svc.cluster.example. + 192.0.2.1"),
        ("192-0-2-1.db.shop.svc", a, "NXDOMAIN"),
        ("192-0-2-2.db.shop.svc", a, "192.0.2.2"),
        ("192-0-2-3.db.shop.svc", a, "NXDOMAIN"),
        ("2001-db8--0.db.shop.svc", aaaa, "2001:db8::"),
        (
            "_http._tcp.db.shop.svc",
            srv,
            "0 33 80 192-0-2-2.db.shop.svc.cluster.example. | 0 33 80 db-0.db.shop.svc.cluster.example. + 192.0.2.1 | 192.0.2.2",
        ),
        ("_tcp.db.shop.svc", a, "NODATA"),
        ("_udp.db.shop.svc", a, "NXDOMAIN"),
        ("_x._tcp.db.shop.svc", srv, "NXDOMAIN"),
        ("_x._tcp.db.shop.svc", a, "NXDOMAIN"),
        ("all.shop.svc", a, "192.0.2.4"),
        ("all.shop.svc", srv, "NODATA"),
        ("none.shop.svc", a, "NXDOMAIN"),
        ("none.shop.svc", srv, "NXDOMAIN"),
        // Aliases.
        ("alias.shop.svc", a, "example.org."),
        ("alias.shop.svc", Qtype::CNAME, "example.org."),
        ("alias.shop.svc", srv, "NODATA"),
        ("dotted.shop.svc", a, "example.org."),
        ("numbered.shop.svc", a, "NXDOMAIN"),
        ("x.alias.shop.svc", a, "NXDOMAIN"),
        ("_http._tcp.alias.shop.svc", srv, "NXDOMAIN"),
        // The tree above.
        ("svc", a, "NODATA"),
        ("pod", a, "NODATA"),
        ("dns", a, "NODATA"),
        ("shop.svc", a, "NODATA"),
        ("empty.svc", a, "NODATA"),
        ("absent.svc", a, "NXDOMAIN"),
        ("shop.pod", a, "NXDOMAIN"),
        ("192-0-2-80.shop.pod", a, "NXDOMAIN"),
        ("else", a, "NXDOMAIN"),
        ("dns-version", txt, "1.1.0"),
        ("dns-version", a, "NODATA"),
        ("ns.dns", a, "198.18.0.53"),
    ] {
        for domain in ["cluster.example", "other.example"] {
            let expected = expected.replace("cluster.example", domain);
            let name = format!("{name}.{domain}");
            assert_eq!(short(&cluster, &name, qtype), expected, "{name} {qtype}");
        }
    }
    assert_eq!(short(&cluster, "web.shop.svc.example.org", a), "elsewhere");
}

#[test]
fn the_apex_has_soa_and_ns() {
    let cluster = cluster(PodNames::Disabled, objects());
    let soa = short(&cluster, "cluster.example", Qtype::SOA);
    let fields: Vec<_> = soa.split(' ').collect();
    assert_eq!(fields[..2], ["ns.dns.cluster.example.", "hostmaster.cluster.example."]);
    assert_eq!(fields[3..], ["7200", "1800", "86400", "5"]);
    let ns = short(&cluster, "cluster.example", Qtype::NS);
    assert_eq!(ns, "dns.shop.svc.cluster.example. + 198.18.0.53");
    assert_eq!(short(&cluster, "cluster.example", Qtype::A), "NODATA");
    let negative = ask(&cluster, "x.cluster.example", Qtype::A).expect("ours");
    assert_eq!(negative.authorities[0].name.to_string(), "cluster.example.");
}

#[test]
fn what_is_absent_is_so_for_five_minutes_at_most() {
    for (ttl, soa_ttl) in [(0, 0), (5, 5), (300, 300), (3600, 300)] {
        let ttl = Ttl::from_wire(ttl);
        let cluster = Cluster::new(Settings { ttl, ..settings(PodNames::Disabled) });
        cluster.apply(vec![Event::Replaced(Stream::Services, objects()), Event::Synced]);
        let absent = ask(&cluster, "x.shop.svc.cluster.example", Qtype::A).expect("ours");
        assert_eq!(absent.authorities[0].ttl, soa_ttl, "{ttl:?}");
        let there = ask(&cluster, "web.shop.svc.cluster.example", Qtype::A).expect("ours");
        assert_eq!(there.answers[0].ttl, ttl.as_secs());
    }
}

#[test]
fn reverse_names_lead_to_services_and_to_every_endpoint_name() {
    let more = [
        service("db2", r#""clusterIP":"None""#),
        slice("db2-1", "db2", r#"{"addresses":["192.0.2.1"]}"#, ""),
    ];
    let cluster = cluster(PodNames::Disabled, [objects(), more.into()].concat());
    for (address, expected) in [
        ("198.18.0.1", "web.shop.svc.cluster.example."),
        ("2001:db8::1", "web.shop.svc.cluster.example."),
        (
            "192.0.2.1",
            "192-0-2-1.db2.shop.svc.cluster.example. | db-0.db.shop.svc.cluster.example.",
        ),
        ("2001:db8::", "2001-db8--0.db.shop.svc.cluster.example."),
        ("192.0.2.4", "192-0-2-4.all.shop.svc.cluster.example."),
        ("192.0.2.3", "elsewhere"),
        ("192.0.2.53", "elsewhere"),
        ("192.0.2.200", "elsewhere"),
    ] {
        let name = Name::reverse_of(address.parse().expect("address"));
        assert_eq!(short(&cluster, &name.to_string(), Qtype::PTR), expected, "{address}");
        assert_eq!(cluster.owns_reverse(&name), expected != "elsewhere", "{address}");
    }
    let name = Name::reverse_of("198.18.0.1".parse().expect("address")).to_string();
    assert_eq!(short(&cluster, &name, Qtype::A), "NODATA");
    assert_eq!(short(&cluster, &format!("x.{name}"), Qtype::PTR), "elsewhere");
}

#[test]
fn pods_have_names_as_far_as_the_operator_wants() {
    let mut objects = objects();
    objects.push(pod("ended", "192.0.2.81", r#","phase":"Succeeded""#));
    let insecure = cluster(PodNames::Insecure, objects.clone());
    let verified = cluster(PodNames::Verified, objects);
    for (name, qtype, of_insecure, of_verified) in [
        ("192-0-2-80.shop.pod", Qtype::A, "192.0.2.80", "192.0.2.80"),
        ("192-0-2-80.shop.pod", Qtype::AAAA, "NODATA", "NODATA"),
        ("192-0-2-80.empty.pod", Qtype::A, "192.0.2.80", "NXDOMAIN"),
        ("192-0-2-81.shop.pod", Qtype::A, "192.0.2.81", "NXDOMAIN"),
        ("2001-db8--7.shop.pod", Qtype::AAAA, "2001:db8::7", "NXDOMAIN"),
        ("192-0-2-80.absent.pod", Qtype::A, "NXDOMAIN", "NXDOMAIN"),
        ("name.shop.pod", Qtype::A, "NXDOMAIN", "NXDOMAIN"),
        ("shop.pod", Qtype::A, "NODATA", "NODATA"),
        ("absent.pod", Qtype::A, "NXDOMAIN", "NXDOMAIN"),
        ("x.192-0-2-80.shop.pod", Qtype::A, "NXDOMAIN", "NXDOMAIN"),
    ] {
        let name = format!("{name}.cluster.example");
        assert_eq!(short(&insecure, &name, qtype), of_insecure, "{name}");
        assert_eq!(short(&verified, &name, qtype), of_verified, "{name}");
    }
}

#[test]
fn objects_that_dns_cannot_hold_are_left_out_part_by_part() {
    let long = "a".repeat(63);
    let bad = [
        namespace(&"n".repeat(64)),
        service(&"s".repeat(64), r#""clusterIP":"198.18.0.8""#),
        service("", r#""clusterIP":"198.18.0.8""#),
        service("wrong", r#""clusterIP":"not an address","clusterIPs":["300.1.1.1","198.18.0.9"]"#),
        service("nameless", r#""type":"ExternalName","externalName":"a..b""#),
        service("void", r#""type":"ExternalName""#),
        service(&long, r#""clusterIP":"None""#),
        slice(
            "mixed-1",
            &long,
            &format!(
                r#"{{"addresses":["","x","::ffff:192.0.2.1","192.0.2.6","192.0.2.6"],"hostname":"a.b"}},
                   {{"addresses":["192.0.2.7"],"hostname":"{long}"}},{{}}"#
            ),
            r#"{"name":"huge","port":99999},{"port":null},{"name":"ok","port":7}"#,
        ),
        slice("orphan", "absent", r#"{"addresses":["192.0.2.66"]}"#, WEB_PORTS),
        object(
            "Slice",
            r#"{"metadata":{"name":"unlabelled","namespace":"shop"},"endpoints":[{"addresses":["192.0.2.67"]}]}"#,
        ),
    ];
    let cluster = cluster(PodNames::Disabled, [objects(), bad.into()].concat());
    for (name, expected) in [
        ("web.shop.svc", "198.18.0.1"),
        ("wrong.shop.svc", "198.18.0.9"),
        ("nameless.shop.svc", "NXDOMAIN"),
        ("void.shop.svc", "NXDOMAIN"),
        (&format!("{long}.shop.svc"), "192.0.2.6 | 192.0.2.7"),
        (&format!("192-0-2-6.{long}.shop.svc"), "192.0.2.6"),
    ] {
        assert_eq!(short(&cluster, &format!("{name}.cluster.example"), Qtype::A), expected);
    }
    let srv = short(&cluster, &format!("_huge._tcp.{long}.shop.svc.cluster.example"), Qtype::SRV);
    assert_eq!(srv, "NODATA", "a port that is no number has no record, but the name exists");
    assert!(!cluster.owns_reverse(&Name::reverse_of("192.0.2.66".parse().expect("address"))));
}

#[test]
fn a_domain_so_long_that_names_below_do_not_fit_serves_what_fits() {
    let long = ["d".repeat(63), "e".repeat(63), "f".repeat(63)].join(".");
    let settings =
        Settings { domains: vec![long.parse().expect("name")], ..settings(PodNames::Disabled) };
    let cluster = Cluster::new(settings);
    let host = "h".repeat(60);
    let endpoint = format!(r#"{{"addresses":["192.0.2.1"],"hostname":"{host}"}}"#);
    let objects = [
        namespace("shop"),
        service("s", r#""clusterIP":"None""#),
        slice("s-1", "s", &endpoint, WEB_PORTS),
    ];
    cluster.apply(vec![Event::Replaced(Stream::Services, objects.into()), Event::Synced]);
    assert_eq!(short(&cluster, &format!("s.shop.svc.{long}"), Qtype::A), "192.0.2.1");
    assert_eq!(short(&cluster, &format!("s.shop.svc.{long}"), Qtype::SRV), "NODATA");
    let name = Name::reverse_of("192.0.2.1".parse().expect("address")).to_string();
    assert_eq!(short(&cluster, &name, Qtype::PTR), "elsewhere");
}

#[test]
fn thousands_of_endpoints_fill_a_message_and_each_is_found() {
    let objects = (0..50).map(|part| {
        let endpoints: Vec<_> = (0..100)
            .map(|n| format!(r#"{{"addresses":["198.18.{part}.{n}"],"hostname":"e-{part}-{n}"}}"#))
            .collect();
        slice(&format!("big-{part}"), "big", &endpoints.join(","), WEB_PORTS)
    });
    let base = [namespace("shop"), service("big", r#""clusterIP":"None""#)];
    let cluster = cluster(PodNames::Disabled, base.into_iter().chain(objects).collect());
    let name = "big.shop.svc.cluster.example";
    let whole = ask(&cluster, name, Qtype::A).expect("ours");
    assert_eq!(whole.answers.len(), (65_535 - 12 - 34 - 11) / 16, "as many as a message holds");
    assert_eq!(short(&cluster, &format!("e-49-99.{name}"), Qtype::A), "198.18.49.99");
    assert!(ask(&cluster, name, Qtype::SRV).expect("ours").answers.len() > 500);
}
