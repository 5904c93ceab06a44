//! Who answers for a name: the longest suffix decides.

use std::collections::HashMap;
use std::ptr;
use std::sync::Arc;

use super::local::{Local, LocalMatch};
use super::rewrite::Rewrite;
use crate::dns::name::{ByConfig, Name};
use crate::metrics::ZoneId;
use crate::upstream::Group;

/// A forward zone with its upstreams.
pub struct ForwardZone {
    pub name: Name,
    pub id: ZoneId,
    pub group: Arc<Group>,
    pub rewrite: Rewrite,
}

/// Everything that decides who answers: swapped whole at a reload.
pub struct Routes {
    local: Local,
    local_zone: ZoneId,
    forward: HashMap<Box<[u8]>, Arc<ForwardZone>, ByConfig>,
    root: Arc<ForwardZone>,
}

/// Who answers.
pub enum Route<'a> {
    /// Our own data.
    Local(LocalMatch<'a>),
    /// The upstreams of a zone.
    Forward(&'a Arc<ForwardZone>),
}

impl Routes {
    /// Routes over our own data and `zones`; `root` answers for what no other zone covers.
    pub fn new(
        local: Local,
        local_zone: ZoneId,
        root: Arc<ForwardZone>,
        zones: Vec<Arc<ForwardZone>>,
    ) -> Self {
        let by_name = |zone: Arc<ForwardZone>| (zone.name.as_wire().into(), zone);
        Self { local, local_zone, forward: zones.into_iter().map(by_name).collect(), root }
    }

    /// Who answers for `qname`.
    ///
    /// A name in our own data wins. Between a special-use name and a forward zone the longer suffix
    /// wins, and where they are the same name the zone, because somebody wrote it.
    pub fn route(&self, qname: &Name) -> Route<'_> {
        if let Some(exact) = self.local.exact(qname) {
            return Route::Local(exact);
        }
        for suffix in qname.suffixes() {
            if let Some(zone) = self.forward.get(suffix) {
                return Route::Forward(zone);
            }
            if let Some(special) = self.local.special(suffix, qname) {
                return Route::Local(special);
            }
        }
        Route::Forward(&self.root)
    }

    /// Tells whether these are the routes that lead to this very zone: each `Routes` has zones of its own.
    pub fn has(&self, zone: &ForwardZone) -> bool {
        self.zones().any(|own| ptr::eq(&raw const **own, zone))
    }

    /// Tells whether `zone`, perhaps of earlier routes, would still answer as it did.
    pub fn holds(&self, zone: &ForwardZone) -> bool {
        let named = self.forward.get(zone.name.as_wire());
        let mut here = named.into_iter().chain([&self.root]).filter(|here| here.name == zone.name);
        here.any(|here| here.rewrite.settings() == zone.rewrite.settings())
    }

    /// Our own data.
    pub fn local(&self) -> &Local {
        &self.local
    }

    /// The zone under which our own answers are counted.
    pub fn local_zone(&self) -> ZoneId {
        self.local_zone
    }

    /// All forward zones, the root's first, the others in no order.
    pub fn zones(&self) -> impl Iterator<Item = &Arc<ForwardZone>> {
        std::iter::once(&self.root).chain(self.forward.values())
    }
}
