//! From events to the next snapshot: what an event costs is what it changes, not what exists.
//!
//! Objects are parsed as they come, and Services that one of them touches are made anew at the end
//! of a batch, each once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use super::listed::{Listed, object_id, service_key};
use super::name;
use super::object::{EndpointSlice, Object, Pod, Service, ServiceKey};
use super::record::{Part, Plan, Record};
use super::registry::{Put, Registry, StreamId};
use super::snapshot::{Namespace, PodAt, SharedKey, Snapshot};
use super::touched::Touched;
use super::{Changes, Event, Followed, Settings, Stream, trigger};
use crate::metrics::{ByNamespace, UNKNOWN};

/// The port of a cluster DNS' slice that names none.
const DNS_PORT: u16 = 53;

/// An EndpointSlice as it is kept.
#[derive(Clone, Debug, PartialEq)]
struct Slice {
    service: SharedKey,
    part: Arc<Part>,
    triggered: Option<SystemTime>,
}

/// A pod as it is kept.
#[derive(Clone, Debug, PartialEq)]
struct PodState {
    addresses: Box<[IpAddr]>,
    at: PodAt,
}

/// Everything that is known, in the form that takes changes.
#[derive(Default)]
pub(super) struct Builder {
    streams: HashMap<Stream, StreamId>,
    namespaces: Registry<Namespace, ()>,
    services: Registry<SharedKey, Plan>,
    slices: Registry<Box<str>, Slice>,
    /// The parts of each Service by their EndpointSlice's name.
    parts: HashMap<SharedKey, BTreeMap<Box<str>, Arc<Part>>>,
    pods: Registry<Box<str>, PodState>,
    snapshot: Snapshot,
    touched: Touched,
    /// Where queries are counted by namespace.
    counts: Option<Arc<ByNamespace>>,
    /// Services whose endpoints others want to know.
    interest: BTreeSet<ServiceKey>,
    /// What was told last of them.
    told: HashMap<ServiceKey, Vec<SocketAddr>>,
}

impl Builder {
    /// Nothing known yet; tells of the endpoints of the Services of interest, and gives pods the numbers under
    /// which their namespace's queries are counted.
    pub fn new(interest: BTreeSet<ServiceKey>, counts: Option<Arc<ByNamespace>>) -> Self {
        Self { interest, counts, ..Self::default() }
    }

    /// Tells of the endpoints of these Services from now on.
    pub fn follow(&mut self, interest: BTreeSet<ServiceKey>) -> Followed {
        let joined = interest.difference(&self.interest);
        let keys = joined.filter_map(|key| name::service_key(&key.namespace, &key.name));
        let keys: HashSet<SharedKey> = keys.map(SharedKey::from).collect();
        let left: Vec<_> =
            self.told.keys().filter(|told| !interest.contains(*told)).cloned().collect();
        left.iter().for_each(|service| drop(self.told.remove(service)));
        self.interest = interest;
        Followed { left, joined: self.tell(&keys) }
    }

    /// Takes a batch in; gives back the new snapshot, which shares all but what changed.
    pub fn apply(&mut self, events: Vec<Event>, settings: &Settings) -> (Snapshot, Changes) {
        for event in events {
            match event {
                Event::Applied(stream, object) => {
                    let stream = self.stream(stream);
                    self.put(stream, object, true);
                }
                Event::Deleted(stream, object) => {
                    let stream = self.stream(stream);
                    self.take(stream, &object);
                }
                Event::Replaced(stream, objects) => {
                    let stream = self.stream(stream);
                    self.replace(stream, objects);
                }
                Event::Synced => {}
            }
        }
        let changes = self.finish(settings);
        (self.snapshot.clone(), changes)
    }

    /// How many objects there are: namespaces, Services, EndpointSlices, pods.
    pub fn counts(&self) -> [usize; 4] {
        [self.namespaces.len(), self.services.len(), self.slices.len(), self.pods.len()]
    }

    /// The number of a stream.
    fn stream(&mut self, stream: Stream) -> StreamId {
        let next = u32::try_from(self.streams.len()).unwrap_or(u32::MAX);
        *self.streams.entry(stream).or_insert(next)
    }

    /// Takes an object in; `live`: it tells of a change, not of what has been.
    fn put(&mut self, stream: StreamId, object: Object, live: bool) {
        let version = object.meta().resource_version.parse().ok();
        match object {
            Object::Namespace(namespace) => {
                let Some(label) = name::label(&namespace.metadata.name) else { return };
                let label: Namespace = label.into();
                if self.namespaces.put(stream, Arc::clone(&label), version, ()) == Put::New {
                    self.snapshot.namespaces.insert(Arc::clone(&label), ());
                    self.touched.namespaces.insert(label);
                }
            }
            Object::Service(service) => self.put_service(stream, version, &service),
            Object::EndpointSlice(slice) => self.put_slice(stream, version, &slice, live),
            Object::Pod(pod) => self.put_pod(stream, version, &pod),
        }
    }

