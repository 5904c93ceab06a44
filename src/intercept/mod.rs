//! Brings queries for other addresses to us, and lets go of them when we die.
//!
//! [`claims`] takes private addresses, [`table`] is the owner table that rewrites asked addresses to
//! them, [`plan`](mod@plan) decides what to change, [`apply`] changes it, [`heartbeat`] keeps the
//! dead-man switch on, [`counts`] and [`firewall`] notice who eats our packets, [`below`] is the net for the time
//! without us. [`bind`] is node-cache's way instead of all that. What is asked of it may change while it
//! runs: `app::takeover::Reports` is where whoever watches the cluster DNS says its addresses and endpoints. It refuses to answer queries (that is `serve`), and to know which addresses are right.

pub mod apply;
pub mod below;
pub mod bind;
pub mod claims;
pub mod counts;
pub mod firewall;
pub mod heartbeat;
pub mod plan;
mod socket;
pub mod table;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use self::apply::Ruler;
use self::claims::Claims;
use self::counts::{Watches, Way};
use self::firewall::Backoff;
use self::heartbeat::Heartbeat;
use self::plan::{Desired, Pair, Reach, Step, plan};
use self::socket::Drum;
use crate::config::{Listen, Network};
use crate::metrics::InterceptMetrics;
use crate::netlink::addresses::Addresses;
use crate::netlink::netfilter::{Netfilter, NetlinkError};
use crate::netlink::nft::Batch;
use crate::pulse::Pulses;

/// How much longer a TCP flow is remembered than it may idle.
const FLOW_SLACK: Duration = Duration::from_secs(30);

/// How long what is put right again and again is not said again.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// How often the drain tries to take no more queries: the kernel may refuse while others load rules.
const STOP_TRIES: usize = 3;

/// Why queries cannot be intercepted.
#[derive(Debug, Error)]
pub enum InterceptError {
    #[error(
        "takeover needs the capability {capability}: give it to the process (as root, or `setcap \
         cap_net_admin,cap_net_bind_service+ep` the program), or set intercept.mode = \"none\", which works \
         without and answers on the addresses of `listen` only"
    )]
    NotPermitted { capability: &'static str },
    #[error(
        "cannot own {address}: the link {link} has it; {mend}, or write intercept.mode = \"takeover\""
    )]
    Owned { address: IpAddr, link: String, mend: String },
    #[error("no private address is left for {asked}; write a larger network in intercept.private")]
    NoPrivate { asked: IpAddr },
    #[error(
        "this host has no IPv6 (ipv6.disable=1, or net.ipv6.conf.*.disable_ipv6 = 1): enable it, or leave IPv6 \
         addresses out of intercept.addresses"
    )]
    NoIpv6,
    #[error("this host has neither dummy links nor a link `lo`")]
    NoLink,
    #[error("cannot make a socket for the intercept: {0}")]
    Socket(io::Error),
    #[error("cannot intercept: {0}")]
    Netlink(NetlinkError),
}

impl From<NetlinkError> for InterceptError {
    fn from(error: NetlinkError) -> Self {
        match error {
            error if error.is_permission() => Self::NotPermitted { capability: "CAP_NET_ADMIN" },
            error => Self::Netlink(error),
        }
    }
}

impl InterceptError {
    /// Why a link was not given this address. That IPv6 is disabled is said in the same word as other refusals.
    fn of_address(ip: IpAddr, error: NetlinkError) -> Self {
        if ip.is_ipv6() && error.is_denied() { Self::NoIpv6 } else { error.into() }
    }
}

impl From<io::Error> for InterceptError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::NotPermitted { capability: "CAP_NET_ADMIN" },
            _ => Self::Socket(error),
        }
    }
}

/// What an intercept is started with, besides its claims.
pub struct Start {
    /// SO_MARK of upstream sockets.
    pub upstream_mark: u32,
    /// How long a TCP connection may idle.
    pub tcp_idle: Duration,
    pub pulses: Arc<Pulses>,
    pub metrics: InterceptMetrics,
}

/// A running intercept. Its end, however it comes, lets queries take the ordinary path.
///
/// What is asked of it may change while it runs: [`Intercept::claim`] the private addresses, serve
/// what [`Intercept::listens`] says, then [`Intercept::take`]. [`Intercept::lead`] changes the net below.
pub struct Intercept {
    claims: Claims,
    ruler: Ruler,
    desired: Desired,
    heartbeat: Heartbeat,
    watches: Watches,
    backoff: Backoff,
    metrics: InterceptMetrics,
    /// The last mend failed; said once.
    is_failing: bool,
    /// What was last put right, and when that was said.
    mended: Option<(Vec<Step>, Instant)>,
}

