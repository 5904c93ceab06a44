//! What is run against each contender in turn while upstreams are as they are: loss, herds, misses, forgers.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::contender::{Contender, Kind};
use super::load::{self, Ask, millis, quantile, share};
use super::namespace::Rules;
use super::plan::Plan;
use super::process::query;
use super::report::Row;
use super::spoofer;
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
            let rules = Rules::lose(30)?;
            let asks = load::run(contender.address, plan.rate, plan.span(), unique("loss"));
            drop(rules);
            let circumstance = if count == 1 { "one upstream" } else { "two upstreams" };
            let sent: u64 = upstreams.iter().map(Upstream::queries).sum();
            rows.push(loss_row(plan, Row::new(*kind, circumstance), &asks, sent));
        }
    }
    Ok(rows)
}

/// The figures of a lossy run.
fn loss_row(plan: &Plan, row: Row, asks: &[Ask], arrived: u64) -> Row {
    let within = |ms| format!("{:.3}%", share(asks, Duration::from_millis(ms)));
    let (second, p90) = (share(asks, Duration::from_secs(1)), quantile(asks, 0.9));
    let per_query = arrived as f64 / asks.len().max(1) as f64;
    row.cell("0.1s", within(100))
        .cell("0.5s", within(500))
        .cell("1s", within(1000))
        .cell("5s", within(5000))
        .cell("p50", millis(quantile(asks, 0.5), 1))
        .cell("p90", millis(p90, 1))
        .cell("arrived/query", format!("{per_query:.2}"))
        .promise("99.99 % within 1 s", !plan.judge || second >= 99.99)
        .promise("p90 <= 150 ms", !plan.judge || p90 <= 150.0)
        // 1.43 where every query is sent until it is answered; without loss it is 1.
        .promise("packets were lost, and queries sent again", per_query > 1.1)
        .promise("nearly all within 5 s", share(asks, Duration::from_secs(5)) >= 95.0)
}

/// 1,000 stub resolvers ask for one uncached name at once, with different EDNS sizes.
pub fn herd(plan: &Plan) -> io::Result<Vec<Row>> {
    const SIZES: [Option<u16>; 4] = [None, Some(512), Some(1232), Some(4096)];
    let mut rows = Vec::new();
    for kind in &plan.kinds {
        let upstreams = upstreams(1, 60)?;
        let contender = Contender::start(*kind, &forms(&upstreams))?;
        upstreams[0].set_delay(Duration::from_millis(100));
        upstreams[0].set_records(40);
        // So far away it has always been: nobody asks again before its time.
        load::run(contender.address, 50, Duration::from_secs(2), unique("distance"));
        upstreams[0].take_names();
        let name = unique("herd")(0);
        let sockets: Vec<UdpSocket> = (0..1000)
            .map(|n| {
                let socket = UdpSocket::bind("127.0.0.1:0")?;
                socket.connect(contender.address)?;
                socket.send(&query(n, &name, SIZES[usize::from(n) % 4]))?;
                Ok(socket)
            })
            .collect::<io::Result<_>>()?;
        let (mut answered, mut too_large, mut longest) = (0, 0, 0);
        let until = Instant::now() + Duration::from_secs(5);
        for (socket, size) in sockets.iter().zip(SIZES.iter().cycle()) {
            let left = until.saturating_duration_since(Instant::now());
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut buffer = [0; 65_535];
            let Ok(length) = socket.recv(&mut buffer) else { continue };
            answered += usize::from(buffer[3] & 15 == 0);
            too_large += usize::from(length > usize::from(size.unwrap_or(512)));
            longest = longest.max(length);
        }
        let wire = query(0, &name, None);
        let asked = upstreams[0].take_names();
        let asked = asked.iter().filter(|seen| seen[..] == wire[12..wire.len() - 4]).count();
        rows.push(
            Row::new(*kind, "1,000 ask at once")
                .cell("upstream queries", asked)
                .cell("answered", answered)
                .cell("too large", too_large)
                .cell("longest", longest)
                .promise("one upstream query, and one by TCP where UDP cut", asked <= 2)
                .promise("each gets a response that fits it", answered == 1000 && too_large == 0),
        );
    }
    Ok(rows)
}

/// The plan's contenders, nodens with either policy of source ports, in the order of [`Kind`]: unbound comes
/// last, since it leaves thousands of conntrack entries behind.
fn with_pooled(plan: &Plan) -> Vec<Kind> {
    let pooled = plan.kinds.contains(&Kind::Nodens).then_some(Kind::NodensPooled);
    let mut kinds: Vec<Kind> = pooled.into_iter().chain(plan.kinds.iter().copied()).collect();
    kinds.sort();
    kinds
}

/// What a miss costs at the plan's rate.
pub fn cost(plan: &Plan) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for kind in with_pooled(plan) {
        let upstreams = upstreams(2, 60)?;
        let contender = Contender::start(kind, &forms(&upstreams))?;
        let before = contender.cpu()?;
        let asks = load::run(contender.address, plan.rate, plan.span(), unique("cost"));
        let micros = (contender.cpu()? - before).as_secs_f64() * 1e6 / asks.len() as f64;
        rows.push(
            Row::new(kind, "unique names")
                .cell("CPU/query", format!("{micros:.1}us"))
                .cell("p50", millis(quantile(&asks, 0.5), 2))
                .cell("p99", millis(quantile(&asks, 0.99), 2))
                .cell("RSS", format!("{:.0}MB", contender.resident()?))
                .promise("all answered", share(&asks, Duration::from_secs(5)) >= 99.9),
        );
    }
    Ok(rows)
}

/// Conntrack entries of the contenders' own upstream traffic at 5,000 misses per second.
pub fn conntrack(plan: &Plan) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for kind in with_pooled(plan) {
        let upstreams = upstreams(1, 60)?;
        let rules = Rules::track()?;
        let contender = Contender::start(kind, &forms(&upstreams))?;
        let ended = AtomicBool::new(false);
        let most = AtomicUsize::new(0);
        let asks = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    most.fetch_max(tracked(), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(200));
                }
            });
            let asks = load::run(contender.address, 5000, plan.span(), unique("track"));
            ended.store(true, Ordering::Relaxed);
            asks
        });
        let left = tracked();
        drop(rules);
        rows.push(
            Row::new(kind, "5,000 misses per second")
                .cell("entries at most", most.into_inner())
                .cell("at the end", left)
                .cell("source ports", upstreams[0].ports())
                .cell("answered", format!("{:.2}%", share(&asks, Duration::from_secs(5))))
                .promise("fewer than 100 entries are left", left < 100),
        );
    }
    Ok(rows)
}

/// Entries in this namespace's table.
fn tracked() -> usize {
    let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// Forged responses by the million, from the upstream's address to random ports with random ids.
pub fn spoofer(plan: &Plan) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for kind in &plan.kinds {
        let upstreams = upstreams(1, 60)?;
        let contender = Contender::start(*kind, &forms(&upstreams))?;
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
        let accepted = asks.iter().filter(|ask| ask.tail == spoofer::FORGED).count();
        rows.push(
            Row::new(*kind, "forged responses")
                .cell("sent", forged)
                .cell("accepted", accepted)
                .cell("answered", format!("{:.2}%", share(&asks, Duration::from_secs(5))))
                .promise("none accepted", accepted == 0),
        );
    }
    Ok(rows)
}
