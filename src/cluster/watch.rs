//! Kubernetes objects from the API server, as events.
//!
//! [`Watch::connect`] reads how to reach the server, [`Watch::next`] gives what happened. What is
//! watched: Namespaces, Services, the EndpointSlices of headless Services by their label, and by name
//! those of headless Services without a selector (nobody labels them) and of the Services of
//! interest; Pods where they are wanted. All other EndpointSlices, which kube-proxy watches, are left
//! alone. `feed` keeps one kind current, `api` is the connection.
//!
//! Nothing here gives up: a server that is away or forbids something is asked again with backoff, and
//! what was known stays. Only those two know kube.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::api::Way;
use super::feed::{Feed, Shared, Subject, encode};
use super::object::{HEADLESS_LABEL, Object, SERVICE_NAME_LABEL, ServiceKey};
use super::{Event, Stream};
use crate::clock;
use crate::metrics::{ApiResource, WatchMetrics};

/// Events on their way; a feed that is faster waits.
const ROOM: usize = 1024;

/// Events taken together at most: one snapshot for all of them.
const BATCH: usize = 256;

/// A boxed error of the crate that reads the configuration.
type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why nothing can be watched.
#[derive(Debug, Error)]
pub enum WatchError {
    #[error("cannot use the kubeconfig {} (cluster.kubeconfig): {source}", .path.display())]
    Kubeconfig { path: PathBuf, source: Source },
    #[error(
        "cluster.source = \"watch\" needs an API server, and this is no pod with a service account ({0}): write \
         cluster.kubeconfig, or cluster.source = \"forward\""
    )]
    NoServiceAccount(Source),
    #[error("cannot use the configured way to the API server: {0}")]
    Unusable(Source),
}

/// Which pods are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pods {
    None,
    /// Those of this node.
    Of(String),
    All,
}

/// What to watch, and by which way.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// None means the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Services whose EndpointSlices are wanted whatever their kind.
    pub interest: BTreeSet<ServiceKey>,
    pub pods: Pods,
}

/// What happened, and when the first of it was read.
#[derive(Debug)]
pub struct Batch {
    pub events: Vec<Event>,
    pub read_at: Instant,
}

/// Running watches; they end with this value.
pub struct Watch {
    shared: Shared,
    news: mpsc::Receiver<Event>,
    interest: BTreeSet<ServiceKey>,
    /// Headless Services without a selector.
    unlabelled: BTreeSet<ServiceKey>,
    /// The feed of slices by name, with the names that it asks for.
    named: Option<(BTreeSet<Arc<str>>, Running)>,
    /// What has not been listed yet; empty once the zone may answer.
    unlisted: BTreeSet<Stream>,
    is_synced: bool,
    /// Held, not read.
    feeds: Vec<Running>,
}

