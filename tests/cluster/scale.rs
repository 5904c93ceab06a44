//! Thousands of Services: memory, the first sync, a resync, and what one change costs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::wire::Udp;
use crate::harness::{Daemon, ask, qtype, until};
use crate::is_long;
use crate::objects::{endpoint, headless, service, slice, v4};
use crate::plane::{Plane, needs_kubernetes};
use crate::scripted::Scripted;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Endpoints per headless Service.
const ENDPOINTS: usize = 100;

/// Changes of one kind that are measured together.
const CHANGES: usize = 200;

/// Services and headless endpoints: as large clusters have them, or a tenth.
fn size() -> (usize, usize) {
    if is_long() { (10_000, 50_000) } else { (1000, 5000) }
}

/// Fills the API server.
fn fill(plane: &Plane) {
    let (services, endpoints) = size();
    let sets = endpoints / ENDPOINTS;
    let mut objects = Vec::new();
    for number in 0..services - sets {
        let ports = json!([{ "name": "http", "port": 80 }]);
        let spec = json!({ "selector": { "app": "plain" }, "ports": ports });
        objects.push(service("default", &format!("plain-{number}"), spec));
    }
    for number in 0..sets {
        objects.push(headless("default", &format!("set-{number}"), false));
        objects.push(set(number, 0));
    }
    plane.make_all(&objects);
}

/// The EndpointSlice of the Service `set-NUMBER`, its first endpoint at another address each `round`.
fn set(number: usize, round: usize) -> Value {
    let others = (1..ENDPOINTS).map(|n| endpoint(&v4(number * ENDPOINTS + n)));
    let first = endpoint(&v4(100_000 + round));
    let endpoints = std::iter::once(first).chain(others).collect();
    slice(("default", &format!("set-{number}")), 0, ("IPv4", endpoints), false)
}

/// The lists of a filled API server, as a streaming list says their objects.
fn lists(plane: &Plane) -> [(&'static str, Vec<Value>); 3] {
    let labelled = "labelSelector=service.kubernetes.io%2Fheadless";
    let slices = format!("/apis/discovery.k8s.io/v1/endpointslices?{labelled}");
    [
        ("namespaces", "/api/v1/namespaces"),
        ("services", "/api/v1/services"),
        ("endpointslices", &slices),
    ]
    .map(|(stream, path)| {
        let mut list = plane.must("GET", path, None);
        (stream, serde_json::from_value(list["items"].take()).expect("a list"))
    })
}

/// How long queries take that are asked one by one while `goes_on`; sorted.
fn waits(daemon: &Daemon, goes_on: impl Fn() -> bool) -> Vec<Duration> {
    let server = Udp::to(daemon.address());
    let mut waits = Vec::new();
    while goes_on() {
        for _ in 0..100 {
            let asked = Instant::now();
            server.exchange(&ask("plain-1.default.svc.cluster.local", qtype::A));
            waits.push(asked.elapsed());
        }
    }
    waits.sort();
    waits
}

/// The 99th percentile.
fn p99(waits: &[Duration]) -> Duration {
    waits[waits.len() * 99 / 100]
}

/// Makes changes of the Service `name` and waits until the last is answered; per change the time from its
/// event's arrival until queries see it, and the CPU time, TLS and JSON included.
fn change(
    (plane, nodens): (&Plane, &Daemon),
    name: &str,
    of: impl Fn(usize) -> Value,
) -> (Duration, Duration) {
    let visible = |part: &str| nodens.metric(&format!("nodens_cluster_visible_seconds_{part}"), "");
    let (sum, count, used) = (visible("sum"), visible("count"), nodens.process.cpu());
    for round in 1..=CHANGES {
        plane.replace(&of(round));
    }
    let server = Udp::to(nodens.address());
    let last = v4(100_000 + CHANGES);
    let question =
        ask(&format!("{}.{name}.default.svc.cluster.local", last.replace('.', "-")), qtype::A);
    assert!(until(PATIENCE, || server.exchange(&question).data(qtype::A) == [last.as_str()]));
    let events = visible("count") - count;
    let each = Duration::from_secs_f64((visible("sum") - sum) / events);
    (each, (nodens.process.cpu() - used) / CHANGES as u32)
}

#[test]
fn a_large_cluster_syncs_and_a_change_costs_what_it_changes() {
    let (_alone, programs) = needs_kubernetes!();
    let plane = Plane::start(&programs, &[]);
    let world = plane.world();
    let empty = plane.nodens(world.address, "").process.resident();
    fill(&plane);
    let one =
        |round| slice(("default", "one"), 0, ("IPv4", vec![endpoint(&v4(100_000 + round))]), false);
    plane.make(&headless("default", "one", false));
    plane.make(&one(0));

    let began = Instant::now();
    let nodens = plane.nodens(world.address, "");
    let (synced, cpu) = (began.elapsed(), nodens.process.cpu());
    println!(
        "{:?} Services and endpoints: first sync {synced:?} with start, {cpu:?} of CPU, {} MiB more than empty",
        size(),
        nodens.process.resident().saturating_sub(empty) >> 20
    );
    let (small, small_cpu) = change((&plane, &nodens), "one", one);
    let (large, large_cpu) = change((&plane, &nodens), "set-1", |round| set(1, round));
    println!("a change of a slice of 1: visible {small:?} after its event, {small_cpu:?} of CPU");
    println!(
        "a change of a slice of {ENDPOINTS}: visible {large:?} after its event, {large_cpu:?} of CPU"
    );
    // A tenth of the first sync would be a copy of the whole.
    assert!(small_cpu < cpu / 10 && large_cpu < cpu / 10, "{cpu:?} for all");
    if is_long() {
        assert!(small < Duration::from_micros(300), "{small:?}");
        assert!(large < Duration::from_millis(1), "{large:?}");
    }

    drop(nodens);
    let server = Scripted::start();
    for (stream, objects) in lists(&plane) {
        server.hold(stream, &objects);
    }
    drop(plane);
    resync(&server, &world.address.to_string());
}

/// How long queries take while another thread of this machine has much to do.
fn beside_a_busy_thread(nodens: &Daemon) -> Vec<Duration> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let began = Instant::now();
        let busy = waits(nodens, || began.elapsed() < Duration::from_secs(3));
        is_over.store(true, Ordering::Relaxed);
        busy
    })
}

