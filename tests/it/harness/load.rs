//! Load: dnsperf with a bounded run, and what it counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use super::place::Place;
use super::process::{Process, command};

/// What one dnsperf run counted.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub sent: u64,
    pub completed: u64,
    pub lost: u64,
    /// By mnemonic: `NOERROR`, `SERVFAIL`.
    pub rcodes: BTreeMap<String, u64>,
    pub text: String,
}

/// A dnsperf run to be.
#[derive(Clone, Debug)]
pub struct Load {
    pub seconds: u64,
    /// Queries per second; `None` is as fast as it goes.
    pub rate: Option<u32>,
    /// Queries in flight at most.
    pub outstanding: u32,
    /// Lines `NAME TYPE`, gone through again and again.
    pub names: Vec<String>,
    /// `udp` or `tcp`.
    pub mode: &'static str,
    pub clients: u32,
}

impl Load {
    /// Full speed by UDP with these names.
    pub fn full_speed(seconds: u64, names: Vec<String>) -> Self {
        Self { seconds, rate: None, outstanding: 200, names, mode: "udp", clients: 8 }
    }

    /// The same at `rate` queries per second.
    pub fn rate(mut self, rate: u32) -> Self {
        self.rate = Some(rate);
        self
    }

    /// Starts it against `server`.
    pub fn start(&self, server: SocketAddr) -> Running {
        let place = Place::new();
        let names = place.write("names", &(self.names.join("\n") + "\n"));
        let mut dnsperf = command("dnsperf");
        let (host, port) = (server.ip().to_string(), server.port().to_string());
        dnsperf.args(["-s", &host, "-p", &port, "-m", self.mode, "-t", "5", "-e"]);
        dnsperf.args(["-l", &self.seconds.to_string(), "-c", &self.clients.to_string()]);
        dnsperf.args(["-q", &self.outstanding.to_string(), "-d"]).arg(names).stdin(Stdio::null());
        if let Some(rate) = self.rate {
            dnsperf.args(["-Q", &rate.to_string()]);
        }
        let process = Process::start(dnsperf, &place.path("log"));
        Running { process, limit: Duration::from_secs(self.seconds + 20), _place: place }
    }

    /// Runs it to its end.
    pub fn run(&self, server: SocketAddr) -> Report {
        self.start(server).report()
    }
}

/// A dnsperf run under way.
pub struct Running {
    process: Process,
    limit: Duration,
    _place: Place,
}

impl Running {
    /// Tells whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Waits for its end; what it counted.
    pub fn report(mut self) -> Report {
        let status = self.process.wait(self.limit).expect("dnsperf ends");
        let text = self.process.log();
        assert!(status.success(), "dnsperf: {text}");
        let number = |title: &str| -> u64 {
            let rest = text.split(title).nth(1).unwrap_or_else(|| panic!("{title} in {text}"));
            rest.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
        };
        Report {
            sent: number("Queries sent:"),
            completed: number("Queries completed:"),
            lost: number("Queries lost:"),
            rcodes: read_rcodes(&text),
            text,
        }
    }
}

/// Reads `Response codes: NOERROR 12 (98.00%), SERVFAIL 1 (2.00%)`.
fn read_rcodes(text: &str) -> BTreeMap<String, u64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Response codes:"));
    let parts = line.unwrap_or_default().split(',');
    parts
        .filter_map(|part| {
            let mut words = part.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        })
        .collect()
}
