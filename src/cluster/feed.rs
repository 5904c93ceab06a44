//! One kind of objects kept current: listed once, then watched for ever.
//!
//! A feed begins with a streaming list, or with pages where the API server refuses those, and goes on
//! watching from where the list ended. A broken watch goes on from the last version seen; only when
//! the server has forgotten that version (410) does the feed list again.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{AsyncBufRead, AsyncBufReadExt};
use http::Request;
use kube::core::WatchEvent;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::time::timeout;

use super::api::Way;
use super::backoff::Backoff;
use super::object::Object;
use super::trouble::Trouble;
use super::{Event, Stream};
use crate::clock;
use crate::metrics::{ApiResource, ApiVerb, WatchMetrics};

/// How long a request may stay without its first byte.
const FIRST_BYTE: Duration = Duration::from_secs(10);

/// How long a watch may say nothing: the API server sends a bookmark about once a minute.
const SILENCE: Duration = Duration::from_secs(300);

/// A watch that lived this long was one, whatever ended it.
const LIVED: Duration = Duration::from_secs(1);

/// Objects per page where streaming lists are refused.
const PAGE: u32 = 500;

/// The annotation of the bookmark that ends a streaming list.
const LIST_ENDS: &str = "k8s.io/initial-events-end";

/// What a feed is of.
#[derive(Clone, Debug)]
pub struct Subject {
    pub stream: Stream,
    pub resource: ApiResource,
    /// Which of its objects, as a part of a URL's query: empty, or ending in `&`.
    pub selector: String,
}

/// What the feeds of one watch share.
#[derive(Clone)]
pub struct Shared {
    pub way: Arc<Way>,
    /// Held while a request is on its way: the next one finds the connection that this one made.
    pub dial: Arc<Mutex<()>>,
    pub out: mpsc::Sender<Event>,
    /// Wakes all feeds that wait when one of them reaches the API server again.
    pub is_back: Arc<Notify>,
    pub metrics: WatchMetrics,
}

/// What happened to an object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Added,
    Modified,
    Deleted,
}

/// A page of a list.
#[derive(Deserialize)]
struct Page<T> {
    metadata: PageMeta,
    items: Option<Vec<T>>,
}

/// Where a page stands.
#[derive(Deserialize)]
struct PageMeta {
    #[serde(rename = "resourceVersion", default)]
    version: String,
    #[serde(rename = "continue", default)]
    next: String,
}

/// One feed; `T` is its kind of objects.
pub struct Feed<T> {
    subject: Subject,
    shared: Shared,
    wrap: fn(T) -> Object,
    /// The last version seen; none before a list and after the server forgot it.
    version: Option<String>,
    /// Whether streaming lists are tried.
    streams: bool,
    backoff: Backoff,
    /// The trouble that was last told of, so that an hour of it is one line.
    told: Option<String>,
}

impl<T: DeserializeOwned + Clone> Feed<T> {
    /// A feed of `subject` that has yet to begin; `wrap` makes objects of what it reads.
    pub fn new(subject: Subject, shared: Shared, wrap: fn(T) -> Object) -> Self {
        let backoff = Backoff::default();
        Self { subject, shared, wrap, version: None, streams: true, backoff, told: None }
    }

    /// Runs until nobody reads its events.
    pub async fn run(mut self) {
        loop {
            let began = clock::now();
            let ended = self.pass().await;
            let lived = clock::now().saturating_duration_since(began) >= LIVED;
            match ended {
                Ok(()) if lived => self.backoff.reset(),
                Ok(()) => self.pause(&Trouble::Gone).await,
                Err(Trouble::Unread) => return,
                Err(trouble) => self.face(&trouble).await,
            }
        }
    }

