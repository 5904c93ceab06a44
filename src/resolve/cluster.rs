//! The cluster zone's answers, on their way through the cache.

use std::sync::Arc;

use super::route::{ClusterZone, Routes};
use super::{ResolveError, Resolver, Response};
use crate::cache::Source;
use crate::cluster::zone::Answer;
use crate::dns::query::Query;
use crate::metrics::Origin;

impl Resolver {
    /// What the cluster zone answers; `None` when the name is none of its, after all.
    ///
    /// Stored until the name changes: whoever changes a name publishes the new snapshot first and drops
    /// what is stored afterwards, so an answer from an older snapshot has an epoch that has ended.
    pub(super) async fn cluster(
        self: &Arc<Self>,
        query: &Query,
        routes: &Routes,
        zone: &ClusterZone,
    ) -> Option<Result<Response, ResolveError>> {
        let epoch = self.cache.epoch(query.qname.as_wire());
        Some(match zone.cluster.answer(query)? {
            Answer::Whole(encoded) => {
                let source = Source { zone: zone.id, origin: Origin::Cluster, epoch };
                Ok(self.keep(query, encoded, routes, source))
            }
            Answer::Alias(alias) => self.follow(query, alias, Origin::Cluster).await,
        })
    }
}
