//! The paths and what they answer.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::header::{ACCEPT, CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use super::readiness::Readiness;
use super::{CacheStatus, Flush, Inspect, Liveness, UpstreamStatus, ZoneStatus};
use crate::dns::name::Name;

/// The content type of OpenMetrics text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What an unknown path gets.
const PATHS: &str = "no such path; there are: GET /metrics /livez /readyz /config /upstreams /cache, \
                     POST /cache/flush /log-level\n";

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// Anyone who can reach the address: may look.
    Tcp,
    /// Whoever may write to the socket file: may change too.
    Unix,
}

/// What every handler answers from.
#[derive(Clone)]
struct Scene {
    inspect: Arc<dyn Inspect>,
    readiness: Readiness,
    liveness: Liveness,
}

/// All paths, as seen through one door.
pub(super) fn router(
    inspect: &Arc<dyn Inspect>,
    readiness: &Readiness,
    liveness: &Liveness,
    door: Door,
) -> Router {
    let changes = Router::new()
        .route("/cache/flush", post(flush))
        .route("/log-level", post(log_level).put(log_level))
        .route_layer(from_fn_with_state(door, only_by_socket));
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/config", get(config))
        .route("/upstreams", get(upstreams))
        .route("/cache", get(cache))
        .merge(changes)
        .fallback(|| async { (StatusCode::NOT_FOUND, PATHS) })
        .layer(map_response(close))
        .with_state(Scene {
            inspect: Arc::clone(inspect),
            readiness: readiness.clone(),
            liveness: liveness.clone(),
        })
}

