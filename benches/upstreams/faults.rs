//! Upstreams that hang, die, lie, go away or are replaced.

use std::io;
use std::time::{Duration, Instant};

use super::contender::{Contender, Kind};
use super::load::{self, Ask, millis, quantile, share};
use super::namespace::Rules;
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
    let (asks, back, share) = std::thread::scope(|scope| -> io::Result<_> {
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
        let returned = first.as_ref().ok_or(io::ErrorKind::Other)?;
        returned.set_mode(Mode::Answer);
        let back = wait_until_asked(returned, third - MS);
        let before = (returned.queries(), second.queries());
        let asks = load.join().map_err(|_| io::ErrorKind::Other)?;
        let (its, all) = (returned.queries() - before.0, second.queries() - before.1);
        Ok((asks, back, 100.0 * its as f64 / (its + all).max(1) as f64))
    })?;
    let during = |from: Duration, until: Duration| {
        asks.iter().filter(|ask| ask.sent >= from && ask.sent < until).copied().collect::<Vec<_>>()
    };
    let after = during(third + Duration::from_secs(1), 3 * third);
    let slow = after.iter().filter(|ask| !ask.is_within(500 * MS)).count();
    let first_second = during(third, third + Duration::from_secs(1));
    let seconds = |back: Duration| format!("{:.2}s", back.as_secs_f64());
    Ok(Row::new(kind, &format!("one of two {}", format!("{fault:?}").to_lowercase()))
        .pace(load::late(&asks, 3 * third))
        .cell("not answered", asks.iter().filter(|ask| !ask.is_within(5000 * MS)).count())
        .cell("slowest in 1st second", millis(quantile(&first_second, 1.0), 0))
        .cell("p99 then", millis(quantile(&after, 0.99), 1))
        .cell("slowest then", millis(quantile(&after, 1.0), 0))
        .cell(">500ms then", slow)
        .cell("asked again after", back.map_or("never".to_owned(), seconds))
        .cell("its share then", format!("{share:.0}%"))
        .promise("no query over 500 ms after the first second", !plan.judge || slow == 0)
        .promise("the returned one is asked again", back.is_some())
        .promise("within 2 s", !plan.judge || back.is_some_and(|back| back <= 2000 * MS)))
}

/// How long it takes until `upstream` has been asked more than probes ask, if that is within `limit`.
fn wait_until_asked(upstream: &Upstream, limit: Duration) -> Option<Duration> {
    const ENOUGH: u64 = 50;
    let (since, before) = (Instant::now(), upstream.queries());
    while upstream.queries() < before + ENOUGH {
        if since.elapsed() > limit {
            return None;
        }
        std::thread::sleep(5 * MS);
    }
    Some(since.elapsed())
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
    let (known, dead) = (unique("known"), unique("dead"));
    for _ in 0..2 {
        load::run(contender.address, plan.rate, 500 * MS, |n| known(n % 1000));
    }
    std::thread::sleep(1200 * MS); // all of them have expired
    match silent {
        true => alive.iter().for_each(|upstream| upstream.set_mode(Mode::Silent)),
        false => alive.clear(),
    }
    let rules = Rules::lose(0)?;
    // One in twenty asks for one of ten names that were never answered.
    let is_dead = |n: usize| n.is_multiple_of(20);
    let name = |n| if is_dead(n) { dead(n / 20 % 10) } else { known(n % 1000) };
    let (asks, memory) =
        watched(&contender, || load::run(contender.address, plan.rate, plan.span(), name))?;
    let sent = rules.sent()? as f64 / plan.seconds as f64;
    drop(rules);
    match silent {
        true => alive.iter().for_each(|upstream| upstream.set_mode(Mode::Answer)),
        false => alive = upstreams(2, 60)?,
    }
    let recovered = recovery(&contender, &known(0));
    drop(alive);
    let of = |is: &dyn Fn(usize, &Ask) -> bool| -> Vec<Ask> {
        asks.iter().enumerate().filter(|(n, ask)| is(*n, ask)).map(|(_, ask)| *ask).collect()
    };
    let known = of(&|n, _| !is_dead(n));
    let later = of(&|n, ask| !is_dead(n) && ask.sent >= Duration::from_secs(1));
    let (all, p99) = (share(&known, 5000 * MS), quantile(&later, 0.99));
    let each: Vec<Vec<Ask>> =
        (0..10).map(|name| of(&|n, _| is_dead(n) && n / 20 % 10 == name)).collect();
    let kept = kept_failures(&each);
    let row = Row::new(kind, if silent { "all silent" } else { "all refuse" });
    Ok(memory_of(row.pace(load::late(&asks, plan.span())), plan, &memory)
        .cell("cached names answered", format!("{all:.3}%"))
        .cell("SERVFAIL", known.iter().filter(|ask| ask.rcode != 0).count())
        .cell("p50", millis(quantile(&later, 0.5), 2))
        .cell("p99", millis(p99, 2))
        .cell("failures kept", kept.map_or("-".to_owned(), |kept| format!("{kept:.1}%")))
        .cell("sent/s", format!("{sent:.0}"))
        .cell("recovery", format!("{:.2}s", recovered.as_secs_f64()))
        .promise("every cached name is answered", all == 100.0)
        .promise("p99 < 2 ms after the first second", !plan.judge || p99 < 2.0)
        .promise("failures are kept for a second", kept.is_none_or(|kept| kept >= 99.0))
        .promise("recovery within 1 s", !plan.judge || recovered <= Duration::from_secs(1)))
}

