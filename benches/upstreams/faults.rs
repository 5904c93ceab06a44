//! Upstreams that hang, die, lie, go away or are replaced.

use std::io;
use std::time::{Duration, Instant};

use super::contender::{Contender, Kind};
use super::load::{self, Ask, millis, quantile, share};
use super::plan::Plan;
use super::process::Place;
use super::report::Row;
use super::scenario::{UPSTREAMS, address, forms, unique, upstreams};
use super::upstream::{Mode, Upstream};

/// A millisecond.
const MS: Duration = Duration::from_millis(1);

/// How the first of two upstreams fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Hangs,
    Dies,
    Servfails,
}

/// The first of two upstreams fails for a third of the time and comes back.
pub fn one_of_two(plan: &Plan) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for fault in [Fault::Hangs, Fault::Dies, Fault::Servfails] {
        for kind in &plan.kinds {
            rows.push(fail_one(plan, *kind, fault)?);
        }
    }
    Ok(rows)
}

/// One run: healthy, failing, back.
fn fail_one(plan: &Plan, kind: Kind, fault: Fault) -> io::Result<Row> {
    let [one, two] = UPSTREAMS.map(address);
    let (mut first, second) = (Some(Upstream::start(one, 60)?), Upstream::start(two, 60)?);
    let contender = Contender::start(kind, &UPSTREAMS.map(str::to_owned))?;
    let third = Duration::from_secs((plan.seconds / 2).clamp(4, 10));
    let mut shares = (0, 0);
    let asks = std::thread::scope(|scope| -> io::Result<Vec<Ask>> {
        let load =
            scope.spawn(|| load::run(contender.address, plan.rate, 3 * third, unique("fault")));
        std::thread::sleep(third);
        match (fault, &first) {
            (Fault::Hangs, Some(first)) => first.set_mode(Mode::Silent),
            (Fault::Servfails, Some(first)) => first.set_mode(Mode::Servfail),
            _ => first = None,
        }
        std::thread::sleep(third);
        if first.is_none() {
            first = Some(Upstream::start(one, 60)?);
        }
        let back = first.as_ref().ok_or(io::ErrorKind::Other)?;
        back.set_mode(Mode::Answer);
        std::thread::sleep(Duration::from_secs(2));
        let before = (back.queries(), second.queries());
        let asks = load.join().map_err(|_| io::ErrorKind::Other)?;
        shares = (back.queries() - before.0, second.queries() - before.1);
        Ok(asks)
    })?;
    let during = |from: Duration, until: Duration| {
        asks.iter().filter(|ask| ask.sent >= from && ask.sent < until).copied().collect::<Vec<_>>()
    };
    let after = during(third + Duration::from_secs(1), 3 * third);
    let slow = after.iter().filter(|ask| !ask.is_within(500 * MS)).count();
    let first_second = during(third, third + Duration::from_secs(1));
    let returned = 100.0 * shares.0 as f64 / (shares.0 + shares.1).max(1) as f64;
    Ok(Row::new(kind, &format!("one of two {}", format!("{fault:?}").to_lowercase()))
        .cell("not answered", asks.iter().filter(|ask| !ask.is_within(5000 * MS)).count())
        .cell("slowest in 1st second", millis(quantile(&first_second, 1.0), 0))
        .cell("p99 then", millis(quantile(&after, 0.99), 1))
        .cell("slowest then", millis(quantile(&after, 1.0), 0))
        .cell(">500ms then", slow)
        .cell("share of the returned", format!("{returned:.0}%"))
        .promise("no query over 500 ms after the first second", !plan.judge || slow == 0)
        .promise("the returned one is asked within 2 s", returned > 10.0))
}

/// Every upstream goes away, silent or refusing, while 1,000 cached names are asked for.
pub fn all_away(plan: &Plan) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for silent in [true, false] {
        for kind in &plan.kinds {
            rows.push(away(plan, *kind, silent)?);
        }
    }
    Ok(rows)
}

