//! The report as one page with plots, for people who were not there.

use std::time::Duration;

use super::report::{COLUMNS, LEGEND, Report, Row};
use super::scenario::Scenario;
use super::side::Side;
use super::timeline::Timeline;
use crate::bench::page::{Section, page};
use crate::bench::plot::{Axis, Bars, Line, bars, svg};

/// Writes the page.
pub fn html(report: &Report) -> String {
    let mut sections = vec![in_short(report)];
    // Apart from each other: whoever kills a daemon loses more than any race does.
    let (faults, races): (Vec<_>, Vec<_>) =
        report.rows.iter().partition(|row| row.scenario.is_fault());
    let parts = [
        ("Lost queries, and those that waited", races),
        ("The same when nodens dies, hangs or is replaced", faults),
    ];
    let parts = parts.iter().filter(|(_, rows)| !rows.is_empty());
    sections.extend(parts.map(|(heading, rows)| losses(heading, rows)));
    for first in report.rows.iter().filter(|row| row.is_first_of_its_plot(report)) {
        let of_plot = |row: &&Row| row.has_plot_of(first);
        sections.push(latencies(first, report.rows.iter().filter(of_plot)));
    }
    let eventful = report.rows.iter().filter(|row| row.is_eventful() && row.turn == 0);
    sections.extend(eventful.filter_map(|row| row.timeline.as_ref().map(|line| story(row, line))));
    sections.push(numbers(report));
    let patience = Duration::from_millis(report.timeout_ms);
    let subtitle = format!(
        "Linux {}. Pods, a node and two cluster DNS servers, each a network namespace of this kernel. With nodens, \
         it takes over what is asked of the cluster DNS address by rules that die with it; in bind mode it has that \
         address itself, as node-cache does. A stub resolver waits {patience:?} before it asks again.",
        report.kernel
    );
    page("DNS in a cluster, without nodens and with it", &subtitle, &sections)
}

/// A sentence for each scenario and side.
fn in_short(report: &Report) -> Section {
    let mut section = Section::new("In short");
    let mut told = Vec::new();
    for row in &report.rows {
        let key = (row.scenario, row.nodens);
        if told.contains(&key) {
            continue;
        }
        told.push(key);
        let same = report.rows.iter().filter(|one| (one.scenario, one.nodens) == key);
        let [lost, queries, stalls] = same.fold([0; 3], |[lost, queries, stalls], one| {
            [lost + one.lost, queries + one.queries, stalls + one.stalls[0]]
        });
        let (name, side) = (row.scenario.as_str(), row.nodens.label());
        let text = format!(
            "{name}, {side}: {lost} of {queries} queries lost, {stalls} waited a second or longer."
        );
        section = match row.scenario {
            // Whoever kills or stops a daemon loses what it has in hand: neither good news nor bad.
            Scenario::Kill | Scenario::Stop => section.text(&text),
            _ => section.news(lost == 0 && stalls == 0, &text),
        };
    }
    section
}

/// Bars of what was lost, and of who waited.
fn losses(heading: &str, rows: &[&Row]) -> Section {
    let mut names: Vec<String> = Vec::new();
    for row in rows {
        if !names.contains(&row.plot_name()) {
            names.push(row.plot_name());
        }
    }
    let share = |side: Side, name: &String, count: fn(&Row) -> u64| {
        let of = rows.iter().filter(|row| row.nodens == side && row.plot_name() == *name);
        let (part, all) =
            of.fold((0, 0), |(part, all), row| (part + count(row), all + row.queries));
        percent(part, all)
    };
    let is_there = |side: &Side| rows.iter().any(|row| row.nodens == *side);
    let sides: Vec<_> = Side::ALL.into_iter().filter(is_there).collect();
    let plot = |title: &str, count: fn(&Row) -> u64| {
        let bars_of = |side: &Side| Bars {
            label: side.label(),
            heights: names.iter().map(|name| share(*side, name, count)).collect(),
        };
        let series: Vec<_> = sides.iter().map(bars_of).collect();
        let heights = series.iter().flat_map(|bars| bars.heights.iter().copied());
        // Room above for the legend.
        let most = heights.fold(1.0, f64::max) * 1.3;
        bars(&Axis::names(&names), &Axis::plain(title, 0.0, most, " %"), &series)
    };
    Section::new(heading)
        .text("Share of queries that lost a datagram on the way there or back. Each costs an application the stub resolver's timeout.")
        .plot(&plot("lost", |row| row.lost))
        .text("Share of queries for which a stub resolver waited a second or longer, or gave up.")
        .plot(&plot("waited 1 s or longer", |row| row.stalls[0]))
}

