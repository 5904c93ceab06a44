//! What misses cost, and what they leave in the kernel's table of connections.

use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::contender::{Contender, Kind};
use super::load::{self, Ask, millis, quantile, share};
use super::namespace::{Host, Node, Rules};
use super::plan::Plan;
use super::process::query;
use super::report::Row;
use super::scenario::{address, forms, unique, upstreams};
use super::upstream::Upstream;

/// The upstream's host, as the node and its pods see it.
const FAR: &str = "198.18.9.1:53";

/// Sockets that the pod asks from in turns: so many entries of the table are its own.
const POD_SOCKETS: usize = 256;

/// A response that the pod waits longer for is lost.
const PATIENCE: Duration = Duration::from_secs(3);

/// The plan's contenders, nodens with either policy of source ports, in the order of [`Kind`].
pub fn with_pooled(plan: &Plan) -> Vec<Kind> {
    let pooled = plan.kinds.contains(&Kind::Nodens).then_some(Kind::NodensPooled);
    let mut kinds: Vec<Kind> = pooled.into_iter().chain(plan.kinds.iter().copied()).collect();
    kinds.sort();
    kinds
}

/// What a miss costs at the plan's rate, for half of the time each while nothing and while everything is tracked.
pub fn cost(plan: &Plan) -> io::Result<Vec<Row>> {
    let (mut rows, half) = (Vec::new(), plan.span() / 2);
    for kind in with_pooled(plan) {
        // In a namespace that never tracked anything.
        let _node = Node::enter()?;
        let upstreams = upstreams(2, 60)?;
        let contender = Contender::start(kind, &forms(&upstreams))?;
        for is_tracked in [false, true] {
            let rules = is_tracked.then(Rules::track).transpose()?;
            let before = contender.cpu()?;
            let asks = load::run(contender.address, plan.rate, half, unique("cost"));
            let circumstance = if is_tracked { "tracked" } else { "not tracked" };
            let row = Row::new(kind, circumstance).pace(load::late(&asks, half));
            rows.push(
                row.cell("CPU/query", per_query(&contender, before, &asks)?)
                    .cell("p50", millis(quantile(&asks, 0.5), 2))
                    .cell("p99", millis(quantile(&asks, 0.99), 2))
                    .cell("entries left", tracked())
                    .cell("RSS", format!("{:.0}MB", contender.resident()?))
                    .promise("all answered", share(&asks, Duration::from_secs(5)) >= 99.9),
            );
            drop(rules);
        }
    }
    Ok(rows)
}

/// CPU time since `before` per query, as the report writes it.
fn per_query(contender: &Contender, before: Duration, asks: &[Ask]) -> io::Result<String> {
    let micros = (contender.cpu()? - before).as_secs_f64() * 1e6 / asks.len() as f64;
    Ok(format!("{micros:.1}us"))
}

/// Conntrack entries of the contenders' own upstream traffic at 5,000 misses per second, on a node whose pod asks
/// the same upstream.
pub fn conntrack(plan: &Plan) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for kind in with_pooled(plan) {
        let node = Node::enter()?;
        let rules = Rules::track()?;
        let upstream = node.far.run(|| Upstream::start(address(FAR), 60))?;
        let contender = Contender::start(kind, &[FAR.to_owned()])?;
        let (before, (ended, pod)) = (contender.cpu()?, (AtomicBool::new(false), Pod::default()));
        let (asks, most) = std::thread::scope(|scope| -> io::Result<_> {
            let asking = scope.spawn(|| pod.ask(&node.pod, &ended));
            let watch = scope.spawn(|| watch(&pod, &ended));
            let asks = load::run(contender.address, 5000, plan.span(), unique("track"));
            ended.store(true, Ordering::Relaxed);
            asking.join().map_err(|_| io::ErrorKind::Other)??;
            Ok((asks, watch.join().map_err(|_| io::ErrorKind::Other)?))
        })?;
        let (left, cpu) = (pod.others(), per_query(&contender, before, &asks)?);
        drop((rules, upstream));
        let (asked, lost) = (pod.asked.into_inner(), pod.lost.into_inner());
        let row = Row::new(kind, "5,000 misses/s").pace(load::late(&asks, plan.span()));
        rows.push(
            row.cell("entries at most", most)
                .cell("at the end", left)
                .cell("CPU/query", cpu)
                .cell("answered", format!("{:.2}%", share(&asks, Duration::from_secs(5))))
                .cell("the pod asked", asked)
                .cell("in vain", lost)
                .promise("fewer than 100 entries are left", left < 100)
                .promise("never 100 entries", !plan.judge || most < 100)
                .promise("the pod asks all the time", asked as u64 > 20 * plan.seconds)
                .promise("the pod loses nothing", lost == 0),
        );
    }
    Ok(rows)
}

/// A pod that asks the upstream itself, masqueraded: how often, and how often in vain.
#[derive(Default)]
struct Pod {
    asked: AtomicUsize,
    lost: AtomicUsize,
}

impl Pod {
    /// Asks some 200 times a second until told, from ports that the kernel has drawn.
    fn ask(&self, pod: &Host, ended: &AtomicBool) -> io::Result<()> {
        pod.run(|| {
            let sockets: Vec<UdpSocket> = (0..POD_SOCKETS)
                .map(|_| {
                    let socket = UdpSocket::bind("0.0.0.0:0")?;
                    socket.connect(FAR)?;
                    socket.set_read_timeout(Some(PATIENCE))?;
                    Ok(socket)
                })
                .collect::<io::Result<_>>()?;
            for (id, socket) in (0..=u16::MAX).cycle().zip(sockets.iter().cycle()) {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                socket.send(&query(id, "pod.example.org", None))?;
                self.asked.fetch_add(1, Ordering::Relaxed);
                let mut response = [0; 512];
                let is_answered =
                    socket.recv(&mut response).is_ok() && response[..2] == id.to_be_bytes();
                self.lost.fetch_add(usize::from(!is_answered), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(4));
            }
            Ok(())
        })
    }

    /// Entries of this namespace's table that are not the pod's.
    fn others(&self) -> usize {
        tracked().saturating_sub(self.asked.load(Ordering::Relaxed).min(POD_SOCKETS))
    }
}

/// The most entries that were not the pod's until told.
fn watch(pod: &Pod, ended: &AtomicBool) -> usize {
    let mut most = 0;
    while !ended.load(Ordering::Relaxed) {
        most = most.max(pod.others());
        std::thread::sleep(Duration::from_millis(200));
    }
    most
}

/// Entries in this namespace's table.
fn tracked() -> usize {
    let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}
