//! Counters of the watches on the Kubernetes API, by resource, and how they are written.

use std::fmt;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::scrape::Families;

/// A kind of objects that the API server is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiResource {
    Namespaces,
    Services,
    EndpointSlices,
    Pods,
}

impl ApiResource {
    /// All, in the order of the tables here.
    const ALL: [Self; 4] = [Self::Namespaces, Self::Services, Self::EndpointSlices, Self::Pods];

    /// The resource's name, as roles write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Pods => "pods",
        }
    }
}

impl fmt::Display for ApiResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is asked of a resource, as roles write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiVerb {
    List,
    Watch,
}

impl ApiVerb {
    /// Both, in the order of the tables here.
    const ALL: [(Self, &'static str); 2] = [(Self::List, "list"), (Self::Watch, "watch")];
}

/// One counter per resource.
#[derive(Clone, Debug, Default)]
pub struct ByResource([Counter; ApiResource::ALL.len()]);

impl ByResource {
    /// The counter of one resource.
    pub fn of(&self, resource: ApiResource) -> &Counter {
        &self.0[resource as usize]
    }

    /// All resources together.
    pub fn total(&self) -> u64 {
        self.0.iter().map(Counter::get).sum()
    }
}

/// What is forbidden now, by verb and resource.
#[derive(Clone, Debug, Default)]
pub struct Denied([[Gauge; ApiResource::ALL.len()]; ApiVerb::ALL.len()]);

impl Denied {
    /// Tells whether the API server forbids it.
    pub fn is_set(&self, verb: ApiVerb, resource: ApiResource) -> bool {
        self.0[verb as usize][resource as usize].get() != 0
    }

    /// Notes whether the API server forbids it.
    pub fn set(&self, verb: ApiVerb, resource: ApiResource, is_denied: bool) {
        self.0[verb as usize][resource as usize].set(is_denied.into());
    }
}

/// Counters of the watches.
#[derive(Clone, Debug, Default)]
pub struct WatchMetrics {
    pub requests: ByResource,
    pub lists: ByResource,
    pub failures: ByResource,
    pub denied: Denied,
    /// Events that could not be read.
    pub unreadable: Counter,
}

impl WatchMetrics {
    /// Writes all of them.
    pub(super) fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        for (name, counters) in [
            ("nodens_cluster_api_requests_total", &self.requests),
            ("nodens_cluster_api_lists_total", &self.lists),
            ("nodens_cluster_api_failures_total", &self.failures),
        ] {
            let samples = ApiResource::ALL
                .map(|resource| (vec![("resource", resource.name())], counters.of(resource).get()));
            families.counters(name, samples)?;
        }
        let denied = ApiVerb::ALL.into_iter().flat_map(|(verb, word)| {
            ApiResource::ALL.map(|resource| {
                let labels = vec![("verb", word), ("resource", resource.name())];
                (labels, self.denied.0[verb as usize][resource as usize].get())
            })
        });
        families.gauges("nodens_cluster_api_denied", denied)?;
        let unreadable = [(Vec::new(), self.unreadable.get())];
        families.counters("nodens_cluster_api_unreadable_total", unreadable)
    }
}