/// Everything is listed again and again, by a server that is quick: hits are answered as before.
fn resync(server: &Scripted, upstream: &str) {
    let config = server.kubeconfig(&json!({ "token": "one" }));
    let table = format!("[cluster]\nsource = \"watch\"\nkubeconfig = {config:?}\n");
    let nodens = crate::harness::Setup::towards(upstream).tables(&table).start();
    let synced = || nodens.metric("nodens_cluster_synced", "") == 1.0;
    assert!(until(PATIENCE, synced), "{}", nodens.log());
    let rounds = 5;
    let began = Instant::now();
    let quiet = waits(&nodens, || began.elapsed() < Duration::from_secs(3));
    let busy = beside_a_busy_thread(&nodens);
    let lists = || nodens.metric("nodens_cluster_api_lists_total", "");
    let (before, used, memory) = (lists(), nodens.process.cpu(), nodens.process.resident());
    let began = Instant::now();
    let during = std::thread::scope(|scope| {
        let resyncs = scope.spawn(|| {
            for round in 1..=rounds {
                server.forget();
                let is_listed = || lists() >= before + f64::from(3 * round);
                assert!(until(PATIENCE, is_listed), "{}", nodens.log());
            }
        });
        waits(&nodens, || !resyncs.is_finished())
    });
    let hits = during.len() as u32 * (quiet.iter().sum::<Duration>() / quiet.len() as u32);
    println!(
        "{rounds} resyncs in {:?}, {:?} of CPU of which about {hits:?} for queries; {} MiB more; p99 of a query \
         {:?} before, {:?} beside a thread that burns CPU, {:?} meanwhile, at most {:?}, {:?} and {:?}",
        began.elapsed(),
        nodens.process.cpu() - used,
        nodens.process.resident().saturating_sub(memory) >> 20,
        p99(&quiet),
        p99(&busy),
        p99(&during),
        quiet.last().expect("queries"),
        busy.last().expect("queries"),
        during.last().expect("queries"),
    );
    if is_long() {
        // On two cores four threads want to run meanwhile: ours, the server's, and those of the two sides of a query.
        let limit = p99(&busy) * 2 + Duration::from_micros(200);
        assert!(p99(&during) < limit, "{:?} against {:?}", p99(&during), p99(&busy));
    }
}
