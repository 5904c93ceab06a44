//! The steps of a hit one by one: read a query, keep a response, look up, fit. Budgets are in `README.md`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use nodens::cache::Cache;
use nodens::cache::Source;
use nodens::cache::key::{KeyBuffer, Lookup};
use nodens::config;
use nodens::dns::name::Name;
use nodens::dns::query::{Query, QueryView};
use nodens::dns::response::{Aging, Encoded};
use nodens::dns::{Qtype, Rcode};
use nodens::metrics::{Answered, Arrival, CacheMetrics, Metrics, Origin, ZoneId};

/// Names in the cache that is looked up in.
const NAMES: u32 = 1000;

/// A query with EDNS for one of the names.
fn query(number: u32) -> Vec<u8> {
    let name = Name::from_text(&format!("n{number}.hit.example.org")).expect("a name");
    Query::new(name.clone(), Qtype::A).to_wire(7, name.as_wire(), true)
}

/// The response to such a query: four addresses, compressed.
fn response(query: &[u8]) -> Vec<u8> {
    let view = QueryView::parse(query).expect("well-formed");
    let mut wire = [&[0, 7, 0x81, 0x80, 0, 1, 0, 4, 0, 0, 0, 0][..], view.question()].concat();
    for last in 1..=4 {
        wire.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 192, 0, 2, last]);
    }
    wire
}

/// A cache that holds a response for each name.
fn full_cache() -> Cache {
    let policy = config::Cache {
        size: 64 << 20,
        min_ttl: Duration::ZERO,
        max_ttl: Duration::from_secs(7 * 24 * 3600),
        max_negative_ttl: Duration::from_secs(3600),
        failure_ttl: Duration::from_secs(1),
        stale: Duration::from_secs(24 * 3600),
        prefetch: true,
    };
    let cache = Cache::new(policy, CacheMetrics::default());
    for number in 0..NAMES {
        let query = query(number);
        let key = KeyBuffer::from_view(&QueryView::parse(&query).expect("well-formed"));
        let encoded = Encoded::from_wire(&response(&query)).expect("well-formed");
        let epoch = cache.epoch(key.qname());
        let source = Source { zone: ZoneId(0), origin: Origin::Forward, epoch };
        cache.store(&key, encoded, source, nodens::clock::now());
    }
    cache
}

/// The four steps, each alone, then as one hit.
fn steps(criterion: &mut Criterion) {
    let (query, cache, now) = (query(500), full_cache(), nodens::clock::now());
    let (message, mut out) = (response(&query), [0; 1232]);
    let view = QueryView::parse(&query).expect("well-formed");
    let encoded = Encoded::from_wire(&message).expect("well-formed");
    let key = KeyBuffer::from_view(&view);
    assert!(cache.fresh(&key, now).is_some(), "what is measured is a hit");
    criterion.bench_function("read a query", |bencher| {
        bencher
            .iter(|| QueryView::parse(black_box(&query)).map(|view| KeyBuffer::from_view(&view)));
    });
    criterion.bench_function("keep a response", |bencher| {
        bencher.iter(|| Encoded::from_wire(black_box(&message)));
    });
    criterion.bench_function("look up", |bencher| {
        bencher.iter(|| cache.fresh(black_box(&key), now));
    });
    criterion.bench_function("fit a response", |bencher| {
        bencher.iter(|| encoded.fit(black_box(&view), Aging::Elapsed(7), 1232, &mut out));
    });
    let turning = encoded.clone().with_rotation();
    criterion.bench_function("fit a response, its addresses in turn", |bencher| {
        bencher.iter(|| turning.fit(black_box(&view), Aging::Elapsed(7), 1232, &mut out));
    });
    criterion.bench_function("a hit without the kernel", |bencher| {
        bencher.iter(|| {
            let view = QueryView::parse(black_box(&query)).expect("well-formed");
            let entry = cache.fresh(&KeyBuffer::from_view(&view), now).expect("a hit");
            entry.encoded().fit(&view, Aging::Elapsed(7), 1232, &mut out)
        });
    });
}

/// What counting one answered query costs: in a serve thread's own tally, and in a shared one.
fn tallies(criterion: &mut Criterion) {
    let metrics = Metrics::new();
    let (own, shared) = (metrics.thread_tally(), metrics.tally());
    let answered = Answered {
        arrival: Arrival::Udp4,
        zone: metrics.zone(&Name::root()),
        qtype: Qtype::A,
        dnssec_ok: false,
        rcode: Rcode::NOERROR,
        origin: Origin::Hit,
        query_len: 40,
        response_len: 56,
        duration: Duration::from_micros(5),
    };
    criterion.bench_function("count in a thread's tally", |bencher| {
        bencher.iter(|| own.record(black_box(&answered)));
    });
    criterion.bench_function("count in a shared tally", |bencher| {
        bencher.iter(|| shared.record(black_box(&answered)));
    });
}

criterion_group!(benches, steps, tallies);
criterion_main!(benches);
