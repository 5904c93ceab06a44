//! Kubernetes objects, reduced to what DNS needs of them; read from the API's JSON and from manifests.
//!
//! Unknown fields are skipped, absent and `null` ones have their defaults: what the API server
//! accepts never fails here for its values. What values mean is decided elsewhere.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

/// The label that names an EndpointSlice's Service.
///
/// Source: Kubernetes "EndpointSlices", ownership
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// The label that kube-controller-manager gives to the EndpointSlices of headless Services.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// The annotation that says when the change happened that an EndpointSlice tells of (RFC 3339).
pub const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A Service's name with its namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ServiceKey {
    /// The Service `namespace/name`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An object of one of the kinds that are watched.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Namespace(Namespace),
    Service(Service),
    EndpointSlice(EndpointSlice),
    Pod(Pod),
}

impl Object {
    /// The object's metadata.
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Namespace(namespace) => &namespace.metadata,
            Self::Service(service) => &service.metadata,
            Self::EndpointSlice(slice) => &slice.metadata,
            Self::Pod(pod) => &pod.metadata,
        }
    }
}

/// What every object says of itself.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    #[serde(deserialize_with = "nullable")]
    pub resource_version: String,
    /// Empty unless the object is being deleted.
    #[serde(deserialize_with = "nullable")]
    pub deletion_timestamp: String,
    /// Only those labels that DNS needs.
    #[serde(deserialize_with = "nullable")]
    pub labels: Labels,
    #[serde(deserialize_with = "nullable")]
    pub annotations: Annotations,
}

/// The labels that DNS needs; the others are skipped without being kept.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Labels {
    /// The EndpointSlice's Service.
    #[serde(rename = "kubernetes.io/service-name", deserialize_with = "nullable")]
    pub service_name: String,
}

/// The annotations that DNS needs.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Annotations {
    /// When the change happened that an EndpointSlice tells of (RFC 3339).
    #[serde(
        rename = "endpoints.kubernetes.io/last-change-trigger-time",
        deserialize_with = "nullable"
    )]
    pub last_change_trigger_time: String,
}

/// A namespace: only that it exists matters.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Namespace {
    pub metadata: Meta,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Service {
    pub metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub spec: ServiceSpec,
}

impl Service {
    /// The Service's name with its namespace.
    pub fn key(&self) -> ServiceKey {
        ServiceKey::new(&self.metadata.namespace, &self.metadata.name)
    }

    /// Tells whether the Service has no address of its own but those of its endpoints.
    pub fn is_headless(&self) -> bool {
        !self.is_external() && self.spec.cluster_ip == "None"
    }

    /// Tells whether the Service is an alias.
    pub fn is_external(&self) -> bool {
        self.spec.type_ == "ExternalName"
    }

    /// Tells whether somebody else than the cluster writes its EndpointSlices, perhaps without the
    /// label [`HEADLESS_LABEL`].
    pub fn is_without_selector(&self) -> bool {
        self.spec.selector.is_empty()
    }
}

/// What a Service wants.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub type_: String,
    /// An address, `None` for a headless Service, or empty.
    #[serde(rename = "clusterIP", deserialize_with = "nullable")]
    pub cluster_ip: String,
    #[serde(rename = "clusterIPs", deserialize_with = "nullable")]
    pub cluster_ips: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<Port>,
    #[serde(deserialize_with = "nullable")]
    pub selector: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub external_name: String,
    #[serde(deserialize_with = "nullable")]
    pub publish_not_ready_addresses: bool,
}

/// A port of a Service or EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Port {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Empty means TCP.
    #[serde(deserialize_with = "nullable")]
    pub protocol: String,
    /// As written: the API server lets an EndpointSlice say −1.
    pub port: Option<i64>,
}

/// Addresses behind a Service, or a part of them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    pub metadata: Meta,
    /// `IPv4`, `IPv6` or `FQDN`.
    #[serde(deserialize_with = "nullable")]
    pub address_type: String,
    #[serde(deserialize_with = "nullable")]
    pub endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<Port>,
}

