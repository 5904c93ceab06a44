//! What an upstream is known to understand: EDNS, and the qname's case. Pure; `now` is passed in.
//!
//! Both are tried, learned from what comes back, remembered for a while and then tried again.

use std::time::{Duration, Instant};

use super::verify::Style;
use crate::dns::name::Name;

/// How long a lack is remembered before it is tried again.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Echoes in a row after which a response without the query's case is ignored.
const ECHOES: u32 = 8;

/// Responses in a wrong case, with no right one between, after which case is no longer mixed.
const WRONG_CASES: u32 = 3;

/// How long after a response in a wrong case retries of its name go without mixed case.
const DOUBTED: Duration = Duration::from_secs(5);

/// Answers in a row without OPT, none with it before, after which queries do without it too.
const OPT_MISSING: u32 = 3;

/// EDNS queries in a row that nothing answered, while nothing ever answered one, after which every other query
/// does without it.
const EDNS_LOST: u32 = 3;

/// The same where one was answered before: whoever is away hears nothing either, so it takes more; even, so that
/// the next query carries EDNS.
const EDNS_LOST_LATER: u32 = 16;

/// For how long then nothing but queries without EDNS must have been answered until that is believed: who comes
/// back from an outage answers both.
const EDNS_DOUBTED: Duration = Duration::from_secs(3);

/// Refusals of EDNS in a row that outweigh earlier EDNS responses.
const EDNS_REFUSALS: u32 = 3;

/// Refusals of EDNS in a row after which the same query without it failed too: it is not EDNS that is refused.
const FUTILE: u32 = 3;

/// For how long then nothing is asked again without EDNS.
const FUTILE_FOR: Duration = Duration::from_secs(5);

/// One upstream's manners.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// Until then queries go without EDNS.
    plain_until: Option<Instant>,
    /// EDNS queries that nothing answered since one was; others too, once they are many.
    edns_unanswered: u32,
    edns_answered: bool,
    /// When the first query without EDNS was answered since they were many although one was answered before.
    plain_answered: Option<Instant>,
    /// Refusals of EDNS since an EDNS query was last answered.
    edns_refused: u32,
    /// Refusals of EDNS in a row that came without it too, and until when they are taken at their word.
    futile: (u32, Option<Instant>),
    /// An answer has shown that OPT is read.
    edns_shown: bool,
    /// Answers to EDNS queries since then that lacked OPT.
    opt_missing: u32,
    /// Until then OPT is known to be ignored: only queries with DO carry it, in case that something on
    /// the way takes it out of responses alone.
    ignored_until: Option<Instant>,
    /// Responses in a row that echoed the case.
    echoes: u32,
    wrong_cases: u32,
    /// When the last response in a wrong case came, and to which name.
    wrong_case: Option<(Instant, Name)>,
    /// Until then the qname is sent in lower case.
    caseless_until: Option<Instant>,
}

impl Manners {
    /// How to write the next query by UDP, with DO or without.
    pub fn style(&self, dnssec_ok: bool, want_ad: bool, now: Instant) -> Style {
        let mix_case = self.caseless_until.is_none_or(|until| now >= until);
        Style {
            edns: self.has_edns(dnssec_ok, now),
            mix_case,
            exact_case: mix_case && self.echoes >= ECHOES,
            want_ad,
        }
    }

    /// How to write a query again that was written in this style before.
    ///
    /// Not in mixed case where the silence may be a response in a wrong case that was ignored: some upstreams
    /// echo the case of most names only. A forger would have to hit id and port once more, for the same name.
    pub fn again(&self, style: Style, qname: &Name, now: Instant) -> Style {
        let keeps = self
            .wrong_case
            .as_ref()
            .is_none_or(|(at, odd)| odd != qname || now.saturating_duration_since(*at) >= DOUBTED);
        Style { mix_case: style.mix_case && keeps, exact_case: style.exact_case && keeps, ..style }
    }

    /// Tells whether queries carry EDNS: not for a while after it was refused, nor without DO where it is
    /// ignored, and every other time where EDNS queries meet silence (an old firewall may drop them).
    pub fn has_edns(&self, dnssec_ok: bool, now: Instant) -> bool {
        let refused = self.plain_until.is_some_and(|until| now < until);
        let ignored = !dnssec_ok && self.ignored_until.is_some_and(|until| now < until);
        // An answer without the signatures that were asked for would be believed and kept.
        let must = dnssec_ok && self.edns_answered;
        let is_tried = !self.is_edns_lost() || must || self.edns_unanswered.is_multiple_of(2);
        !refused && !ignored && is_tried
    }

    /// Tells whether so many EDNS queries met silence that EDNS may be the reason.
    fn is_edns_lost(&self) -> bool {
        let many = if self.edns_answered { EDNS_LOST_LATER } else { EDNS_LOST };
        self.edns_unanswered >= many
    }

    /// Learns from a conclusive response to a query of this style.
    pub fn on_answer(&mut self, style: Style, echoed: bool, now: Instant) {
        self.on_reply(style, now);
        self.futile = (0, None);
        if !style.mix_case {
            return;
        }
        self.wrong_cases = 0;
        self.echoes = if echoed { self.echoes.saturating_add(1) } else { 0 };
        if !echoed {
            self.caseless_until = Some(now + REMEMBERED);
        }
    }

