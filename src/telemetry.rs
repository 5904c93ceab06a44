//! Logs: text or JSON to stderr, at a level that can be changed while running, and the sampled query log.
//!
//! It refuses to judge: who logs what at which level is decided where the state changes.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use thiserror::Error;
use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::{Log, LogFormat};
use crate::dns::name::write_text;
use crate::metrics::Answered;

/// The handle on logging that the process keeps.
#[derive(Debug)]
pub struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
    /// The level in force, as it was written.
    level: Mutex<String>,
}

/// Why logging is not as it was asked to be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TelemetryError {
    #[error(
        "log level `{directive}` is neither one of error, warn, info, debug, trace, off nor of the form \
         `target=level`"
    )]
    UnknownLevel { directive: String },
    #[error("log level `{level}`: {reason}")]
    BadFilter { level: String, reason: String },
    #[error("logging was set up before in this process")]
    Taken,
    #[error("logging was torn down")]
    Gone,
}

/// Starts logging to stderr for the whole process.
///
/// A closed or full stderr loses lines, nothing else.
///
/// # Errors
/// A level that is none; [`TelemetryError::Taken`] on a second call.
pub fn init(log: &Log) -> Result<Telemetry, TelemetryError> {
    let (subscriber, telemetry) = build(log, io::stderr, io::stderr().is_terminal())?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::Taken)?;
    Ok(telemetry)
}

/// A subscriber that writes to `writer`, in colour where that `is_terminal`, and its handle.
fn build<W>(
    log: &Log,
    writer: W,
    is_terminal: bool,
) -> Result<(impl Subscriber + Send + Sync, Telemetry), TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse_level(&log.level)?);
    let subscriber = tracing_subscriber::registry().with(filter).with(format_layer(
        log.format,
        writer,
        is_terminal,
    ));
    Ok((subscriber, Telemetry { filter: handle, level: Mutex::new(log.level.clone()) }))
}

/// The layer that writes lines.
fn format_layer<S, W>(
    format: LogFormat,
    writer: W,
    is_terminal: bool,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // A line that cannot be written would otherwise be reported by eprintln, which panics when
    // stderr is the thing that is broken.
    let lines = fmt::layer().with_writer(writer).log_internal_errors(false);
    match format {
        LogFormat::Text => lines.with_ansi(is_terminal).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    }
}

/// Reads a filter: levels and `target=level`, separated by commas.
///
/// # Errors
/// [`TelemetryError::UnknownLevel`] for a bare word that is no level: `tracing` would take `inof`
/// for a target and log nothing.
fn parse_level(level: &str) -> Result<EnvFilter, TelemetryError> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let directives: Vec<&str> = level.split(',').map(str::trim).collect();
    if let Some(unknown) = directives.iter().find(|word| !word.contains('=') && !is_level(word)) {
        return Err(TelemetryError::UnknownLevel { directive: (*unknown).to_owned() });
    }
    EnvFilter::builder().parse(directives.join(",")).map_err(|error| TelemetryError::BadFilter {
        level: level.to_owned(),
        reason: error.to_string(),
    })
}

impl Telemetry {
    /// Puts another filter in force; the old one stays when this one is bad.
    ///
    /// # Errors
    /// A level that is none.
    pub fn set_level(&self, level: &str) -> Result<(), TelemetryError> {
        let filter = parse_level(level)?;
        self.filter.reload(filter).map_err(|_| TelemetryError::Gone)?;
        let mut current = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        level.clone_into(&mut current);
        Ok(())
    }

