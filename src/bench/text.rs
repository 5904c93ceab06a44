//! A report for people's eyes: the table on a terminal, and the words that all outputs share.

use std::fmt::{self, Write};

use super::conntrack::Counters;
use super::report::{Comparison, Own, Report, Server, Verdict};

/// Microseconds as people read them.
pub fn time(micros: f64) -> String {
    match micros {
        us if us < 1000.0 => format!("{us:.0} µs"),
        us if us < 1_000_000.0 => format!("{:.2} ms", us / 1000.0),
        us => format!("{:.2} s", us / 1_000_000.0),
    }
}

/// A share of a whole in percent, as exact as it must be.
pub fn share(part: u64, whole: u64) -> String {
    match (part, part as f64 / whole.max(1) as f64 * 100.0) {
        (0, _) => "0".to_owned(),
        (_, percent) if percent < 0.1 => format!("{part} ({percent:.3} %)"),
        (_, percent) => format!("{part} ({percent:.1} %)"),
    }
}

/// The columns of the table, here and in every other output.
pub const COLUMNS: [&str; 13] = [
    "server", "lookups", "p50", "p90", "p99", "p99.9", "p99.99", "max", "≥1s", "timeouts", "lost",
    "retries", "failed",
];

impl Report {
    /// The table's rows, in the order of [`COLUMNS`].
    pub fn rows(&self) -> Vec<Vec<String>> {
        let row = |server: &Server| {
            let latency = &server.latency_us;
            let times =
                [latency.p50, latency.p90, latency.p99, latency.p999, latency.p9999, latency.max];
            let mut cells = vec![server.name.clone(), server.lookups.to_string()];
            cells.extend(times.map(time));
            cells.push(share(server.stalls.one, server.lookups));
            cells.push(share(server.timeouts, server.lookups));
            cells.push(share(server.lost, server.sent));
            cells.push(server.retries.to_string());
            cells.push(server.failed().to_string());
            cells
        };
        self.servers.iter().map(row).collect()
    }

    /// What was done, on one line.
    pub fn headline(&self) -> String {
        let load = &self.load;
        let rate = match load.wanted_qps {
            Some(wanted) => format!("{wanted:.0} queries/s for each server, open loop"),
            None => format!("closed loop, {:.0} queries/s for each server", load.held_qps),
        };
        format!(
            "{} as {} asks, {rate}, {:.1} s after {:.1} s of warm-up; names: {}",
            load.model, load.resolver, load.duration_s, load.warm_up_s, load.names
        )
    }

    /// Tells whether every gate holds, the baseline's too.
    pub fn holds(&self) -> bool {
        self.gates.iter().all(|verdict| verdict.holds) && self.baseline.iter().all(|one| one.holds)
    }

    /// Everything that is not in the table, a line each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.remarks.clone();
        for server in &self.servers {
            let rcodes: Vec<_> =
                server.rcodes.iter().map(|(name, count)| format!("{name} {count}")).collect();
            let mut line = format!("{}: {}", server.name, rcodes.join(", "));
            let [two, five] = [server.stalls.two, server.stalls.five];
            let more = [
                (two, "waits ≥ 2.5 s"),
                (five, "waits ≥ 5 s"),
                (server.partial, "with one response of two"),
                (server.truncated, "responses cut off: asking again by TCP is not in the times"),
            ];
            for (count, what) in more.iter().filter(|(count, _)| *count > 0) {
                // Writing to a text does not fail.
                let _ = write!(line, "; {count} {what}");
            }
            notes.push(line + &server.own_part());
        }
        if let Some(counted) = self.conntrack.filter(|counted| *counted != Counters::default()) {
            notes.push(format!(
                "conntrack here: insert_failed {}, drop {}, clash_resolve {}, early_drop {}",
                counted.insert_failed, counted.drop, counted.clash_resolve, counted.early_drop
            ));
        }
        notes
    }
}

impl Server {
    /// The load's own part: what of it is in the latencies, and what is not.
    fn own_part(&self) -> String {
        let both = |own: &Own| format!("p50 {}, p99 {}", time(own.p50), time(own.p99));
        let late = format!("; sent late: {}", both(&self.late_us));
        late + &self
            .unread_us
            .as_ref()
            .map_or(String::new(), |own| format!("; unread: {}", both(own)))
    }
}

impl Verdict {
    /// The gate and what it came to.
    pub fn text(&self) -> String {
        let word = if self.holds { "holds" } else { "FAILS" };
        format!("{word}: fail if {} ({}: {})", self.gate, self.server, self.value)
    }
}

impl Comparison {
    /// The comparison and what it came to.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} of {}: {:.3} × that of {}",
            self.metric, self.server, self.ratio, self.against
        );
        // Writing to a text does not fail.
        let _ = match self.interval {
            Some((low, high)) => write!(text, ", between {low:.3} and {high:.3}"),
            None => write!(text, ", too short a run to tell by chance or not"),
        };
        match self.limit {
            Some(limit) if self.holds => text + &format!("; holds (at most {limit:.2})"),
            Some(limit) => text + &format!("; FAILS (at most {limit:.2})"),
            None => text,
        }
    }
}

impl fmt::Display for Report {
    /// Writes the table, then what else there is to say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.headline())?;
        let head = COLUMNS.map(str::to_owned).to_vec();
        let rows: Vec<_> = std::iter::once(head).chain(self.rows()).collect();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
        for row in &rows {
            for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
                match index {
                    0 => write!(f, "{cell:<width$}")?,
                    _ => write!(f, "  {cell:>width$}")?,
                }
            }
            writeln!(f)?;
        }
        writeln!(f)?;
        self.notes().iter().try_for_each(|note| writeln!(f, "{note}"))?;
        let compared = self.differences.iter().chain(&self.baseline).map(Comparison::text);
        compared
            .chain(self.gates.iter().map(Verdict::text))
            .try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;

    #[test]
    fn the_table_is_aligned_and_says_what_was_counted() {
        let text = report().to_string();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[2].starts_with("server "), "{text}");
        assert!(lines[3].contains("1.00 ms") && lines[3].contains("5 (0.5 %)"), "{text}");
        assert_eq!(lines[2].chars().count(), lines[3].chars().count(), "{text}");
        assert!(text.contains("198.18.0.1: NOERROR 995"), "{text}");
    }
}
