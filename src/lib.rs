//! nodens answers DNS on every node of a cluster.
pub mod admin;
pub mod app;
pub mod bench;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod dns;
pub mod intercept;
pub mod lab;
pub mod metrics;
pub mod netlink;
pub mod pulse;
pub mod resolve;
pub mod serve;
pub mod shutdown;
pub mod stub;
pub mod telemetry;
#[doc(hidden)]
pub mod testing;
pub mod upstream;