    /// Takes a Service in.
    fn put_service(&mut self, stream: StreamId, version: Option<u64>, service: &Service) {
        let Some(key) = service_key(service) else { return };
        let (key, plan) = (self.shared(key), Plan::from_object(service));
        if self.services.put(stream, Arc::clone(&key), version, plan) != Put::Same {
            self.touched.services.insert(key);
        }
    }

    /// Takes an EndpointSlice in.
    fn put_slice(
        &mut self,
        stream: StreamId,
        version: Option<u64>,
        slice: &EndpointSlice,
        live: bool,
    ) {
        let id = object_id(&slice.metadata.namespace, &slice.metadata.name);
        let service = slice.service();
        let Some(key) = service.and_then(|key| name::service_key(&key.namespace, &key.name)) else {
            // It may have had the label before.
            self.take_slice(stream, &id);
            return;
        };
        let key = self.shared(key);
        let triggered = trigger::time(&slice.metadata.annotations.last_change_trigger_time);
        let part = Arc::new(Part::from_object(slice));
        let value = Slice { service: Arc::clone(&key), part: Arc::clone(&part), triggered };
        let before = match self.slices.put(stream, id.clone(), version, value) {
            Put::Same => return,
            Put::New => None,
            Put::Changed(before) => Some(before),
        };
        if let Some(triggered) = triggered.filter(|_| live)
            && before.as_ref().is_none_or(|before| before.triggered != Some(triggered))
        {
            self.touched.triggered.push(triggered);
        }
        match before {
            Some(before) if before.service != key => self.drop_part(&before.service, &id),
            // Only the annotation changed.
            Some(before) if before.part == part => return,
            _ => {}
        }
        self.parts.entry(Arc::clone(&key)).or_default().insert(id, part);
        self.touched.services.insert(key);
    }

    /// Takes a pod in. One that has ended has given its addresses back.
    fn put_pod(&mut self, stream: StreamId, version: Option<u64>, pod: &Pod) {
        let id = object_id(&pod.metadata.namespace, &pod.metadata.name);
        let ended = matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
        let Some(label) = name::label(&pod.metadata.namespace).filter(|_| !ended) else {
            return self.take_pod(stream, &id);
        };
        let listed = pod.status.pod_ips.iter().map(|pod_ip| &pod_ip.ip);
        let texts = std::iter::once(&pod.status.pod_ip).chain(listed);
        let addresses: BTreeSet<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
        let count = |counts: &Arc<ByNamespace>| counts.number(label.get(1..).unwrap_or_default());
        let number = self.counts.as_ref().map_or(UNKNOWN, count);
        let at = PodAt {
            number,
            namespace: label.into(),
            is_host: pod.spec.host_network,
            is_leaving: !pod.metadata.deletion_timestamp.is_empty(),
            has_plain_search: pod.spec.has_plain_search(),
        };
        let state = PodState { addresses: addresses.into_iter().collect(), at };
        match self.pods.put(stream, id, version, state.clone()) {
            Put::Same => return,
            Put::New => {}
            Put::Changed(before) => self.forget_pod(&before),
        }
        for address in &state.addresses {
            let mut pods = self.snapshot.pods(*address).to_vec();
            pods.push(state.at.clone());
            self.snapshot.pods.insert(*address, pods.into());
        }
        self.touched.pods.insert(state.at.namespace);
    }

    /// Notes that a stream does not hold an object any more.
    fn take(&mut self, stream: StreamId, object: &Object) {
        let meta = object.meta();
        match object {
            Object::Namespace(_) => {
                if let Some(label) = name::label(&meta.name) {
                    self.take_namespace(stream, &label.into());
                }
            }
            Object::Service(service) => {
                if let Some(key) = service_key(service) {
                    self.take_service(stream, &key.into());
                }
            }
            Object::EndpointSlice(_) => {
                self.take_slice(stream, &object_id(&meta.namespace, &meta.name));
            }
            Object::Pod(_) => self.take_pod(stream, &object_id(&meta.namespace, &meta.name)),
        }
    }

    /// Notes that a stream does not hold a namespace any more.
    fn take_namespace(&mut self, stream: StreamId, label: &Namespace) {
        if self.namespaces.take(stream, label).is_some() {
            self.snapshot.namespaces.remove(label);
            self.touched.namespaces.insert(Arc::clone(label));
        }
    }

    /// Notes that a stream does not hold a Service any more.
    fn take_service(&mut self, stream: StreamId, key: &SharedKey) {
        if self.services.take(stream, key).is_some() {
            self.touched.services.insert(Arc::clone(key));
        }
    }

    /// Notes that a stream does not hold an EndpointSlice any more.
    fn take_slice(&mut self, stream: StreamId, id: &str) {
        if let Some(slice) = self.slices.take(stream, id) {
            self.drop_part(&slice.service, id);
        }
    }

    /// Notes that a stream does not hold a pod any more.
    fn take_pod(&mut self, stream: StreamId, id: &str) {
        if let Some(pod) = self.pods.take(stream, id) {
            self.forget_pod(&pod);
        }
    }

