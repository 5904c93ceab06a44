//! Query bytes → [`QueryView`] and [`Query`].
//!
//! What is accepted reads the same in hickory's decoder: question, id, RD, CD, EDNS. The owned query
//! survives being written and read again, and a refusal of a response is silence.
#![no_main]

use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;
use nodens::dns::query::{QueryView, Refusal};

fuzz_target!(|wire: &[u8]| match QueryView::parse(wire) {
    Ok(view) => {
        agrees_with_hickory(&view, wire);
        survives_a_round_trip(&view);
    }
    Err(refusal) => {
        let is_query = wire.get(2).is_some_and(|flags| flags & 0x80 == 0) && wire.len() >= 12;
        assert_eq!(refusal != Refusal::Silence, is_query);
    }
});

/// Compares the view with hickory's reading, where hickory can read the records too.
fn agrees_with_hickory(view: &QueryView<'_>, wire: &[u8]) {
    assert!(view.udp_limit(1232) >= 512 && view.udp_limit(1232) <= 1232);
    let Ok(message) = Message::from_vec(wire) else { return };
    let [question] = message.queries.as_slice() else { panic!("one question") };
    assert_eq!(view.id(), message.id);
    assert_eq!(view.recursion_desired(), message.recursion_desired);
    assert_eq!(view.checking_disabled(), message.checking_disabled);
    assert_eq!(view.qtype().0, u16::from(question.query_type()));
    assert_eq!(view.qclass().0, u16::from(question.query_class()));
    let labels: Vec<&[u8]> = question.name().iter().collect();
    let ours = view.to_query().qname;
    assert!(ours.labels().eq(labels.iter().map(|label| label.to_ascii_lowercase())));
    assert_eq!(view.edns().is_some(), message.edns.is_some());
    if let (Some(ours), Some(theirs)) = (view.edns(), &message.edns) {
        assert_eq!(ours.payload.max(512), theirs.max_payload());
        assert_eq!(ours.version, theirs.version());
        assert_eq!(ours.dnssec_ok, theirs.flags().dnssec_ok);
    }
}

/// Writes the owned query and reads it again.
fn survives_a_round_trip(view: &QueryView<'_>) {
    let query = view.to_query();
    let wire = query.to_wire(view.id(), view.qname(), view.edns().is_some());
    let again = QueryView::parse(&wire).expect("what we write, we read");
    assert_eq!(again.to_query(), query);
    assert_eq!((again.id(), again.question()), (view.id(), view.question()));
}