    /// Learns from an answer to an EDNS query whether OPT is read.
    ///
    /// Once it was, nothing is left out any more: some servers put OPT into some answers only, and it does
    /// no harm where it is ignored.
    pub fn on_opt(&mut self, knows_edns: bool, now: Instant) {
        if knows_edns {
            (self.edns_shown, self.opt_missing, self.ignored_until) = (true, 0, None);
            return;
        }
        self.opt_missing += 1;
        if self.opt_missing >= OPT_MISSING {
            self.opt_missing = 0;
            self.ignored_until = (!self.edns_shown).then_some(now + REMEMBERED);
        }
    }

    /// Learns that a response to a query of this style was cut; tells whether to ask with EDNS again, since it
    /// was left out only because nothing had shown that it is read: a longer answer will.
    pub fn on_cut(&mut self, style: Style, now: Instant) -> bool {
        if style.edns {
            return false;
        }
        self.ignored_until = None;
        self.has_edns(false, now)
    }

    /// Learns from any response to a query of this style.
    pub fn on_reply(&mut self, style: Style, now: Instant) {
        if style.edns {
            (self.edns_answered, self.edns_refused, self.plain_answered) = (true, 0, None);
        } else if self.is_edns_lost() {
            if self.edns_answered && !self.is_edns_dropped(now) {
                self.edns_unanswered = EDNS_LOST_LATER;
                return;
            }
            self.plain_until = Some(now + REMEMBERED);
            (self.edns_answered, self.plain_answered) = (false, None);
        }
        self.edns_unanswered = 0;
    }

    /// Tells whether queries without EDNS alone have been answered for a while, and another one with it was not,
    /// of an upstream that has answered EDNS before; the first time only notes when that was.
    fn is_edns_dropped(&mut self, now: Instant) -> bool {
        let since = *self.plain_answered.get_or_insert(now);
        let is_tried = self.edns_unanswered > EDNS_LOST_LATER;
        is_tried && now.saturating_duration_since(since) >= EDNS_DOUBTED
    }

    /// Learns that a query was refused with EDNS and answered without.
    ///
    /// Remembered at once of an upstream that never answered EDNS; else a few times in a row are
    /// needed, since one query may be odd, or the refusal a guess.
    pub fn on_edns_refused(&mut self, now: Instant) {
        self.edns_refused = self.edns_refused.saturating_add(1);
        if !self.edns_answered || self.edns_refused >= EDNS_REFUSALS {
            self.plain_until = Some(now + REMEMBERED);
            (self.edns_answered, self.edns_refused) = (false, 0);
        }
    }

    /// Learns that a query was refused with EDNS, and without it too.
    pub fn on_edns_futile(&mut self, now: Instant) {
        let count = self.futile.0 + 1;
        self.futile = match count >= FUTILE {
            true => (0, Some(now + FUTILE_FOR)),
            false => (count, self.futile.1),
        };
    }

    /// Tells whether a query that is refused with EDNS is to be asked again without it.
    pub fn asks_without_edns(&self, now: Instant) -> bool {
        self.futile.1.is_none_or(|until| now >= until)
    }

    /// Learns from silence.
    pub fn on_unanswered(&mut self, style: Style) {
        if style.edns || self.is_edns_lost() {
            self.edns_unanswered = self.edns_unanswered.saturating_add(1);
        }
    }

