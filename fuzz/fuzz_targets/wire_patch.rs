//! Response bytes → [`Encoded`] → fitted to a query.
//!
//! A fitted message fits, parses, and equals the stored one but for id, flags, case, TTLs and what was
//! left out from the end; TTLs are the stored ones, aged; TC tells of lost answer or authority records.
#![no_main]

use hickory_proto::op::Message;
use hickory_proto::rr::Record;
use libfuzzer_sys::fuzz_target;
use nodens::dns::Qtype;
use nodens::dns::query::{Query, QueryView};
use nodens::dns::response::{Aging, Encoded, Section};

fuzz_target!(|input: (u8, u16, u32, &[u8])| {
    let (choices, limit, age, message) = input;
    let Ok(encoded) = Encoded::from_wire(message) else { return };
    assert!(encoded.heap_bytes() < 1 << 20);
    let Some(query) = query_for(&encoded, choices) else { return };
    let view = QueryView::parse(&query).expect("the question was checked");
    let aging = match choices >> 6 {
        0 => Aging::Fresh,
        1 => Aging::Stale,
        _ => Aging::Elapsed(age),
    };
    let limit = usize::from(limit.max(512));
    let mut out = vec![0; limit.min(encoded.max_fitted_len())];
    let len = encoded.fit(&view, aging, limit, &mut out);
    assert!(len <= limit);
    let out = &out[..len];
    assert_eq!(&out[12..12 + view.question().len()], view.question());
    keeps_records(&encoded, out, aging);
    agrees_with_hickory(&encoded, out);
});

/// A query with the question of `encoded` in another case; flags, EDNS and DO by `choices`.
fn query_for(encoded: &Encoded, choices: u8) -> Option<Vec<u8>> {
    let (mut qname, fixed) = {
        let question = encoded.question();
        let (qname, fixed) = question.split_at(question.len() - 4);
        (qname.to_vec(), fixed.to_vec())
    };
    if choices & 1 != 0 {
        qname.make_ascii_uppercase();
    }
    let name = nodens::dns::name::Name::from_wire(&qname)?;
    let mut query = Query::new(name, Qtype(u16::from_be_bytes([fixed[0], fixed[1]])));
    query.dnssec_ok = choices & 2 != 0;
    query.checking_disabled = choices & 4 != 0;
    let mut wire = query.to_wire(u16::from(choices), &qname, choices & 8 != 0);
    let class_at = 12 + qname.len() + 2;
    wire[class_at..class_at + 2].copy_from_slice(&fixed[2..]);
    Some(wire)
}

/// The fitted records are the first stored ones, with the TTLs that the law says; TC is true.
fn keeps_records(encoded: &Encoded, out: &[u8], aging: Aging) {
    let fitted = Encoded::from_wire(out).expect("what we serve, we read");
    let stored: Vec<_> = encoded.records().collect();
    let kept: Vec<_> = fitted.records().collect();
    for ((section, stored), (kept_section, kept)) in stored.iter().zip(&kept) {
        assert_eq!((section, stored.rtype, stored.class), (kept_section, kept.rtype, kept.class));
        let (was, is) = (encoded.ttl_of(stored).as_secs(), fitted.ttl_of(kept).as_secs());
        match aging {
            Aging::Fresh => assert_eq!(is, was),
            Aging::Stale => assert_eq!(is, 30),
            Aging::Elapsed(age) => assert_eq!(is, was.saturating_sub(age)),
        }
    }
    let lost = stored.get(kept.len());
    let is_truncated = out[2] & 0x02 != 0;
    assert_eq!(is_truncated, lost.is_some_and(|(section, _)| *section != Section::Additional));
}

/// Hickory reads in the fitted message what it reads in the stored one, as far as records were kept.
///
/// Types whose data holds names that nodens takes as opaque bytes are left out: such names must not be
/// compressed (RFC 3597 §4), and what a pointer in them means is nobody's promise.
fn agrees_with_hickory(encoded: &Encoded, out: &[u8]) {
    let opaque = |rtype| matches!(rtype, 35 | 64 | 65 | 65305);
    if encoded.records().any(|(_, record)| opaque(record.rtype) || record.class != 1) {
        return;
    }
    let Ok(stored) = Message::from_vec(encoded.as_wire()) else { return };
    let fitted =
        Message::from_vec(out).expect("hickory reads the stored message, so the fitted one too");
    let all = |message: &Message| -> Vec<Record> {
        let sections = [&message.answers, &message.authorities, &message.additionals];
        sections.into_iter().flatten().cloned().collect()
    };
    for (stored, fitted) in all(&stored).iter().zip(&all(&fitted)) {
        assert_eq!((&stored.name, &stored.data), (&fitted.name, &fitted.data));
    }
}
