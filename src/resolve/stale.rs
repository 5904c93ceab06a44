//! What is past its lifetime and served at once: where nobody can be asked, or there is no time left to.
//!
//! Who can wait for a fresh answer does so in [`super::forward`].

use std::net::IpAddr;

use super::route::Route;
use super::{Resolver, Response};
use crate::cache::Found;
use crate::cache::key::KeyBuffer;
use crate::clock;
use crate::dns::name::Name;
use crate::dns::query::QueryView;
use crate::dns::response::Aging;

impl Resolver {
    /// The stale response for who asks from `source` and would get none at all otherwise.
    ///
    /// Source: RFC 8767 §5 (what cannot be refreshed in time)
    pub fn stale(&self, view: &QueryView<'_>, source: IpAddr) -> Option<Response> {
        let key = KeyBuffer::from_view(view);
        let Found::Stale(entry) = self.cache.lookup(&key, clock::now()) else { return None };
        let is_servable = view.recursion_desired() && self.may_share(&key, source, &entry);
        is_servable.then_some(Response { entry, aging: Aging::Stale })
    }

    /// The same, only while every upstream that could be asked is down.
    pub fn stale_while_down(&self, view: &QueryView<'_>, source: IpAddr) -> Option<Response> {
        let stale = self.stale(view, source)?;
        let routes = self.routes();
        match routes.route(&Name::from_wire(view.qname())?) {
            Route::Forward(zone) if zone.group.is_down() => Some(stale),
            _ => None,
        }
    }
}
