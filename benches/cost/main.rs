//! CPU per query, side by side from one run: bare echo, nodens hit, nodens miss, and peers on request.
//!
//! Ratios to the echo are the result. See `benches/README.md`.

mod echo;
mod load;
#[allow(dead_code, reason = "the other bench asks for memory too")]
#[path = "../process/mod.rs"]
mod process;
mod server;
mod servers;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use load::{Passes, Sample};
use process::{Place, counted};
use server::Server;

/// A hit may cost this many echoes.
const HIT_BUDGET: f64 = 1.25;

/// A name of the cluster zone may cost this many hits.
const CLUSTER_BUDGET: f64 = 1.05;

/// The rows of responses from the cache, of names of the cluster zone, and of misses.
const HIT: &str = "nodens hit";
const CLUSTER: &str = "nodens cluster name";
const MISS: &str = "nodens miss";
const POOLED: &str = "nodens miss, pooled";

/// A miss may cost so many of a peer's.
const MISS_BUDGETS: [(&str, &str, f64); 4] = [
    (MISS, "unbound miss", 0.85),
    (MISS, "node-cache miss", 0.6),
    (POOLED, "dnsdist miss", 1.4),
    (POOLED, "node-cache miss", 0.4),
];

/// How much is run.
#[derive(Clone, Copy, Debug)]
struct Plan {
    rounds: u64,
    seconds: u64,
    peers: bool,
    /// Judge the ratio too, not only whether answers come.
    judge: bool,
}

/// Reads the arguments, measures, and says by its exit code whether all of it holds.
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, port] = arguments.as_slice()
        && flag == "--echo"
    {
        let port = port.parse().expect("--echo takes a port");
        return echo::serve(port).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let plan = Plan {
        rounds: if has("--smoke") { 1 } else { 3 },
        seconds: if has("--smoke") { 1 } else { 5 },
        peers: has("--peers"),
        judge: has("--judge"),
    };
    match measure(plan) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cost: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One path's samples, one per round.
struct Row {
    name: String,
    samples: Vec<Sample>,
}

impl Row {
    /// The sample of median cost.
    fn median(&self) -> Sample {
        let mut sorted = self.samples.clone();
        sorted.sort_by_key(|sample| sample.cost);
        sorted[sorted.len() / 2]
    }
}

/// The files with the names to ask for.
struct Names<'a> {
    place: &'a Place,
    known: PathBuf,
    cluster: PathBuf,
    /// How many files of fresh names were written.
    used: u64,
}

impl Names<'_> {
    /// A file of names that nobody asked for yet; more than can be asked in `seconds`.
    fn fresh(&mut self, seconds: u64) -> io::Result<PathBuf> {
        self.used += 1;
        let text = load::fresh_names(self.used, 100_000 * seconds);
        self.place.write("fresh", &text)
    }
}

/// Runs everything, prints the table; tells whether all of it holds.
fn measure(plan: Plan) -> io::Result<bool> {
    let place = Place::new()?;
    let known = place.write("known", &load::known_names())?;
    let cluster = place.write("cluster", &load::cluster_names())?;
    let mut names = Names { place: &place, known, cluster, used: 0 };
    let knot = servers::knot(&place)?;
    let mut rows = Vec::new();
    {
        let echo = servers::echo()?;
        let (nodens, admin) = servers::nodens(&place, knot.address, "per-query")?;
        let (pooled, _) = servers::nodens(&place, knot.address, "pooled")?;
        for _ in 0..plan.rounds {
            push(&mut rows, "echo", load::run(&echo, &names.known, Passes::Any, plan.seconds)?);
            warm(&nodens, &names.known)?;
            push(&mut rows, HIT, hits(&nodens, admin, &names.known, plan.seconds)?);
            load::run(&nodens, &names.cluster, Passes::One, 5)?;
            let cluster = load::run(&nodens, &names.cluster, Passes::Any, plan.seconds)?;
            push(&mut rows, CLUSTER, cluster);
            let again = hits(&nodens, admin, &names.known, plan.seconds)?;
            push(&mut rows, HIT, again);
            let fresh = names.fresh(plan.seconds)?;
            let miss = load::run(&nodens, &fresh, Passes::One, plan.seconds)?;
            push(&mut rows, MISS, miss);
            let fresh = names.fresh(plan.seconds)?;
            let miss = load::run(&pooled, &fresh, Passes::One, plan.seconds)?;
            push(&mut rows, POOLED, miss);
        }
    }
    for (name, start) in servers::peers().into_iter().filter(|_| plan.peers) {
        let peer = start(&place, knot.address)?;
        for _ in 0..plan.rounds {
            warm(&peer, &names.known)?;
            let hit = load::run(&peer, &names.known, Passes::Any, plan.seconds)?;
            push(&mut rows, &format!("{name} hit"), hit);
            let fresh = names.fresh(plan.seconds)?;
            let miss = load::run(&peer, &fresh, Passes::One, plan.seconds)?;
            push(&mut rows, &format!("{name} miss"), miss);
        }
    }
    Ok(report(&rows, plan))
}

