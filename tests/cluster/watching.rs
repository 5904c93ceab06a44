//! The watch alone, without a daemon: what it reads of a real API server, and what it lives through.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use nodens::cluster::object::{Object, ServiceKey};
use nodens::cluster::watch::{Pods, Wanted, Watch, WatchError};
use nodens::cluster::{Event, Stream};
use nodens::metrics::{Metrics, WatchMetrics};
use tokio::time::timeout;

use crate::harness::Place;
use crate::meter::Meter;
use crate::objects::{endpoint, headless, namespace, service, slice};
use crate::plane::{NODENS, Plane, needs_kubernetes};

/// How long anything may take on a busy machine where no limit is part of what is proven.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A watch on `plane` with its counters.
pub struct Watching {
    watch: Watch,
    pub metrics: WatchMetrics,
    runtime: tokio::runtime::Runtime,
}

impl Watching {
    /// Begins to watch by this kubeconfig, the Service `kube-system/kube-dns` of interest.
    pub fn by(kubeconfig: &Path) -> Result<Self, WatchError> {
        let wanted = Wanted {
            kubeconfig: Some(kubeconfig.to_owned()),
            interest: BTreeSet::from([ServiceKey::new("kube-system", "kube-dns")]),
            pods: Pods::None,
        };
        let metrics = Metrics::new().watch.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let watch = runtime.block_on(Watch::connect(&wanted, metrics.clone()))?;
        Ok(Self { watch, metrics, runtime })
    }

    /// As nodens does in a cluster.
    pub fn on(plane: &Plane) -> Self {
        Self::by(&plane.kubeconfig("nodens", NODENS)).expect("a right kubeconfig")
    }

    /// Waits for an event that `is_it`; all that came until then.
    pub fn until(&mut self, limit: Duration, is_it: impl Fn(&Event) -> bool) -> Vec<Event> {
        let Self { watch, runtime, .. } = self;
        let mut seen = Vec::new();
        let came = runtime.block_on(async {
            let seen = &mut seen;
            let look = async {
                while !seen.iter().any(&is_it) {
                    seen.extend(watch.next().await.events);
                }
            };
            timeout(limit, look).await
        });
        assert!(came.is_ok(), "it never came; instead: {seen:#?}");
        seen
    }

    /// Waits until everything is listed.
    pub fn synced(&mut self) -> Vec<Event> {
        self.until(PATIENCE, |event| *event == Event::Synced)
    }

    /// Makes a Service and waits until the watch tells of it; how long that took.
    fn sees_a_new_service(&mut self, plane: &Plane, name: &str, limit: Duration) -> Duration {
        plane.make(&plain_service(name));
        let began = Instant::now();
        self.until(limit, |event| named(event) == Some(name));
        began.elapsed()
    }

    /// The next events; none when nothing happens for `limit`.
    pub fn more(&mut self, limit: Duration) -> Vec<Event> {
        let Self { watch, runtime, .. } = self;
        let batch = runtime.block_on(async { timeout(limit, watch.next()).await });
        batch.map(|batch| batch.events).unwrap_or_default()
    }

    /// Looks at nothing for a while.
    pub fn idle(&mut self, time: Duration) {
        let Self { watch, runtime, .. } = self;
        let _ = runtime.block_on(async { timeout(time, watch.next()).await });
    }

    /// Whole lists so far.
    pub fn lists(&self) -> u64 {
        self.metrics.lists.total()
    }
}

/// A Service with an address.
fn plain_service(name: &str) -> serde_json::Value {
    service("default", name, serde_json::json!({ "ports": [{ "port": 80 }] }))
}

/// The name of the object that an event is about.
pub fn named(event: &Event) -> Option<&str> {
    match event {
        Event::Applied(_, object) | Event::Deleted(_, object) => Some(&object.meta().name),
        _ => None,
    }
}

/// The names of the objects in a list of `stream`, if the event is one.
pub fn listed(event: &Event, stream: &Stream) -> Option<BTreeSet<String>> {
    match event {
        Event::Replaced(of, objects) if of == stream => {
            Some(objects.iter().map(|object| object.meta().name.clone()).collect())
        }
        _ => None,
    }
}

/// The names of the last list of `stream`.
pub fn last_list(events: &[Event], stream: &Stream) -> BTreeSet<String> {
    events.iter().rev().find_map(|event| listed(event, stream)).expect("a list")
}

/// The namespace `shop` with a headless Service of each kind and their slices, and one of no Service's.
fn fill(plane: &Plane) {
    plane.make(&namespace("shop"));
    plane.make(&headless("shop", "made", false));
    plane.make(&headless("shop", "by-hand", true));
    plane.make(&service("shop", "plain", serde_json::json!({ "ports": [{ "port": 80 }] })));
    for (of, by_hand) in [("made", false), ("by-hand", true), ("plain", true)] {
        plane.make(&slice(("shop", of), 0, ("IPv4", vec![endpoint("198.18.0.1")]), by_hand));
    }
    let dns = slice(("kube-system", "kube-dns"), 0, ("IPv4", vec![endpoint("198.18.0.53")]), true);
    plane.make(&dns);
}

