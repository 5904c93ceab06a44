//! Objects from a folder of Kubernetes manifests, read again when they change.
//!
//! For demos, tests and hosts without an API server. A file that cannot be read keeps the objects that
//! it had; other files do not notice. Kinds that DNS does not need are skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::object::{
    Endpoint, EndpointSlice, Meta, Namespace, Object, Pod, PodSpec, PodStatus, Port, Service,
    ServiceSpec,
};
use super::{Event, Stream};
use crate::config::watch::{Change, Stamp, Watched};

/// Names of files that are manifests end in one of these.
const ENDS: [&str; 3] = ["yaml", "yml", "json"];

/// The namespace of an object that names none, as kubectl has it.
const DEFAULT_NAMESPACE: &str = "default";

/// Why a file is not taken.
#[derive(Debug, Error)]
pub enum FileError {
    #[error("{}: {source}", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: {what}", .path.display())]
    Malformed { path: PathBuf, line: u64, what: String },
}

/// A folder of manifests.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    files: BTreeMap<PathBuf, Known>,
    /// The number of the next file that is new.
    next: u32,
}

/// A file that was seen.
#[derive(Debug)]
struct Known {
    number: u32,
    watched: Watched,
}

/// What a look at the folder brought.
#[derive(Debug, Default)]
pub struct Looked {
    pub events: Vec<Event>,
    pub errors: Vec<FileError>,
}

impl Files {
    /// The folder, unread.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, files: BTreeMap::new(), next: 0 }
    }

    /// Reads what is new or has changed and kept still since the last look; a file that is gone takes its
    /// objects along. Blocks on the file system.
    pub fn look(&mut self) -> Looked {
        let mut looked = Looked::default();
        let found = match list(&self.folder) {
            Ok(found) => found,
            Err(source) => {
                let path = self.folder.clone();
                looked.errors.push(FileError::Unreadable { path, source });
                return looked;
            }
        };
        self.files.retain(|path, known| {
            let is_there = found.contains(path);
            if !is_there {
                looked.events.push(Event::Replaced(Stream::File(known.number), Vec::new()));
            }
            is_there
        });
        for path in found {
            if let Some(number) = self.due(&path) {
                match read(&path) {
                    Ok(objects) => {
                        looked.events.push(Event::Replaced(Stream::File(number), objects));
                    }
                    Err(error) => looked.errors.push(error),
                }
            }
        }
        looked
    }

    /// The number of a file that is to be read now.
    fn due(&mut self, path: &Path) -> Option<u32> {
        let stamp = fs::metadata(path).ok().as_ref().map(Stamp::from);
        if let Some(known) = self.files.get_mut(path) {
            return (known.watched.look(stamp) == Change::Settled).then_some(known.number);
        }
        let number = self.next;
        self.next += 1;
        self.files.insert(path.to_owned(), Known { number, watched: Watched::new(stamp) });
        Some(number)
    }
}

/// The manifests of a folder, sorted; those below it and hidden ones are none.
fn list(folder: &Path) -> std::io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_hidden =
            path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let ends = path.extension().is_some_and(|end| ENDS.iter().any(|known| *known == end));
        if ends && !is_hidden && path.is_file() {
            found.insert(path);
        }
    }
    Ok(found)
}

/// The objects of one file.
fn read(path: &Path) -> Result<Vec<Object>, FileError> {
    let unreadable = |source| FileError::Unreadable { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(unreadable)?;
    parse(&text).map_err(|(line, what)| FileError::Malformed { path: path.to_owned(), line, what })
}

/// The objects of a text; or the line of what is wrong, and what.
fn parse(text: &str) -> Result<Vec<Object>, (u64, String)> {
    let documents: Vec<Option<Manifest>> = serde_saphyr::from_multiple(text).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        (line, error.to_string().lines().next().unwrap_or_default().to_owned())
    })?;
    let mut objects = Vec::new();
    documents.into_iter().flatten().for_each(|document| document.push_to(&mut objects));
    Ok(objects)
}

/// A document of a manifest.
#[derive(Deserialize)]
#[serde(tag = "kind")]
enum Manifest {
    #[serde(rename_all = "camelCase")]
    Namespace {
        api_version: String,
        metadata: Meta,
    },
    #[serde(rename_all = "camelCase")]
    Service {
        api_version: String,
        metadata: Meta,
        #[serde(default)]
        spec: ServiceSpec,
    },
    #[serde(rename_all = "camelCase")]
    EndpointSlice {
        api_version: String,
        metadata: Meta,
        #[serde(default)]
        address_type: String,
        #[serde(default)]
        endpoints: Option<Vec<Endpoint>>,
        #[serde(default)]
        ports: Option<Vec<Port>>,
    },
    #[serde(rename_all = "camelCase")]
    Pod {
        api_version: String,
        metadata: Meta,
        #[serde(default)]
        spec: PodSpec,
        #[serde(default)]
        status: PodStatus,
    },
    List {
        #[serde(default)]
        items: Vec<Manifest>,
    },
    NamespaceList {
        items: Vec<Namespace>,
    },
    ServiceList {
        items: Vec<Service>,
    },
    EndpointSliceList {
        items: Vec<EndpointSlice>,
    },
    PodList {
        items: Vec<Pod>,
    },
    /// Of a kind that DNS does not need.
    #[serde(other)]
    Other,
}