/// Appends `sample` to the row `name`.
fn push(rows: &mut Vec<Row>, name: &str, sample: Sample) {
    match rows.iter_mut().find(|row| row.name == name) {
        Some(row) => row.samples.push(sample),
        None => rows.push(Row { name: name.to_owned(), samples: vec![sample] }),
    }
}

/// Asks for every known name until all are cached (again: a round of misses may have displaced some).
fn warm(server: &Server, known: &Path) -> io::Result<()> {
    for _ in 0..2 {
        load::run(server, known, Passes::One, 5)?;
    }
    Ok(())
}

/// Asks for known names and checks that nodens counted hits.
fn hits(nodens: &Server, admin: SocketAddr, known: &Path, seconds: u64) -> io::Result<Sample> {
    let before = counted(admin, "coredns_cache_hits_total")?;
    let sample = load::run(nodens, known, Passes::Any, seconds)?;
    let hits = counted(admin, "coredns_cache_hits_total")? - before;
    if hits < 0.999 * sample.completed as f64 {
        let text = format!("{hits} hits were counted among {} responses", sample.completed);
        return Err(io::Error::other(text));
    }
    Ok(sample)
}

/// Prints the table; tells whether every run is believable and, when judged, the hit within its budget.
fn report(rows: &[Row], plan: Plan) -> bool {
    let measure = rows[0].median().cost.as_secs_f64();
    println!(
        "\nmedian of {} x {} s; CPU of the server, user and system",
        plan.rounds, plan.seconds
    );
    println!("{:20} {:>12} {:>10} {:>10}", "", "µs per query", "x echo", "queries/s");
    let hit = rows.iter().find(|row| row.name == HIT).map(Row::median);
    let of_hit = |row: &Row| hit.map_or(0.0, |hit| row.median().cost.div_duration_f64(hit.cost));
    let mut holds = measure > 0.0;
    for row in rows {
        let sample = row.median();
        let micros = sample.cost.as_secs_f64() * 1e6;
        let ratio = sample.cost.as_secs_f64() / measure;
        println!("{:20} {micros:>12.2} {ratio:>10.2} {:>10.0}", row.name, sample.rate);
        for doubt in row.samples.iter().filter_map(Sample::doubt) {
            println!("{:16} not to be believed: {doubt}", "");
            holds = false;
        }
        if row.name == HIT && ratio > HIT_BUDGET {
            println!("{:16} over its budget of {HIT_BUDGET} x echo", "");
            holds &= !plan.judge;
        }
        if row.name == CLUSTER {
            let ratio = of_hit(row);
            println!("{:16} {ratio:.3} x a hit, budget {CLUSTER_BUDGET}", "");
            holds &= ratio <= CLUSTER_BUDGET || !plan.judge;
        }
    }
    let are_within = misses(rows);
    holds && (are_within || !plan.judge)
}

/// Prints what misses cost beside those of the peers that were measured; tells whether all are within their budgets.
fn misses(rows: &[Row]) -> bool {
    let cost = |name| rows.iter().find(|row| row.name == name).map(|row| row.median().cost);
    let mut holds = true;
    for (own, peers, budget) in MISS_BUDGETS {
        if let (Some(cost), Some(peer)) = (cost(own), cost(peers)) {
            let ratio = cost.div_duration_f64(peer);
            let verdict = if ratio <= budget { "" } else { ": NOT KEPT" };
            println!("{own}: {ratio:.2} x {peers}, budget {budget}{verdict}");
            holds &= ratio <= budget;
        }
    }
    holds
}
