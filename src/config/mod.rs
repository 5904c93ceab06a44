//! The configuration as used, and how it comes about: [`spec`] is the configuration as written.
//!
//! Everything in [`Config`] is already valid: nothing is checked again later. [`load()`] lays the layers
//! on one another, `build` turns what is written into what is used, [`keys`] lists every key.

pub mod bounds;
mod build;
pub mod cluster;
mod effective;
pub mod endpoint;
pub mod endpoints;
pub mod error;
pub mod forms;
pub mod host;
pub mod intercept;
pub mod keys;
pub mod load;
pub mod loops;
mod reader;
pub mod resolv_conf;
pub mod rewrite;
pub mod spec;
pub mod tenancy;
pub mod watch;
mod zones;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::dns::Qtype;
use crate::dns::name::Name;

pub use build::ADMIN_SOCKET;
pub use cluster::{Cluster, ClusterSource, PodNames};
pub use endpoints::{EndpointSource, Endpoints, ServiceKey};
pub use error::{ConfigError, ConfigErrors};
pub use intercept::{Intercept, InterceptMode};
pub use load::{Inputs, Sources, load};
pub use loops::loops;
pub use rewrite::{Aaaa, Rewrite, TtlBounds};
pub use spec::Flags;
pub use tenancy::{TenancyRule, Tenant};
pub use zones::RESOLV_CONF;

/// The effective configuration: one value, made whole at start and at each reload.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub listen: Vec<Listen>,
    /// Networks whose queries are answered; `None` means the default set of DESIGN §9, which
    /// depends on the host's links.
    pub allow: Option<Vec<Network>>,
    pub upstream_ports: PortRange,
    /// SO_MARK of upstream sockets, where we may set it.
    pub upstream_mark: u32,
    /// Delete the conntrack entries of upstream queries by UDP behind them.
    pub deletes_tracks: bool,
    pub serve: Serve,
    pub cache: Cache,
    /// Always holds the zone `.`; zones are unique.
    pub forward: Vec<Forward>,
    pub local: Local,
    pub cluster: Cluster,
    pub intercept: Intercept,
    pub admin: Admin,
    pub log: Log,
}

/// One address to answer on, by UDP and TCP.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Listen {
    /// IPv6 link-local addresses carry their zone index.
    pub address: SocketAddr,
    /// SO_BINDTODEVICE.
    pub device: Option<String>,
    /// Written by the user: that it cannot be bound is fatal. Defaults may be missing (IPv6).
    pub required: bool,
    /// What comes here was sent to an intercepted address.
    pub is_intercepted: bool,
    /// Nothing but the intercept's table leads here, so that no new connection comes once it lets go.
    pub is_led_to: bool,
}

/// An address prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    pub address: IpAddr,
    pub prefix: u8,
}

/// The source ports of upstream queries: an inclusive range without the reserved ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
    /// Sorted; from `net.ipv4.ip_local_reserved_ports`.
    pub reserved: Vec<u16>,
}

/// Limits and sizes of the front ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serve {
    /// Plain threads that answer UDP; default min(2, cores).
    pub threads: usize,
    /// Workers of the resolver runtime, 1 or 2.
    pub resolver_threads: usize,
    /// SO_RCVBUF and SO_SNDBUF of each UDP socket, in bytes.
    pub receive_buffer: usize,
    pub send_buffer: usize,
    /// The largest UDP response, in bytes (512 to 4096; default 1232).
    pub udp_payload: u16,
    /// Queries being resolved at one time, over all front ends, shared fairly by sources; more wait or are shed.
    pub max_in_flight: usize,
    pub tcp_connections: usize,
    pub tcp_connections_per_source: usize,
    /// Queries of one connection that are worked on at one time; more wait unread.
    pub tcp_pipeline: usize,
    /// A connection without a query in flight is closed after this long.
    pub tcp_idle: Duration,
    /// How long SIGTERM waits for responses that are owed.
    pub drain: Duration,
}

