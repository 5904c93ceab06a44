//! What a batch of events touched, and the names that this means.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::snapshot::{Namespace, SharedKey};
use super::zone::{below, joined};
use super::{PodNames, Settings, name};
use crate::dns::name::Name;

/// What a batch has touched so far.
#[derive(Default)]
pub(super) struct Touched {
    pub services: HashSet<SharedKey>,
    pub namespaces: HashSet<Namespace>,
    pub pods: HashSet<Namespace>,
    pub addresses: HashSet<IpAddr>,
    pub triggered: Vec<SystemTime>,
}

impl Touched {
    /// The names whose answers may differ now: `changed` are the Services whose records do, `known`
    /// all that there are.
    pub fn names<'a>(
        &self,
        settings: &Settings,
        changed: &[SharedKey],
        known: impl Iterator<Item = &'a SharedKey>,
    ) -> Vec<Name> {
        let mut names = Names { settings, out: HashSet::new() };
        changed.iter().for_each(|key| names.push(&[key, b"\x03svc"]));
        for label in &self.namespaces {
            names.push(&[label, b"\x03svc"]);
            names.push(&[label, b"\x03pod"]);
        }
        if !self.namespaces.is_empty() {
            let namespace = |key: &SharedKey| key.get(1 + usize::from(key[0])..).map(Arc::from);
            let is_within = |key: &&SharedKey| {
                namespace(key).is_some_and(|label: Namespace| self.namespaces.contains(&label))
            };
            known.filter(is_within).for_each(|key| names.push(&[key, b"\x03svc"]));
        }
        if settings.pods == PodNames::Verified {
            self.pods.iter().for_each(|label| names.push(&[label, b"\x03pod"]));
        }
        names.out.extend(self.addresses.iter().copied().map(Name::reverse_of));
        names.push_name_server();
        names.out.into_iter().collect()
    }
}

/// The names that changed, in every cluster domain.
struct Names<'a> {
    settings: &'a Settings,
    out: HashSet<Name>,
}

impl Names<'_> {
    /// Adds a name of wire labels in front of each domain.
    fn push(&mut self, front: &[&[u8]]) {
        for domain in &self.settings.domains {
            let name = joined(&[&front.concat(), domain.as_wire()]);
            self.out.extend(name);
        }
    }

    /// Adds the apex and its name server when the Service behind them is among the names.
    fn push_name_server(&mut self) {
        let Some(service) = &self.settings.name_server else { return };
        let key = name::service_key(&service.namespace, &service.name);
        let domain = self.settings.domains.first();
        let own = key.zip(domain).and_then(|(key, domain)| below(&[], &key, domain));
        if own.is_some_and(|own| self.out.contains(&own)) {
            self.push(&[]);
            self.push(&[b"\x02ns\x03dns"]);
        }
    }
}
