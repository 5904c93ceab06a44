//! What a watch lives through, told by an API server of the test's own.

use std::path::Path;
use std::time::{Duration, Instant};

use nodens::cluster::object::Object;
use nodens::cluster::{Event, Stream};
use nodens::metrics::{ApiResource, ApiVerb};
use serde_json::{Value, json};

use crate::harness::{Place, until};
use crate::scripted::Scripted;
use crate::watching::{PATIENCE, Watching, last_list, listed, named};

/// A Service with an address, at this version.
fn service(name: &str, version: u32) -> Value {
    json!({ "metadata": { "name": name, "namespace": "default", "resourceVersion": version.to_string() },
        "spec": { "clusterIP": "198.18.0.1", "selector": { "a": "b" } } })
}

/// A watch on `server`, synced.
fn watch(server: &Scripted) -> Watching {
    let mut watching = Watching::by(&server.kubeconfig(&json!({ "token": "one" }))).expect("a way");
    watching.synced();
    watching
}

#[test]
fn a_version_that_is_too_old_begins_a_fresh_list_and_what_it_lacks_is_gone() {
    let server = Scripted::start();
    server.hold("services", &[service("old", 1), service("kept", 2)]);
    let mut watching = watch(&server);
    server.hold("services", &[service("kept", 2), service("new", 3)]);
    let before = server.asked().len();
    server.forget();
    let events = watching.until(PATIENCE, |event| listed(event, &Stream::Services).is_some());
    let names = last_list(&events, &Stream::Services);
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["kept", "new"]);
    let after = &server.asked()[before..];
    assert!(after.iter().any(|asked| asked.is_list()), "{after:?}");
    assert!(after.iter().all(|asked| !asked.target.contains("resourceVersion=1&")), "{after:?}");
}

#[test]
fn a_refusal_after_a_restart_is_tried_again_without_a_list_and_is_no_denial() {
    let server = Scripted::start();
    server.hold("services", &[service("first", 1)]);
    let mut watching = watch(&server);
    let (lists, before) = (watching.lists(), server.asked().len());
    for code in [403, 401, 429, 500, 503] {
        server.refuse(&[code; 4]);
        server.end();
        let metrics = watching.metrics.clone();
        let is_back = || {
            let asked = &server.asked()[before..];
            asked.iter().filter(|asked| asked.target.contains("/services")).count() >= 2
        };
        assert!(until(PATIENCE, is_back), "{:?}", server.asked());
        let is_denied = || metrics.denied.is_set(ApiVerb::Watch, ApiResource::Services);
        assert!(until(PATIENCE, || !is_denied()), "{code} was passing");
        let name = format!("after-{code}");
        // The watch may be between two attempts.
        assert!(until(PATIENCE, || server.try_say("services", "ADDED", &service(&name, 9))));
        watching.until(PATIENCE, |event| named(event) == Some(&name));
    }
    assert_eq!(watching.lists(), lists, "nothing was listed again");
}

#[test]
fn events_that_cannot_be_read_are_counted_and_left_out() {
    let server = Scripted::start();
    let mut watching = watch(&server);
    server.say("services", "ADDED", &json!({ "metadata": 7 }));
    server.say("services", "SOMETHING", &json!({}));
    server.say("services", "ADDED", &service("after", 9));
    let events = watching.until(PATIENCE, |event| named(event) == Some("after"));
    let is_service = |event: &&Event| matches!(event, Event::Applied(_, Object::Service(_)));
    assert_eq!(events.iter().filter(is_service).count(), 1, "{events:?}");
    assert_eq!(watching.metrics.unreadable.get(), 2);
}

/// kube keeps a token for 50 s; tokens of pods are replaced some 10 minutes before they end.
#[test]
fn a_token_that_is_replaced_in_its_file_is_soon_used_and_nothing_is_listed_again() {
    let (server, place) = (Scripted::start(), Place::new());
    let file = place.write("token", "one");
    let mut watching = by_token_file(&server, &file);
    let lists = watching.lists();
    assert!(server.asked().iter().all(|asked| asked.authorization == "Bearer one"));
    place.write("token", "two");
    let began = Instant::now();
    let is_used = || {
        watching.idle(Duration::from_secs(3));
        server.end();
        server.asked().iter().any(|asked| asked.authorization == "Bearer two")
    };
    assert!(until(Duration::from_secs(120), is_used), "{:?}", server.asked());
    println!("the new token was used {:?} after it was there", began.elapsed());
    assert_eq!(watching.lists(), lists);
}

/// The kubelet replaces tokens long before they end; a revoked one, or a clock that is wrong, ends at once.
#[test]
fn a_token_that_is_refused_is_read_again_at_once_and_nothing_is_listed_again() {
    let (server, place) = (Scripted::start(), Place::new());
    server.hold("services", &[service("first", 1)]);
    let file = place.write("token", "one");
    let mut watching = by_token_file(&server, &file);
    let lists = watching.lists();
    place.write("token", "two");
    server.know("two");
    let (before, began) = (server.asked().len(), Instant::now());
    server.end();
    let event = service("after", 9);
    assert!(
        until(PATIENCE, || server.try_say("services", "ADDED", &event)),
        "{:?}",
        server.asked()
    );
    watching.until(PATIENCE, |event| named(event) == Some("after"));
    println!("watched with the new token {:?} after the old one was refused", began.elapsed());
    // By itself kube would have read it after 50 s.
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    let asked = &server.asked()[before..];
    let refused = asked.iter().filter(|asked| asked.authorization == "Bearer one").count();
    assert!((1..=4).contains(&refused), "each feed at most once: {asked:?}");
    assert_eq!(watching.lists(), lists);
    // A token that stays wrong is said to be so, and asked about with backoff.
    server.know("three");
    server.end();
    let denied = || watching.metrics.denied.is_set(ApiVerb::Watch, ApiResource::Services);
    assert!(until(PATIENCE, denied));
    place.write("token", "three");
    assert!(until(PATIENCE, || server.try_say("services", "ADDED", &service("last", 10))));
    watching.until(PATIENCE, |event| named(event) == Some("last"));
    assert_eq!(watching.lists(), lists);
}

#[test]
fn a_token_that_stays_refused_costs_requests_but_hardly_a_connection() {
    let (server, place) = (Scripted::start(), Place::new());
    let mut watching = by_token_file(&server, &place.write("token", "one"));
    server.know("another");
    let (asked, connections) = (server.asked().len(), server.connections());
    server.end();
    let is_asked_often = || {
        watching.idle(Duration::from_millis(100));
        server.asked().len() >= asked + 24
    };
    assert!(until(PATIENCE, is_asked_often), "{:?}", server.asked());
    let made = server.connections() - connections;
    assert!(made <= 12, "{made} connections for {} requests", server.asked().len() - asked);
}

/// A watch on `server` with the token of a file, synced.
fn by_token_file(server: &Scripted, file: &Path) -> Watching {
    let config = server.kubeconfig(&json!({ "tokenFile": file }));
    let mut watching = Watching::by(&config).expect("a way");
    watching.synced();
    watching
}
