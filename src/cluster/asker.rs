//! Who asks, where the operator lets answers depend on it: by [`super::search`] and [`super::tenancy`].
//!
//! The ordinary answer is the same for everybody, and only that is ever shared. What is told to one asker
//! alone is made anew for each query.

use std::net::IpAddr;

use super::name::Asked;
use super::search;
use super::snapshot::{Namespace, PodAt, Snapshot};
use super::tenancy::Sight;
use super::zone::{Answer, Zone};
use super::{Cluster, Settings};
use crate::dns::Rcode;
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::response::Encoded;
use crate::metrics::UNKNOWN;

/// The last label of every reverse name.
const ARPA: &[u8] = b"\x04arpa\0";

/// Who asks, as far as it is certain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// The pod's namespace; `None` is who is no known pod.
    namespace: Option<Namespace>,
    /// Whether its search list is that of its namespace and its node.
    has_plain_search: bool,
}

impl Settings {
    /// Tells whether an answer may depend on who asks.
    pub fn minds_askers(&self) -> bool {
        self.search.is_some() || self.tenancy.is_some()
    }

    /// What pods of a namespace (its label, with length) see.
    fn sight<'a>(&'a self, namespace: Option<&'a [u8]>) -> Sight<'a> {
        let label = namespace.and_then(|namespace| namespace.get(1..));
        self.tenancy.as_ref().map_or(Sight::ALL, |tenancy| tenancy.sight(label))
    }

    /// Tells whether the answer under a folded wire name is the same for this sight as for everybody. Reverse
    /// names are not, since somebody else may know them. Allocates nothing.
    fn shows_all_of(&self, qname: &[u8], sight: Sight<'_>) -> bool {
        if sight.is_all() {
            return true;
        }
        match self.within(qname).map(|(_, asked)| asked) {
            None => !qname.ends_with(ARPA),
            Some(Asked::Apex | Asked::NameServer) => {
                let namespace =
                    |service: &super::ServiceKey| sight.shows(service.namespace.as_bytes());
                self.name_server.as_ref().is_none_or(namespace)
            }
            Some(_) => self.shows(qname, sight),
        }
    }

    /// Tells whether a folded wire name may be told of: it is of no namespace, or of one that is shown.
    fn shows(&self, name: &[u8], sight: Sight<'_>) -> bool {
        self.namespace(name).is_none_or(|namespace| sight.shows(namespace))
    }

    /// Tells whether a message may name something within a cluster domain: whether the domain's first label
    /// stands anywhere in it. Allocates nothing, and follows no compression.
    fn may_be_named_in(&self, message: &[u8]) -> bool {
        self.domains.iter().any(|domain| {
            let wire = domain.as_wire();
            let label = wire.get(..=usize::from(wire[0])).unwrap_or_default();
            message.windows(label.len()).any(|bytes| bytes.eq_ignore_ascii_case(label))
        })
    }
}

impl Cluster {
    /// Tells whether anything comes of who asks: an answer, or a count.
    pub fn minds_askers(&self) -> bool {
        self.settings.minds_askers() || self.counts.is_some()
    }

    /// Counts a query from `source`, where queries are counted. Allocates nothing.
    pub fn count(&self, source: IpAddr) {
        if let Some(counts) = &self.counts {
            let snapshot = self.snapshot.load();
            counts.count(self.pod(&snapshot, source).map_or(UNKNOWN, |pod| pod.number));
        }
    }

    /// Who asks from `source`; nobody known before the first sync.
    pub fn asker(&self, source: IpAddr) -> Asker {
        let snapshot = self.snapshot.load();
        self.pod(&snapshot, source).map_or_else(Asker::default, |pod| Asker {
            namespace: Some(pod.namespace.clone()),
            has_plain_search: pod.has_plain_search && !pod.is_leaving,
        })
    }