/// Percentile curves of one scenario in one topology.
fn latencies<'a>(first: &Row, rows: impl Iterator<Item = &'a Row>) -> Section {
    let rows: Vec<_> = rows.collect();
    let label = |row: &&Row| format!("{} {}", row.family.as_str(), row.nodens.label());
    let labels: Vec<_> = rows.iter().map(label).collect();
    let lines: Vec<_> = rows
        .iter()
        .zip(&labels)
        .map(|(row, label)| Line { label, points: row.curve.clone(), is_thin: false })
        .collect();
    let shown = rows.iter().flat_map(|row| [row.latency_us[0], row.latency_us[4]]);
    let axis = Axis::latency(shown.map(|micros| Duration::from_micros(micros.max(1))));
    let drivers = rows.iter().zip(&labels).filter_map(|(row, label)| {
        let drivers = row.drivers.as_ref()?.told();
        Some(format!("{label}: {drivers}"))
    });
    let drivers: String = drivers.collect();
    let section = Section::new(&format!("How long pods waited: {}", first.plot_name()))
        .text(first.scenario.as_sentence())
        .plot(&svg(&Axis::percentiles(), &axis, &lines));
    if drivers.is_empty() { section } else { section.verbatim(&drivers) }
}

/// What became of queries over time, with what was done meanwhile.
fn story(row: &Row, timeline: &Timeline) -> Section {
    let scale = 1000.0 / f64::from(u32::try_from(timeline.step_ms.max(1)).unwrap_or(u32::MAX));
    let mut most = 0.0_f64;
    let mut points = |counts: &[u32]| -> Vec<(f64, f64)> {
        let rates = counts.iter().map(|count| f64::from(*count) * scale);
        let points: Vec<_> = (0_u32..).map(|step| f64::from(step) / scale).zip(rates).collect();
        most = points.iter().fold(most, |most, (_, rate)| most.max(*rate));
        points
    };
    let answered = points(&timeline.nodens);
    let others = [points(&timeline.cluster), points(&timeline.slow), points(&timeline.lost)];
    let end = answered.last().map_or(1.0, |(at, _)| *at);
    let [cluster, slow, lost] = others;
    let line = |label, points| Line { label, points, is_thin: false };
    let mut lines = vec![
        line("answered by nodens", answered),
        line("answered by the cluster DNS", cluster),
        line("answered after more than 500 ms", slow),
        line("lost", lost),
    ];
    for happening in &timeline.events {
        let at = Duration::from_millis(happening.at_ms).as_secs_f64();
        lines.push(line(happening.event.as_str(), vec![(at, 0.0), (at, most)]));
    }
    let (x, y) = (
        Axis::plain("time at which a query left", 0.0, end, " s"),
        Axis::plain("queries", 0.0, most, "/s"),
    );
    let name = format!("{} {} {}", row.plot_name(), row.family.as_str(), row.nodens.label());
    Section::new(&format!("What happened: {name}"))
        .plot(&svg(&x, &y, &lines))
        .verbatim(&row.story().unwrap_or_default())
}

/// The table, and what its columns mean.
fn numbers(report: &Report) -> Section {
    let head = COLUMNS.map(|(name, _)| name);
    let rows: Vec<_> = report.rows.iter().map(|row| row.cells().to_vec()).collect();
    Section::new("All numbers").table(&head, &rows).verbatim(LEGEND)
}

/// A part of all, in percent.
fn percent(part: u64, all: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "nobody sends 2^52 queries")]
    let share = part as f64 / all.max(1) as f64;
    share * 100.0
}

impl Row {
    /// The scenario, and the topology, for titles.
    fn plot_name(&self) -> String {
        format!("{} {}", self.scenario.as_str(), self.topology.as_str())
    }

    /// Tells whether both belong into one plot of latencies: a repetition does not.
    fn has_plot_of(&self, other: &Self) -> bool {
        self.turn == 0 && self.plot_name() == other.plot_name()
    }

    /// Tells whether this is the row that its plot is named after.
    fn is_first_of_its_plot(&self, report: &Report) -> bool {
        let first = report.rows.iter().find(|row| row.has_plot_of(self));
        first.is_some_and(|first| std::ptr::eq(first, self))
    }
}
