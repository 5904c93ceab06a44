//! What is run against each contender in turn while upstreams are as they are: loss, herds, forgers.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::contender::{ADMIN, Contender, Kind};
use super::load::{self, Ask, millis, quantile, share};
use super::namespace::Rules;
use super::plan::Plan;
use super::process::{counted, query};
use super::report::Row;
use super::spoofer;
use super::tracking::with_pooled;
use super::upstream::Upstream;

/// The addresses of the upstreams.
pub const UPSTREAMS: [&str; 2] = ["127.0.0.2:53", "127.0.0.3:53"];

/// The first `count` upstreams, with answers of this TTL.
pub fn upstreams(count: usize, ttl: u32) -> io::Result<Vec<Upstream>> {
    UPSTREAMS[..count].iter().map(|at| Upstream::start(address(at), ttl)).collect()
}

/// Reads an address of this program's own.
pub fn address(text: &str) -> SocketAddr {
    text.parse().expect("a constant address")
}

/// As the contenders are told of upstreams.
pub fn forms(upstreams: &[Upstream]) -> Vec<String> {
    upstreams.iter().map(|upstream| upstream.address.to_string()).collect()
}

/// A name that nobody asked before, in one run.
pub fn unique(tag: &str) -> impl Fn(usize) -> String + Sync {
    let (tag, salt) = (tag.to_owned(), rand::random::<u32>());
    move |n| format!("n{n}.{tag}-{salt:08x}.example.org")
}

/// 30 % of all packets lost each way, with one upstream and with two.
pub fn loss(plan: &Plan) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for count in [1, 2] {
        for kind in &plan.kinds {
            let upstreams = upstreams(count, 60)?;
            let contender = Contender::start(*kind, &forms(&upstreams))?;
            let queries = || upstreams.iter().map(Upstream::queries).sum::<u64>();
            let (rules, before) = (Rules::lose(30)?, queries());
            let asks = load::run(contender.address, plan.rate, plan.span(), unique("loss"));
            let (sent, arrived) = (rules.sent()?, queries() - before);
            drop(rules);
            let circumstance = if count == 1 { "one upstream" } else { "two upstreams" };
            let row = Row::new(*kind, circumstance).pace(load::late(&asks, plan.span()));
            rows.push(loss_row(plan, row, &asks, (sent, arrived)));
        }
    }
    Ok(rows)
}

/// The figures of a lossy run, in which so many queries were `sent` to upstreams and have `arrived`.
fn loss_row(plan: &Plan, row: Row, asks: &[Ask], (sent, arrived): (u64, u64)) -> Row {
    let within = |ms| format!("{:.3}%", share(asks, Duration::from_millis(ms)));
    let (second, p90) = (share(asks, Duration::from_secs(1)), quantile(asks, 0.9));
    let per_query = sent as f64 / asks.len().max(1) as f64;
    let lost = 100.0 * (1.0 - arrived as f64 / sent.max(1) as f64);
    row.cell("0.1s", within(100))
        .cell("0.5s", within(500))
        .cell("1s", within(1000))
        .cell("5s", within(5000))
        .cell("p50", millis(quantile(asks, 0.5), 1))
        .cell("p90", millis(p90, 1))
        .cell("sent/query", format!("{per_query:.2}"))
        .cell("lost", format!("{lost:.0}%"))
        .promise("99.99 % within 1 s", !plan.judge || second >= 99.99)
        .promise("p90 <= 150 ms", !plan.judge || p90 <= 150.0)
        // 2.04 where every query is sent until it is answered.
        .promise("3 sends per query at most", per_query <= 3.0)
        .promise("30 % were lost on the way there", (25.0..35.0).contains(&lost))
        .promise("nearly all within 5 s", share(asks, Duration::from_secs(5)) >= 95.0)
}

