//! `nodens bench`

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};

use super::bench_plan::BenchPlan;
use super::{Failure, print};
use crate::bench::baseline::{self, Metric};
use crate::bench::gate::Gate;
use crate::bench::report::Report;
use crate::bench::{html, markdown, run};

/// Measure DNS latency as applications feel it, and fail when it is too much
#[derive(Args, Debug)]
#[command(
    long_about = "Measure DNS latency as applications feel it, and fail when it is too much.\n\n\
        A lookup is what an application waits for: A and AAAA at once from one new socket, with the retries and \
        the patience of glibc (or musl). Lookups leave when they should, whatever has become of those before, \
        and latency counts from then (open loop: a server that pauses cannot hide it) until the last response is at \
        this host, however late it is read. Several servers are asked for the same names in turns.",
    after_help = "Examples:\n  \
        nodens bench 10.96.0.10 --set cluster\n  \
        nodens bench 10.96.0.10 --names names.txt --qps 2000 --fail-if 'p99 > 2ms' --fail-if 'lost > 0.1%'\n  \
        nodens bench old=192.0.2.1 new=192.0.2.2 tls://192.0.2.9#dns.example --html report.html\n  \
        nodens bench 127.0.0.1:5300 --single --sockets 16 --qps 100000 --name example.org\n  \
        nodens bench 192.0.2.1 --json new.json --baseline old.json --max-regression 10%\n\n\
        Exit codes: 0 all gates hold, 3 a gate failed, 1 it could not run (to its end), 2 usage."
)]
pub(super) struct Bench {
    #[command(flatten)]
    ask: BenchPlan,
    /// Write the report as JSON; "-" is stdout, and then no table comes
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write one self-contained HTML page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Append Markdown: $GITHUB_STEP_SUMMARY, say
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write JUnit XML: a test for each gate
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Fail when this is so: 'p99 > 2ms', 'stalls > 0', 'lost > 0.1%', 'rate < 99%'
    #[arg(long, value_name = "EXPR", value_parser = read_gate)]
    fail_if: Vec<Gate>,
    /// Compare with the JSON of an earlier run
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Fail when a percentile has certainly grown by more than this
    #[arg(long, value_name = "SHARE", default_value = "10%", value_parser = read_share)]
    max_regression: f64,
    /// Which percentiles are compared with the baseline
    #[arg(long, value_name = "METRIC", default_value = "p50", value_delimiter = ',')]
    compare: Vec<MetricName>,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

/// Names of percentiles.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum MetricName {
    P50,
    P90,
    P99,
}

/// Reads a gate.
fn read_gate(text: &str) -> Result<Gate, String> {
    text.parse().map_err(|error: crate::bench::gate::GateError| error.to_string())
}

/// Reads a share in percent.
fn read_share(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    let share = number.filter(|number| (0.0..=10_000.0).contains(number));
    share.map(|number| number / 100.0).ok_or_else(|| "write e.g. 10%".to_owned())
}

impl Bench {
    /// Measures, writes everything, judges.
    pub(super) fn run(self) -> Result<(), Failure> {
        let plan = self.ask.plan(self.quiet)?;
        let old = self.baseline.as_deref().map(read_baseline).transpose()?;
        for path in [&self.json, &self.html, &self.markdown, &self.junit].into_iter().flatten() {
            probe(path)?;
        }
        let stop = stop_on_signal()?;
        let mut report = run::run(&plan, &stop)?;
        report.gates = self.fail_if.iter().flat_map(|gate| gate.judge(&report)).collect();
        report.differences = baseline::differences(&report);
        let compared = old.map(|old| {
            let metrics: Vec<_> = self.compare.iter().map(|name| name.metric()).collect();
            baseline::compare(&report, &old, &metrics, self.max_regression)
        });
        // What was measured is told first: a baseline that does not fit loses nothing.
        let compared = match compared.transpose() {
            Ok(compared) => {
                report.baseline = compared.unwrap_or_default();
                Ok(())
            }
            Err(error) => Err(self.misfit(&error.to_string())),
        };
        self.write(&report)?;
        compared?;
        match (report.holds(), report.is_complete) {
            (false, _) => Err(Failure::Told(3)),
            (true, false) => Err(Failure::Told(1)),
            (true, true) => Ok(()),
        }
    }

    /// The failure of a baseline.
    fn misfit(&self, what: &str) -> Failure {
        let path = self.baseline.as_deref().unwrap_or(Path::new("")).display();
        Failure::Usage(format!("--baseline {path}: {what}"))
    }

    /// Writes all outputs; one that cannot be written does not keep the others from it.
    fn write(&self, report: &Report) -> Result<(), Failure> {
        let json = || serde_json::to_string_pretty(report).unwrap_or_default() + "\n";
        if self.json.as_deref() != Some(Path::new("-")) {
            print(&report.to_string())?;
        }
        let save = |path: &Option<PathBuf>, text: &dyn Fn() -> String, is_appended: bool| {
            path.as_deref().map_or(Ok(()), |path| save(path, &text(), is_appended))
        };
        let all = [
            save(&self.json, &json, false),
            save(&self.html, &|| html::html(report), false),
            save(&self.markdown, &|| markdown::markdown(report), true),
            save(&self.junit, &|| markdown::junit(report), false),
        ];
        all.into_iter().collect()
    }
}

impl MetricName {
    /// The percentile.
    fn metric(self) -> Metric {
        match self {
            Self::P50 => Metric::P50,
            Self::P90 => Metric::P90,
            Self::P99 => Metric::P99,
        }
    }
}

/// Reads a baseline before anything is measured.
fn read_baseline(path: &Path) -> Result<Report, Failure> {
    let bad = |what: String| Failure::Usage(format!("--baseline {}: {what}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    baseline::read(&text).map_err(|error| bad(error.to_string()))
}

/// Finds out before anything is measured whether a file can be written; it is left as it is.
fn probe(path: &Path) -> Result<(), Failure> {
    if path == Path::new("-") {
        return Ok(());
    }
    let opened = fs::OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
}

/// Writes one output.
fn save(path: &Path, text: &str, is_appended: bool) -> Result<(), Failure> {
    if path == Path::new("-") {
        return print(text);
    }
    let mut options = fs::OpenOptions::new();
    options.create(true).write(true).append(is_appended).truncate(!is_appended);
    let mut written = options.open(path);
    let done = written.as_mut().map_err(|error| io::Error::new(error.kind(), error.to_string()));
    let done = done.and_then(|file| file.write_all(text.as_bytes()));
    done.map_err(|error| Failure::Unwritten { path: path.to_owned(), error })
}

/// Set by the first Ctrl-C or SIGTERM; the second one ends the process.
fn stop_on_signal() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let set = Arc::clone(&stop);
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
            for _ in 0..2 {
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => {}
                    _ = terminate.recv() => {}
                }
                if set.swap(true, Ordering::Relaxed) {
                    std::process::exit(1);
                }
            }
        });
    });
    Ok(stop)
}
