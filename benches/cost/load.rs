//! Load by dnsperf, and what it tells.

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::server::{Cores, Server, bound};

/// What one run of dnsperf against one server showed.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub sent: u64,
    pub completed: u64,
    pub noerror: u64,
    /// CPU time of the server per completed query.
    pub cost: Duration,
    /// Queries per second, for people.
    pub rate: f64,
}

impl Sample {
    /// Why the run is not worth believing; `None` when it is.
    pub fn doubt(&self) -> Option<String> {
        let Self { sent, completed, noerror, .. } = *self;
        if completed < 1000 {
            return Some(format!("only {completed} queries were answered"));
        }
        // What the kernel drops at full speed is lost; more than that is a fault.
        if completed * 100 < sent * 95 {
            return Some(format!("{} of {sent} queries were lost", sent - completed));
        }
        (noerror * 1000 < completed * 999).then(|| format!("{noerror} of {completed} were NOERROR"))
    }
}

/// How often dnsperf goes through its file.
#[derive(Clone, Copy, Debug)]
pub enum Passes {
    /// Once, or until time is over.
    One,
    /// Until time is over.
    Any,
}

/// Asks `server` for the names of `file`, at most `seconds` long, and measures its CPU.
pub fn run(server: &Server, file: &Path, passes: Passes, seconds: u64) -> io::Result<Sample> {
    let before = server.cpu()?;
    let text = dnsperf(server.address, file, passes, seconds)?;
    let used = server.cpu()? - before;
    let number =
        |label| field(&text, label).ok_or_else(|| io::Error::other(format!("dnsperf: {text}")));
    let completed = number("Queries completed:")?;
    Ok(Sample {
        sent: number("Queries sent:")? as u64,
        completed: completed as u64,
        noerror: field(&text, "NOERROR").unwrap_or_default() as u64,
        cost: used.div_f64(completed.max(1.0)),
        rate: number("Queries per second:")?,
    })
}

/// Runs dnsperf to its end and gives back what it printed.
fn dnsperf(address: SocketAddr, file: &Path, passes: Passes, seconds: u64) -> io::Result<String> {
    let mut command = Command::new("dnsperf");
    command.args(["-s", "127.0.0.1", "-p", &address.port().to_string()]);
    command.args(["-c", "16", "-q", "200", "-t", "2", "-l", &seconds.to_string()]);
    if matches!(passes, Passes::One) {
        command.args(["-n", "1"]);
    }
    command.arg("-d").arg(file);
    let mut command = bound(&command, Cores::Others);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The first number behind `label`.
fn field(text: &str, label: &str) -> Option<f64> {
    text.split_once(label)?.1.split_whitespace().next()?.parse().ok()
}

/// 1,000 names below `hit.example.org`, as dnsperf reads them.
pub fn known_names() -> String {
    names("hit", "n", 1000)
}

/// `count` names that no other `round` has.
pub fn fresh_names(round: u64, count: u64) -> String {
    names("miss", &format!("r{round}-"), count)
}

/// One line per name.
fn names(below: &str, prefix: &str, count: u64) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        let _ = writeln!(text, "{prefix}{number}.{below}.example.org A"); // a String takes everything
        text
    })
}

/// 1,000 Services with an address each, in manifests.
pub fn services() -> String {
    let head = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n".to_owned();
    (0..1000).fold(head, |mut text, number| {
        let _ = writeln!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: n{number}, namespace: a}}\n\
             spec: {{clusterIP: 198.18.{}.{}}}",
            number / 250,
            number % 250 + 1
        ); // a String takes everything
        text
    })
}

/// Their names in the domain `k8s.example`, nearly as long as those of [`known_names`].
pub fn cluster_names() -> String {
    (0..1000).fold(String::new(), |mut text, number| {
        let _ = writeln!(text, "n{number}.a.svc.k8s.example A"); // a String takes everything
        text
    })
}