    /// One connection's life: lists if need be, then hands on events until the server ends it.
    async fn pass(&mut self) -> Result<(), Trouble> {
        if self.version.is_none() && !self.streams {
            self.list_pages().await?;
        }
        let mut listing = self.version.is_none().then(Vec::new);
        let lines = self.open(ApiVerb::Watch, self.watch_target()).await?;
        let mut lines = pin!(lines);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = lines.read_until(b'\n', &mut line);
            let read = timeout(SILENCE, read).await.map_err(|_| Trouble::Silent(SILENCE))?;
            if read.map_err(|error| Trouble::Broken(error.into()))? == 0 || !line.ends_with(b"\n") {
                return Ok(());
            }
            self.take(&line, &mut listing).await?;
        }
    }

    /// Takes one line of a watch in; `listing` is what a streaming list has brought so far.
    async fn take(
        &mut self,
        line: &[u8],
        listing: &mut Option<Vec<Object>>,
    ) -> Result<(), Trouble> {
        let event = match serde_json::from_slice::<WatchEvent<T>>(line) {
            Ok(event) => event,
            Err(error) => {
                self.shared.metrics.unreadable.inc();
                tracing::warn!(%error, resource = %self.subject.resource, "an event left out");
                return Ok(());
            }
        };
        match event {
            WatchEvent::Added(object) => self.changed(object, listing, Change::Added).await?,
            WatchEvent::Modified(object) => self.changed(object, listing, Change::Modified).await?,
            WatchEvent::Deleted(object) => self.changed(object, listing, Change::Deleted).await?,
            WatchEvent::Bookmark(mark) => {
                if mark.metadata.annotations.contains_key(LIST_ENDS)
                    && let Some(listed) = listing.take()
                {
                    self.listed(listed).await?;
                }
                if listing.is_none() {
                    self.version = Some(mark.metadata.resource_version);
                }
            }
            WatchEvent::Error(status) => {
                let after = status.details.as_ref().map(|details| details.retry_after_seconds);
                return Err(Trouble::said(status.code, status.message, after));
            }
        }
        self.backoff.reset();
        Ok(())
    }

    /// Hands one change on and remembers its version; during a list the list takes it.
    async fn changed(
        &mut self,
        object: T,
        listing: &mut Option<Vec<Object>>,
        change: Change,
    ) -> Result<(), Trouble> {
        let object = (self.wrap)(object);
        if let Some(listed) = listing {
            // A streaming list sends each object once, unless it changes meanwhile.
            if change != Change::Added {
                listed.retain(|other| !is_same(other, &object));
            }
            if change != Change::Deleted {
                listed.push(object);
            }
            return Ok(());
        }
        let version = object.meta().resource_version.clone();
        let event = if change == Change::Deleted { Event::Deleted } else { Event::Applied };
        self.send(event(self.subject.stream.clone(), object)).await?;
        self.version = Some(version);
        Ok(())
    }

    /// Hands a whole list on.
    async fn listed(&self, objects: Vec<Object>) -> Result<(), Trouble> {
        self.shared.metrics.lists.of(self.subject.resource).inc();
        tracing::info!(resource = %self.subject.resource, objects = objects.len(), "listed");
        self.send(Event::Replaced(self.subject.stream.clone(), objects)).await
    }

    /// Hands an event on.
    async fn send(&self, event: Event) -> Result<(), Trouble> {
        self.shared.out.send(event).await.map_err(|_| Trouble::Unread)
    }

    /// Lists page by page, from the API server's cache as long as it is not older than what we knew.
    async fn list_pages(&mut self) -> Result<(), Trouble> {
        let mut objects = Vec::new();
        let mut next = String::new();
        loop {
            let page = if next.is_empty() {
                "resourceVersion=0&resourceVersionMatch=NotOlderThan".to_owned()
            } else {
                format!("continue={}", encode(&next))
            };
            let (path, selector) = (path(self.subject.resource), &self.subject.selector);
            let target = format!("{path}?{selector}limit={PAGE}&{page}");
            let mut body = Vec::new();
            let lines = self.open(ApiVerb::List, target).await?;
            let whole = async { pin!(lines).read_until(0, &mut body).await };
            let read = timeout(SILENCE, whole).await.map_err(|_| Trouble::Silent(SILENCE))?;
            read.map_err(|error| Trouble::Broken(error.into()))?;
            let page: Page<T> =
                serde_json::from_slice(&body).map_err(|error| Trouble::Broken(error.into()))?;
            objects.extend(page.items.unwrap_or_default().into_iter().map(self.wrap));
            next = page.metadata.next;
            if next.is_empty() {
                self.listed(objects).await?;
                self.version = Some(page.metadata.version);
                return Ok(());
            }
        }
    }

    /// The URL that watches from the last version, or begins with a streaming list.
    fn watch_target(&self) -> String {
        let (path, selector) = (path(self.subject.resource), &self.subject.selector);
        let from = match &self.version {
            Some(version) => format!("resourceVersion={}", encode(version)),
            None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
        };
        // No timeoutSeconds: the API server draws one itself, 30 to 60 minutes unless it is told other.
        format!("{path}?{selector}watch=true&allowWatchBookmarks=true&{from}")
    }

    /// Sends a request and waits until the server takes it.
    async fn open(
        &mut self,
        verb: ApiVerb,
        target: String,
    ) -> Result<impl AsyncBufRead + use<T>, Trouble> {
        let is_streaming = verb == ApiVerb::Watch && self.version.is_none();
        let request = Request::get(target).body(Vec::new());
        let request = request.map_err(|error| Trouble::Broken(error.into()))?;
        self.shared.metrics.requests.of(self.subject.resource).inc();
        let dial = Arc::clone(&self.shared.dial);
        let alone = dial.lock().await;
        let client = self.shared.way.client();
        let response = timeout(FIRST_BYTE, client.request_stream(request)).await;
        drop(alone);
        let response = response.map_err(|_| Trouble::Silent(FIRST_BYTE))?;
        match response.map_err(Trouble::from) {
            Ok(lines) => {
                self.reached(verb);
                Ok(lines)
            }
            Err(Trouble::Said { code: 400 | 415 | 422, .. }) if is_streaming => {
                Err(Trouble::Unstreamed)
            }
            Err(trouble) => {
                let denied = matches!(trouble, Trouble::Said { code: 401 | 403, .. });
                self.shared.metrics.denied.set(verb, self.subject.resource, denied);
                // The token may have been replaced.
                if matches!(trouble, Trouble::Said { code: 401, .. }) {
                    self.shared.way.renew(&client).await;
                }
                Err(trouble)
            }
        }
    }

    /// The server answers (again).
    fn reached(&mut self, verb: ApiVerb) {
        self.shared.metrics.denied.set(verb, self.subject.resource, false);
        self.shared.is_back.notify_waiters();
        if let Some(trouble) = self.told.take() {
            tracing::info!(resource = %self.subject.resource, was = trouble, "watched again");
        }
    }

    /// Says what is wrong, once, and waits.
    async fn face(&mut self, trouble: &Trouble) {
        match trouble {
            Trouble::Gone => self.version = None,
            Trouble::Unstreamed => {
                self.streams = false;
                tracing::info!(resource = %self.subject.resource, "{trouble}: listed in pages");
                return;
            }
            _ => {}
        }
        self.shared.metrics.failures.of(self.subject.resource).inc();
        let text = trouble.to_string();
        // The first may be a restart: an API server that has just come up refuses once or ends a watch.
        if self.backoff.failures() > 0 && self.told.as_ref() != Some(&text) {
            let resource = self.subject.resource;
            match trouble {
                Trouble::Said { code: 401, .. } => tracing::error!(
                    %resource, error = text, "the API server does not know us: the token, or what else the way \
                    to it names, has ended or is wrong; cluster names are forwarded, or stay as they were"
                ),
                Trouble::Said { code: 403, .. } if resource == ApiResource::Pods => {
                    tracing::error!(
                        %resource, error = text, "the API server forbids it: without the verbs list and watch on \
                        {resource} nobody is known who asks (search lists are not completed, tenancy shows what its line ? says), \
                        and with verified pods cluster names are forwarded"
                    )
                }
                Trouble::Said { code: 403, .. } => tracing::error!(
                    %resource, error = text, "the API server forbids it: the cluster role of nodens needs the \
                    verbs list and watch on {resource}; cluster names are forwarded, or stay as they were"
                ),
                _ => {
                    tracing::warn!(%resource, error = text, "watch interrupted; the zone stays as it was")
                }
            }
            self.told = Some(text);
        }
        self.pause(trouble).await;
    }

    /// Waits before the next attempt; shorter when another feed reaches a server that was away.
    async fn pause(&mut self, trouble: &Trouble) {
        let delay = self.backoff.delay(clock::now(), rand::random()).max(trouble.again_after());
        if !matches!(trouble, Trouble::Broken(_) | Trouble::Silent(_)) {
            return tokio::time::sleep(delay).await;
        }
        let back = self.shared.is_back.notified();
        // A part of it always: two feeds whose watches end at once must not wake each other for ever.
        tokio::time::sleep(delay / 4).await;
        let _ = timeout(delay / 4 * 3, back).await;
    }
}

