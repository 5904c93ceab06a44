//! How nodens, node-cache's engine and unbound stand loss, faults, herds and forgers: side by side, in front of
//! the same upstreams, in a network namespace of this program's own. See `benches/README.md`.

mod contender;
mod faults;
mod load;
mod namespace;
mod plan;
mod ports;
#[path = "../process/mod.rs"]
mod process;
mod report;
mod scenario;
mod spoofer;
#[allow(unused_imports, reason = "its tests are run where they are written")]
#[path = "../../tests/it/harness/statistics.rs"]
mod statistics;
mod tracking;
mod upstream;

use std::io;
use std::process::ExitCode;
use std::time::Instant;

use plan::Plan;
use report::{Row, Table};

/// Runs one scenario with each contender; gives the lines of its table.
type Scenario = fn(&Plan) -> io::Result<Vec<Row>>;

/// What is run, in the order of the report: name, how, and the function that does it.
const SCENARIOS: [(&str, &str, Scenario); 9] = [
    (
        "loss",
        "30 % of all packets lost each way, unique names; share answered within; {s} s",
        scenario::loss,
    ),
    (
        "faults",
        "one of two upstreams fails for a third of the time, at most 10 s of 30, and returns",
        faults::one_of_two,
    ),
    ("away", "all upstreams away; 1,000 names known before, all expired; {s} s", faults::all_away),
    (
        "herd",
        "1,000 stub resolvers ask for one new name at once, with different EDNS sizes",
        scenario::herd,
    ),
    ("replace", "the only endpoint replaced five times a second", faults::replaced),
    (
        "cost",
        "unique names, nothing lost; connections not tracked, then tracked; {s} s in all",
        tracking::cost,
    ),
    (
        "conntrack",
        "5,000 unique names per second, connections tracked; a pod asks the same upstream through MASQUERADE; {s} s",
        tracking::conntrack,
    ),
    (
        "ports",
        "5,000 unique names per second, connections tracked; deviations from chance; at most 15 s",
        ports::ports,
    ),
    (
        "spoofer",
        "forged responses from the upstream's address to random ports with random ids",
        scenario::spoofer,
    ),
];

/// Reads the arguments, runs, prints the report; success when every promise about nodens was kept.
fn main() -> ExitCode {
    let plan = Plan::read(std::env::args().skip(1), &SCENARIOS.map(|(name, ..)| name));
    let outcome = plan.map_err(io::Error::other).and_then(|plan| {
        let tables = if plan.join.is_empty() { run(&plan)? } else { join(&plan)? };
        write(&plan, &tables)?;
        Ok(conclude(&plan, &tables))
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("upstreams: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the scenarios, one after the other; each table is printed when it is whole.
fn run(plan: &Plan) -> io::Result<Vec<Table>> {
    namespace::enter()?;
    let (began, mut tables) = (Instant::now(), Vec::new());
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let busy = load.split(' ').next().unwrap_or("?").to_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "open loop, {} queries per second, {} s each; {cores} cores, load average {busy} before",
        plan.rate, plan.seconds
    );
    for (name, terms, scenario) in SCENARIOS.iter().filter(|(name, ..)| plan.wants(name)) {
        let rows = scenario(plan)?;
        if rows.is_empty() {
            eprintln!("upstreams: {name} is about nodens alone, which was not asked for");
            continue;
        }
        let terms = terms.replace("{s}", &plan.seconds.to_string());
        tables.push(Table { scenario: (*name).to_owned(), terms, judged: plan.judge, rows });
        tables.iter().next_back().inspect(|table| print!("{}", table.text()));
        write(plan, &tables)?;
    }
    println!("\n{} s in all", began.elapsed().as_secs());
    Ok(tables)
}

/// Puts the reports of earlier runs together, in the order of scenarios.
fn join(plan: &Plan) -> io::Result<Vec<Table>> {
    let mut tables = Vec::new();
    for path in &plan.join {
        for table in report::read(path)? {
            if tables.iter().any(|known: &Table| known.scenario == table.scenario) {
                let words =
                    format!("{}: {} is in an earlier file too", path.display(), table.scenario);
                return Err(io::Error::other(words));
            }
            tables.push(table);
        }
    }
    tables.sort_by_key(|table: &Table| {
        SCENARIOS.iter().position(|(name, ..)| *name == table.scenario)
    });
    tables.iter().for_each(|table| print!("{}", table.text()));
    Ok(tables)
}

/// Writes the files that were asked for.
fn write(plan: &Plan, tables: &[Table]) -> io::Result<()> {
    if let Some(path) = &plan.json {
        report::write_json(path, tables)?;
    }
    plan.markdown.as_ref().map_or(Ok(()), |path| report::write_markdown(path, tables))
}

/// Says whether every promise was kept, and of what.
fn conclude(plan: &Plan, tables: &[Table]) -> bool {
    let broken = tables.iter().flat_map(Table::broken).count();
    let measured: usize = tables.iter().map(|table| table.rows.len()).sum();
    let judged = tables.iter().all(|table| table.judged);
    let strictness = if judged { "all of them" } else { "those that no busy machine spoils" };
    println!("{measured} lines measured; {broken} promises not kept, judged: {strictness}");
    let has = |name: &str| tables.iter().any(|table| table.scenario == name);
    let missing: Vec<&str> =
        SCENARIOS.iter().map(|(name, ..)| *name).filter(|name| !has(name)).collect();
    if !missing.is_empty() {
        println!("not in this report: {}", missing.join(", "));
    }
    let is_strict_enough = judged || !plan.judge;
    if !is_strict_enough {
        println!("--judge: what is joined was not measured with --judge");
    }
    broken == 0 && measured > 0 && is_strict_enough
}
