//! Every tunable's default, floor and ceiling, each with its reason. A value outside is refused.

use std::time::Duration;

/// What a tunable may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounded<T> {
    pub default: T,
    pub min: T,
    pub max: T,
}

impl<T: PartialOrd> Bounded<T> {
    /// Tells whether `value` lies between floor and ceiling, both included.
    pub fn admits(&self, value: &T) -> bool {
        *value >= self.min && *value <= self.max
    }
}

/// Bytes of a KiB.
const KIB: u64 = 1 << 10;

/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

/// Seconds of a day.
const DAY: u64 = 24 * 3600;

/// The largest datagram queue that is of any use: at 1 µs a query, 1 GiB is minutes of backlog.
const MAX_BUFFER: u64 = 1 << 30;

/// Threads that answer UDP; with fewer cores than the default, one per core.
pub const THREADS: Bounded<u64> = Bounded {
    default: 2, // one thread answers some 300,000 hits a second, more than a node's pods ask
    min: 1,
    max: 256, // sockets of one SO_REUSEPORT group; more than cores is never faster
};

/// Workers of the resolver runtime.
pub const RESOLVER_THREADS: Bounded<u64> = Bounded {
    default: 2, // a second worker keeps misses going while the first does maintenance
    min: 1,
    max: 2, // misses wait for the network, not for cores
};

/// SO_RCVBUF of a UDP socket, in bytes.
pub const RECEIVE_BUFFER: Bounded<u64> = Bounded {
    default: 4 * MIB, // about 5,000 queries: a burst of every pod at once
    min: 4 * KIB,     // a handful of queries; the kernel's own floor is near
    max: MAX_BUFFER,
};

/// SO_SNDBUF of a UDP socket, in bytes.
pub const SEND_BUFFER: Bounded<u64> = Bounded {
    default: MIB, // responses leave at once; only a stalled link fills it
    min: 8 * KIB, // one batch of small responses
    max: MAX_BUFFER,
};

/// The largest UDP response, in bytes.
pub const UDP_PAYLOAD: Bounded<u64> = Bounded {
    default: crate::dns::edns::UDP_PAYLOAD as u64, // no fragments (DNS flag day 2020, RFC 9715)
    min: 512,                                      // every stub resolver takes that (RFC 1035)
    max: 4096,                                     // RFC 6891 §6.2.5
};

/// Queries being resolved at one time.
pub const MAX_IN_FLIGHT: Bounded<u64> = Bounded {
    default: 4096, // 4.5 s of upstream silence at 900 misses a second; 2,048 took some 18 MB
    min: 16,       // less would shed at the first burst
    max: 1 << 20,
};

/// TCP connections of all stub resolvers together.
pub const TCP_CONNECTIONS: Bounded<u64> = Bounded {
    default: 4096, // a fifth of the descriptors that a service usually has
    min: 1,
    max: 1 << 20, // the kernel's usual fs.nr_open
};

/// TCP connections of one source address.
pub const TCP_CONNECTIONS_PER_SOURCE: Bounded<u64> = Bounded {
    default: 256, // one pod cannot take more than a sixteenth
    min: 1,
    max: 1 << 20,
};

/// Queries of one TCP connection that are worked on at one time.
pub const TCP_PIPELINE: Bounded<u64> = Bounded {
    default: 64, // glibc sends 2; forwarders pipeline dozens
    min: 1,      // strictly one after the other
    max: 65_536, // as many as there are ids
};

/// How long an idle TCP connection is kept.
pub const TCP_IDLE: Bounded<Duration> = Bounded {
    default: Duration::from_secs(30), // RFC 7766 §6.2.3: "in the order of a few seconds" and more
    min: Duration::from_secs(1),
    max: Duration::from_secs(3600),
};

/// How long SIGTERM waits for what is owed.
pub const DRAIN: Bounded<Duration> = Bounded {
    default: Duration::from_secs(5), // a forward timeout (4.5 s) fits
    min: Duration::ZERO,
    max: Duration::from_secs(600), // longer than any termination grace period in use
};

