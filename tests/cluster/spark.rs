//! Spark on one node: executors in pods ask for their driver before the API server knows it, while it comes and
//! afterwards, and nodens takes what they ask of the cluster DNS.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nodens::cluster::Event;
use serde_json::json;

use crate::churn::Over;
use crate::harness::node::{ASKED, Host, server, sh};
use crate::harness::pod::may_start_pods;
use crate::harness::{Udp, ask, flag, namespace as network, needs, qtype, rcode, until};
use crate::is_long;
use crate::manifests::Stage;
use crate::objects::{endpoint, headless, namespace, slice};
use crate::plane::{Plane, Way, needs_kubernetes};
use crate::watching::{Watching, named};

/// Pods that ask.
const EXECUTORS: usize = 50;

/// Where the driver listens.
const DRIVER: &str = "10.244.0.2";

/// How long anything may take that must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Rounds, and how long an executor rests between two of its queries.
fn pace() -> (usize, Duration) {
    if is_long() { (20, Duration::from_millis(5)) } else { (5, Duration::from_millis(25)) }
}

/// Pods on a bridge of the node: 10.244.1.0/24, the node's end is their gateway.
fn executors() -> Vec<Host> {
    sh("ip link add executors type bridge
        ip address add 10.244.1.1/24 dev executors
        ip link set executors up");
    let make = |number: usize| {
        let host = Host::new();
        sh(&format!(
            "ip link add e{number} type veth peer name eth0 netns {}
             ip link set e{number} master executors up",
            host.pid()
        ));
        host.run(|| {
            sh(&format!(
                "ip link set lo up
                 ip address add 10.244.1.{}/24 dev eth0
                 ip link set eth0 up
                 ip route add default via 10.244.1.1",
                number + 10
            ));
        });
        host
    };
    (0..EXECUTORS).map(make).collect()
}

/// The driver's account, which may make what Spark makes in its own namespace; its token.
fn account(plane: &Plane) -> String {
    let meta = json!({ "name": "driver", "namespace": "spark" });
    let group = "rbac.authorization.k8s.io";
    let of_group =
        |kind: &str| json!({ "apiVersion": format!("{group}/v1"), "kind": kind, "metadata": meta });
    plane.make(&namespace("spark"));
    plane.make(&json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta }));
    let mut role = of_group("Role");
    let may = |group: &str, what: &str| json!({ "apiGroups": [group], "resources": [what], "verbs": ["create", "delete"] });
    role["rules"] = json!([may("", "services"), may("discovery.k8s.io", "endpointslices")]);
    plane.make(&role);
    let mut binding = of_group("RoleBinding");
    binding["roleRef"] = json!({ "apiGroup": group, "kind": "Role", "name": "driver" });
    binding["subjects"] =
        json!([{ "kind": "ServiceAccount", "name": "driver", "namespace": "spark" }]);
    plane.make(&binding);
    plane.token("spark", "driver")
}

/// One answer to an executor.
struct Heard {
    asked: Instant,
    told: Instant,
    is_there: bool,
}

/// What all of one driver's life share: before it is there, while it is, and afterwards.
struct Life {
    name: String,
    is_over: AtomicBool,
    /// Executors that have been told so in each of the three parts.
    told: [AtomicUsize; 3],
}

impl Life {
    /// Asks as an executor does until it is over; never may an answer come back that had been replaced.
    fn ask(&self, rest: Duration) -> Vec<Heard> {
        let socket = Udp::to(server(ASKED[0]));
        let mut heard: Vec<Heard> = Vec::new();
        let mut part = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let answer = socket.exchange(&ask(&self.name, qtype::A));
            let is_there = answer.data(qtype::A) == [DRIVER];
            assert!(answer.has(flag::AA), "nodens answers: {answer:?}");
            assert!(is_there || answer.rcode() == rcode::NXDOMAIN, "{answer:?}");
            let before = heard.last().map(|heard| heard.is_there);
            if before != Some(is_there) {
                part += usize::from(before.is_some());
                assert!(part < 3 && is_there == (part == 1), "{} came back", self.name);
                self.told[part].fetch_add(1, Ordering::Relaxed);
            }
            heard.push(Heard { asked, told: Instant::now(), is_there });
            std::thread::sleep(rest);
        }
        heard
    }

    /// Waits until every executor has been told so in this part, and has asked some more.
    fn wait(&self, part: usize) {
        let count = || self.told[part].load(Ordering::Relaxed);
        assert!(until(PATIENCE, || count() == EXECUTORS), "{} of {EXECUTORS}", count());
        std::thread::sleep(4 * pace().1);
    }
}