/// Whether both are versions of one object of their kind.
fn is_same(one: &Object, other: &Object) -> bool {
    let (one, other) = (one.meta(), other.meta());
    one.name == other.name && one.namespace == other.namespace
}

/// Where the objects of all namespaces lie.
fn path(resource: ApiResource) -> &'static str {
    match resource {
        ApiResource::Namespaces => "/api/v1/namespaces",
        ApiResource::Services => "/api/v1/services",
        ApiResource::EndpointSlices => "/apis/discovery.k8s.io/v1/endpointslices",
        ApiResource::Pods => "/api/v1/pods",
    }
}

/// Percent-encodes what may not stand in a URL's query.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as Shelf;

    use http::Response;
    use kube::Client;
    use kube::client::Body;

    use super::*;

    /// What the server says before it goes away, and when it is back.
    const LIST: &str = r#"{"type":"ADDED","object":{"metadata":{"name":"one","resourceVersion":"5"}}}
{"type":"BOOKMARK","object":{"kind":"Namespace","apiVersion":"v1","metadata":{"resourceVersion":"7","annotations":{"k8s.io/initial-events-end":"true"}}}}
"#;
    const EVENT: &str = r#"{"type":"ADDED","object":{"metadata":{"name":"two","resourceVersion":"8"}}}
