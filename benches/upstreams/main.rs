//! How nodens, node-cache's engine and unbound stand loss, faults, herds and forgers: side by side, in front of
//! the same upstreams, in a network namespace of this program's own. See `benches/README.md`.

mod contender;
mod faults;
mod load;
mod namespace;
mod scenario;
mod spoofer;
mod upstream;

use std::io;
use std::process::ExitCode;

use contender::Kind;
use scenario::{Plan, Row};

/// Runs one scenario with each contender; gives the lines of its table.
type Scenario = fn(&Plan) -> io::Result<Vec<Row>>;

/// What is run, in the order of the report.
const SCENARIOS: &[(&str, Scenario)] = &[
    ("loss", scenario::loss),
    ("faults", faults::one_of_two),
    ("away", faults::all_away),
    ("herd", scenario::herd),
    ("replace", faults::replaced),
    ("cost", scenario::cost),
    ("conntrack", scenario::conntrack),
    ("spoofer", scenario::spoofer),
];

/// Reads the arguments, runs, prints the report; success when every promise about nodens was kept.
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| {
        let place = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(place + 1).cloned()
    };
    let smoke = arguments.iter().any(|argument| argument == "--smoke");
    let number = |flag, default| value(flag).and_then(|n| n.parse().ok()).unwrap_or(default);
    let seconds = number("--seconds", if smoke { 5 } else { 60 });
    let forged = number("--forged", if smoke { 200_000 } else { 10_000_000 });
    let mut kinds = Kind::ALL.to_vec();
    if contender::node_cache_program().is_none() {
        eprintln!(
            "upstreams: NODE_CACHE names no program; run benches/upstreams/run to have it built"
        );
        kinds.retain(|kind| *kind != Kind::NodeCache);
    }
    if let Some(only) = value("--contender") {
        kinds.retain(|kind| kind.name() == only);
    }
    let judge = arguments.iter().any(|argument| argument == "--judge");
    let plan = Plan { seconds, forged, rate: 2000, kinds, judge };
    let only = value("--only");
    match namespace::enter().and_then(|()| run(&plan, only.as_deref())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("upstreams: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the scenarios, one after the other; tells whether every promise was kept.
fn run(plan: &Plan, only: Option<&str>) -> io::Result<bool> {
    let wanted: Option<Vec<&str>> = only.map(|only| only.split(',').collect());
    let mut kept = true;
    println!("{} queries per second, {} s each; one table per scenario", plan.rate, plan.seconds);
    for (name, scenario) in SCENARIOS {
        if wanted.as_ref().is_some_and(|wanted| !wanted.contains(name)) {
            continue;
        }
        println!("\n== {name}");
        for row in scenario(plan)? {
            println!("{row}");
            kept &= row.is_kept();
        }
    }
    Ok(kept)
}
