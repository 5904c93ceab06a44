//! What is known at one moment: immutable, cheap to copy, and cheap to change a little.

use std::net::IpAddr;
use std::sync::Arc;

use super::name::Key;
use super::record::Record;
use super::shards::Shards;

/// The key of a Service, shared between all that name it: see [`super::name::service_key`].
pub type SharedKey = Arc<[u8]>;

/// A namespace's label with its length, folded.
pub type Namespace = Arc<[u8]>;

/// The objects as queries see them.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(super) namespaces: Shards<Namespace, ()>,
    pub(super) services: Shards<SharedKey, Arc<Record>>,
    /// Which Services an address belongs to, as their own or an endpoint's.
    pub(super) owners: Shards<IpAddr, Owners>,
    /// How many of these addresses are IPv6.
    owners6: usize,
    pub(super) pods: Shards<IpAddr, Arc<[PodAt]>>,
}

/// The Services of an address: nearly always one.
#[derive(Clone, Debug, PartialEq)]
pub enum Owners {
    One(SharedKey),
    /// Sorted.
    Many(Arc<[SharedKey]>),
}

/// A pod that has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAt {
    pub namespace: Namespace,
    /// The address is the node's, and so every such pod's.
    pub is_host: bool,
    /// It is being deleted: its address may be another's before we hear of it.
    pub is_leaving: bool,
    /// Its search list is that of its namespace and its node.
    pub has_plain_search: bool,
    /// Under which number the queries of its namespace are counted.
    pub number: u16,
}

impl Owners {
    /// All of them.
    pub fn keys(&self) -> &[SharedKey] {
        match self {
            Self::One(key) => std::slice::from_ref(key),
            Self::Many(keys) => keys,
        }
    }

    /// From a list without repetitions.
    fn from_keys(mut keys: Vec<SharedKey>) -> Option<Self> {
        keys.sort_unstable();
        match keys.as_slice() {
            [] => None,
            [key] => Some(Self::One(Arc::clone(key))),
            _ => Some(Self::Many(keys.into())),
        }
    }
}

impl Snapshot {
    /// Tells whether a namespace (its label, without length) exists.
    pub fn has_namespace(&self, label: &[u8]) -> bool {
        let mut wire = [0; 1 + super::name::MAX_LABEL_LEN];
        let Some(key) = wire.get_mut(..=label.len()) else { return false };
        key[0] = u8::try_from(label.len()).unwrap_or_default();
        key[1..].copy_from_slice(label);
        self.namespaces.get(&*key).is_some()
    }

    /// The record of a Service whose namespace exists.
    pub fn service(&self, key: Key<'_>) -> Option<&Arc<Record>> {
        self.services.get(key.0).filter(|_| self.has_namespace(key.namespace()))
    }

    /// The Services of an address, each with its record.
    pub fn owners(&self, address: IpAddr) -> impl Iterator<Item = (&SharedKey, &Arc<Record>)> {
        let keys = self.owners.get(&address).map(Owners::keys).unwrap_or_default();
        keys.iter().filter_map(|key| Some((key, self.services.get(key)?)))
    }

    /// Tells whether the reverse name of `address` is ours to answer.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.owners.get(&address).is_some()
    }

    /// The pods with this address.
    pub fn pods(&self, address: IpAddr) -> &[PodAt] {
        self.pods.get(&address).map(|pods| &**pods).unwrap_or_default()
    }

    /// The pod that an address is of: no other has it.
    pub fn pod(&self, address: IpAddr) -> Option<&PodAt> {
        match self.pods(address) {
            [pod] => Some(pod).filter(|pod| !pod.is_host),
            _ => None,
        }
    }

    /// Tells whether any Service or endpoint has an IPv6 address.
    pub fn has_ipv6(&self) -> bool {
        self.owners6 > 0
    }

    /// How many Services and addresses there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.services.len(), self.owners.len())
    }

    /// Notes that `address` belongs to the Service.
    pub(super) fn add_owner(&mut self, address: IpAddr, key: &SharedKey) {
        let mut keys = self.owners.get(&address).map_or(Vec::new(), |held| held.keys().to_vec());
        if !keys.contains(key) {
            self.owners6 += usize::from(keys.is_empty() && address.is_ipv6());
            keys.push(Arc::clone(key));
            self.owners.insert(address, Owners::from_keys(keys).expect("one was pushed"));
        }
    }

    /// Notes that `address` does not belong to the Service any more.
    pub(super) fn remove_owner(&mut self, address: IpAddr, key: &SharedKey) {
        let mut keys = self.owners.get(&address).map_or(Vec::new(), |held| held.keys().to_vec());
        let was_owned = !keys.is_empty();
        keys.retain(|held| held != key);
        match Owners::from_keys(keys) {
            Some(owners) => self.owners.insert(address, owners),
            None => {
                self.owners6 -= usize::from(was_owned && address.is_ipv6());
                self.owners.remove(&address);
            }
        }
    }
}
