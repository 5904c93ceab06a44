//! nodens against a real API server, with CoreDNS beside it: the programs come from `tests/kubernetes`.
//!
//! [`plane`] is the control plane, [`objects`] what is in it; the other modules are tests.
//!
//! Environment: `CI=true` makes a test that cannot run (no Go) a failure.

#[path = "../it/harness/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros)]
mod harness;
mod objects;
mod plane;
mod watching;