    /// Learns from a response with the right id, tuple and question but for its case.
    ///
    /// A guess would have to hit id and port, so a few of these with no right one between mean that
    /// the upstream has changed.
    pub fn on_wrong_case(&mut self, qname: &Name, now: Instant) {
        self.wrong_cases += 1;
        self.wrong_case = Some((now, qname.clone()));
        if self.wrong_cases >= WRONG_CASES {
            (self.wrong_cases, self.echoes) = (0, 0);
            self.caseless_until = Some(now + REMEMBERED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Instant {
        crate::clock::now()
    }

    #[test]
    fn a_wrong_case_is_held_against_retries_of_its_own_name_only() {
        let (mut manners, now) = (Manners::default(), start());
        let [odd, other] = ["odd.example.org", "other.example.org"]
            .map(|text| Name::from_text(text).expect("name"));
        manners.on_wrong_case(&odd, now);
        let style = manners.style(false, false, now);
        assert!(!manners.again(style, &odd, now).mix_case);
        assert_eq!(manners.again(style, &other, now), style);
        assert_eq!(manners.again(style, &odd, now + DOUBTED), style);
    }

    #[test]
    fn the_case_becomes_binding_once_it_is_echoed_every_time() {
        let (mut manners, now) = (Manners::default(), start());
        let name = Name::from_text("example.org").expect("name");
        for _ in 0..ECHOES {
            let style = manners.style(false, false, now);
            assert!(style.mix_case && !style.exact_case);
            manners.on_answer(style, true, now);
        }
        assert!(manners.style(false, false, now).exact_case);
        for _ in 0..WRONG_CASES {
            assert!(manners.style(false, false, now).exact_case);
            manners.on_wrong_case(&name, now);
        }
        assert!(!manners.style(false, false, now).mix_case, "the upstream has changed");
        assert!(manners.style(false, false, now + REMEMBERED).mix_case, "tried again");
    }

    #[test]
    fn an_upstream_that_does_not_echo_case_is_asked_in_lower_case_for_a_while() {
        let (mut manners, now) = (Manners::default(), start());
        manners.on_answer(manners.style(false, false, now), false, now);
        assert!(!manners.style(false, false, now).mix_case);
        assert!(manners.style(false, false, now + REMEMBERED).mix_case);
    }

    #[test]
    fn edns_is_left_out_for_a_while_after_it_was_refused() {
        let (mut manners, now) = (Manners::default(), start());
        assert!(manners.has_edns(false, now));
        manners.on_edns_refused(now);
        assert!(!manners.has_edns(false, now));
        assert!(manners.has_edns(false, now + REMEMBERED));
    }

    #[test]
    fn an_upstream_that_leaves_opt_out_is_asked_without_it_unless_do_is_set() {
        let (mut manners, now) = (Manners::default(), start());
        for _ in 0..OPT_MISSING {
            assert!(manners.has_edns(false, now));
            manners.on_opt(false, now);
        }
        assert!(!manners.has_edns(false, now) && manners.has_edns(true, now));
        assert!(manners.has_edns(false, now + REMEMBERED), "tried again");
        manners.on_opt(true, now);
        for _ in 0..10 {
            assert!(manners.has_edns(false, now), "it has shown that it reads OPT");
            manners.on_opt(false, now);
        }
    }

    #[test]
    fn an_upstream_that_refuses_everything_is_not_asked_twice_each_time() {
        let (mut manners, now) = (Manners::default(), start());
        for _ in 0..FUTILE {
            assert!(manners.asks_without_edns(now));
            manners.on_edns_futile(now);
        }
        assert!(!manners.asks_without_edns(now) && manners.has_edns(false, now));
        assert!(manners.asks_without_edns(now + FUTILE_FOR), "tried again");
        manners.on_edns_futile(now);
        manners.on_answer(manners.style(false, false, now), true, now);
        assert!(manners.asks_without_edns(now), "it has answered");
    }

    #[test]
    fn one_refusal_does_not_outweigh_earlier_edns_responses() {
        let (mut manners, now) = (Manners::default(), start());
        for _ in 0..10 {
            manners.on_answer(manners.style(false, false, now), true, now);
            manners.on_edns_refused(now);
            assert!(manners.has_edns(false, now));
        }
        manners.on_edns_refused(now);
        manners.on_edns_refused(now);
        assert!(!manners.has_edns(false, now), "the third in a row");
    }

    #[test]
    fn silence_towards_edns_is_met_without_it_unless_it_was_ever_answered() {
        let (mut manners, now) = (Manners::default(), start());
        let tried: Vec<_> = (0..6)
            .map(|_| {
                let style = manners.style(false, false, now);
                manners.on_unanswered(style);
                style.edns
            })
            .collect();
        assert_eq!(tried, [true, true, true, false, true, false]);
        let plain = Style { edns: false, ..manners.style(false, false, now) };
        manners.on_answer(plain, true, now);
        assert!(!manners.has_edns(false, now), "remembered");

        let mut known = Manners::default();
        known.on_answer(known.style(false, false, now), true, now);
        for _ in 0..EDNS_LOST_LATER {
            let style = known.style(false, false, now);
            assert!(style.edns);
            known.on_unanswered(style);
        }
    }

    #[test]
    fn an_upstream_that_no_longer_hears_edns_is_asked_without_but_not_one_that_was_away() {
        let (mut manners, mut now) = (Manners::default(), start());
        manners.on_answer(manners.style(false, false, now), true, now);
        // What one query meets that is sent until something answers it; tells whether that had EDNS.
        let ask = |manners: &mut Manners, hears_edns: bool, now| loop {
            let style = manners.style(false, false, now);
            assert!(manners.has_edns(true, now), "signatures are asked for all the same");
            if !style.edns || hears_edns {
                manners.on_answer(style, true, now);
                return style.edns;
            }
            manners.on_unanswered(style);
        };
        let away = |manners: &mut Manners, now| {
            for _ in 0..25 {
                manners.on_unanswered(manners.style(false, false, now));
            }
        };
        away(&mut manners, now);
        assert!(!ask(&mut manners, true, now), "every other query does without");
        now += EDNS_DOUBTED;
        assert!(ask(&mut manners, true, now) && ask(&mut manners, true, now), "it was away");
        away(&mut manners, now);
        for _ in 0..3 {
            assert!(!ask(&mut manners, false, now));
            now += EDNS_DOUBTED / 2;
        }
        assert!(!manners.has_edns(true, now), "remembered");
        assert!(!manners.style(false, false, now).edns);
        assert!(manners.style(false, false, now + REMEMBERED).edns, "tried again");
    }
}
