//! Starts and ends the real parts that the tests put around the daemon, on loopback or in namespaces.
//!
//! Everything started here ends with the value that stands for it. [`Daemon`] is the executable under
//! test, [`Knot`] and [`Sink`] are upstreams, [`wire`] is a stub resolver with bare hands.
//! It refuses to judge: assertions belong to the tests.

pub mod capture;
pub mod daemon;
pub mod dnsdist;
pub mod http;
pub mod knot;
pub mod load;
pub mod manifests;
pub mod message;
pub mod namespace;
pub mod node;
pub mod place;
pub mod pod;
pub mod process;
pub mod sink;
pub mod statistics;
pub mod stubs;
pub mod unbound;
pub mod wire;
pub mod witness;

pub use daemon::{Daemon, Setup};
pub use knot::Knot;
pub use message::{Answer, Ask, Record, ask, flag, name_to_wire, qtype, rcode};
pub use place::{Place, until};
pub use sink::{Action, Seen, Sink};
pub use wire::{Tcp, Udp};

/// Ends the calling test when a program is missing: loudly, and as a failure where `CI` is `true`.
macro_rules! needs {
    ($($program:literal),+ $(,)?) => {
        if !$crate::harness::process::all_present(&[$($program),+]) {
            return;
        }
    };
}
pub(crate) use needs;