/// Cache policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Every byte that the cache owns, overhead counted; 0 turns it off.
    pub size: u64,
    /// TTLs, but of negative responses, are raised to this (default 0) and lowered to that (default 7 days).
    pub min_ttl: Duration,
    pub max_ttl: Duration,
    /// Cap of negative lifetimes (RFC 2308 §5: 1 to 3 hours).
    pub max_negative_ttl: Duration,
    /// How long a resolution failure is remembered (RFC 9520 §3.2: 1 s to 300 s).
    pub failure_ttl: Duration,
    /// How long past its lifetime an entry may be served when upstreams fail; 0 turns it off.
    pub stale: Duration,
    /// Renew popular names near the end of their life.
    pub prefetch: bool,
}

/// One forward zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    pub zone: Name,
    pub upstreams: UpstreamSource,
    /// Upstreams besides those, whose addresses come and go.
    pub endpoints: Vec<Endpoints>,
    pub ports: PortPolicy,
    /// Total time for one query, all attempts together (default 4.5 s).
    pub timeout: Duration,
    /// Floor and ceiling of the wait before the first retransmission.
    pub retransmit_min: Duration,
    pub retransmit_max: Duration,
    /// Pass the upstream's AD bit on (RFC 6840 §5.7); only for a trusted path.
    pub trust_ad: bool,
    /// PEM file of the only roots to trust for `tls` and `https`, or [`SYSTEM_ROOTS`]; default: webpki roots.
    pub tls_ca: Option<PathBuf>,
    pub rewrite: Rewrite,
}

/// What `tls_ca` says where the roots of the system are to be trusted.
pub const SYSTEM_ROOTS: &str = "system";

/// Where a zone's upstreams come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamSource {
    /// Written down; empty only where there are `endpoints`.
    Fixed(Vec<Upstream>),
    /// The `nameserver` lines of this file, re-read when it changes.
    ResolvConf(PathBuf),
}

/// One recursive resolver to ask.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// IPv6 link-local addresses carry their zone index.
    pub address: SocketAddr,
    pub transport: Transport,
}

/// How an upstream is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// UDP, and TCP after a truncated response.
    Udp,
    Tcp,
    /// DNS over TLS (RFC 7858); the certificate must hold this name.
    Tls {
        server_name: String,
    },
    /// DNS over HTTPS (RFC 8484); the path is absolute.
    Https {
        server_name: String,
        path: String,
    },
}

/// How a zone draws source ports (DESIGN §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortPolicy {
    /// A fresh random port for each query.
    PerQuery,
    /// A rotated set of connected sockets.
    Pooled,
}

/// What is answered without asking anybody.
#[derive(Clone, Debug, PartialEq)]
pub struct Local {
    /// Answer `localhost.` and the loopback reverse names (RFC 6761 §6.3).
    pub localhost: bool,
    /// NXDOMAIN for `invalid.`, `test.`, `onion.`, `home.arpa.` and the like, each by its RFC.
    pub special_use: bool,
    /// NXDOMAIN for reverse names of private address ranges (RFC 6303); by default forwarded.
    pub private_reverse: bool,
    pub records: Vec<StaticRecord>,
    /// A file in the form of `/etc/hosts`, served forward and reverse, re-read when it changes.
    pub hosts: Option<PathBuf>,
    /// TTL of static records without one of their own and of the hosts file.
    pub ttl: Duration,
    /// Text for `version.bind. CH TXT`; `None` refuses.
    pub version: Option<String>,
}

/// One record written in the configuration: `name [ttl] type data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticRecord {
    pub name: Name,
    pub ttl: Option<Duration>,
    pub rtype: Qtype,
    /// Uncompressed wire form.
    pub rdata: Vec<u8>,
}

/// Where operators look in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// HTTP over TCP; empty turns it off.
    pub listen: Vec<SocketAddr>,
    /// HTTP over a unix socket; `None` turns it off.
    pub socket: Option<PathBuf>,
    /// The socket was written by the user: that it cannot be made is fatal, not a warning.
    pub socket_required: bool,
}

/// Logging.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// A `tracing` filter: `info`, or `nodens=debug,hickory=warn`.
    pub level: String,
    pub format: LogFormat,
    /// Share of queries that are logged, 0.0 (off) to 1.0.
    pub queries: f64,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}
