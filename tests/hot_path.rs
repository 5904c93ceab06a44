//! The hot path allocates nothing: counted, not believed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use nodens::cache::key::{KeyBuffer, Lookup};
use nodens::cache::{Cache, Source};
use nodens::clock;
use nodens::cluster::object::{Object, Pod};
use nodens::cluster::search::Search;
use nodens::cluster::tenancy::{self, Shown, Tenancy};
use nodens::cluster::{Cluster, Event, PodNames, Settings, Stream};
use nodens::config::{self, Config};
use nodens::dns::build::{self, LocalRecord};
use nodens::dns::name::Name;
use nodens::dns::query::{Query, QueryView};
use nodens::dns::ttl::Ttl;
use nodens::dns::{Qtype, Rcode};
use nodens::metrics::{Arrival, Metrics, Origin, ZoneId};
use nodens::resolve::Resolver;
use nodens::resolve::local::Local;
use nodens::resolve::rewrite::Rewrite;
use nodens::resolve::route::{ForwardZone, Routes};
use nodens::serve::allow::AllowList;
use nodens::serve::front::{Front, Look, Policy};
use nodens::serve::quota::Shares;
use nodens::telemetry::QueryLog;
use nodens::upstream::Upstreams;

/// The system's allocator, with a counter for the thread that asks.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches no heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

/// A front with an empty cache and no upstream.
fn front() -> (Front, Arc<Metrics>) {
    front_minding(None)
}

/// The same, which minds who asks where this cluster zone does.
fn front_minding(cluster: Option<Arc<Cluster>>) -> (Front, Arc<Metrics>) {
    let inputs = config::Inputs {
        file: None,
        environment: &[],
        flags: &config::Flags::default(),
        host: &config::host::Host::read(),
    };
    let config: Config = config::load(&inputs).expect("the built-in configuration is right");
    let metrics = Metrics::new();
    let upstreams =
        Arc::new(Upstreams::new(config.upstream_ports.clone(), 0, Arc::clone(&metrics)));
    let root = Arc::new(ForwardZone {
        name: Name::root(),
        id: metrics.zone(&Name::root()),
        group: upstreams.group(&config.forward[0], &[]),
        rewrite: Rewrite::new(&config.forward[0], Arc::default()),
    });
    let routes = Routes::new(Local::new(&config.local, None), root.id, root, Vec::new());
    let cache = Arc::new(Cache::new(config.cache, metrics.cache.clone()));
    let probe = Arc::clone(upstreams.loop_probe());
    let resolver = Resolver::new(routes, cache, probe, Arc::clone(&metrics));
    let resolver = Arc::new(resolver.with_askers(cluster));
    let policy = Policy {
        allow: AllowList::new(None, &[]),
        udp_payload: 1232,
        query_log: QueryLog::new(0.0),
    };
    (Front::new(resolver, policy, Arc::clone(&metrics), Shares::new(10, 10)), metrics)
}

/// Stores `count` names with enough records that a small stub resolver gets a truncated response.
fn fill(front: &Front, count: u32) -> Vec<Query> {
    let cache = front.resolver.cache();
    let names = (0..count).map(|index| {
        let qname = Name::from_text(&format!("n{index}.example.org")).expect("name");
        let asked = Query::new(qname, Qtype::A);
        let record = |n: u8| LocalRecord {
            owner: asked.qname.clone(),
            rtype: Qtype::A,
            ttl: Ttl::from_wire(300),
            rdata: vec![192, 0, 2, n],
        };
        let records: Vec<_> = (0..60).map(record).collect();
        let encoded = build::authoritative(&asked, Rcode::NOERROR, &records, &[]);
        // Every other name's addresses take turns, which must cost no allocation either.
        let encoded = if index % 2 == 0 { encoded } else { encoded.with_rotation() };
        let key = KeyBuffer::from_query(&asked);
        let epoch = cache.epoch(key.qname());
        let source = Source { zone: ZoneId::NONE, origin: Origin::Forward, epoch };
        cache.store(&key, encoded, source, clock::now());
        asked
    });
    let names = names.collect();
    cache.maintain(clock::now());
    names
}

#[test]
fn a_cached_response_is_served_without_allocation() {
    let (front, metrics) = front();
    let queries = fill(&front, 1000);
    let tally = metrics.thread_tally();
    let source: IpAddr = "127.0.0.1".parse().expect("address");
    let policy = front.policy.load_full();
    let wires: Vec<Vec<u8>> = queries
        .iter()
        .flat_map(|query| [true, false].map(|edns| query.to_wire(7, query.qname.as_wire(), edns)))
        .collect();
    let mut out = [0; 1232];
    let mut truncated = 0;
    let mut serve_all = |expected_hits: bool| {
        for wire in &wires {
            let now = clock::now();
            let allowed = policy.allow.admits(source, false);
            let look = front.look(wire, source, now, allowed);
            assert_eq!(matches!(look, Look::Hit(..)), expected_hits);
            let limit = QueryView::parse(wire).expect("well-formed").udp_limit(1232);
            let facts = front.answer(&look, wire, now, &mut out[..limit]).expect("answered");
            truncated += u32::from(out[2] & 2 != 0);
            tally.record(&facts.answered(Arrival::Udp4, clock::now() - now));
        }
    };
    serve_all(true);
    let count = allocations(|| (0..50).for_each(|_| serve_all(true)));
    assert!(truncated > 1000, "the small ones were truncated");
    assert_eq!(count, 0, "allocations in 100,000 hits");
}