impl EndpointSlice {
    /// The Service that the slice belongs to, if it says so.
    pub fn service(&self) -> Option<ServiceKey> {
        let name = &self.metadata.labels.service_name;
        (!name.is_empty()).then(|| ServiceKey::new(&self.metadata.namespace, name))
    }
}

/// One endpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    #[serde(deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub hostname: String,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Conditions,
}

/// In which state an endpoint is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Absent counts as ready.
    pub ready: Option<bool>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub spec: PodSpec,
    #[serde(deserialize_with = "nullable")]
    pub status: PodStatus,
}

/// Where a pod runs.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    #[serde(deserialize_with = "nullable")]
    pub node_name: String,
    #[serde(deserialize_with = "nullable")]
    pub host_network: bool,
    #[serde(deserialize_with = "nullable")]
    pub dns_policy: String,
    #[serde(deserialize_with = "nullable")]
    pub dns_config: PodDns,
}

impl PodSpec {
    /// Tells whether the pod's search list is that of its namespace and its node.
    pub fn has_plain_search(&self) -> bool {
        let is_cluster_first =
            matches!(self.dns_policy.as_str(), "" | "ClusterFirst" | "ClusterFirstWithHostNet");
        is_cluster_first && self.dns_config.searches.is_empty()
    }
}

/// What a pod says of its own resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PodDns {
    #[serde(deserialize_with = "nullable")]
    pub searches: Vec<String>,
}

/// How a pod is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    #[serde(deserialize_with = "nullable")]
    pub phase: String,
    #[serde(rename = "podIP", deserialize_with = "nullable")]
    pub pod_ip: String,
    #[serde(rename = "podIPs", deserialize_with = "nullable")]
    pub pod_ips: Vec<PodIp>,
}

/// One address of a pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    #[serde(deserialize_with = "nullable")]
    pub ip: String,
}

/// Reads `null` as the default: Go writes empty lists so.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_server_sends_is_read_nulls_and_unknown_fields_and_all() {
        let slice: EndpointSlice = serde_json::from_str(
            r#"{"apiVersion":"discovery.k8s.io/v1","metadata":{"name":"a-1","namespace":"n",
            "resourceVersion":"12","uid":"x","labels":{"kubernetes.io/service-name":"a","b":"c"},
            "annotations":{"endpoints.kubernetes.io/last-change-trigger-time":"2026-01-02T03:04:05Z"}},
            "addressType":"IPv4","ports":null,"endpoints":[
              {"addresses":["192.0.2.1"],"conditions":{"ready":null},"targetRef":{"kind":"Pod"}},
              {"addresses":null,"conditions":null,"hostname":"h"}]}"#,
        )
        .expect("as the API server has it");
        assert_eq!(slice.service(), Some(ServiceKey::new("n", "a")));
        assert_eq!(slice.endpoints.len(), 2);
        assert_eq!(slice.endpoints[0].conditions.ready, None);
        assert_eq!(slice.metadata.annotations.last_change_trigger_time, "2026-01-02T03:04:05Z");
        let bare: EndpointSlice =
            serde_json::from_str(r#"{"metadata":{"labels":null},"endpoints":null}"#).expect("bare");
        assert_eq!(bare.service(), None);
        assert!(bare.endpoints.is_empty());
    }

    #[test]
    fn services_tell_their_kind() {
        for (spec, headless, external, selector) in [
            (r#"{"clusterIP":"192.0.2.9","selector":{"a":"b"}}"#, false, false, true),
            (r#"{"clusterIP":"None"}"#, true, false, false),
            (r#"{"type":"ExternalName","externalName":"example.org"}"#, false, true, false),
            (r#"{"type":"ExternalName","clusterIP":"None"}"#, false, true, false),
            ("{}", false, false, false),
            ("null", false, false, false),
        ] {
            let text = format!(r#"{{"metadata":{{"name":"s","namespace":"n"}},"spec":{spec}}}"#);
            let service: Service = serde_json::from_str(&text).expect(spec);
            assert_eq!(service.is_headless(), headless, "{spec}");
            assert_eq!(service.is_external(), external, "{spec}");
            assert_eq!(!service.is_without_selector(), selector, "{spec}");
        }
    }
}