/// A task that ends with this value.
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watch {
    /// Begins to watch. Must be called inside a runtime.
    ///
    /// # Errors
    /// [`WatchError`] when the configuration cannot be used. That the server is away is none.
    pub async fn connect(wanted: &Wanted, metrics: WatchMetrics) -> Result<Self, WatchError> {
        let way = Arc::new(Way::open(wanted.kubeconfig.as_deref()).await?);
        let (out, news) = mpsc::channel(ROOM);
        let (dial, is_back) = (Arc::default(), Arc::new(Notify::new()));
        let shared = Shared { way, dial, out, is_back, metrics };
        let mut watch = Self {
            shared,
            news,
            interest: wanted.interest.clone(),
            unlabelled: BTreeSet::new(),
            named: None,
            unlisted: BTreeSet::new(),
            is_synced: false,
            feeds: Vec::new(),
        };
        watch.begin(&wanted.pods);
        Ok(watch)
    }

    /// Starts the feeds.
    fn begin(&mut self, pods: &Pods) {
        let headless = labelled(HEADLESS_LABEL);
        let subject = |stream, resource, selector| Subject { stream, resource, selector };
        let all = String::new;
        let feeds = [
            self.start(
                subject(Stream::Namespaces, ApiResource::Namespaces, all()),
                Object::Namespace,
            ),
            self.start(subject(Stream::Services, ApiResource::Services, all()), Object::Service),
            self.start(
                subject(Stream::Headless, ApiResource::EndpointSlices, headless),
                Object::EndpointSlice,
            ),
        ];
        self.feeds.extend(feeds);
        let selector = match pods {
            Pods::None => None,
            Pods::All => Some(all()),
            Pods::Of(node) => {
                Some(format!("fieldSelector={}&", encode(&format!("spec.nodeName={node}"))))
            }
        };
        if let Some(selector) = selector {
            let subject = subject(Stream::Pods, ApiResource::Pods, selector);
            let feed = self.start(subject, Object::Pod);
            self.feeds.push(feed);
            // They tell who asks; that nobody is known holds no answer off.
            if matches!(pods, Pods::Of(_)) {
                self.unlisted.remove(&Stream::Pods);
            }
        }
        self.follow_names(false);
    }

    /// Asks for the EndpointSlices of these Services, whatever their kind, from now on; an event where none are
    /// asked for by name any more.
    pub fn follow(&mut self, interest: BTreeSet<ServiceKey>) -> Option<Event> {
        self.interest = interest;
        self.follow_names(true)
    }

    /// Starts one feed, which must list before the zone may answer.
    fn start<T: DeserializeOwned + Clone + Send + 'static>(
        &mut self,
        subject: Subject,
        wrap: fn(T) -> Object,
    ) -> Running {
        self.unlisted.insert(subject.stream.clone());
        Running(tokio::spawn(Feed::new(subject, self.shared.clone(), wrap).run()))
    }

    /// What happened next; [`Event::Synced`] once, when all has been listed.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Batch {
        let mut events = Vec::new();
        self.news.recv_many(&mut events, BATCH).await;
        let read_at = clock::now();
        for event in &events {
            self.note(event);
        }
        if let Some(event) = self.follow_names(false) {
            events.push(event);
        }
        if self.unlisted.is_empty() && !std::mem::replace(&mut self.is_synced, true) {
            events.push(Event::Synced);
        }
        Batch { events, read_at }
    }

    /// Remembers what was listed and which Services have EndpointSlices without the label.
    fn note(&mut self, event: &Event) {
        match event {
            Event::Applied(_, Object::Service(service)) => {
                if service.is_headless() && service.is_without_selector() {
                    self.unlabelled.insert(service.key());
                } else {
                    self.unlabelled.remove(&service.key());
                }
            }
            Event::Deleted(_, Object::Service(service)) => {
                self.unlabelled.remove(&service.key());
            }
            Event::Replaced(stream, objects) => {
                self.unlisted.remove(stream);
                if *stream == Stream::Services {
                    self.unlabelled = objects.iter().filter_map(unlabelled).collect();
                }
            }
            _ => {}
        }
    }

    /// Asks for the EndpointSlices of further names, or where it `is_exact` of fewer too; an event when none are
    /// wanted any more.
    fn follow_names(&mut self, is_exact: bool) -> Option<Event> {
        let keys = self.interest.iter().chain(&self.unlabelled);
        let names: BTreeSet<_> = keys.map(|key| Arc::clone(&key.name)).collect();
        match &self.named {
            None if names.is_empty() => return None,
            // A name too many costs little, another list more. And a list must come to its end, or
            // Services that come fast would hold it off for ever.
            Some((asked, _)) if names == *asked => return None,
            Some((asked, _)) if !is_exact && names.is_subset(asked) && !names.is_empty() => {
                return None;
            }
            Some(_) if self.unlisted.contains(&Stream::Named) => return None,
            _ => {}
        }
        // The old one first: what it says must not come after the new one's list.
        self.named = None;
        if names.is_empty() {
            return Some(Event::Replaced(Stream::Named, Vec::new()));
        }
        let list = names.iter().map(|name| &**name).collect::<Vec<_>>().join(",");
        let selector = labelled(&format!("{SERVICE_NAME_LABEL} in ({list}),!{HEADLESS_LABEL}"));
        let (stream, resource) = (Stream::Named, ApiResource::EndpointSlices);
        let running = self.start(Subject { stream, resource, selector }, Object::EndpointSlice);
        self.named = Some((names, running));
        None
    }
}

/// A label selector as a part of a URL's query.
fn labelled(selector: &str) -> String {
    format!("labelSelector={}&", encode(selector))
}

/// The key of a headless Service without a selector.
fn unlabelled(object: &Object) -> Option<ServiceKey> {
    match object {
        Object::Service(service) if service.is_headless() && service.is_without_selector() => {
            Some(service.key())
        }
        _ => None,
    }
}
