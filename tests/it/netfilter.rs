//! Batches of nftables objects against the kernel, shown by the program `nft`, in a namespace of the test's own.

use std::time::Duration;

use nodens::netlink::expr::{
    Base, Checksum, Expr, Field, Meta, Nat, Op, REG_1, REG_2, Verdict, field_is, meta_is, register,
};
use nodens::netlink::netfilter::{Count, Netfilter};
use nodens::netlink::nft::{Batch, ChainKind, DataType, Element, Hook, OWNER, Place, Set, Table};

use crate::harness::{namespace, needs, process};

/// What `nft list ruleset` shows.
fn listed() -> String {
    let output = process::command("nft").args(["list", "ruleset"]).output().expect("nft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A prerouting place.
fn prerouting(kind: ChainKind, priority: i32) -> Option<Place> {
    Some(Place { kind, hook: Hook::Prerouting, priority })
}

/// One rule with each list of expressions.
fn rule(parts: &[&[Expr]]) -> Vec<Expr> {
    parts.concat()
}

/// A rule that rewrites what is asked of the keys of `to4`, without state.
fn redirect() -> Vec<Expr> {
    let rewrite = [
        Expr::Load { field: Field::IP_DESTINATION, into: REG_1 },
        Expr::Lookup { set: "to4".to_owned(), key: REG_1, into: Some(REG_1) },
        Expr::Write { field: Field::IP_DESTINATION, from: REG_1, checksum: Checksum::Ipv4 },
        Expr::NamedCounter("seen".to_owned()),
        Expr::Notrack,
        Expr::Verdict(Verdict::Accept),
    ];
    let port = field_is(Field::DESTINATION_PORT, &53u16.to_be_bytes());
    [&meta_is(Meta::Family, &[2])[..], &meta_is(Meta::Protocol, &[17]), &port, &rewrite].concat()
}

/// A rule that remembers TCP flows by their SYN.
fn remember() -> Vec<Expr> {
    let syn = [
        Expr::Load { field: Field::TCP_FLAGS, into: REG_1 },
        Expr::Mask { from: REG_1, into: REG_1, mask: vec![0x17] },
        Expr::Compare { register: REG_1, op: Op::Equal, value: vec![2] },
    ];
    let update = [
        Expr::Load { field: Field::IP_SOURCE, into: REG_1 },
        Expr::Load { field: Field::SOURCE_PORT, into: register(1) },
        Expr::Update { set: "flows".to_owned(), key: REG_1, value: None },
        Expr::Counter,
    ];
    [&meta_is(Meta::Family, &[2])[..], &meta_is(Meta::Protocol, &[6]), &syn, &update].concat()
}

/// A table with most of what rules are made of.
fn rich(table: &Table) -> Batch {
    let mut batch = Batch::default();
    batch.add_table(table, 0).add_counter(table, "seen");
    batch.add_set(table, &Set::map("to4", DataType::Ipv4, DataType::Ipv4));
    batch.add_set(table, &Set::dynamic("flows", DataType::Ipv4Port, Duration::from_secs(9), 64));
    batch.add_elements(table, "to4", &[Element::pair([192, 0, 2, 1], [198, 18, 0, 1])]);
    batch.add_chain(table, "redirect", None);
    batch.add_chain(table, "pre", prerouting(ChainKind::Filter, -300));
    batch.add_rule(table, "redirect", &redirect()).add_rule(table, "redirect", &remember());
    batch.add_rule(table, "pre", &[Expr::Verdict(Verdict::Jump("redirect".to_owned()))]);
    let mark = 7u32.to_ne_bytes().to_vec();
    let is_other = Expr::Compare { register: REG_1, op: Op::NotEqual, value: mark };
    let drop = Expr::Verdict(Verdict::Drop);
    batch.add_rule(table, "pre", &[Expr::SocketMark { into: REG_1 }, is_other, drop]);
    batch
}

#[test]
fn nft_shows_what_a_batch_made() {
    needs!("nft", "ip");
    namespace::inside(|| {
        let table = Table::inet("example");
        let mut netfilter = Netfilter::open().expect("a socket");
        netfilter.apply(&rich(&table)).expect("committed");
        let shown = listed();
        for line in [
            "192.0.2.1 : 198.18.0.1",
            "udp dport 53 ip daddr set ip daddr map @to4 counter name \"seen\" notrack accept",
            "tcp flags syn / fin,syn,rst,ack update @flows { ip saddr . tcp sport }",
            "type filter hook prerouting priority raw",
            "jump redirect",
            "socket mark != 0x00000007 drop",
        ] {
            assert!(shown.contains(line), "{line} is not in:\n{shown}");
        }
        assert_eq!(netfilter.keys(&table, "to4").expect("read"), [[192, 0, 2, 1]]);
        assert_eq!(netfilter.keys(&table, "to5").expect("read"), Vec::<Vec<u8>>::new());
        assert_eq!(
            netfilter.counter(&table, "seen").expect("read"),
            Some(Count { uses: 1, ..Count::default() })
        );
        assert_eq!(netfilter.counter(&table, "unseen").expect("read"), None);
    });
}

#[test]
fn flows_are_translated_to_one_of_two_upstreams_and_masqueraded() {
    needs!("nft", "ip");
    namespace::inside(|| {
        let table =
            Table { family: nodens::netlink::nft::Family::Ipv4, name: "example".to_owned() };
        let mut batch = Batch::default();
        batch.add_table(&table, 0);
        batch.add_set(&table, &Set::map("servers", DataType::Integer, DataType::Ipv4));
        let element = |number: u32, host| Element::pair(number.to_ne_bytes(), [198, 18, 0, host]);
        batch.add_elements(&table, "servers", &[element(0, 1), element(1, 2)]);
        batch.add_chain(&table, "pre", prerouting(ChainKind::Nat, -100));
        let place = Place { kind: ChainKind::Nat, hook: Hook::Postrouting, priority: 100 };
        batch.add_chain(&table, "post", Some(place));
        batch.add_rule(
            &table,
            "pre",
            &rule(&[
                &meta_is(Meta::Protocol, &[17]),
                &field_is(Field::IP_DESTINATION, &[192, 0, 2, 1]),
                &[
                    Expr::Number { modulus: 2, into: REG_1, is_random: true },
                    Expr::Lookup { set: "servers".to_owned(), key: REG_1, into: Some(REG_1) },
                    Expr::Immediate { into: REG_2, value: 5353u16.to_be_bytes().to_vec() },
                    Expr::Nat {
                        nat: Nat::Destination,
                        is_ipv6: false,
                        address: REG_1,
                        port: Some(REG_2),
                    },
                ],
            ]),
        );
        let network = Field { base: Base::Network, offset: 12, len: 2 };
        batch.add_rule(&table, "post", &rule(&[&field_is(network, &[10, 1]), &[Expr::Masquerade]]));
        Netfilter::open().expect("a socket").apply(&batch).expect("committed");
        let shown = listed();
        for line in [
            "numgen random mod 2 map @servers",
            "type nat hook prerouting priority dstnat",
            "ip saddr 10.1.0.0/16 masquerade",
        ] {
            assert!(shown.contains(line), "{line} is not in:\n{shown}");
        }
    });
}

#[test]
fn a_refused_batch_leaves_nothing_and_names_the_object() {
    needs!("nft", "ip");
    namespace::inside(|| {
        let table = Table::inet("example");
        let mut batch = Batch::default();
        batch.add_table(&table, 0).add_chain(&table, "pre", prerouting(ChainKind::Filter, -300));
        batch.add_rule(&table, "nowhere", &[Expr::Notrack]);
        batch.add_chain(&table, "post", None);
        let mut netfilter = Netfilter::open().expect("a socket");
        let error = netfilter.apply(&batch).expect_err("the chain does not exist");
        assert!(error.is_missing(), "{error}");
        assert!(error.to_string().contains("add rule to chain nowhere"), "{error}");
        assert_eq!(listed(), "");
        let mut batch = Batch::default();
        batch.delete_table(&table);
        assert!(netfilter.apply(&batch).expect_err("there is none").is_missing());
    });
}

#[test]
fn an_owner_table_is_closed_to_others_and_ends_with_its_socket() {
    needs!("nft", "ip");
    namespace::inside(|| {
        let table = Table::inet("example");
        let mut owner = Netfilter::open().expect("a socket");
        let mut batch = Batch::default();
        batch.add_table(&table, OWNER).add_chain(&table, "empty", None);
        owner.apply(&batch).expect("committed");
        let mut other = Netfilter::open().expect("a socket");
        let tables = other.tables().expect("read");
        assert_eq!(tables.len(), 1, "{tables:?}");
        assert_eq!((&tables[0].table, tables[0].flags), (&table, OWNER));
        assert!(tables[0].owner.is_some(), "the owner's port is shown");
        let mut batch = Batch::default();
        batch.add_chain(&table, "foreign", None);
        let error = other.apply(&batch).expect_err("it belongs to somebody else");
        assert!(error.is_permission(), "{error}");
        drop(owner);
        let mut tables = other.tables().expect("read");
        for _ in 0..100 {
            if tables.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            tables = other.tables().expect("read");
        }
        assert!(tables.is_empty(), "the table outlives its owner: {tables:?}");
    });
}

#[test]
fn ten_thousand_elements_are_added_and_read_back() {
    needs!("ip");
    namespace::inside(|| {
        let table = Table::inet("example");
        let mut batch = Batch::default();
        batch.add_table(&table, 0);
        batch.add_set(&table, &Set::map("to4", DataType::Ipv4, DataType::Ipv4));
        let mut netfilter = Netfilter::open().expect("a socket");
        netfilter.apply(&batch).expect("committed");
        let elements: Vec<_> =
            (0..1000u32).map(|n| Element::pair(n.to_be_bytes(), n.to_be_bytes())).collect();
        for number in 0..10u32 {
            let elements: Vec<_> = elements
                .iter()
                .map(|element| {
                    let mut key = element.key.clone();
                    key[0] = number as u8;
                    Element { key, data: element.data.clone() }
                })
                .collect();
            let mut batch = Batch::default();
            batch.add_elements(&table, "to4", &elements);
            netfilter.apply(&batch).expect("committed");
        }
        assert_eq!(netfilter.keys(&table, "to4").expect("read").len(), 10_000);
        let mut batch = Batch::default();
        batch.delete_elements(&table, "to4", &elements);
        netfilter.apply(&batch).expect("committed");
        assert_eq!(netfilter.keys(&table, "to4").expect("read").len(), 9_000);
    });
}