impl Intercept {
    /// Makes the owner table and begins to claim. The private addresses must be served by now.
    ///
    /// # Errors
    /// [`InterceptError`]
    pub fn start(mut claims: Claims, start: Start) -> Result<Self, InterceptError> {
        let mut netfilter = Netfilter::open()?;
        apply::remove_leftovers(&mut netfilter)?;
        bind::collect(&mut Addresses::open()?, &mut netfilter)?;
        let drum = Drum::new(table::BEAT_MARK)?;
        claims.note_served();
        let desired = Desired::new(claims.pairs().clone());
        let flow_timeout = start.tcp_idle + FLOW_SLACK;
        let mut ruler = Ruler::new(netfilter, (start.upstream_mark, drum.port()), flow_timeout);
        let observed = ruler.observe(&mut claims)?;
        ruler.apply(&plan(&desired, &observed), &mut claims)?;
        start.metrics.owned.set(i64::from(ruler.is_owned()));
        let heartbeat = Heartbeat::start(drum, start.pulses, start.metrics.clone())?;
        Ok(Self {
            claims,
            ruler,
            desired,
            heartbeat,
            watches: Watches::default(),
            backoff: Backoff::default(),
            metrics: start.metrics,
            is_failing: false,
            mended: None,
        })
    }

    /// Claims private addresses for other asked ones; nothing else is taken before [`Intercept::take`].
    ///
    /// # Errors
    /// [`InterceptError`]; then all stays as it is.
    pub fn claim(&mut self, asked: &[IpAddr], private: &[Network]) -> Result<(), InterceptError> {
        self.claims.change(asked, private)
    }

    /// What must be served before [`Intercept::take`].
    pub fn listens(&self) -> Vec<Listen> {
        self.claims.listens()
    }

    /// Takes what was claimed last, and nothing else; it is served by now. Flows and responses of
    /// what is taken no more go on.
    ///
    /// # Errors
    /// As the kernel says; then the next look tries again.
    pub fn take(&mut self) -> Result<(), InterceptError> {
        self.claims.note_served();
        self.desired.pairs = self.claims.pairs().clone();
        let observed = self.ruler.observe(&mut self.claims)?;
        Ok(self.ruler.apply(&plan(&self.desired, &observed), &mut self.claims)?)
    }

    /// What is taken.
    pub fn pairs(&self) -> &BTreeSet<Pair> {
        &self.desired.pairs
    }

    /// Leads 169.254.20.10 to those of these endpoints that have IPv4 addresses while nobody intercepts
    /// it, also after our death; without any the net below is removed.
    ///
    /// # Errors
    /// As the kernel says; then the next look tries again.
    pub fn lead(&mut self, endpoints: &[SocketAddr]) -> Result<(), InterceptError> {
        self.desired.below = endpoints.iter().copied().filter(SocketAddr::is_ipv4).collect();
        Ok(self.ruler.lead(&self.desired.below)?)
    }

    /// Looks after the table and the addresses; call it every second or more often.
    pub fn look(&mut self, now: Instant) {
        match self.mend(now) {
            Ok(()) => self.is_failing = false,
            Err(error) if !std::mem::replace(&mut self.is_failing, true) => {
                tracing::error!(%error, "the intercept cannot be mended for now");
            }
            Err(_) => {}
        }
    }

    /// Brings what is to what shall be, and withdraws when a firewall eats our packets.
    fn mend(&mut self, now: Instant) -> Result<(), InterceptError> {
        let observed = self.ruler.observe(&mut self.claims)?;
        let steps = plan(&self.desired, &observed);
        if !steps.is_empty() {
            self.metrics.repairs.inc_by(steps.len() as u64);
            self.say_mended(&steps, now);
            self.ruler.apply(&steps, &mut self.claims)?;
        }
        if self.is_withdrawn() && self.backoff.is_over(now) {
            tracing::info!("trying again whether the firewall lets queries and responses through");
            self.reach(Reach::Everything)?;
        }
        if self.desired.reach != Reach::Everything {
            return Ok(());
        }
        let counts = self.ruler.counts()?;
        let [rewritten, arrived] = counts.udp_queries().map(i64::try_from);
        self.metrics.rewritten.set(rewritten.unwrap_or(i64::MAX));
        self.metrics.arrived.set(arrived.unwrap_or(i64::MAX));
        match self.watches.eaten(&counts, now) {
            Some(way) => self.withdraw(way, now),
            None => Ok(()),
        }
    }

