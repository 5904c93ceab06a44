//! Upstreams that come and go: who is asked now, and what becomes of exchanges at those that went.
//!
//! Whoever knows the addresses (a watch, a resolver, a file) tells [`Upstreams::set_endpoints`]. From then
//! on a vanished upstream gets no query: the groups are swapped, exchanges in flight are woken and go
//! elsewhere, kept sockets and connections are closed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};

use tokio::sync::futures::Notified;

use super::{Group, Member, Upstreams, locked};
use crate::config::EndpointSource;

/// Who belongs to each set of endpoints, as was said last.
pub(super) type Sources = HashMap<EndpointSource, Box<[SocketAddr]>>;

impl Upstreams {
    /// Takes over who belongs to `source` from now on: every group that names it asks these and no others
    /// of it. May be called from any thread, also before a group names the source.
    pub fn set_endpoints(&self, source: &EndpointSource, addresses: &[SocketAddr]) {
        let mut sources = locked(&self.sources);
        let before = sources.insert(source.clone(), addresses.into());
        if before.as_deref() == Some(addresses) {
            return;
        }
        tracing::info!(%source, ?addresses, "endpoints changed");
        self.metrics.forward.endpoint_changes.inc();
        let groups = self.all_groups();
        let moved: Vec<_> = groups.iter().filter(|group| group.names(source)).collect();
        let before: Vec<_> = moved.iter().map(|group| self.refresh(group, &sources)).collect();
        before.iter().for_each(|members| let_go(members, &groups));
        // Only now: another change might have made one of them a member again meanwhile.
        drop(sources);
        moved.iter().for_each(|group| group.moved.notify_waiters());
    }

    /// Makes exchanges in flight at `old`, to which no route leads any more, go on with the upstreams of `new`.
    /// Those that nobody else asks get no query from now on.
    pub fn succeed(&self, old: &Group, new: &Arc<Group>) {
        let sources = locked(&self.sources);
        if old.successor.set(Arc::clone(new)).is_ok() {
            let_go(&old.members.load(), &self.all_groups());
        }
        drop(sources);
        old.moved.notify_waiters();
    }

    /// Forgets who belongs to `source`, which nobody follows any more; groups that name it stay as they are.
    pub fn forget_endpoints(&self, source: &EndpointSource) {
        locked(&self.sources).remove(source);
    }

    /// Tells whether anybody has said who belongs to `source`.
    pub fn knows(&self, source: &EndpointSource) -> bool {
        locked(&self.sources).contains_key(source)
    }

    /// Who belongs to `source`, as was said last.
    pub fn endpoints(&self, source: &EndpointSource) -> Box<[SocketAddr]> {
        locked(&self.sources).get(source).cloned().unwrap_or_default()
    }

    /// Puts the members of this moment in force; gives back those of before.
    ///
    /// `sources` are held meanwhile: of two changes at once the later one sees both.
    pub(super) fn refresh(&self, group: &Group, sources: &Sources) -> Arc<Vec<Arc<Member>>> {
        let before = group.members.load_full();
        group.members.store(Arc::new(self.members(group, sources, &before)));
        // Who is new is looked at for loops in the next round.
        *group.loops_probed() = None;
        before
    }

    /// The upstreams of a group at this moment; those that are in `before` stay as they are.
    fn members(
        &self,
        group: &Group,
        sources: &Sources,
        before: &[Arc<Member>],
    ) -> Vec<Arc<Member>> {
        let of_sets = group.endpoints.iter().flat_map(|set| {
            let addresses = sources.get(&set.source).map(|known| &known[..]).unwrap_or_default();
            addresses.iter().map(|address| set.at(*address))
        });
        let mut members: Vec<Arc<Member>> = Vec::new();
        for upstream in group.fixed.iter().cloned().chain(of_sets) {
            let peer = self.peer(&upstream, group.tls_ca.clone());
            if members.iter().any(|known| Arc::ptr_eq(&known.peer, &peer)) {
                continue;
            }
            peer.appear();
            let known = before.iter().find(|known| Arc::ptr_eq(&known.peer, &peer));
            let member = || Arc::new(Member { peer, looping: AtomicBool::new(false) });
            members.push(known.cloned().unwrap_or_else(member));
        }
        members
    }
}

/// Lets those of `members` vanish whom none of `groups` asks any more.
fn let_go(members: &[Arc<Member>], groups: &[Arc<Group>]) {
    let asked: Vec<_> = groups.iter().map(|group| group.asked()).collect();
    for old in members {
        let is_it = |member: &Arc<Member>| Arc::ptr_eq(&member.peer, &old.peer);
        if !asked.iter().any(|members| members.iter().any(is_it)) {
            old.peer.vanish();
        }
    }
}

impl Group {
    /// The sets of endpoints that the group's upstreams are of.
    pub fn sources(&self) -> impl Iterator<Item = &EndpointSource> {
        self.endpoints.iter().map(|set| &set.source)
    }

    /// Tells whether any of the group's upstreams are those of `source`.
    fn names(&self, source: &EndpointSource) -> bool {
        self.endpoints.iter().any(|set| set.source == *source)
    }

    /// Tells whether upstreams of the group may come and go.
    pub(super) fn is_moving(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// Completes at the next change of members after this call; never where they are fixed.
    pub(super) fn moved(&self) -> Moved<'_> {
        // Boxed where it is rare: the usual exchange pays for a word.
        Moved(self.is_moving().then(|| Box::pin(self.moved.notified())))
    }
}

/// Waits for a change of a group's members.
pub(super) struct Moved<'a>(Option<Pin<Box<Notified<'a>>>>);

impl Moved<'_> {
    /// Ready once, when the members have changed since this was made.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().map_or(Poll::Pending, |moved| moved.as_mut().poll(context))
    }
}
