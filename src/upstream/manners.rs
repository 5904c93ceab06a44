//! What an upstream is known to understand: EDNS, and the qname's case. Pure; `now` is passed in.
//!
//! Both are tried, learned from what comes back, remembered for a while and then tried again.

use std::time::{Duration, Instant};

use super::verify::Style;

/// How long a lack is remembered before it is tried again.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Echoes in a row after which a response without the query's case is ignored.
const ECHOES: u32 = 8;

/// Responses in a wrong case, with no right one between, after which case is no longer mixed.
const WRONG_CASES: u32 = 3;

/// Refusals of EDNS in a row that outweigh earlier EDNS responses.
const EDNS_REFUSALS: u32 = 3;

/// One upstream's manners.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// Until then queries go without EDNS.
    plain_until: Option<Instant>,
    /// EDNS queries that nothing answered, while nothing ever answered one.
    edns_unanswered: u32,
    edns_answered: bool,
    /// Refusals of EDNS since an EDNS query was last answered.
    edns_refused: u32,
    /// Responses in a row that echoed the case.
    echoes: u32,
    wrong_cases: u32,
    /// Until then the qname is sent in lower case.
    caseless_until: Option<Instant>,
}

impl Manners {
    /// How to write the next query by UDP.
    pub fn style(&self, want_ad: bool, now: Instant) -> Style {
        let mix_case = self.caseless_until.is_none_or(|until| now >= until);
        Style {
            edns: self.has_edns(now),
            mix_case,
            exact_case: mix_case && self.echoes >= ECHOES,
            want_ad,
        }
    }

    /// Tells whether queries carry EDNS: not for a while after it was refused, and every other time
    /// where EDNS queries meet silence (an old firewall may drop them).
    pub fn has_edns(&self, now: Instant) -> bool {
        let refused = self.plain_until.is_some_and(|until| now < until);
        !refused && (self.edns_unanswered < 3 || self.edns_unanswered.is_multiple_of(2))
    }

    /// Learns from a conclusive response to a query of this style.
    pub fn on_answer(&mut self, style: Style, echoed: bool, now: Instant) {
        self.on_reply(style, now);
        if !style.mix_case {
            return;
        }
        self.wrong_cases = 0;
        self.echoes = if echoed { self.echoes.saturating_add(1) } else { 0 };
        if !echoed {
            self.caseless_until = Some(now + REMEMBERED);
        }
    }

    /// Learns from any response to a query of this style.
    pub fn on_reply(&mut self, style: Style, now: Instant) {
        if style.edns {
            self.edns_answered = true;
            self.edns_refused = 0;
        } else if self.edns_unanswered >= 3 {
            self.plain_until = Some(now + REMEMBERED);
        }
        self.edns_unanswered = 0;
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

    /// Learns from silence.
    pub fn on_unanswered(&mut self, style: Style) {
        if !self.edns_answered && (style.edns || self.edns_unanswered >= 3) {
            self.edns_unanswered = self.edns_unanswered.saturating_add(1);
        }
    }

    /// Learns from a response with the right id, tuple and question but for its case.
    ///
    /// A guess would have to hit id and port, so a few of these with no right one between mean that
    /// the upstream has changed.
    pub fn on_wrong_case(&mut self, now: Instant) {
        self.wrong_cases += 1;
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
    fn the_case_becomes_binding_once_it_is_echoed_every_time() {
        let (mut manners, now) = (Manners::default(), start());
        for _ in 0..ECHOES {
            let style = manners.style(false, now);
            assert!(style.mix_case && !style.exact_case);
            manners.on_answer(style, true, now);
        }
        assert!(manners.style(false, now).exact_case);
        for _ in 0..WRONG_CASES {
            assert!(manners.style(false, now).exact_case);
            manners.on_wrong_case(now);
        }
        assert!(!manners.style(false, now).mix_case, "the upstream has changed");
        assert!(manners.style(false, now + REMEMBERED).mix_case, "tried again");
    }

    #[test]
    fn an_upstream_that_does_not_echo_case_is_asked_in_lower_case_for_a_while() {
        let (mut manners, now) = (Manners::default(), start());
        manners.on_answer(manners.style(false, now), false, now);
        assert!(!manners.style(false, now).mix_case);
        assert!(manners.style(false, now + REMEMBERED).mix_case);
    }

    #[test]
    fn edns_is_left_out_for_a_while_after_it_was_refused() {
        let (mut manners, now) = (Manners::default(), start());
        assert!(manners.has_edns(now));
        manners.on_edns_refused(now);
        assert!(!manners.has_edns(now));
        assert!(manners.has_edns(now + REMEMBERED));
    }

    #[test]
    fn one_refusal_does_not_outweigh_earlier_edns_responses() {
        let (mut manners, now) = (Manners::default(), start());
        for _ in 0..10 {
            manners.on_answer(manners.style(false, now), true, now);
            manners.on_edns_refused(now);
            assert!(manners.has_edns(now));
        }
        manners.on_edns_refused(now);
        manners.on_edns_refused(now);
        assert!(!manners.has_edns(now), "the third in a row");
    }

    #[test]
    fn silence_towards_edns_is_met_without_it_unless_it_was_ever_answered() {
        let (mut manners, now) = (Manners::default(), start());
        let tried: Vec<_> = (0..6)
            .map(|_| {
                let style = manners.style(false, now);
                manners.on_unanswered(style);
                style.edns
            })
            .collect();
        assert_eq!(tried, [true, true, true, false, true, false]);
        let plain = Style { edns: false, ..manners.style(false, now) };
        manners.on_answer(plain, true, now);
        assert!(!manners.has_edns(now), "remembered");

        let mut known = Manners::default();
        known.on_answer(known.style(false, now), true, now);
        for _ in 0..10 {
            let style = known.style(false, now);
            assert!(style.edns);
            known.on_unanswered(style);
        }
    }
}