    /// Says what is put right; the same again only after a while.
    fn say_mended(&mut self, steps: &[Step], now: Instant) {
        let is_known = |(said, when): &(Vec<Step>, Instant)| {
            said == steps && now.saturating_duration_since(*when) < SAY_AGAIN
        };
        if !self.mended.as_ref().is_some_and(is_known) {
            tracing::warn!(?steps, "putting right what somebody changed");
            self.mended = Some((steps.to_vec(), now));
        }
    }

    /// Takes the table away: with the firewall in between, every query would be lost.
    fn withdraw(&mut self, way: Way, now: Instant) -> Result<(), InterceptError> {
        self.watches.restart();
        self.desired.reach = Reach::Nothing;
        let (again, mender) = (self.backoff.begin(now), way.mender());
        let (asked, private): (Vec<_>, Vec<_>) =
            self.desired.pairs.iter().map(|pair| (pair.asked, pair.private)).unzip();
        if way.are_queries {
            tracing::error!(
                ?private, dropped = %way, ?again,
                "a firewall of this host drops queries to our private addresses: the table is withdrawn, and \
                 tried again after a while; mend: accept untracked packets to them, e.g. `{mender} -I INPUT -m \
                 conntrack --ctstate UNTRACKED -d PRIVATE -j ACCEPT`"
            );
        } else {
            tracing::error!(
                ?asked, dropped = %way, ?again,
                "a firewall of this host drops our responses: the table is withdrawn, and tried again after a \
                 while; mend: accept untracked packets from them, e.g. `{mender} -I OUTPUT -m conntrack --ctstate \
                 UNTRACKED -s ASKED -j ACCEPT`"
            );
        }
        self.metrics.withdrawals.inc();
        self.reach(Reach::Nothing)
    }

    /// Tells whether nothing is taken because of a firewall.
    pub fn is_withdrawn(&self) -> bool {
        self.desired.reach == Reach::Nothing
    }

    /// Changes how much is taken.
    fn reach(&mut self, reach: Reach) -> Result<(), InterceptError> {
        self.desired.reach = reach;
        let observed = self.ruler.observe(&mut self.claims)?;
        Ok(self.ruler.apply(&plan(&self.desired, &observed), &mut self.claims)?)
    }

    /// Takes no new queries; flows and responses that are ours go on. For the drain.
    pub fn stop_taking(&mut self) {
        if self.desired.reach != Reach::Everything {
            return;
        }
        for _ in 0..STOP_TRIES {
            match self.reach(Reach::Owed) {
                Ok(()) => return,
                Err(error) => tracing::error!(%error, "queries are still taken while we drain"),
            }
        }
        // Nobody would read them: the switch goes off without beats.
        self.heartbeat.stop();
    }

    /// Leaves: the table first, then the addresses.
    pub fn leave(mut self) {
        drop(self.heartbeat);
        self.desired.reach = Reach::Nothing;
        // Who leaves mends nothing: what is missing of the net below may have been cleaned up.
        self.desired.below.clear();
        let observed = self.ruler.observe(&mut self.claims);
        let left = observed.and_then(|observed| {
            self.ruler.apply(&plan(&self.desired, &observed), &mut self.claims)
        });
        if let Err(error) = left {
            tracing::warn!(%error, "the table was not removed; it ends with this process");
        }
        self.claims.leave();
    }
}

/// Removes all that we ever leave behind: tables without a living owner, the net below, addresses.
///
/// # Errors
/// `NotPermitted` without CAP_NET_ADMIN.
pub fn clean_up(private: &[Network]) -> Result<(), InterceptError> {
    let mut netfilter = Netfilter::open()?;
    apply::remove_leftovers(&mut netfilter)?;
    let mut batch = Batch::default();
    below::replace(&mut batch, &[]);
    netfilter.apply(&batch)?;
    bind::collect(&mut Addresses::open()?, &mut netfilter)?;
    claims::clean_up(private)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_means_no_ipv6_only_where_an_ipv6_address_was_to_be_added() {
        let denied = || NetlinkError::Io(io::Error::from_raw_os_error(libc::EACCES));
        let of = |ip: &str| InterceptError::of_address(ip.parse().expect("an address"), denied());
        assert!(matches!(of("2001:db8::1"), InterceptError::NoIpv6));
        assert!(matches!(of("192.0.2.1"), InterceptError::Netlink(_)));
        assert!(matches!(denied().into(), InterceptError::Netlink(_)), "rules, links, lists");
        let no_right = NetlinkError::Io(io::Error::from_raw_os_error(libc::EPERM));
        let no_right = InterceptError::of_address(std::net::Ipv6Addr::LOCALHOST.into(), no_right);
        assert!(matches!(no_right, InterceptError::NotPermitted { .. }));
    }
}
