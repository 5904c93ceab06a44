//! `[cluster]`: where the cluster zone's objects come from, and what it answers.

use std::path::PathBuf;
use std::time::Duration;

use super::bounds::CLUSTER_TTL;
use super::endpoints::ServiceKey;
use super::error::Fault;
use super::reader::{self, Reader};
use super::tenancy::TenancyRule;
use super::zones;
use crate::dns::name::Name;

/// The cluster domain unless told otherwise.
pub const DOMAIN: &str = "cluster.local";

/// Where the zone's objects come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterSource {
    /// The API server, watched.
    Watch,
    /// A folder of manifests.
    Files,
    /// The API server as a signal alone: the zone is forwarded, and names that change leave the cache.
    Forward,
}

impl ClusterSource {
    /// As it is written.
    pub fn as_text(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Files => "files",
            Self::Forward => "forward",
        }
    }
}

/// Which names pods have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNames {
    /// None.
    #[default]
    Disabled,
    /// Every dashed address below a namespace that exists.
    Insecure,
    /// The dashed addresses of pods that exist.
    Verified,
}

impl PodNames {
    /// As it is written.
    pub fn as_text(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Insecure => "insecure",
            Self::Verified => "verified",
        }
    }
}

/// The cluster zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// None: there is no cluster zone.
    pub source: Option<ClusterSource>,
    /// At least one, each once; reverse names lead into the first.
    pub domains: Vec<Name>,
    pub ttl: Duration,
    pub pods: PodNames,
    /// How to reach the API server; `None` means the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The folder of manifests.
    pub folder: Option<PathBuf>,
    /// The cluster DNS.
    pub dns_service: ServiceKey,
    /// Whether what a pod's search list finds further down is answered at once.
    pub search: bool,
    /// Search domains that pods have from their node; `None` means those of its resolv.conf.
    pub node_search: Option<Vec<Name>>,
    /// What pods see; no line, and everybody sees everything.
    pub tenancy: Vec<TenancyRule>,
    /// Whether queries are counted by the asking pod's namespace.
    pub by_namespace: bool,
    /// This node's name, where its pods are to be watched.
    pub node: Option<String>,
}

impl Cluster {
    /// Tells whether it must be known which pod asks.
    pub fn needs_pods(&self) -> bool {
        self.search || self.by_namespace || !self.tenancy.is_empty()
    }
}

/// Reads the table.
pub fn read(reader: &mut Reader<'_, '_>) -> Cluster {
    let sources = [ClusterSource::Watch, ClusterSource::Files, ClusterSource::Forward];
    let sources = sources.map(|source| (source.as_text(), source));
    let pods = [PodNames::Disabled, PodNames::Insecure, PodNames::Verified];
    let pods = pods.map(|pods| (pods.as_text(), pods));
    let source = reader.choice("cluster.source", &sources, "watch, files, forward");
    let folder = reader.text("cluster.folder").map(PathBuf::from);
    if source == Some(ClusterSource::Files) && folder.is_none() {
        zones::fail_at(
            reader,
            "cluster.source",
            Fault::Missing { what: "`folder` beside \"files\"" },
        );
    }
    let service = reader.value("cluster.dns_service", |value| reader::text(value)?.parse());
    let cluster = Cluster {
        source,
        domains: read_domains(reader),
        ttl: reader.duration("cluster.ttl", &CLUSTER_TTL),
        pods: reader
            .choice("cluster.pods", &pods, "disabled, insecure, verified")
            .unwrap_or_default(),
        kubeconfig: reader.text("cluster.kubeconfig").map(PathBuf::from),
        folder,
        dns_service: service.unwrap_or_else(|| ServiceKey {
            namespace: "kube-system".to_owned(),
            name: "kube-dns".to_owned(),
        }),
        search: reader.switch("cluster.search", false),
        node_search: reader.list("cluster.node_search").map(|_| read_node_search(reader)),
        tenancy: read_tenancy(reader),
        by_namespace: reader.switch("cluster.by_namespace", false),
        node: reader.text("cluster.node").map(str::to_owned),
    };
    check_askers(reader, &cluster);
    cluster
}