/// Ends the connection after each response: a connection that lives long is a stuck one.
async fn close(mut response: Response) -> Response {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Answers 403 to what would change something and did not come by the unix socket.
async fn only_by_socket(
    State(door): State<Door>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    match door {
        Door::Unix => next.run(request).await,
        Door::Tcp => (StatusCode::FORBIDDEN, "only over the unix socket\n").into_response(),
    }
}

/// `/metrics`
async fn metrics(State(scene): State<Scene>) -> Response {
    ([(CONTENT_TYPE, OPENMETRICS)], scene.inspect.metrics()).into_response()
}

/// `/livez`: whether every loop goes round; never the state of upstreams.
async fn livez(State(scene): State<Scene>) -> Response {
    verdict("stuck", &scene.liveness.stuck())
}

/// `/readyz`: whether stub resolvers should ask us.
async fn readyz(State(scene): State<Scene>) -> Response {
    verdict("missing", &scene.readiness.missing())
}

/// 200 when there is nothing to complain about, else 503 and the list.
fn verdict<T: std::borrow::Borrow<str>>(complaint: &str, about: &[T]) -> Response {
    if about.is_empty() {
        return "ok\n".into_response();
    }
    let text = format!("{complaint}: {}\n", about.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// `/config`
async fn config(State(scene): State<Scene>) -> String {
    scene.inspect.config()
}

/// The form that was asked for: `?format=json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    format: Option<String>,
}

/// `/upstreams`
async fn upstreams(
    State(scene): State<Scene>,
    headers: HeaderMap,
    Query(form): Query<Form>,
) -> Response {
    let upstreams = scene.inspect.upstreams();
    if wants_json(&headers, &form) {
        return json(&upstreams);
    }
    format!("{}\n{}", upstream_table(&upstreams), zone_table(&scene.inspect.zones()))
        .into_response()
}

/// `/cache`
async fn cache(
    State(scene): State<Scene>,
    headers: HeaderMap,
    Query(form): Query<Form>,
) -> Response {
    let cache = scene.inspect.cache();
    if wants_json(&headers, &form) {
        return json(&cache);
    }
    cache_lines(&cache).into_response()
}

/// Whether JSON was asked for, by the query or by the Accept header.
fn wants_json(headers: &HeaderMap, form: &Form) -> bool {
    let accepted = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("");
    match form.format.as_deref() {
        Some(format) => format == "json",
        None => accepted.split(',').any(|one| one.trim().starts_with("application/json")),
    }
}

/// A value as JSON.
fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(text) => ([(CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Upstreams as a table for people: a head, then one line each, columns aligned.
fn upstream_table(upstreams: &[UpstreamStatus]) -> String {
    let head = "ZONE UPSTREAM STATE SRTT IN-FLIGHT QUERIES RESPONSES TIMEOUTS FAILURES RETRIES HEDGES TCP \
                MISMATCHED UNREACHABLE CONNTRACK";
    let head = head.split(' ').map(str::to_owned).collect();
    let rows = upstreams.iter().map(|upstream| {
        let srtt = upstream.srtt_ms.map_or("-".to_owned(), |srtt| format!("{srtt:.1}ms"));
        let counts = [
            upstream.in_flight,
            upstream.queries,
            upstream.responses,
            upstream.timeouts,
            upstream.failures,
            upstream.retries,
            upstream.hedges,
            upstream.tcp_fallbacks,
            upstream.mismatched,
            upstream.unreachable,
        ];
        let mut row =
            vec![upstream.zone.clone(), upstream.upstream.clone(), upstream.state.clone(), srtt];
        row.extend(counts.map(|count| count.to_string()));
        row.push(if upstream.leaves_no_tracks { "deleted" } else { "-" }.to_owned());
        row
    });
    aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// Forward zones as a table for people.
fn zone_table(zones: &[ZoneStatus]) -> String {
    let head = "ZONE RETRIES HEDGES STALE PREFETCHES COALESCED".split(' ').map(str::to_owned);
    let rows = zones.iter().map(|zone| {
        let counts = [zone.retries, zone.hedges, zone.stale, zone.prefetches, zone.coalesced];
        std::iter::once(zone.zone.clone()).chain(counts.map(|count| count.to_string())).collect()
    });
    aligned(&std::iter::once(head.collect()).chain(rows).collect::<Vec<_>>())
}

/// Rows of cells with each column as wide as its widest cell.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column| rows.iter().filter_map(|row: &Vec<String>| row.get(column)).map(String::len).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// The cache as lines for people.
fn cache_lines(cache: &CacheStatus) -> String {
    let mut out = String::new();
    for (name, value) in [
        ("entries", cache.entries),
        ("bytes", cache.bytes),
        ("budget", cache.budget_bytes),
        ("hits", cache.hits),
        ("misses", cache.misses),
        ("stale", cache.stale),
        ("prefetches", cache.prefetches),
        ("coalesced", cache.coalesced),
        ("evictions", cache.evictions),
    ] {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{name:<10}  {value}");
    }
    out
}

/// What `/cache/flush` takes: `?all=1`, or `?name=example.org`, with `&below=1` for all below it too.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlushForm {
    all: Option<String>,
    name: Option<String>,
    below: Option<String>,
}

/// `/cache/flush`
async fn flush(State(scene): State<Scene>, Query(form): Query<FlushForm>) -> Response {
    let what = match read_flush(&form) {
        Ok(what) => what,
        Err(reason) => return (StatusCode::BAD_REQUEST, reason + "\n").into_response(),
    };
    tracing::info!(?what, "cache flushed by request");
    match scene.inspect.flush(what) {
        Some(entries) => format!("flushed {entries} entries\n").into_response(),
        None => "flushed\n".into_response(),
    }
}

/// The flush that a form asks for, or what is wrong with it.
fn read_flush(form: &FlushForm) -> Result<Flush, String> {
    let is_set = |value: &Option<String>| match value.as_deref() {
        None | Some("0" | "false") => Ok(false),
        Some("" | "1" | "true") => Ok(true),
        Some(other) => Err(format!("`{other}` is neither 1 nor 0")),
    };
    let (all, below) = (is_set(&form.all)?, is_set(&form.below)?);
    match &form.name {
        None if all && !below => Ok(Flush::All),
        Some(text) if !all => {
            let name = Name::from_text(text).map_err(|error| format!("name `{text}`: {error}"))?;
            Ok(if below { Flush::Below(name) } else { Flush::Name(name) })
        }
        _ => Err("give either all=1, or name=NAME, or name=NAME&below=1".to_owned()),
    }
}

/// What `/log-level` takes: `?level=debug`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LevelForm {
    level: String,
}

/// `/log-level`
async fn log_level(State(scene): State<Scene>, Query(form): Query<LevelForm>) -> Response {
    match scene.inspect.set_log_level(&form.level) {
        Ok(()) => format!("log level is {}\n", form.level).into_response(),
        Err(reason) => (StatusCode::BAD_REQUEST, reason + "\n").into_response(),
    }
}