    /// The pod that asks from `source`.
    fn pod<'a>(&self, snapshot: &'a Snapshot, source: IpAddr) -> Option<&'a PodAt> {
        snapshot.pod(source.to_canonical()).filter(|_| self.is_synced())
    }

    /// Tells whether who asks from `source` for a folded wire name may be given the answer that is shared,
    /// which has this response code, and this message if it is another's.
    ///
    /// Allocates nothing: the hot path asks.
    pub fn may_share(
        &self,
        qname: &[u8],
        source: IpAddr,
        rcode: Rcode,
        forwarded: Option<&[u8]>,
    ) -> bool {
        let settings = &self.settings;
        let may_be_hidden = settings.tenancy.is_some();
        let may_be_found = settings.search.is_some() && rcode == Rcode::NXDOMAIN;
        let is_within = || settings.domains.iter().any(|domain| qname.ends_with(domain.as_wire()));
        let concerns = match may_be_hidden {
            true => forwarded.is_some() || is_within() || qname.ends_with(ARPA),
            false => may_be_found && is_within(),
        };
        if !concerns {
            return true;
        }
        let snapshot = self.snapshot.load();
        let pod = self.pod(&snapshot, source);
        let namespace = pod.map(|pod| &*pod.namespace);
        let is_first = || {
            let plain = |pod: &&PodAt| pod.has_plain_search && !pod.is_leaving;
            let pod = pod.filter(|_| may_be_found).filter(plain);
            pod.is_some_and(|pod| search::is_first(qname, &pod.namespace, &settings.domains))
                && !self.is_below_service(&snapshot, qname)
        };
        let sight = settings.sight(namespace);
        // Whom another's answer leads to is looked at on the long way. Every byte is looked at for that, so
        // only where something is hidden.
        let leads_in = || forwarded.is_some_and(|message| settings.may_be_named_in(message));
        settings.shows_all_of(qname, sight) && (sight.is_all() || !leads_in()) && !is_first()
    }

    /// Tells whether something is hidden from `asker`.
    pub fn hides(&self, asker: &Asker) -> bool {
        !self.settings.sight(asker.namespace.as_deref()).is_all()
    }

    /// The response that there is no such name, or nothing of the type, as `rcode` says.
    pub fn denial(&self, query: &Query, rcode: Rcode) -> Encoded {
        let snapshot = self.snapshot.load();
        let (settings, serial) = (&self.settings, self.serial);
        Zone { snapshot: &snapshot, settings, serial, sight: Sight::ALL }.denial(query, rcode)
    }

    /// Tells whether `asker` sees all that there is under `qname`.
    pub fn shows_all_of(&self, qname: &Name, asker: &Asker) -> bool {
        let sight = self.settings.sight(asker.namespace.as_deref());
        self.settings.shows_all_of(qname.as_wire(), sight)
    }

    /// Tells whether `asker` may be told of `name`, as the target of an alias say.
    pub fn shows(&self, name: &Name, asker: &Asker) -> bool {
        self.settings.shows(name.as_wire(), self.settings.sight(asker.namespace.as_deref()))
    }

    /// The answer to `asker`; `None` when the name is none of ours.
    pub fn answer_to(&self, query: &Query, asker: &Asker) -> Option<Answer> {
        self.answer_within(query, self.settings.sight(asker.namespace.as_deref()))
    }

    /// Tells whether a folded wire name stands below a Service that exists: an endpoint that is not ready
    /// yet, say, and no name of the world outside.
    fn is_below_service(&self, snapshot: &Snapshot, qname: &[u8]) -> bool {
        match self.settings.within(qname).map(|(_, asked)| asked) {
            Some(Asked::Endpoint { service, .. } | Asked::Port { service, .. }) => {
                snapshot.service(service).is_some()
            }
            _ => false,
        }
    }

    /// The names that follow `qname` in the search list of `asker`, if that begins with it.
    pub fn search_on(&self, qname: &Name, asker: &Asker) -> Option<Vec<Name>> {
        let search = self.settings.search.as_ref().filter(|_| asker.has_plain_search)?;
        if self.is_below_service(&self.snapshot.load(), qname.as_wire()) {
            return None;
        }
        search.rest(qname.as_wire(), asker.namespace.as_deref()?, &self.settings.domains)
    }
}
