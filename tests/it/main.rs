//! nodens against real parts: the executable, Knot DNS, dnsperf, tcpdump, unbound, C libraries.
//!
//! `harness` starts and ends the parts; the other modules are tests, filed by subject, `conformance` by RFC.
//!
//! Environment: `CI=true` makes a test that cannot run a failure, `IT_LONG` makes the flood last 60 s
//! instead of 8 (for nightly runs), `IT_KEEP` leaves the tests' files in the temporary directory.
//! `IT_ROUNDS`: how often kills, stops and upgrades are repeated (3 unless said).

mod admin;
mod answers;
mod askers;
mod bench;
mod beside;
mod bind;
mod cache;
mod cluster;
mod coexistence;
mod conformance;
mod deadman;
mod drain;
mod edges;
mod faults;
mod flood;
mod handover;
mod harness;
mod hostile;
mod links;
mod manifests;
mod netfilter;
mod odd;
mod opinion;
mod ports;
mod pressure;
mod privileges;
mod reload;
mod renamed;
mod startup;
mod starved;
mod steps;
mod stubs;
mod takeover;
mod takeover_live;
mod tracks;
mod upstreams;