/// Refuses options for which the pods must be known, where they cannot be.
fn check_askers(reader: &mut Reader<'_, '_>, cluster: &Cluster) {
    let fault = match cluster.source {
        None => Fault::Missing { what: "`source` beside it" },
        Some(ClusterSource::Forward) => Fault::Conflict { other: "cluster.source = \"forward\"" },
        Some(ClusterSource::Watch)
            if cluster.node.is_none() && cluster.pods != PodNames::Verified =>
        {
            let what = "`node` beside it (in a DaemonSet the variable NODENS_CLUSTER__NODE)";
            Fault::Missing { what }
        }
        _ => return,
    };
    for (key, is_wanted) in [
        ("cluster.search", cluster.search),
        ("cluster.tenancy", !cluster.tenancy.is_empty()),
        ("cluster.by_namespace", cluster.by_namespace),
    ] {
        if is_wanted {
            zones::fail_at(reader, key, fault.clone());
        }
    }
}

/// What pods see, each tenant once.
fn read_tenancy(reader: &mut Reader<'_, '_>) -> Vec<TenancyRule> {
    let mut rules: Vec<TenancyRule> = Vec::new();
    let mut places = Vec::new();
    for item in reader.list("cluster.tenancy").unwrap_or_default() {
        let read = reader::text(&item.value).and_then(str::parse);
        let Some(rule): Option<TenancyRule> = reader.accept(&item.place, read) else { continue };
        match rules.iter().position(|known| known.of == rule.of) {
            Some(at) => {
                let first: &super::error::Place = places[at];
                let what = format!("a line of \"{}\"", rule.of);
                reader.fail(&item.place, Fault::Duplicate { what, first: first.to_string() });
            }
            None => {
                rules.push(rule);
                places.push(&item.place);
            }
        }
    }
    rules
}

/// The search domains that pods have from their node.
fn read_node_search(reader: &mut Reader<'_, '_>) -> Vec<Name> {
    let mut names = Vec::new();
    for item in reader.list("cluster.node_search").unwrap_or_default() {
        let read = read_domain(&item.value, "a search domain", "\"example.org\"");
        names.extend(reader.accept(&item.place, read));
    }
    names
}

/// A name that is not the root.
fn read_domain(
    value: &super::spec::Value,
    what: &'static str,
    example: &'static str,
) -> Result<Name, Fault> {
    let text = reader::text(value)?;
    let name = Name::from_text(text).ok().filter(|name| !name.is_root());
    name.ok_or_else(|| Fault::NotA { text: text.to_owned(), what, example })
}

/// The cluster domains, each once.
fn read_domains(reader: &mut Reader<'_, '_>) -> Vec<Name> {
    let mut domains: Vec<Name> = Vec::new();
    for item in reader.some_list("cluster.domains", "domain").unwrap_or_default() {
        let read = read_domain(&item.value, "a cluster domain", "\"cluster.local\"");
        let new = reader.accept(&item.place, read);
        domains.extend(new.filter(|new| !domains.contains(new)));
    }
    if domains.is_empty() {
        domains.push(Name::from_text(DOMAIN).expect("the constant is a name"));
    }
    domains
}

#[cfg(test)]
mod tests {
    use super::super::{Flags, Inputs, host, load};

    /// What is wrong with this `[cluster]`; empty where nothing is.
    fn faults(text: &str) -> String {
        let text = format!("[cluster]\n{text}");
        let inputs = Inputs {
            file: Some((std::path::Path::new("test.toml"), &text)),
            environment: &[],
            flags: &Flags::default(),
            host: &host::Host::sample(),
        };
        load(&inputs).map_or_else(|errors| errors.to_string(), |_| String::new())
    }

    #[test]
    fn options_for_which_pods_must_be_known_are_refused_where_they_cannot_be() {
        for option in ["search = true", "tenancy = [\"*: a\"]", "by_namespace = true"] {
            for (rest, wrong) in [
                ("", "`source` beside it is missing"),
                ("source = \"forward\"", "makes no sense beside cluster.source"),
                ("source = \"watch\"", "NODENS_CLUSTER__NODE"),
                ("source = \"watch\"\nnode = \"n\"", ""),
                ("source = \"watch\"\npods = \"verified\"", ""),
                ("source = \"files\"\nfolder = \"/m\"", ""),
            ] {
                let faults = faults(&format!("{option}\n{rest}"));
                assert_eq!(faults.is_empty(), wrong.is_empty(), "{option} {rest}: {faults}");
                assert!(faults.contains(wrong), "{option} {rest}: {faults}");
            }
        }
        assert!(
            faults("tenancy = [\"a: b\", \"a: *\"]").contains("a line of \"a\" stands here and")
        );
        assert!(faults("node_search = [\".\"]").contains("is not a search domain"));
    }
}