    /// The filter in force, as it was written.
    pub fn level(&self) -> String {
        self.level.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Writes a share of the queries to the log, target `nodens::query`, level info.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueryLog {
    /// A query is logged when a random number is below this; 2^32 means each.
    threshold: u64,
}

impl QueryLog {
    /// Logs the share `queries`, 0.0 to 1.0, of all queries.
    ///
    /// Chosen at random: every n-th would show only the A of each pair of A and AAAA.
    pub fn new(queries: f64) -> Self {
        Self { threshold: (queries.clamp(0.0, 1.0) * 2_f64.powi(32)) as u64 }
    }

    /// Tells whether any query is logged.
    pub fn is_on(&self) -> bool {
        self.threshold > 0
    }

    /// Logs one answered query, or not. `qname` is an uncompressed wire name.
    ///
    /// Costs one comparison when the log is off, and allocates only for a query that is logged.
    pub fn log(&self, source: SocketAddr, qname: &[u8], answered: &Answered) {
        if self.threshold == 0 || u64::from(rand::random::<u32>()) >= self.threshold {
            return;
        }
        let mut name = String::new();
        // Writing to a String does not fail; a name that is none is written as far as it goes.
        let _ = write_text(qname, &mut name);
        tracing::info!(
            target: "nodens::query",
            %source,
            qname = name,
            qtype = %answered.qtype,
            rcode = %answered.rcode,
            origin = ?answered.origin,
            arrival = ?answered.arrival,
            bytes = answered.response_len,
            us = u64::try_from(answered.duration.as_micros()).unwrap_or(u64::MAX),
            "query"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::dns::{Qtype, Rcode};
    use crate::metrics::{Arrival, Origin, ZoneId};

    /// What was logged.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Page {
        fn lines(&self) -> Vec<String> {
            let bytes = self.0.lock().expect("no panic").clone();
            String::from_utf8(bytes).expect("UTF-8").lines().map(str::to_owned).collect()
        }
    }

    /// A writer whose reader has gone.
    struct Closed;

    impl io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    fn log(level: &str, format: LogFormat) -> Log {
        Log { level: level.to_owned(), format, queries: 0.0 }
    }

    #[test]
    fn the_level_changes_while_running_and_a_bad_one_changes_nothing() {
        let page = Page::default();
        let writer = page.clone();
        let (subscriber, telemetry) =
            build(&log("warn", LogFormat::Text), move || writer.clone(), false).expect("good");
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("first");
            telemetry.set_level("nodens=debug,hickory=warn").expect("good");
            tracing::info!(upstream = "192.0.2.1:53", "second");
            assert!(telemetry.set_level("loud").is_err());
            tracing::debug!("third");
        });
        assert_eq!(telemetry.level(), "nodens=debug,hickory=warn");
        let lines = page.lines();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].ends_with("second upstream=\"192.0.2.1:53\""), "{lines:?}");
        assert!(lines[1].ends_with("third"));
    }

    #[test]
    fn a_json_line_is_one_object_with_the_fields() {
        let page = Page::default();
        let writer = page.clone();
        let (subscriber, _telemetry) =
            build(&log("info", LogFormat::Json), move || writer.clone(), true).expect("good");
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(upstream = "192.0.2.1:53", failures = 3, "upstream is \"down\"");
        });
        let lines = page.lines();
        let object: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
        assert_eq!(object["level"], "WARN");
        assert_eq!(object["failures"], 3);
        assert_eq!(object["message"], "upstream is \"down\"");
    }

    #[test]
    fn a_bad_level_says_what_is_bad() {
        for (level, part) in [
            ("inof", "`inof` is neither"),
            ("info,nodens", "`nodens` is neither"),
            ("", "`` is neither"),
            ("nodens=loud", "nodens=loud"),
        ] {
            let error = parse_level(level).expect_err(level).to_string();
            assert!(error.contains(part), "{error}");
        }
        for level in ["info", "OFF", "nodens=debug,hickory=warn", "warn, nodens::query=info"] {
            parse_level(level).expect(level);
        }
    }

    #[test]
    fn a_closed_writer_loses_lines_and_nothing_else() {
        let (subscriber, telemetry) =
            build(&log("info", LogFormat::Text), || Closed, false).expect("good");
        tracing::subscriber::with_default(subscriber, || tracing::error!("lost"));
        telemetry.set_level("debug").expect_err("the subscriber is gone");
    }

    #[test]
    fn the_query_log_writes_its_share() {
        let answered = Answered {
            arrival: Arrival::Udp4,
            zone: ZoneId(1),
            qtype: Qtype::AAAA,
            dnssec_ok: false,
            rcode: Rcode::NXDOMAIN,
            origin: Origin::Forward,
            query_len: 40,
            response_len: 99,
            duration: Duration::from_micros(1500),
        };
        let source = SocketAddr::from(([192, 0, 2, 7], 4000));
        for (share, range) in [(0.0, 0..=0), (1.0, 4000..=4000), (0.25, 800..=1200)] {
            let page = Page::default();
            let writer = page.clone();
            let (subscriber, _telemetry) =
                build(&log("info", LogFormat::Text), move || writer.clone(), false).expect("good");
            tracing::subscriber::with_default(subscriber, || {
                let queries = QueryLog::new(share);
                (0..4000).for_each(|_| queries.log(source, b"\x07example\x03org\0", &answered));
            });
            let lines = page.lines();
            assert!(range.contains(&lines.len()), "{share}: {}", lines.len());
            if let Some(line) = lines.first() {
                for part in
                    ["nodens::query", "source=192.0.2.7:4000", "example.org.", "AAAA", "us=1500"]
                {
                    assert!(line.contains(part), "{line}");
                }
            }
        }
    }
}