    /// Takes a fresh list in: what the stream held besides is gone.
    fn replace(&mut self, stream: StreamId, objects: Vec<Object>) {
        let mut listed = Listed::default();
        objects.iter().for_each(|object| listed.add(object));
        for label in self.namespaces.missing(stream, &listed.namespaces) {
            self.take_namespace(stream, &label);
        }
        for key in self.services.missing(stream, &listed.services) {
            self.take_service(stream, &key);
        }
        for id in self.slices.missing(stream, &listed.slices) {
            self.take_slice(stream, &id);
        }
        for id in self.pods.missing(stream, &listed.pods) {
            self.take_pod(stream, &id);
        }
        objects.into_iter().for_each(|object| self.put(stream, object, false));
    }

    /// Takes a part away from its Service.
    fn drop_part(&mut self, service: &SharedKey, id: &str) {
        if let Some(parts) = self.parts.get_mut(service) {
            parts.remove(id);
            if parts.is_empty() {
                self.parts.remove(service);
            }
        }
        self.touched.services.insert(Arc::clone(service));
    }

    /// Takes a pod's addresses away from it.
    fn forget_pod(&mut self, pod: &PodState) {
        for address in &pod.addresses {
            let mut pods = self.snapshot.pods(*address).to_vec();
            if let Some(index) = pods.iter().position(|at| *at == pod.at) {
                pods.remove(index);
            }
            match pods.is_empty() {
                true => self.snapshot.pods.remove(address),
                false => self.snapshot.pods.insert(*address, pods.into()),
            }
        }
        self.touched.pods.insert(Arc::clone(&pod.at.namespace));
    }

    /// A key, shared with those who have it already.
    fn shared(&self, key: Vec<u8>) -> SharedKey {
        let known = self
            .services
            .key(key.as_slice())
            .or_else(|| self.parts.get_key_value(key.as_slice()).map(|(known, _)| known));
        known.map_or_else(|| key.into(), Arc::clone)
    }

    /// Makes the touched Services anew, and says which names that changed.
    fn finish(&mut self, settings: &Settings) -> Changes {
        let mut touched = std::mem::take(&mut self.touched);
        let mut changed = Vec::new();
        for key in &touched.services {
            if self.refresh(key, &mut touched.addresses) {
                changed.push(Arc::clone(key));
            }
        }
        let names = touched.names(settings, &changed, self.services.keys());
        let endpoints = self.tell(&touched.services);
        Changes { names, endpoints, synced: false, triggered: touched.triggered }
    }

    /// Makes one Service's record anew; tells whether it changed. Adds the addresses whose reverse
    /// names lead elsewhere now.
    fn refresh(&mut self, key: &SharedKey, addresses: &mut HashSet<IpAddr>) -> bool {
        let parts = self.parts.get(key).into_iter().flat_map(BTreeMap::values).map(Arc::clone);
        let new = self.services.get(key).and_then(|plan| Record::new(plan, parts)).map(Arc::new);
        let old = self.snapshot.services.get(key).map(Arc::clone);
        if old == new {
            return false;
        }
        let (old, new_record) = (old.as_deref(), new.as_deref());
        let reversible = |of: Option<&Record>, other| -> HashSet<(Option<Box<str>>, IpAddr)> {
            let pairs = of.into_iter().flat_map(|record| record.reversible(other));
            pairs.map(|(label, address)| (label.map(Box::from), address)).collect()
        };
        let before = reversible(old, new_record);
        let after = reversible(new_record, old);
        for (_, address) in before.symmetric_difference(&after) {
            match new_record.is_some_and(|record| record.has(*address)) {
                true => self.snapshot.add_owner(*address, key),
                false => self.snapshot.remove_owner(*address, key),
            }
            addresses.insert(*address);
        }
        match new {
            Some(record) => self.snapshot.services.insert(Arc::clone(key), record),
            None => self.snapshot.services.remove(key),
        }
        true
    }

    /// The endpoints of the Services of interest that are others than those told last.
    fn tell(&mut self, touched: &HashSet<SharedKey>) -> Vec<(ServiceKey, Vec<SocketAddr>)> {
        let mut changed = Vec::new();
        for service in &self.interest {
            let key = name::service_key(&service.namespace, &service.name);
            let Some(key) = key.filter(|key| touched.contains(key.as_slice())) else { continue };
            let parts = self.parts.get(key.as_slice());
            let mut endpoints = Vec::new();
            for part in parts.into_iter().flat_map(BTreeMap::values) {
                let port = dns_port(part);
                let addresses = part.endpoints(false).map(|(_, address)| address);
                endpoints.extend(addresses.map(|address| SocketAddr::new(address, port)));
            }
            endpoints.sort_unstable();
            endpoints.dedup();
            if self.told.get(service).map_or(!endpoints.is_empty(), |told| *told != endpoints) {
                self.told.insert(service.clone(), endpoints.clone());
                changed.push((service.clone(), endpoints));
            }
        }
        changed
    }
}

/// The port on which a part's endpoints answer DNS: the one named `dns`, else the first of UDP.
fn dns_port(part: &Part) -> u16 {
    let udp = || part.ports.iter().filter(|port| &*port.protocol == "udp");
    let named = udp().find(|port| &*port.name == "dns").or_else(|| udp().next());
    named.and_then(|port| port.number).unwrap_or(DNS_PORT)
}