/// Of the queries for a name that upstreams have failed to answer less than a second ago the share that is told so
/// at once, in percent; none where upstreams do not take their time to fail.
///
/// Source: RFC 9520 §3.2
fn kept_failures(each: &[Vec<Ask>]) -> Option<f64> {
    const SLOW: Duration = Duration::from_secs(1);
    let (mut after, mut at_once) = (0, 0);
    for asks in each {
        // What failed sooner may have been told so from memory, which says nothing about the next second.
        let is_slow = |took: &Duration| *took >= SLOW;
        let ends =
            |ask: &Ask| Some(ask.sent + ask.took.filter(is_slow).filter(|_| ask.rcode != 0)?);
        let failures: Vec<Duration> = asks.iter().filter_map(ends).collect();
        for ask in asks {
            let is_after = |end: &Duration| *end < ask.sent && ask.sent < *end + 900 * MS;
            if failures.iter().any(is_after) {
                after += 1;
                at_once += usize::from(ask.took.is_some_and(|took| took < SLOW));
            }
        }
    }
    (after > 0).then(|| 100.0 * at_once as f64 / f64::from(after))
}

/// Does `work`; gives back its outcome, and how much memory the contender had before and every 200 ms since.
fn watched<T: Send>(
    contender: &Contender,
    work: impl FnOnce() -> T + Send,
) -> io::Result<(T, Vec<f64>)> {
    let mut memory = vec![contender.resident()?];
    std::thread::scope(|scope| {
        let work = scope.spawn(work);
        while !work.is_finished() {
            std::thread::sleep(200 * MS);
            memory.push(contender.resident()?);
        }
        Ok((work.join().map_err(|_| io::ErrorKind::Other)?, memory))
    })
}

/// Adds what a course of memory shows: flat is what does not grow once all of it is in use.
fn memory_of(row: Row, plan: &Plan, memory: &[f64]) -> Row {
    let at = |part: usize| memory.get(memory.len() * part / 3).or(memory.last()).copied();
    let [before, third, end] = [0, 1, 3].map(|part| at(part).unwrap_or(f64::NAN));
    row.cell("RSS before, 1/3, end", format!("{before:.1} {third:.1} {end:.1}MB"))
        .promise("memory within 16 MB", end < before + 16.0)
        .promise("memory flat", !plan.judge || end < third + 2.0)
}

/// How long it takes until a new name is answered, and `known` no longer by what is stale; a minute at most.
fn recovery(contender: &Contender, known: &str) -> Duration {
    let (returned, fresh) = (Instant::now(), unique("fresh"));
    let is_over = || returned.elapsed() > 60_000 * MS;
    let _ = (0..).find(|n| contender.answers(&fresh(*n)) || is_over());
    // RFC 8767 §4: what is stale has a TTL of 30.
    while contender.ttl(known).is_none_or(|ttl| ttl == 30) && !is_over() {
        std::thread::sleep(MS);
    }
    returned.elapsed()
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
