//! The lab's API server: tells nodens on the node which Services there are, by plain HTTP and in the
//! words in which a real one answers a watch. It knows every kind of which nodens asks, and no other.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use super::LabError;
use super::memory::MemoryFile;
use super::namespace::Namespace;
use super::net::Dual;

/// Between two looks for new connections.
const LOOK: Duration = Duration::from_millis(5);

/// What is watched by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Namespace,
    Service,
    /// EndpointSlices of headless Services.
    Slice,
    /// EndpointSlices of Services that nobody has here.
    NamedSlice,
}

/// The objects, and who watches them.
#[derive(Default)]
struct Store {
    version: u64,
    objects: Vec<(Kind, Value)>,
    watches: Vec<(Kind, Sender<String>)>,
}

/// A running API server; it and its watches end when this is dropped.
pub(super) struct ApiServer {
    store: Arc<Mutex<Store>>,
    kubeconfig: MemoryFile,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Listens on the node's loopback; its cluster has the namespace `default` and nothing else.
    ///
    /// # Errors
    /// When the kernel refuses a socket or a file.
    pub(super) fn start(node: &Namespace) -> Result<Self, LabError> {
        let refused = LabError::ApiServer;
        let listener = node.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(refused))?;
        // So that nobody waits for ever for a connection, and the namespace goes with the lab.
        listener.set_nonblocking(true).map_err(refused)?;
        let port = listener.local_addr().map_err(refused)?.port();
        let kubeconfig = MemoryFile::new(c"kubeconfig").map_err(LabError::Memory)?;
        kubeconfig.put(&way_to(port).to_string()).map_err(LabError::Memory)?;
        let (store, is_over) = (Arc::<Mutex<Store>>::default(), Arc::<AtomicBool>::default());
        locked(&store).put(Kind::Namespace, json!({ "metadata": { "name": "default" } }));
        let (shared, ends) = (Arc::clone(&store), Arc::clone(&is_over));
        let thread = thread::spawn(move || accept(&listener, &shared, &ends));
        Ok(Self { store, kubeconfig, is_over, thread: Some(thread) })
    }

    /// The file that leads the daemon here.
    pub(super) fn kubeconfig(&self) -> String {
        self.kubeconfig.path()
    }

    /// Makes a Service with an address of its own in the namespace `default`.
    pub(super) fn make_service(&self, name: &str, addresses: Dual) {
        let ips = addresses.both();
        let spec = json!({ "clusterIP": ips[0], "clusterIPs": ips, "selector": { "app": name } });
        locked(&self.store).put(Kind::Service, json!({ "metadata": meta(name), "spec": spec }));
    }

    /// Makes a headless Service with one endpoint.
    pub(super) fn make_headless(&self, name: &str, addresses: Dual) {
        let mut store = locked(&self.store);
        for slice in slices(name, addresses) {
            store.put(Kind::Slice, slice);
        }
        store.put(Kind::Service, headless(name));
    }

    /// Deletes a headless Service.
    pub(super) fn delete_headless(&self, name: &str, addresses: Dual) {
        let mut store = locked(&self.store);
        store.delete(Kind::Service, headless(name));
        for slice in slices(name, addresses) {
            store.delete(Kind::Slice, slice);
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        let _ = self.thread.take().map(JoinHandle::join);
        // Whoever waits for news learns that there are none any more.
        locked(&self.store).watches.clear();
    }
}

/// Locks; nobody panics between two writes.
fn locked(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A kubeconfig.
fn way_to(port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{ "name": "lab", "cluster": { "server": format!("http://127.0.0.1:{port}") } }],
        "users": [{ "name": "node", "user": {} }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "node" } }],
    })
}

/// The metadata of an object in the namespace `default`.
fn meta(name: &str) -> Value {
    json!({ "name": name, "namespace": "default" })
}

/// A headless Service.
fn headless(name: &str) -> Value {
    json!({ "metadata": meta(name), "spec": { "clusterIP": "None", "selector": { "app": name } } })
}

/// The EndpointSlices of a headless Service, one for each family.
fn slices(name: &str, addresses: Dual) -> [Value; 2] {
    let [v4, v6] = addresses.both();
    [("IPv4", v4), ("IPv6", v6)].map(|(family, address)| {
        let mut metadata = meta(&format!("{name}-{}", family.to_lowercase()));
        metadata["labels"] =
            json!({ "kubernetes.io/service-name": name, "service.kubernetes.io/headless": "" });
        json!({ "metadata": metadata, "addressType": family, "endpoints": [{ "addresses": [address] }] })
    })
}