"#;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_was_away_for_an_hour_is_watched_on_from_where_we_were() {
        let (start, hour) = (clock::now(), Duration::from_secs(3600));
        let asked = Arc::<Shelf<Vec<(Duration, String)>>>::default();
        let shelf = Arc::clone(&asked);
        let server = tower::service_fn(move |request: Request<Body>| {
            let since = clock::now().saturating_duration_since(start);
            let mut asked = shelf.lock().expect("no panic elsewhere");
            asked.push((since, request.uri().to_string()));
            let answer = match asked.len() {
                1 => Ok(LIST),
                _ if since < hour => Err(std::io::Error::from(std::io::ErrorKind::TimedOut)),
                _ => Ok(EVENT),
            };
            async { answer.map(|text| Response::new(Body::from(text.as_bytes().to_vec()))) }
        });
        let (out, mut news) = mpsc::channel(8);
        let shared = Shared {
            way: Arc::new(Way::by(Client::new(server, "default"))),
            dial: Arc::default(),
            out,
            is_back: Arc::default(),
            metrics: crate::metrics::Metrics::new().watch.clone(),
        };
        let (stream, resource) = (Stream::Namespaces, ApiResource::Namespaces);
        let subject = Subject { stream, resource, selector: String::new() };
        let lists = shared.metrics.lists.clone();
        let feed = tokio::spawn(Feed::new(subject, shared, Object::Namespace).run());

        assert!(matches!(news.recv().await, Some(Event::Replaced(..))));
        let event = news.recv().await;
        feed.abort();
        assert!(
            matches!(&event, Some(Event::Applied(_, object)) if object.meta().name == "two"),
            "{event:?}"
        );
        let waited = clock::now().saturating_duration_since(start);
        assert!(waited < hour + Duration::from_secs(15), "{waited:?}");
        assert_eq!(lists.total(), 1, "nothing was listed again");
        let asked = asked.lock().expect("no panic elsewhere");
        assert!((300..900).contains(&asked.len()), "{} requests in an hour", asked.len());
        assert!(asked[1..].iter().all(|(_, target)| target.contains("resourceVersion=7")));
        let gaps = asked.windows(2).map(|pair| pair[1].0 - pair[0].0);
        assert!(gaps.max() <= Some(Duration::from_secs(15)));
    }
}