/// 1,000 stub resolvers ask for one uncached name at once, with different EDNS sizes.
pub fn herd(plan: &Plan) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for kind in &plan.kinds {
        let upstreams = upstreams(1, 60)?;
        let contender = Contender::start(*kind, &forms(&upstreams))?;
        upstreams[0].set_delay(Duration::from_millis(100));
        upstreams[0].set_records(RECORDS);
        // So far away it has always been: nobody asks again before its time.
        load::run(contender.address, 50, Duration::from_secs(2), unique("distance"));
        upstreams[0].take_names();
        let name = unique("herd")(0);
        let got = gather(contender.address, &name)?;
        let wire = query(0, &name, None);
        let asked = upstreams[0].take_names();
        let asked = asked.iter().filter(|seen| seen[..] == wire[12..wire.len() - 4]).count();
        let judged = got.whole == 500 && got.cut == 500;
        rows.push(
            Row::new(*kind, "1,000 ask at once")
                .cell("upstream queries", asked)
                .cell("answered", got.answered)
                .cell("whole, of 500 with room", got.whole)
                .cell("cut with TC, of 500 without", got.cut)
                .cell("too large", got.too_large)
                // On a busy machine the one may be sent again.
                .promise("one upstream query", asked == 1 || (!plan.judge && asked <= 2))
                .promise("each gets a response", got.answered == 1000)
                .promise(
                    "it fits: whole where there is room, else cut",
                    judged && got.too_large == 0,
                ),
        );
    }
    Ok(rows)
}

/// Records in the answer: 700 bytes or so.
const RECORDS: u32 = 40;

/// What a herd got.
#[derive(Default)]
struct Gathered {
    answered: usize,
    whole: usize,
    cut: usize,
    too_large: usize,
}

/// Asks `server` for `name` 1,000 times at once, half of them with room for the answer.
fn gather(server: SocketAddr, name: &str) -> io::Result<Gathered> {
    const SIZES: [Option<u16>; 4] = [None, Some(512), Some(1232), Some(4096)];
    let sockets: Vec<UdpSocket> = (0..1000)
        .map(|n| {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(server)?;
            socket.send(&query(n, name, SIZES[usize::from(n) % 4]))?;
            Ok(socket)
        })
        .collect::<io::Result<_>>()?;
    let (mut got, until) = (Gathered::default(), Instant::now() + Duration::from_secs(5));
    for ((n, socket), size) in (0u16..).zip(&sockets).zip(SIZES.iter().cycle()) {
        let left = until.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut buffer = [0; 65_535];
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let limit = usize::from(size.unwrap_or(512));
        let (is_cut, records) = (buffer[2] & 2 != 0, [buffer[6], buffer[7]]);
        got.answered += usize::from(buffer[..2] == n.to_be_bytes() && buffer[3] & 15 == 0);
        got.too_large += usize::from(length > limit);
        let is_whole = !is_cut && u32::from(u16::from_be_bytes(records)) == RECORDS;
        got.whole += usize::from(limit > 512 && is_whole);
        got.cut += usize::from(limit == 512 && is_cut);
    }
    Ok(got)
}

/// What nodens counts: responses that answer nothing that it has asked.
const MISMATCHED: &str = "nodens_upstream_mismatched_total";

/// Forged responses by the million, from the upstream's address to random ports with random ids.
pub fn spoofer(plan: &Plan) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for kind in with_pooled(plan) {
        let upstreams = upstreams(1, 60)?;
        let contender = Contender::start(kind, &forms(&upstreams))?;
        upstreams[0].set_delay(Duration::from_millis(20));
        let (asked, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
        let name = unique("spoof");
        let watched = |n| {
            asked.store(n, Ordering::Relaxed);
            name(n)
        };
        let (mut asks, mut forged) = (Vec::new(), 0);
        std::thread::scope(|scope| -> io::Result<()> {
            let forger = scope.spawn(|| {
                let now = || name(asked.load(Ordering::Relaxed));
                let forged = spoofer::forge(plan.forged, upstreams[0].address, now);
                ended.store(true, Ordering::Relaxed);
                forged
            });
            while !ended.load(Ordering::Relaxed) {
                let span = Duration::from_secs(2);
                asks.extend(load::run(contender.address, 200, span, watched));
            }
            forged = forger.join().map_err(|_| io::ErrorKind::Other)??;
            Ok(())
        })?;
        let met = match kind {
            Kind::Nodens | Kind::NodensPooled => {
                counted(ADMIN.parse().map_err(io::Error::other)?, MISMATCHED)?.to_string()
            }
            _ => "-".to_owned(),
        };
        let accepted = asks.iter().filter(|ask| ask.tail == spoofer::FORGED).count();
        rows.push(
            Row::new(kind, "forged responses")
                .cell("sent", forged)
                .cell("met a waiting query", &met)
                .cell("accepted", accepted)
                .cell("answered", format!("{:.2}%", share(&asks, Duration::from_secs(5))))
                .promise("some met a waiting query", !plan.judge || met != "0")
                .promise("none accepted", accepted == 0),
        );
    }
    Ok(rows)
}