/// An event as one line.
fn line(event: &str, object: &Value) -> String {
    json!({ "type": event, "object": object }).to_string() + "\n"
}

impl Store {
    /// Adds an object.
    fn put(&mut self, kind: Kind, object: Value) {
        let object = self.tell(kind, "ADDED", object);
        self.objects.push((kind, object));
    }

    /// Takes an object away.
    fn delete(&mut self, kind: Kind, object: Value) {
        let name = object["metadata"]["name"].clone();
        self.objects.retain(|(known, other)| *known != kind || other["metadata"]["name"] != name);
        self.tell(kind, "DELETED", object);
    }

    /// Tells all who watch this kind; gives the object back with its new version.
    fn tell(&mut self, kind: Kind, event: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let line = line(event, &object);
        self.watches
            .retain(|(watched, lines)| *watched != kind || lines.send(line.clone()).is_ok());
        object
    }

    /// Begins a watch: the list that opens it, and what comes afterwards.
    fn watch(&mut self, kind: Kind) -> (String, Receiver<String>) {
        let of_kind = self.objects.iter().filter(|(known, _)| *known == kind);
        let list: String = of_kind.map(|(_, object)| line("ADDED", object)).collect();
        let end = json!({ "kind": "List", "apiVersion": "v1", "metadata": {
            "resourceVersion": self.version.to_string(),
            "annotations": { "k8s.io/initial-events-end": "true" } } });
        let (sender, news) = channel();
        self.watches.push((kind, sender));
        (list + &line("BOOKMARK", &end), news)
    }
}

/// Takes connections until the end.
fn accept(listener: &TcpListener, store: &Arc<Mutex<Store>>, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Acquire) {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(LOOK);
            continue;
        };
        let store = Arc::clone(store);
        // Whoever hangs up in the middle is gone.
        thread::spawn(move || drop(serve(&stream, &store)));
    }
}

/// Answers one watch; the end of the connection is its end.
fn serve(mut stream: &TcpStream, store: &Mutex<Store>) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let target = read_target(stream)?;
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n".to_owned();
    if !target.contains("sendInitialEvents=true") {
        // Who was away lists again: what happened meanwhile is kept nowhere.
        let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "too old resource version", "reason": "Expired", "code": 410 });
        return stream.write_all((head + &line("ERROR", &status)).as_bytes());
    }
    let (list, news) = locked(store).watch(kind_of(&target));
    stream.write_all((head + &list).as_bytes())?;
    news.iter().try_for_each(|line| stream.write_all(line.as_bytes()))
}

/// The target of a request, whose head is read to its end.
fn read_target(stream: &TcpStream) -> io::Result<String> {
    let mut target = String::new();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if let Some(rest) = line.strip_prefix("GET ") {
            rest.split(' ').next().unwrap_or_default().clone_into(&mut target);
        } else if line.is_empty() {
            break;
        }
    }
    Ok(target)
}

/// What a target is about.
fn kind_of(target: &str) -> Kind {
    match target.split('?').next().unwrap_or_default() {
        "/api/v1/namespaces" => Kind::Namespace,
        "/api/v1/services" => Kind::Service,
        // Those of Services of these names, which have no label.
        _ if target.contains("%20in%20") => Kind::NamedSlice,
        _ => Kind::Slice,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_begins_with_what_is_there_and_goes_on_with_what_happens() {
        let (mut store, one) = (Store::default(), headless("driver-1"));
        store.put(Kind::Service, one.clone());
        let (list, news) = store.watch(Kind::Service);
        let lines: Vec<_> = list.lines().collect();
        assert_eq!(lines.len(), 2, "{list}");
        assert!(lines[0].contains("ADDED") && lines[0].contains("driver-1"), "{list}");
        assert!(lines[1].contains("initial-events-end"), "{list}");
        store.put(Kind::Namespace, json!({ "metadata": { "name": "default" } }));
        store.delete(Kind::Service, one);
        let told: Vec<_> = news.try_iter().collect();
        assert!(told.len() == 1 && told[0].contains("DELETED"), "{told:?}");
        assert_eq!(store.watch(Kind::Service).0.lines().count(), 1, "only the end of the list");
    }

    #[test]
    fn a_target_tells_which_objects_are_meant() {
        for (target, kind) in [
            ("/api/v1/namespaces?watch=true", Kind::Namespace),
            ("/api/v1/services?watch=true", Kind::Service),
            (
                "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=service.kubernetes.io%2Fheadless&",
                Kind::Slice,
            ),
            (
                "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=a%20in%20%28kube-dns%29&",
                Kind::NamedSlice,
            ),
        ] {
            assert_eq!(kind_of(target), kind, "{target}");
        }
    }
}