#[test]
fn what_names_need_is_listed_and_nothing_else() {
    let (_alone, programs) = needs_kubernetes!();
    for flags in [&[][..], &["--feature-gates=WatchList=false"]] {
        let plane = Plane::start(&programs, flags);
        fill(&plane);
        let mut watching = Watching::on(&plane);
        let mut events = watching.synced();
        // By-hand slices are known once the Services are; that may come after the sync, never in it.
        if last_list(&events, &Stream::Named).len() < 2 {
            events = watching.until(PATIENCE, |event| listed(event, &Stream::Named).is_some());
        }
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        assert_eq!(
            last_list(&events, &Stream::Named),
            set(&["by-hand-0", "kube-dns-0"]),
            "{flags:?}"
        );
        assert_eq!(last_list(&events, &Stream::Headless), set(&["made-0"]), "{flags:?}");
        assert!(last_list(&events, &Stream::Services).is_superset(&set(&["made", "plain"])));
        assert!(last_list(&events, &Stream::Namespaces).contains("shop"));
        watching.sees_a_new_service(&plane, "later", PATIENCE);
        plane.delete(&plain_service("later"));
        watching.until(PATIENCE, |event| {
            matches!(event, Event::Deleted(_, Object::Service(gone)) if gone.metadata.name == "later")
        });
    }
}

#[test]
fn slices_of_a_new_service_without_a_selector_are_asked_for_by_its_name() {
    let (_alone, programs) = needs_kubernetes!();
    let plane = Plane::start(&programs, &[]);
    plane.make(&slice(("default", "late"), 0, ("IPv4", vec![endpoint("198.18.0.1")]), true));
    let mut watching = Watching::on(&plane);
    let events = watching.synced();
    assert_eq!(last_list(&events, &Stream::Named), BTreeSet::new());
    plane.make(&headless("default", "late", true));
    let late =
        |event: &Event| listed(event, &Stream::Named).is_some_and(|names| names.contains("late-0"));
    watching.until(PATIENCE, late);
    plane.make(&slice(("default", "late"), 1, ("IPv4", vec![endpoint("198.18.0.2")]), true));
    watching.until(PATIENCE, |event| named(event) == Some("late-1"));
}

#[test]
fn watches_that_the_server_ends_go_on_without_a_list() {
    let (_alone, programs) = needs_kubernetes!();
    let plane = Plane::start(&programs, &["--min-request-timeout=2"]);
    let mut watching = Watching::on(&plane);
    watching.synced();
    let before = watching.lists();
    for round in 0..6 {
        // Each lasts 2 to 4 s: all have ended at least twice.
        watching.sees_a_new_service(&plane, &format!("s{round}"), PATIENCE);
        std::thread::sleep(Duration::from_secs(2));
    }
    assert_eq!(watching.lists(), before);
    assert!(watching.metrics.requests.total() >= 8, "the watches did not end");
}

/// One request in fifty is told to go elsewhere, as behind a load balancer; 20 s of it on average.
#[test]
fn a_connection_that_the_server_asks_to_leave_is_made_anew_without_a_list() {
    let (_alone, programs) = needs_kubernetes!();
    let plane = Plane::start(&programs, &["--goaway-chance=0.02", "--min-request-timeout=1"]);
    let meter = Meter::before(plane.address());
    let config = plane.kubeconfig_by("metered", meter.port);
    let mut watching = Watching::by(&config).expect("a right kubeconfig");
    watching.synced();
    let (lists, connections) = (watching.lists(), meter.connections());
    let began = Instant::now();
    while meter.connections() == connections {
        assert!(began.elapsed() < 10 * PATIENCE, "nobody was told to leave");
        watching.idle(Duration::from_millis(200));
    }
    watching.sees_a_new_service(&plane, "after", PATIENCE);
    assert_eq!(watching.lists(), lists, "nothing was listed again");
    assert_eq!(watching.metrics.failures.total(), 0, "it is no failure");
}

#[test]
fn changes_are_seen_within_2_s_of_a_restart_of_the_api_server() {
    let (_alone, programs) = needs_kubernetes!();
    let mut plane = Plane::start(&programs, &[]);
    let mut watching = Watching::on(&plane);
    watching.synced();
    for round in 0..3 {
        plane.stop();
        std::thread::sleep(Duration::from_secs(2));
        plane.resume(&[]);
        let name = format!("after-{round}");
        let seen = watching.after_a_restart(&plane, &name);
        assert!(seen < Duration::from_secs(2), "{seen:?} after a restart");
    }
}

impl Watching {
    /// Makes a Service and waits until a list or an event tells of it; how long that took.
    fn after_a_restart(&mut self, plane: &Plane, name: &str) -> Duration {
        plane.make(&plain_service(name));
        let began = Instant::now();
        self.until(PATIENCE, |event| {
            let list = listed(event, &Stream::Services);
            named(event) == Some(name) || list.is_some_and(|names| names.contains(name))
        });
        began.elapsed()
    }
}

#[test]
fn what_is_forbidden_is_named_and_watched_once_it_is_allowed() {
    let (_alone, programs) = needs_kubernetes!();
    let plane = Plane::start(&programs, &[]);
    plane.unbind();
    let mut watching = Watching::on(&plane);
    let metrics = watching.metrics.clone();
    let denied = |resource| metrics.denied.is_set(nodens::metrics::ApiVerb::Watch, resource);
    use nodens::metrics::ApiResource;
    let came = crate::harness::until(PATIENCE, || denied(ApiResource::EndpointSlices));
    assert!(came && denied(ApiResource::Namespaces) && !denied(ApiResource::Pods));
    plane.bind();
    watching.synced();
    assert!(!denied(ApiResource::EndpointSlices), "what works again is not denied");
}

#[test]
fn a_wrong_kubeconfig_is_a_clear_error() {
    let place = Place::new();
    for (name, text) in [
        ("empty", ""),
        ("no-yaml", "{{{"),
        ("no-context", "apiVersion: v1\nkind: Config\ncurrent-context: x\n"),
    ] {
        let file = place.write(name, text);
        let error = Watching::by(&file).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(&file.display().to_string()), "{name}: {error}");
    }
    let error = Watching::by(&place.path("missing")).err().expect("no such file").to_string();
    assert!(error.contains("missing") && error.contains("cluster.kubeconfig"), "{error}");
}
