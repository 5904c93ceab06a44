//! `[cluster]`: where the cluster zone's objects come from, and what it answers.

use std::path::PathBuf;
use std::time::Duration;

use super::bounds::CLUSTER_TTL;
use super::endpoints::ServiceKey;
use super::error::Fault;
use super::reader::{self, Reader};
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
    Cluster {
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
    }
}

/// The cluster domains, each once.
fn read_domains(reader: &mut Reader<'_, '_>) -> Vec<Name> {
    let mut domains: Vec<Name> = Vec::new();
    for item in reader.some_list("cluster.domains", "domain").unwrap_or_default() {
        let read = reader::text(&item.value).and_then(|text| {
            let name = Name::from_text(text).ok().filter(|name| !name.is_root());
            let not_a = || Fault::NotA {
                text: text.to_owned(),
                what: "a cluster domain",
                example: "\"cluster.local\"",
            };
            name.ok_or_else(not_a)
        });
        let new = reader.accept(&item.place, read);
        domains.extend(new.filter(|new| !domains.contains(new)));
    }
    if domains.is_empty() {
        domains.push(Name::from_text(DOMAIN).expect("the constant is a name"));
    }
    domains
}