/// What the driver does in its pod; gives back when we read of its endpoints.
fn drive(life: &Life, driver: &Way, watching: &mut Watching) -> Instant {
    let name = life.name.split('.').next().expect("a label");
    let service = headless("spark", name, false);
    let endpoints = slice(("spark", name), 0, ("IPv4", vec![endpoint(DRIVER)]), false);
    life.wait(0);
    driver.make(&service);
    // Still without an endpoint: who asks now must not be told so for seconds.
    std::thread::sleep(4 * pace().1);
    driver.make(&endpoints);
    let of_it = endpoints["metadata"]["name"].as_str();
    watching.until(PATIENCE, |event| matches!(event, Event::Applied(..)) && named(event) == of_it);
    let read = Instant::now();
    life.wait(1);
    driver.delete(&endpoints);
    driver.delete(&service);
    life.wait(2);
    read
}

/// How long after the event each executor was told the address, and how old the latest query was that was
/// still denied.
fn waits(read: Instant, heard: &[Vec<Heard>]) -> Vec<(Duration, Duration)> {
    let wait = |heard: &Vec<Heard>| {
        let first = heard.iter().position(|heard| heard.is_there).expect("it was told");
        let told = heard[first].told.saturating_duration_since(read);
        (told, heard[first - 1].asked.saturating_duration_since(read))
    };
    heard.iter().map(wait).collect()
}

/// One driver's life, asked for by every executor.
fn live(
    number: usize,
    hosts: &[Host],
    stage: &Stage,
    ways: (&Path, &mut Watching),
) -> Vec<(Duration, Duration)> {
    let life = Life {
        name: format!("driver-{number}.spark.svc.cluster.local"),
        is_over: AtomicBool::new(false),
        told: Default::default(),
    };
    let (config, watching) = ways;
    let (read, heard) = std::thread::scope(|scope| {
        let ask = |host: &'_ Host| host.run(|| life.ask(pace().1));
        let asking: Vec<_> = hosts.iter().map(|host| scope.spawn(move || ask(host))).collect();
        let over = Over(&life.is_over);
        let read = stage.node.in_pod(|| drive(&life, &Way::by(config), watching));
        drop(over);
        (read, asking.into_iter().map(|one| one.join().expect("no panic")).collect::<Vec<_>>())
    });
    waits(read, &heard)
}

#[test]
fn executors_that_asked_too_early_find_their_driver_as_soon_as_it_exists() {
    needs!("ip", "nft", "conntrack", "unshare", "nsenter", "setpriv", "chroot");
    let (_alone, programs) = needs_kubernetes!();
    if !may_start_pods() {
        return;
    }
    network::inside(|| {
        let stage = Stage::new(&programs, |_| {});
        let token = account(&stage.plane);
        let config = stage.plane.kubeconfig_of_pods("driver", &token);
        let watcher = stage.plane.kubeconfig("watcher", &stage.token);
        let mut watching = Watching::by(&watcher).expect("a way");
        watching.synced();
        stage.wait_for_zone(ASKED[0]);
        let hosts = executors();
        let mut found: Vec<_> = (0..pace().0)
            .flat_map(|number| live(number, &hosts, &stage, (&config, &mut watching)))
            .collect();
        found.sort();
        let at = |share: f64| found[((found.len() - 1) as f64 * share) as usize].0;
        let denied = found.iter().map(|(_, denied)| *denied).max().expect("some");
        println!(
            "{} drivers, {EXECUTORS} executors that ask every {:?}: told after the event p50 {:?}, p99 {:?}, most \
             {:?}; the latest query that was still denied came {denied:?} after it",
            pace().0,
            pace().1,
            at(0.5),
            at(0.99),
            at(1.0)
        );
        let asked = stage.node.cluster[0].seen();
        let elsewhere = asked.iter().filter(|seen| seen.qname.starts_with("driver-")).count();
        assert_eq!(elsewhere, 0, "the cluster DNS was asked");
        // A negative answer that stayed would stay for 5 s, in each round for another part of them.
        assert!(
            at(0.5) < Duration::from_millis(1000) && at(1.0) < Duration::from_secs(4),
            "{:?}",
            at(1.0)
        );
        if is_long() {
            assert!(at(0.99) <= Duration::from_millis(10), "{:?}", at(0.99));
        }
    });
}
