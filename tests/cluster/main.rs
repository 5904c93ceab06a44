//! nodens against a real API server, with CoreDNS beside it: the programs come from `tests/kubernetes`.
//!
//! [`plane`] is the control plane, [`objects`] what is in it; the other modules are tests.
//!
//! Environment: `CI=true` makes a test that cannot run (no Go) a failure; `CLUSTER_LONG` makes
//! runs as long and clusters as large as operators fear (for nightly runs, in a release build).

mod askers;
mod churn;
mod comparison;
mod cost;
mod faults;
#[path = "../it/harness/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros)]
mod harness;
mod manifests;
mod meter;
mod objects;
mod outage;
mod plane;
mod reload;
mod scale;
mod scripted;
mod spark;
mod watching;

/// Tells whether runs last as long as operators fear.
fn is_long() -> bool {
    std::env::var_os("CLUSTER_LONG").is_some()
}
