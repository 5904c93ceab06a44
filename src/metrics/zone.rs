//! Counters of the cluster zone, and how they are written.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::namespaces::ByNamespace;
use super::scrape::{Families, SECONDS};
use super::tally::{DURATION_BUCKETS, duration_bucket};

/// The kinds of objects, in the order of [`ZoneMetrics::objects`].
const KINDS: [&str; 4] = ["namespaces", "services", "endpointslices", "pods"];

/// Time spans in CoreDNS's buckets; the last cell is the sum in nanoseconds.
#[derive(Debug, Default)]
pub struct Spans([AtomicU64; DURATION_BUCKETS + 1]);

impl Spans {
    /// Counts one.
    pub fn observe(&self, span: Duration) {
        self.0[duration_bucket(span)].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        self.0[DURATION_BUCKETS].fetch_add(nanos, Ordering::Relaxed);
    }

    /// The cells now.
    fn cells(&self) -> [u64; DURATION_BUCKETS + 1] {
        std::array::from_fn(|index| self.0[index].load(Ordering::Relaxed))
    }
}

/// Counters of the cluster zone.
#[derive(Clone, Debug, Default)]
pub struct ZoneMetrics {
    /// 1 once the zone answers.
    pub synced: Gauge,
    /// Objects known, by kind.
    pub objects: [Gauge; KINDS.len()],
    pub events: Counter,
    /// Names dropped from the cache because they changed.
    pub names_changed: Counter,
    /// Manifests that could not be read.
    pub files_failed: Counter,
    /// Answers that a pod's search list had further down.
    pub search_answers: Counter,
    /// Names that exist, perhaps, and were withheld from the asker.
    pub denials: Counter,
    /// Queries by the namespace of the pod that asked, where the operator wants it.
    pub by_namespace: Arc<ByNamespace>,
    /// From the moment that an event was read until its change is visible.
    pub visible: Arc<Spans>,
    /// From the moment that the cluster says a change of endpoints happened until it is visible.
    pub programming: Arc<Spans>,
}

impl ZoneMetrics {
    /// Writes all of them.
    pub(super) fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        families.gauges("nodens_cluster_synced", [(Vec::new(), self.synced.get())])?;
        let objects = KINDS.into_iter().zip(&self.objects);
        let objects = objects.map(|(kind, gauge)| (vec![("kind", kind)], gauge.get()));
        families.gauges("nodens_cluster_objects", objects)?;
        for (name, counter) in [
            ("nodens_cluster_events_total", &self.events),
            ("nodens_cluster_names_changed_total", &self.names_changed),
            ("nodens_cluster_files_failed_total", &self.files_failed),
            ("nodens_cluster_search_answers_total", &self.search_answers),
            ("nodens_cluster_denials_total", &self.denials),
        ] {
            families.counters(name, [(Vec::new(), counter.get())])?;
        }
        let by_namespace = self.by_namespace.read();
        let counted = by_namespace.iter().filter(|(_, count)| *count > 0);
        let queries = counted.map(|(name, count)| (vec![("namespace", &**name)], *count));
        families.counters("nodens_cluster_queries_total", queries)?;
        let visible = self.visible.cells();
        let visible = [(Vec::new(), visible.as_slice())];
        families.histograms("nodens_cluster_visible_seconds", SECONDS, visible)?;
        let kind = vec![("service_kind", "headless_with_selector")];
        let programming = self.programming.cells();
        let name = "coredns_kubernetes_dns_programming_duration_seconds";
        families.histograms(name, SECONDS, [(kind, programming.as_slice())])
    }
}
