//! A report as one HTML page: the distribution, the time series, the difference between servers.

use std::time::Duration;

use super::markdown::verdicts;
use super::page::{Section, page};
use super::plot::{Axis, Line, log_of, nines, svg};
use super::report::{Comparison, Report, Server, SliceReport};
use super::text::COLUMNS;

/// The whole page.
pub fn html(report: &Report) -> String {
    let mut sections = vec![summary(report), distribution(report), series(report)];
    if report.servers.len() > 1 {
        sections.push(differences(report));
    }
    sections.push(legend());
    page("DNS latency", &report.headline(), &sections)
}

/// The table, the gates, and what else a reader must know.
fn summary(report: &Report) -> Section {
    let mut section = Section::new("Summary").table(&COLUMNS, &report.rows());
    for (holds, text) in verdicts(report) {
        section = section.news(holds, &text);
    }
    for remark in &report.remarks {
        section = section.news(false, remark);
    }
    let notes = report.notes();
    notes.iter().skip(report.remarks.len()).fold(section, |section, note| section.text(note))
}

/// A latency in microseconds.
fn micros(number: f64) -> Duration {
    Duration::from_secs_f64(number.max(0.0) / 1e6)
}

/// Percentile curves, one for each server.
fn distribution(report: &Report) -> Section {
    let points = |server: &Server| -> Vec<(f64, f64)> {
        let both = server.distribution.iter();
        both.map(|(share, latency)| (nines(*share), log_of(micros(*latency)))).collect()
    };
    let lines: Vec<_> = report
        .servers
        .iter()
        .map(|server| Line { label: &server.name, points: points(server), is_thin: false })
        .collect();
    let shown = report.servers.iter().flat_map(|server| &server.distribution);
    let y = Axis::latency(shown.map(|(_, latency)| micros(*latency)));
    Section::new("How long lookups take")
        .text("To the right of p99 are the slowest of a hundred lookups. Both scales are logarithmic.")
        .plot(&svg(&percentiles(report), &y, &lines))
}

/// Percentiles, as far as there are lookups to tell.
fn percentiles(report: &Report) -> Axis {
    let shares = report.servers.iter().flat_map(|server| &server.distribution);
    Axis::percentiles().up_to(shares.map(|(share, _)| nines(*share)).fold(0.0, f64::max))
}

/// Median and p99 over time, one pair of lines for each server.
fn series(report: &Report) -> Section {
    let used = |server: &Server| -> Vec<SliceReport> {
        server.slices.iter().filter(|slice| slice.lookups > 0).copied().collect()
    };
    let all: Vec<_> = report.servers.iter().map(|server| (server, used(server))).collect();
    let label =
        |(server, _): &(&Server, _)| ["p50", "p99"].map(|of| format!("{} {of}", server.name));
    let labels: Vec<_> = all.iter().map(label).collect();
    let mut lines = Vec::new();
    for ((_, slices), [median, tail]) in all.iter().zip(&labels) {
        let points = |read: fn(&SliceReport) -> f64| {
            slices.iter().map(|slice| (slice.at_s, log_of(micros(read(slice))))).collect()
        };
        lines.push(Line { label: median, points: points(|slice| slice.p50_us), is_thin: false });
        lines.push(Line { label: tail, points: points(|slice| slice.p99_us), is_thin: true });
    }
    let every = || all.iter().flat_map(|(_, slices)| slices);
    let last = every().map(|slice| slice.at_s).fold(1.0, f64::max);
    let y = Axis::latency(every().flat_map(|slice| [micros(slice.p50_us), micros(slice.p99_us)]));
    let mut section = Section::new("Over time")
        .text("The median of each slice of time, and thin its p99.")
        .plot(&svg(&Axis::plain("seconds", 0.0, last, ""), &y, &lines));
    let most = every().map(|slice| slice.lost).max().unwrap_or(0);
    if most > 0 {
        let lines = all.iter().map(|(server, slices)| Line {
            label: &server.name,
            points: slices.iter().map(|slice| (slice.at_s, slice.lost as f64)).collect(),
            is_thin: false,
        });
        let lines: Vec<_> = lines.collect();
        let y = Axis::counts("queries lost", most);
        section = section
            .text("Queries without a response, by the slice in which their lookup began.")
            .plot(&svg(&Axis::plain("seconds", 0.0, last, ""), &y, &lines));
    }
    section
}

/// Each server against the first: how many times as long lookups take, from the fastest to the slowest.
fn differences(report: &Report) -> Section {
    let Some((first, others)) = report.servers.split_first() else { return Section::default() };
    let points = |server: &Server| -> Vec<(f64, f64)> {
        let both = server.distribution.iter().zip(&first.distribution);
        both.map(|((share, ours), (_, theirs))| (nines(*share), ours / theirs.max(0.001))).collect()
    };
    let mut lines: Vec<_> = others
        .iter()
        .map(|server| Line { label: &server.name, points: points(server), is_thin: false })
        .collect();
    let ends = || lines.iter().flat_map(|line| &line.points).map(|(_, ratio)| ratio.log10());
    let (low, high) = (ends().fold(-0.05, f64::min), ends().fold(0.05, f64::max));
    for (_, ratio) in lines.iter_mut().flat_map(|line| &mut line.points) {
        *ratio = ratio.log10();
    }
    lines.insert(
        0,
        Line {
            label: &first.name,
            points: vec![(0.0, 0.0), (percentiles(report).end(), 0.0)],
            is_thin: false,
        },
    );
    let section = Section::new("The difference between servers")
        .text(&format!(
            "How many times as long as with {} a lookup takes, at each percentile: above the line it takes \
             longer. All servers were asked for the same names in turns, so that noise hit them alike.",
            first.name
        ))
        .plot(&svg(&percentiles(report), &Axis::ratio(low, high), &lines));
    let texts = report.differences.iter().map(Comparison::text);
    texts.fold(section, |section, text| section.text(&text))
}

/// What the words mean.
fn legend() -> Section {
    Section::new("What the columns mean")
        .text(
            "A lookup is what an application waits for: with pairs, A and AAAA at once from one socket, with \
             the retries of its stub resolver. It counts from when it should have left to when its last \
             response is at this host, also when its application gives up.",
        )
        .text(
            "≥1s: lookups that took a second or longer. timeouts: lookups that ended in an error, for lack \
             of any response. lost: queries without a response within the stub resolver's patience. retries: \
             queries sent again. failed: responses other than NOERROR and NXDOMAIN.",
        )
        .text(
            "Sent late: what the load itself added, for lack of time, to latencies. Unread: how long responses \
             lay at this host until the load read them; no latency holds that.",
        )
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn a_page_has_a_plot_for_each_question_and_every_server_by_name() {
        let mut report = report();
        assert_eq!(html(&report).matches("<svg").count(), 2);
        let mut other = report.servers[0].clone();
        other.name = "<other>".to_owned();
        other.slices[3].lost = 7;
        other.distribution.iter_mut().for_each(|(_, latency)| *latency *= 1.5);
        report.servers.push(other);
        let text = html(&report);
        assert_eq!(text.matches("<svg").count(), 4, "losses and the difference too");
        assert!(text.contains("&lt;other&gt;") && !text.contains("<other>"));
        assert!(text.contains("1.5×"), "a tick of the ratio");
    }

    #[test]
    fn a_page_without_a_single_lookup_is_still_a_page() {
        let mut report = report();
        report.servers[0].slices.clear();
        report.servers[0].distribution.clear();
        assert!(html(&report).ends_with("</html>\n"));
    }
}