impl Manifest {
    /// Appends the objects; a Service of another API group than the core's is none.
    fn push_to(self, out: &mut Vec<Object>) {
        let is_core = |version: &str| version == "v1";
        match self {
            Self::Namespace { api_version, metadata } if is_core(&api_version) => {
                out.push(Object::Namespace(Namespace { metadata }));
            }
            Self::Service { api_version, metadata, spec } if is_core(&api_version) => {
                out.push(Object::Service(Service { metadata: placed(metadata), spec }));
            }
            Self::EndpointSlice { api_version, metadata, address_type, endpoints, ports }
                if api_version.starts_with("discovery.k8s.io/") =>
            {
                let (endpoints, ports) = (endpoints.unwrap_or_default(), ports.unwrap_or_default());
                let metadata = placed(metadata);
                let slice = EndpointSlice { metadata, address_type, endpoints, ports };
                out.push(Object::EndpointSlice(slice));
            }
            Self::Pod { api_version, metadata, spec, status } if is_core(&api_version) => {
                out.push(Object::Pod(Pod { metadata: placed(metadata), spec, status }));
            }
            Self::List { items } => items.into_iter().for_each(|item| item.push_to(out)),
            Self::NamespaceList { items } => out.extend(items.into_iter().map(Object::Namespace)),
            Self::ServiceList { items } => out.extend(items.into_iter().map(Object::Service)),
            Self::EndpointSliceList { items } => {
                out.extend(items.into_iter().map(Object::EndpointSlice));
            }
            Self::PodList { items } => out.extend(items.into_iter().map(Object::Pod)),
            _ => {}
        }
    }
}

/// The metadata with a namespace.
fn placed(mut metadata: Meta) -> Meta {
    if metadata.namespace.is_empty() {
        DEFAULT_NAMESPACE.clone_into(&mut metadata.namespace);
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: &str = r#"
# A comment.
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.1], hostname: db-0}]
ports: null
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: x}
spec: {selector: {matchLabels: {a: b}}, ports: 7}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: not-ours}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 198.18.0.1}}
- {apiVersion: v1, kind: Pod, metadata: {name: p}, status: {podIP: 192.0.2.8}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}
---
apiVersion: v1
kind: ServiceList
items: [{metadata: {name: listed, namespace: shop}, spec: {clusterIP: 198.18.0.2}}]
"#;

    #[test]
    fn documents_and_lists_become_objects_and_other_kinds_are_skipped() {
        let objects = parse(MANY).expect("well-formed");
        let name = |object: &Object| {
            let meta = object.meta();
            format!("{}/{}", meta.namespace, meta.name)
        };
        let names: Vec<_> = objects.iter().map(name).collect();
        let expected = ["/shop", "shop/db", "shop/db-1", "default/web", "default/p", "shop/listed"];
        assert_eq!(names, expected);
        let json = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"n"}}"#;
        assert_eq!(parse(json).expect("JSON is YAML").len(), 1);
        assert_eq!(parse("").expect("nothing"), []);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            ("apiVersion: v1\nkind: Namespace\nmetadata: {name: [}", 3),
            ("a: b\n---\nkind: Service\napiVersion: v1\nmetadata: {}\nspec: {ports: 7}", 1),
            ("- a\n- b", 1),
            ("\tkind: Service", 1),
        ] {
            let (line, what) = parse(text).expect_err(text);
            assert!(line <= 6 && line >= expected && !what.is_empty(), "{text}: {line}: {what}");
        }
    }

    #[test]
    fn files_come_change_break_and_go() {
        let folder = std::env::temp_dir().join(format!("nodens-files-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("a.yaml");
        let write = |text: &str| fs::write(&path, text).expect("written");
        let service = |address: &str| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {{clusterIP: {address}}}\n"
            )
        };
        fs::write(folder.join("notes.txt"), "no: [manifest").expect("written");
        write(&service("198.18.0.1"));
        let mut files = Files::new(folder.clone());
        let looked = files.look();
        assert_eq!((looked.events.len(), looked.errors.len()), (1, 0));
        assert!(files.look().events.is_empty(), "nothing changed");
        // One byte longer, so that a coarse clock does not hide the change.
        write(&service("198.18.0.22"));
        assert!(files.look().events.is_empty(), "it may be half written");
        let looked = files.look();
        let [Event::Replaced(Stream::File(0), objects)] = looked.events.as_slice() else {
            panic!("{looked:?}");
        };
        assert!(matches!(&objects[..], [Object::Service(s)] if s.spec.cluster_ip == "198.18.0.22"));
        write("kind: [");
        files.look();
        let looked = files.look();
        assert_eq!((looked.events.len(), looked.errors.len()), (0, 1), "{looked:?}");
        let text = looked.errors[0].to_string();
        assert!(text.contains("a.yaml:1"), "{text}");
        fs::remove_file(&path).expect("removed");
        assert_eq!(files.look().events, [Event::Replaced(Stream::File(0), Vec::new())]);
        fs::remove_dir_all(&folder).expect("removed");
        assert!(matches!(&files.look().errors[..], [FileError::Unreadable { .. }]));
    }
}