/// The cache's byte budget; 0 turns it off, anything else is at least [`CACHE_SIZE_FLOOR`].
pub const CACHE_SIZE: Bounded<u64> = Bounded {
    default: 64 * MIB, // some 100,000 names
    min: 0,
    max: 1 << 40,
};

/// The least cache that is one: some thousand entries.
pub const CACHE_SIZE_FLOOR: u64 = MIB;

/// TTLs are raised to this.
pub const MIN_TTL: Bounded<Duration> = Bounded {
    default: Duration::ZERO, // an owner's TTL is the owner's decision
    min: Duration::ZERO,
    max: Duration::from_secs(3600), // longer would hide failovers for hours
};

/// TTLs are lowered to this.
pub const MAX_TTL: Bounded<Duration> = Bounded {
    default: Duration::from_secs(7 * DAY), // RFC 8767 §4: "on the order of days to a week"
    min: Duration::from_secs(1),           // 0 would be no cache; `cache.size = "0"` says that
    max: Duration::from_secs(7 * DAY),
};

/// Negative lifetimes are lowered to this.
pub const MAX_NEGATIVE_TTL: Bounded<Duration> = Bounded {
    default: Duration::from_secs(3600), // RFC 2308 §5: "values of one to three hours"
    min: Duration::ZERO,
    max: Duration::from_secs(3 * 3600),
};

/// How long a resolution failure is remembered (RFC 9520 §3.2: 1 s to 300 s).
pub const FAILURE_TTL: Bounded<Duration> = Bounded {
    default: Duration::from_secs(1), // a restarted cluster DNS is back in seconds
    min: Duration::from_secs(1),
    max: Duration::from_secs(300),
};

/// How long past its lifetime an entry may be served; 0 turns it off.
pub const STALE: Bounded<Duration> = Bounded {
    default: Duration::from_secs(DAY), // RFC 8767 §5: "1 to 3 days"
    min: Duration::ZERO,
    max: Duration::from_secs(7 * DAY),
};

/// Total time for one query, all attempts together.
pub const FORWARD_TIMEOUT: Bounded<Duration> = Bounded {
    default: Duration::from_millis(4500), // before glibc's and musl's 5 s run out
    min: Duration::from_millis(100),      // one round trip to anywhere on land
    max: Duration::from_secs(60),
};

/// Floor of the wait before the first retransmission.
pub const RETRANSMIT_MIN: Bounded<Duration> = Bounded {
    default: Duration::from_millis(20), // scheduling noise on a busy node stays below
    min: Duration::from_millis(1),
    max: Duration::from_secs(10),
};

/// Ceiling of the wait before the first retransmission.
pub const RETRANSMIT_MAX: Bounded<Duration> = Bounded {
    default: Duration::from_millis(400), // round the world, and some
    min: Duration::from_millis(1),
    max: Duration::from_secs(10),
};

/// TTL of static records without one of their own and of the hosts file.
pub const LOCAL_TTL: Bounded<Duration> = Bounded {
    default: Duration::from_secs(60), // an edited file is believed everywhere within a minute
    min: Duration::ZERO,
    max: Duration::from_secs(7 * DAY),
};

/// TTL of the cluster zone's records.
pub const CLUSTER_TTL: Bounded<Duration> = Bounded {
    default: Duration::from_secs(5), // CoreDNS's: what a stub resolver keeps is wrong no longer
    min: Duration::ZERO,
    max: Duration::from_secs(3600), // CoreDNS's too
};

/// SO_MARK of upstream sockets; 0 sets none.
pub const UPSTREAM_MARK: Bounded<u64> = Bounded {
    // None of the bits that others on a node test: kube-proxy masquerades 0x4000 (which would
    // rewrite our source ports) and drops 0x8000; Cilium reads 0x0f00, Calico 0xffff_0000, the
    // AWS CNI 0x80.
    default: 0x306e,
    min: 0,
    max: u32::MAX as u64,
};

/// Share of queries that are logged.
pub const LOG_QUERIES: Bounded<f64> = Bounded {
    default: 0.0, // people's names are nobody's business
    min: 0.0,
    max: 1.0,
};

/// The fewest usable source ports of a class: with fewer, a draw is no draw.
pub const MIN_CLASS_PORTS: usize = 16;