/// A pod of a namespace.
fn pod(namespace: &str, address: &str) -> Object {
    let mut pod = Pod::default();
    (pod.metadata.namespace, pod.metadata.name) = (namespace.to_owned(), "p".to_owned());
    address.clone_into(&mut pod.status.pod_ip);
    Object::Pod(pod)
}

/// A cluster zone with two pods: that of `pay` sees everything, that of `shop` its own, and both search.
fn tenants() -> Arc<Cluster> {
    let cluster = Cluster::new(Settings {
        domains: vec![Name::from_text("cluster.example").expect("name")],
        ttl: Ttl::from_wire(5),
        pods: PodNames::Disabled,
        interest: BTreeSet::new(),
        name_server: None,
        search: Some(Search { node: Vec::new() }),
        tenancy: Some(Tenancy {
            by_namespace: [(tenancy::label("pay"), Shown::All)].into(),
            others: Shown::nothing(),
            unknown: Shown::nothing(),
        }),
    });
    let cluster = cluster.counting(Some(Arc::default()));
    let pods = vec![pod("shop", "127.0.0.11"), pod("pay", "127.0.0.12")];
    cluster.apply(vec![Event::Replaced(Stream::Pods, pods), Event::Synced]);
    Arc::new(cluster)
}

#[test]
fn where_who_asks_matters_what_is_shared_is_still_served_without_allocation() {
    let (front, _) = front_minding(Some(tenants()));
    let (shop, pay): (IpAddr, IpAddr) = ([127, 0, 0, 11].into(), [127, 0, 0, 12].into());
    let cache = front.resolver.cache();
    let mut wires = Vec::new();
    for (qname, rcode, of_shop, of_pay) in [
        ("card.pay.svc.cluster.example", Rcode::NOERROR, false, true),
        ("db.shop.svc.cluster.example", Rcode::NOERROR, true, true),
        ("www.example.org.shop.svc.cluster.example", Rcode::NXDOMAIN, false, true),
        ("www.example.org.pay.svc.cluster.example", Rcode::NXDOMAIN, false, false),
        ("www.example.org.cluster.example", Rcode::NXDOMAIN, true, true),
        ("1.2.0.192.in-addr.arpa", Rcode::NOERROR, false, true),
        ("www.example.org", Rcode::NXDOMAIN, true, true),
    ] {
        let asked = Query::new(Name::from_text(qname).expect("name"), Qtype::A);
        let soa = [build::soa(&asked.qname, Ttl::from_wire(5))];
        let encoded = build::authoritative(&asked, rcode, &[], &soa);
        let key = KeyBuffer::from_query(&asked);
        let epoch = cache.epoch(key.qname());
        let source = Source { zone: ZoneId::NONE, origin: Origin::Cluster, epoch };
        cache.store(&key, encoded, source, clock::now());
        let wire = asked.to_wire(7, asked.qname.as_wire(), true);
        wires.extend([(wire.clone(), shop, of_shop), (wire, pay, of_pay)]);
    }
    let policy = front.policy.load_full();
    let mut out = [0; 1232];
    let mut serve_all = || {
        for (wire, source, is_shared) in &wires {
            let now = clock::now();
            let allowed = policy.allow.admits(*source, false);
            let look = front.look(wire, *source, now, allowed);
            assert_eq!(matches!(look, Look::Hit(..)), *is_shared, "{:?} {source}", look.qname());
            assert_eq!(front.answer(&look, wire, now, &mut out).is_some(), *is_shared);
        }
    };
    serve_all();
    assert_eq!(allocations(|| (0..1000).for_each(|_| serve_all())), 0);
}

#[test]
fn refusals_and_malformed_messages_cost_no_allocation_either() {
    let (front, _) = front();
    let policy = front.policy.load_full();
    let query = Query::new(Name::from_text("example.org").expect("name"), Qtype::A);
    let wire = query.to_wire(7, query.qname.as_wire(), true);
    let mut out = [0; 512];
    let count = allocations(|| {
        for (message, source) in
            [(&wire[..], "203.0.113.9"), (&wire[..20], "127.0.0.1"), (&[], "::1")]
        {
            let source: IpAddr = source.parse().expect("address");
            let allowed = policy.allow.admits(source, false);
            let look = front.look(message, source, clock::now(), allowed);
            assert!(!matches!(look, Look::Hit(..) | Look::Miss(_)));
            front.answer(&look, message, clock::now(), &mut out);
        }
    });
    assert_eq!(count, 0);
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}
