//! Who answers for a name: the longest suffix decides.

use std::collections::HashMap;
use std::ptr;
use std::sync::Arc;

use super::local::{Local, LocalMatch};
use super::rewrite::Rewrite;
use crate::cluster::Cluster;
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

/// The cluster zone.
#[derive(Clone)]
pub struct ClusterZone {
    pub id: ZoneId,
    pub cluster: Arc<Cluster>,
}

/// Everything that decides who answers: swapped whole at a reload.
pub struct Routes {
    cluster: Option<ClusterZone>,
    local: Local,
    local_zone: ZoneId,
    forward: HashMap<Box<[u8]>, Arc<ForwardZone>, ByConfig>,
    /// Bytes of the longest name in `forward`: no longer suffix needs to be looked up.
    longest: usize,
    root: Arc<ForwardZone>,
}

/// Who answers.
pub enum Route<'a> {
    /// Our own data.
    Local(LocalMatch<'a>),
    /// The cluster zone; when the name turns out to be none of its, [`Routes::beside_cluster`].
    Cluster(&'a ClusterZone),
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
        let longest = zones.iter().map(|zone| zone.name.as_wire().len()).max().unwrap_or_default();
        let forward = zones.into_iter().map(by_name).collect();
        Self { cluster: None, local, local_zone, forward, longest, root }
    }

    /// The same routes with a cluster zone.
    #[must_use]
    pub fn with_cluster(self, cluster: Option<ClusterZone>) -> Self {
        Self { cluster, ..self }
    }

    /// Who answers for `qname`.
    ///
    /// A name in our own data wins, then the reverse name of an address that the cluster zone knows.
    /// Between a cluster domain, a special-use name and a forward zone the longer suffix wins. Where they
    /// are the same name the cluster zone does, if it answers yet, then the forward zone, because
    /// somebody wrote it.
    pub fn route(&self, qname: &Name) -> Route<'_> {
        let cluster = self.cluster.as_ref().filter(|zone| zone.cluster.is_synced());
        self.among(qname, cluster)
    }

    /// Who answers for `qname` where the cluster zone does not.
    pub fn beside_cluster(&self, qname: &Name) -> Route<'_> {
        self.among(qname, None)
    }

    /// Who answers for `qname`, `cluster` among them.
    fn among<'a>(&'a self, qname: &Name, cluster: Option<&'a ClusterZone>) -> Route<'a> {
        // Most names have nothing to do with our own data, as their top-level domain tells already.
        let may_be_local = self.local.may_hold(qname);
        if may_be_local && let Some(exact) = self.local.exact(qname) {
            return Route::Local(exact);
        }
        if let Some(zone) = cluster.filter(|zone| zone.cluster.owns_reverse(qname)) {
            return Route::Cluster(zone);
        }
        let domains = cluster.map(|zone| &*zone.cluster.settings().domains).unwrap_or_default();
        for suffix in qname.suffixes() {
            if let Some(zone) = cluster
                && domains.iter().any(|domain| domain.as_wire() == suffix)
            {
                return Route::Cluster(zone);
            }
            if suffix.len() <= self.longest
                && let Some(zone) = self.forward.get(suffix)
            {
                return Route::Forward(zone);
            }
            if may_be_local && let Some(special) = self.local.special(suffix, qname) {
                return Route::Local(special);
            }
        }
        Route::Forward(&self.root)
    }

    /// Tells whether these are the routes by which `qname` leads to this very zone: each `Routes` has zones of
    /// its own, and the cluster zone may have come to answer since.
    pub fn lead_to(&self, zone: &ForwardZone, qname: &Name) -> bool {
        if self.cluster.is_none() {
            return self.zones().any(|own| ptr::eq(&raw const **own, zone));
        }
        matches!(self.route(qname), Route::Forward(own) if ptr::eq(&raw const **own, zone))
    }

    /// The cluster zone.
    pub fn cluster(&self) -> Option<&ClusterZone> {
        self.cluster.as_ref()
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

    /// All forward zones, each once, the root's first, the others in no order.
    pub fn zones(&self) -> impl Iterator<Item = &Arc<ForwardZone>> {
        let others = self.forward.values().filter(|zone| !zone.name.is_root());
        std::iter::once(&self.root).chain(others)
    }
}