/// One run: cached, away, back.
fn away(plan: &Plan, kind: Kind, silent: bool) -> io::Result<Row> {
    let mut alive = upstreams(2, 1)?;
    let contender = Contender::start(kind, &forms(&alive))?;
    let known = unique("known");
    for _ in 0..2 {
        load::run(contender.address, plan.rate, 500 * MS, |n| known(n % 1000));
    }
    std::thread::sleep(1200 * MS); // all of them have expired
    let (before, asked) = (contender.resident()?, alive.iter().map(Upstream::queries).sum::<u64>());
    match silent {
        true => alive.iter().for_each(|upstream| upstream.set_mode(Mode::Silent)),
        false => alive.clear(),
    }
    // One in twenty asks for one of ten names that were never answered.
    let dead = unique("dead");
    let name = |n: usize| if n.is_multiple_of(20) { dead(n / 20 % 10) } else { known(n % 1000) };
    let asks = load::run(contender.address, plan.rate, plan.span(), name);
    // Nobody counts what a closed port gets.
    let sent = silent.then(|| alive.iter().map(Upstream::queries).sum::<u64>() - asked);
    let after = contender.resident()?;
    match silent {
        true => alive.iter().for_each(|upstream| upstream.set_mode(Mode::Answer)),
        false => alive = upstreams(2, 60)?,
    }
    let (returned, fresh) = (Instant::now(), unique("fresh"));
    let recovered =
        (0..).find(|n| contender.answers(&fresh(*n)) || returned.elapsed() > 60_000 * MS);
    let recovery = recovered.map(|_| returned.elapsed()).unwrap_or_default();
    drop(alive);
    let known: Vec<Ask> =
        asks.iter().enumerate().filter(|(n, _)| !n.is_multiple_of(20)).map(|(_, a)| *a).collect();
    let later: Vec<Ask> =
        known.iter().filter(|ask| ask.sent >= Duration::from_secs(1)).copied().collect();
    let (all, p99) = (share(&known, 5000 * MS), quantile(&later, 0.99));
    let arrived = sent.map(|sent| sent as f64 / plan.seconds as f64);
    Ok(Row::new(kind, if silent { "all silent" } else { "all refuse" })
        .cell("cached names answered", format!("{all:.3}%"))
        .cell("SERVFAIL", known.iter().filter(|ask| ask.rcode != 0).count())
        .cell("p50", millis(quantile(&later, 0.5), 2))
        .cell("p99", millis(p99, 2))
        .cell("upstream q/s", arrived.map_or("-".to_owned(), |rate| format!("{rate:.0}")))
        .cell("RSS", format!("{before:.0} -> {after:.0}MB"))
        .cell("recovery", format!("{:.2}s", recovery.as_secs_f64()))
        .promise("every cached name is answered", all == 100.0)
        .promise("p99 < 2 ms after the first second", !plan.judge || p99 < 2.0)
        .promise("recovery within 1 s", !plan.judge || recovery <= Duration::from_secs(1))
        .promise("memory flat", after < before + 16.0))
}

/// The only endpoint of a set is replaced again and again. The others know no endpoints: nodens alone.
pub fn replaced(plan: &Plan) -> io::Result<Vec<Row>> {
    if !plan.kinds.contains(&Kind::Nodens) {
        return Ok(Vec::new());
    }
    const EVERY: Duration = Duration::from_millis(200);
    let times = if plan.seconds < 20 { 15 } else { 100 };
    let place = Place::new()?;
    let file = place.path().join("endpoints");
    let publish = |upstream: &Upstream| -> io::Result<()> {
        std::fs::rename(place.write("new", &format!("{}\n", upstream.address))?, &file)
    };
    let at = |n: u32| address(&format!("127.0.{}.{}:53", 1 + n / 200, 1 + n % 200));
    let mut current = Upstream::start(at(0), 60)?;
    publish(&current)?;
    let contender = Contender::start(Kind::Nodens, &[format!("file:{}", file.display())])?;
    let (mut late, mut old): (u64, Vec<(Upstream, u64)>) = (0, Vec::new());
    let asks = std::thread::scope(|scope| -> io::Result<Vec<Ask>> {
        let span = EVERY * (times + 2);
        let load = scope.spawn(move || {
            load::run(address(super::contender::LISTEN), 2000, span, unique("replace"))
        });
        for n in 1..=times {
            std::thread::sleep(EVERY - 100 * MS);
            let next = Upstream::start(at(n), 60)?;
            publish(&next)?;
            let before = std::mem::replace(&mut current, next);
            std::thread::sleep(100 * MS);
            let queries = before.queries();
            old.push((before, queries));
            if old.len() > 5 {
                let (gone, queries) = old.remove(0);
                late += gone.queries() - queries;
            }
        }
        load.join().map_err(|_| io::ErrorKind::Other.into())
    })?;
    late += old.iter().map(|(gone, queries)| gone.queries() - queries).sum::<u64>();
    let lost = asks.iter().filter(|ask| !ask.is_within(5000 * MS)).count();
    drop(contender);
    Ok(vec![
        Row::new(Kind::Nodens, &format!("replaced {times} times"))
            .cell("lost", lost)
            .cell("to a deleted one after 100 ms", late)
            .cell("slowest", millis(quantile(&asks, 1.0), 0))
            .promise("none lost", lost == 0)
            .promise("no query to a deleted endpoint", !plan.judge || late == 0),
    ])
}
