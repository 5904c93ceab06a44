//! Upstream's bytes → verdict → cache.
//!
//! Nothing is accepted that does not answer the question: id, QR, opcode, question, RCODE, and no TC.
//! What is cached lives no longer than its least TTL, and no served TTL ever grows with time.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use nodens::cache::entry::State;
use nodens::cache::key::{KeyBuffer, Lookup};
use nodens::cache::{Cache, Source};
use nodens::config;
use nodens::dns::Qtype;
use nodens::dns::name::Name;
use nodens::dns::query::{Query, QueryView};
use nodens::dns::response::Encoded;
use nodens::metrics::{CacheMetrics, Origin, ZoneId};
use nodens::upstream::verify::{Asked, Style, Verdict};

/// What may have been asked; the seeds answer it.
const NAMES: [&str; 4] = ["example.org", "www.example.org", "no.example.org", "."];

/// Seven days: no TTL that is served is larger.
const MAX_TTL: u32 = 7 * 24 * 3600;

fuzz_target!(|input: (u8, u16, u32, &[u8])| {
    let (choices, qtype, age, message) = input;
    let name = Name::from_text(NAMES[usize::from(choices & 3)]).expect("a name");
    let mut query = Query::new(name, Qtype(qtype));
    query.dnssec_ok = choices & 4 != 0;
    let exact_case = choices & 8 != 0;
    let style = Style { edns: choices & 16 != 0, mix_case: false, exact_case, want_ad: false };
    let asked = Asked::new(&query, style);
    let mut message = message.to_vec();
    if choices & 32 == 0 && message.len() >= 2 {
        message[..2].copy_from_slice(&asked.wire()[..2]);
    }
    if let Verdict::Conclusive { encoded, echoed, .. } = asked.judge_datagram(&message) {
        answers(&message, asked.wire(), echoed || exact_case);
        cached(&query, asked.wire(), encoded, age);
    }
    // The transport of a stream has compared the id; everything else holds as above.
    if let Verdict::Conclusive { .. } = asked.judge_stream(&message) {
        message[..2].copy_from_slice(&asked.wire()[..2]);
        answers(&message, asked.wire(), exact_case);
    }
});

/// The message answers what was asked, byte by byte, without a parser of ours.
fn answers(message: &[u8], asked: &[u8], exact_case: bool) {
    assert_eq!(message[..2], asked[..2], "id");
    assert_eq!(message[2] & 0xf8, 0x80, "a response of opcode QUERY");
    assert_eq!(message[2] & 0x02, 0, "not truncated");
    assert!(matches!(message[3] & 0x0f, 0 | 3), "conclusive");
    assert_eq!(message[4..6], [0, 1], "one question");
    let root = asked[12..].iter().scan(0usize, |skip, byte| {
        let is_length = *skip == 0;
        *skip = if is_length { usize::from(*byte) } else { *skip - 1 };
        Some(is_length && *byte == 0)
    });
    let end = 12 + root.take_while(|is_root| !is_root).count() + 5;
    assert!(message[12..end].eq_ignore_ascii_case(&asked[12..end]), "question");
    assert_eq!(message[end - 4..end], asked[end - 4..end], "type and class");
    if exact_case {
        assert_eq!(message[12..end], asked[12..end], "case");
    }
}

/// What the cache makes of an accepted response.
fn cached(query: &Query, asked: &[u8], encoded: Encoded, age: u32) {
    let policy = config::Cache {
        size: 1 << 20,
        min_ttl: Duration::ZERO,
        max_ttl: Duration::from_secs(u64::from(MAX_TTL)),
        max_negative_ttl: Duration::from_secs(3600),
        failure_ttl: Duration::from_secs(1),
        stale: Duration::from_secs(60),
        prefetch: false,
    };
    let cache = Cache::new(policy, CacheMetrics::default());
    let key = KeyBuffer::from_query(query);
    let (least, negative) = (encoded.min_ttl(), encoded.is_negative());
    let source =
        Source { zone: ZoneId(0), origin: Origin::Forward, epoch: cache.epoch(key.qname()) };
    let now = nodens::clock::now();
    let entry = cache.store(&key, encoded, source, now);
    let view = QueryView::parse(asked).expect("our own query");
    let served = |seconds: u32| -> (State, Vec<u32>) {
        let then = now + Duration::from_secs(u64::from(seconds));
        let mut out = vec![0; entry.encoded().max_fitted_len()];
        let len = entry.encoded().fit(&view, entry.aging(then), 65_535, &mut out);
        let again = Encoded::from_wire(&out[..len]).expect("what we serve, we read");
        let ttls = again.records().map(|(_, record)| again.ttl_of(&record).as_secs()).collect();
        (entry.state(then), ttls)
    };
    let (at_once, later) = (served(0), served(age));
    assert!(at_once.1.iter().all(|ttl| *ttl <= MAX_TTL));
    match later.0 {
        State::Fresh => {
            let least = least.expect("without records nothing is kept").as_secs();
            assert!(age < least, "fresh for longer than its least TTL");
            assert!(!negative || age < 3600, "a negative response outlives its cap");
            assert!(later.1.iter().all(|ttl| *ttl > 0), "fresh with TTL 0");
            assert!(
                later.1.iter().zip(&at_once.1).all(|(later, first)| later <= first),
                "a TTL grew"
            );
            let then = now + Duration::from_secs(u64::from(age));
            assert!(cache.fresh(&key, then).is_some(), "fresh, but not found");
        }
        State::Stale | State::Dead => assert!(later.1.iter().all(|ttl| *ttl == 30)),
    }
}
