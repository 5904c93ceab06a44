//! Responses that are not stored ones: refusals and failures, straight into wire form.

use crate::dns::ede::Ede;
use crate::dns::query::QueryView;
use crate::dns::wire::{self, flag};
use crate::dns::{HEADER_LEN, MAX_NAME_LEN, Rcode, edns};

/// The most that [`refusal`] writes: header, question, OPT with one extended error.
pub const REFUSAL_LEN: usize = HEADER_LEN + MAX_NAME_LEN + 4 + edns::OPT_LEN + 6 + 120;

/// Writes a bare header in answer to a message that has no usable question; gives back its length.
///
/// Id, opcode and RD are the message's own; nothing else of it goes back.
///
/// # Panics
/// When `message` or `out` is shorter than a header; callers have read one.
pub fn header(message: &[u8], rcode: Rcode, out: &mut [u8]) -> usize {
    let theirs = wire::u16_at(message, 2).unwrap_or_default();
    out[..2].copy_from_slice(&message[..2]);
    let kept = theirs & (flag::OPCODE | flag::RD);
    wire::put_u16(out, 2, flag::QR | flag::RA | kept | (rcode.0 & flag::RCODE));
    out[4..HEADER_LEN].fill(0);
    HEADER_LEN
}

/// Writes a response without records to `query`: its question, and OPT with `ede` if it had one.
///
/// # Panics
/// When `out` is shorter than [`REFUSAL_LEN`].
pub fn refusal(query: &QueryView<'_>, rcode: Rcode, ede: Option<&Ede>, out: &mut [u8]) -> usize {
    let question = query.question();
    let end = HEADER_LEN + question.len();
    wire::put_u16(out, 0, query.id());
    let kept = query.flags() & (flag::RD | flag::CD);
    wire::put_u16(out, 2, flag::QR | flag::RA | kept | (rcode.0 & flag::RCODE));
    out[4..HEADER_LEN].fill(0);
    wire::put_u16(out, 4, 1);
    out[HEADER_LEN..end].copy_from_slice(question);
    if query.edns().is_none() {
        return end;
    }
    wire::put_u16(out, 10, 1);
    let mut option = [0; 6 + 120];
    let option = ede.map_or(&[][..], |ede| write_ede(ede, &mut option));
    let high = u8::try_from(rcode.0 >> 4).unwrap_or_default();
    edns::write_opt(out, end, high, query.dnssec_ok(), option)
}

/// The option bytes of `ede`, without allocation: a flood is answered with these.
fn write_ede<'a>(ede: &Ede, out: &'a mut [u8; 6 + 120]) -> &'a [u8] {
    let text = ede.text.as_bytes();
    let text = &text[..text.len().min(120)];
    wire::put_u16(out, 0, edns::OPTION_EDE);
    wire::put_u16(out, 2, u16::try_from(2 + text.len()).expect("at most 122"));
    wire::put_u16(out, 4, ede.code.0);
    out[6..6 + text.len()].copy_from_slice(text);
    &out[..6 + text.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::Qtype;
    use crate::dns::ede::EdeCode;
    use crate::dns::name::Name;
    use crate::dns::query::Query;

    #[test]
    fn a_refusal_echoes_the_question_and_says_why() {
        let query = Query::new(Name::from_text("example.org").expect("name"), Qtype::A);
        let wire = query.to_wire(7, b"\x07ExAmple\x03org\0", true);
        let view = QueryView::parse(&wire).expect("well-formed");
        let mut out = [0; REFUSAL_LEN];
        let ede = Ede::new(EdeCode::PROHIBITED, "not you");
        let len = refusal(&view, Rcode::BADVERS, Some(&ede), &mut out);
        let message = hickory_proto::op::Message::from_vec(&out[..len]).expect("parses");
        assert_eq!(u16::from(message.metadata.response_code), 16);
        assert!(out[..len].ends_with(b"not you"));
        assert_eq!(&out[HEADER_LEN..HEADER_LEN + 13], b"\x07ExAmple\x03org\0");
    }

    #[test]
    fn a_bare_header_gives_nothing_of_the_message_back_but_id_opcode_and_rd() {
        let message = [0xab, 0xcd, 0x7f, 0x7f, 9, 9, 9, 9, 9, 9, 9, 9];
        let mut out = [0xff; HEADER_LEN];
        header(&message, Rcode::NOTIMP, &mut out);
        assert_eq!(out, [0xab, 0xcd, 0xf9, 0x84, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
