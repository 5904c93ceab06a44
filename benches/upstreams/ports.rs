//! What a forger would have to guess: source ports and ids as upstreams see them, held against chance.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use super::contender::{Contender, Kind};
use super::load;
use super::namespace::{Node, Rules};
use super::plan::Plan;
use super::report::Row;
use super::scenario::{forms, unique, upstreams};
use super::statistics::{LIMIT, chi_square, histogram, lag_one, runs};
use super::tracking::with_pooled;
use super::upstream::Sighting;

/// A port that was not seen for so long was drawn anew.
const GONE: Duration = Duration::from_secs(1);

/// What follows a port is looked for so many draws around what followed it before.
const NEAR: usize = 16;

/// Of the histograms.
const CELLS: usize = 50;

/// Source ports and ids of each contender at 5,000 misses per second.
pub fn ports(plan: &Plan) -> io::Result<Vec<Row>> {
    let span = plan.span().min(Duration::from_secs(15));
    let mut rows = Vec::new();
    let mut bits: HashMap<Kind, f64> = HashMap::new();
    for kind in with_pooled(plan) {
        let _node = Node::enter()?;
        let (_rules, upstreams) = (Rules::track()?, upstreams(1, 60)?);
        let contender = Contender::start(kind, &forms(&upstreams))?;
        upstreams[0].take_sightings();
        let asks = load::run(contender.address, 5000, span, unique("port"));
        let seen = upstreams[0].take_sightings();
        let drawn = Drawn::of(&seen);
        bits.insert(kind, drawn.bits() + case_bits(&seen) + 16.0);
        rows.push((kind, row(kind, &seen, &drawn).pace(load::late(&asks, span))));
    }
    let unbound = bits.get(&Kind::Unbound).copied().unwrap_or_default();
    let judged = rows.into_iter().map(|(kind, row)| {
        let own = bits.get(&kind).copied().unwrap_or_default();
        row.cell("bits to guess", format!("{own:.1}"))
            .promise("as hard to guess as unbound's", own >= unbound)
    });
    Ok(judged.collect())
}

/// The figures of one contender.
fn row(kind: Kind, seen: &[Sighting], drawn: &Drawn) -> Row {
    let ids: Vec<u16> = seen.iter().map(|one| one.id).collect();
    let (ports, ids) = (Deviations::of(&drawn.places, drawn.frame), Deviations::of(&ids, u16::MAX));
    let again = 100.0 * drawn.again();
    let each = seen.len() as f64 / drawn.ports.len().max(1) as f64;
    Row::new(kind, "5,000 misses/s")
        .cell("ports drawn", drawn.ports.len())
        .cell("out of", u32::from(drawn.frame) + 1)
        .cell("queries on each", format!("{each:.1}"))
        .cell("uneven, serial, runs", ports.text())
        .cell("in their old order", format!("{again:.1}%"))
        .cell("of ids", ids.text())
        .cell("port bits", format!("{:.1}", drawn.bits()))
        .cell("case bits", format!("{:.1}", case_bits(seen)))
        .promise("ports are drawn by chance", ports.are_chance())
        .promise("ids are drawn by chance", ids.are_chance())
        .promise("no port tells the next from the past", again < 2.0)
        .promise("a port is soon worth nothing", each <= 128.0)
}

/// The draws among the queries: ports that were not in use already.
struct Drawn {
    ports: Vec<u16>,
    /// The draws as places among the ports that there are for drawing, from 0 to `frame`.
    places: Vec<u16>,
    frame: u16,
}

impl Drawn {
    /// Finds them; what there is for drawing is taken for evenly spaced.
    fn of(seen: &[Sighting]) -> Self {
        let mut last = HashMap::new();
        let is_new = |one: &&Sighting| {
            let before = last.insert(one.port, one.at);
            before.is_none_or(|before| one.at.saturating_duration_since(before) > GONE)
        };
        let ports: Vec<u16> = seen.iter().filter(is_new).map(|one| one.port).collect();
        let least = ports.iter().min().copied().unwrap_or_default();
        let step = ports.iter().fold(0, |step, port| divisor(step, port - least)).max(1);
        let places: Vec<u16> = ports.iter().map(|port| (port - least) / step).collect();
        let frame = places.iter().max().copied().unwrap_or_default();
        Self { ports, places, frame }
    }

    /// How many bits of a port are unknown to who knows how often each part of the range is drawn from.
    fn bits(&self) -> f64 {
        let counts = histogram(&self.places, 0, self.frame, CELLS);
        let shares = counts.iter().map(|count| f64::from(*count) / self.places.len().max(1) as f64);
        let known = shares.filter(|share| *share > 0.0).map(|share| share * share.log2());
        (f64::from(self.frame) + 1.0).log2() - (CELLS as f64).log2() - known.sum::<f64>()
    }

    /// The share of ports that come where they came the last time, behind the same port.
    fn again(&self) -> f64 {
        let (mut last, mut known, mut same) = (HashMap::new(), 0, 0);
        for (n, pair) in self.ports.windows(2).enumerate() {
            if let Some(before) = last.insert(pair[0], n) {
                let around = self.ports.get((before + 1).saturating_sub(NEAR)..before + 2 + NEAR);
                known += 1;
                same += usize::from(around.is_some_and(|around| around.contains(&pair[1])));
            }
        }
        f64::from(same as u32) / f64::from(known.max(1) as u32)
    }
}

/// The greatest common divisor.
fn divisor(one: u16, other: u16) -> u16 {
    if other == 0 { one } else { divisor(other, one % other) }
}

/// How many bits the case of a name's letters holds.
fn case_bits(seen: &[Sighting]) -> f64 {
    let sum = |of: fn(&Sighting) -> u16| seen.iter().map(|one| f64::from(of(one))).sum::<f64>();
    let (letters, upper) = (sum(|one| one.letters), sum(|one| one.upper));
    let share = upper / letters.max(1.0);
    let part = |share: f64| if share > 0.0 { -share * share.log2() } else { 0.0 };
    letters / seen.len().max(1) as f64 * (part(share) + part(1.0 - share))
}

/// Standard deviations from what chance gives.
struct Deviations {
    /// Parts of the range are drawn from more often than others.
    uneven: f64,
    /// One value tells the next.
    serial: f64,
    runs: f64,
}

impl Deviations {
    /// Those of `values` from 0 to `last`.
    fn of(values: &[u16], last: u16) -> Self {
        let uneven = chi_square(&histogram(values, 0, last, CELLS));
        Self { uneven, serial: lag_one(values), runs: runs(values) }
    }

    /// Tells whether chance gives such values. What is more even than chance is no easier to guess.
    fn are_chance(&self) -> bool {
        self.uneven < LIMIT && self.serial.abs() < LIMIT && self.runs.abs() < LIMIT
    }

    /// As the report writes them.
    fn text(&self) -> String {
        format!("{:.1} {:.1} {:.1}", self.uneven, self.serial, self.runs)
    }
}
