//! The keys of a fresh list, and what tells objects of one kind apart.

use std::collections::HashSet;
use std::sync::Arc;

use super::name;
use super::object::{Object, Service};
use super::snapshot::{Namespace, SharedKey};

/// The keys of a fresh list.
#[derive(Default)]
pub(super) struct Listed {
    pub namespaces: HashSet<Namespace>,
    pub services: HashSet<SharedKey>,
    pub slices: HashSet<Box<str>>,
    pub pods: HashSet<Box<str>>,
}

impl Listed {
    /// Adds an object's key.
    pub fn add(&mut self, object: &Object) {
        let meta = object.meta();
        match object {
            Object::Namespace(_) => self.namespaces.extend(name::label(&meta.name).map(Arc::from)),
            Object::Service(service) => self.services.extend(service_key(service).map(Arc::from)),
            Object::EndpointSlice(_) => {
                self.slices.insert(object_id(&meta.namespace, &meta.name));
            }
            Object::Pod(_) => {
                self.pods.insert(object_id(&meta.namespace, &meta.name));
            }
        }
    }
}

/// The key of a Service's object.
pub(super) fn service_key(service: &Service) -> Option<Vec<u8>> {
    name::service_key(&service.metadata.namespace, &service.metadata.name)
}

/// What tells objects of one kind apart.
pub(super) fn object_id(namespace: &str, name: &str) -> Box<str> {
    format!("{namespace}/{name}").into()
}
