//! A control plane of one's own: etcd, kube-apiserver and CoreDNS on loopback, from `tests/kubernetes`.
//!
//! There are no controllers: tests write EndpointSlices themselves, as the controllers would.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::harness::place::{free_port, until};
use crate::harness::process::{Process, cannot_run};
use crate::harness::{Daemon, Place, Setup, ask as question, flag, qtype, wire};
use crate::objects::OUTSIDE;

/// How long a program may take to start on a busy machine.
const START: Duration = Duration::from_secs(60);

/// The token that may do everything, and the one that may do what nodens may.
const ADMIN: &str = "admin-token";
pub const NODENS: &str = "nodens-token";

/// One control plane at a time: two cores are not enough for more.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the programs lie, built if need be; `None` with loud words where they cannot be built.
pub fn programs() -> Option<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a target folder");
        let out = target.join("kubernetes");
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes/build");
        let done = Command::new(build).arg(&out).output().map_err(|error| error.to_string())?;
        let said = || String::from_utf8_lossy(&done.stderr).into_owned();
        done.status.success().then_some(out).ok_or_else(said)
    });
    built.as_ref().map_err(|why| cannot_run(&format!("no Kubernetes: {why}"))).ok().cloned()
}

/// Ends the calling test where there is no control plane.
macro_rules! needs_kubernetes {
    () => {
        match $crate::plane::programs() {
            Some(programs) => ($crate::plane::alone(), programs),
            None => return,
        }
    };
}
pub(crate) use needs_kubernetes;

/// etcd and an API server, and a way to it as administrator.
pub struct Plane {
    pub place: Place,
    programs: PathBuf,
    port: u16,
    etcd_port: u16,
    etcd: Process,
    server: Option<Process>,
    runtime: tokio::runtime::Runtime,
    client: kube::Client,
}

impl Plane {
    /// Starts all of it, with further flags for the API server; roles for [`NODENS`] are there.
    pub fn start(programs: &Path, flags: &[&str]) -> Self {
        let place = Place::new();
        let (port, etcd_port, peer) = (free_port(), free_port(), free_port());
        let tokens = format!("{ADMIN},admin,1,\"system:masters\"\n{NODENS},nodens,2\n");
        place.write("tokens.csv", &tokens);
        let key = rcgen::KeyPair::generate().expect("a key");
        place.write("accounts.key", &key.serialize_pem());
        place.write("accounts.pub", &key.public_key_pem());
        let mut etcd = Command::new(programs.join("etcd"));
        let peer = format!("http://127.0.0.1:{peer}");
        let own = format!("http://127.0.0.1:{etcd_port}");
        etcd.arg("--data-dir").arg(place.path("etcd"));
        etcd.args(["--listen-client-urls", &own, "--advertise-client-urls", &own]);
        etcd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        etcd.args(["--initial-cluster", &format!("default={peer}")]);
        etcd.args(["--unsafe-no-fsync", "--log-level", "warn"]);
        let etcd = Process::start(etcd, &place.path("etcd.log"));
        let server = serve(programs, &place, (port, etcd_port), flags);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let config = kubeconfig(&place, port, "admin", ADMIN);
        let client = runtime.block_on(connect(&config));
        let programs = programs.to_owned();
        let server = Some(server);
        let plane = Self { place, programs, port, etcd_port, etcd, server, runtime, client };
        plane.allow();
        plane
    }

    /// Stops the API server, as an upgrade of it does.
    pub fn stop(&mut self) {
        let mut server = self.server.take().expect("a running API server");
        server.signal(libc::SIGTERM);
        if server.wait(Duration::from_secs(5)).is_none() {
            server.signal(libc::SIGKILL);
        }
    }

    /// Starts it again; ready when this returns.
    pub fn resume(&mut self, flags: &[&str]) {
        let ports = (self.port, self.etcd_port);
        self.server = Some(serve(&self.programs, &self.place, ports, flags));
        let config = kubeconfig(&self.place, self.port, "admin", ADMIN);
        self.client = self.runtime.block_on(connect(&config));
    }

    /// A kubeconfig for `token` by the address that every pod is told: the test leads it to the API server.
    pub fn kubeconfig_of_pods(&self, user: &str, token: &str) -> PathBuf {
        let text = std::fs::read_to_string(self.kubeconfig(user, token)).expect("a kubeconfig");
        let here = self.address().to_string();
        self.place.write(&format!("{user}.kubeconfig"), &text.replace(&here, "10.96.0.1:443"))
    }

    /// A token of a service account, as the kubelet asks for one.
    pub fn token(&self, namespace: &str, account: &str) -> String {
        let spec =
            json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
        let target = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let token = self.must("POST", &target, Some(&spec));
        token["status"]["token"].as_str().expect("a token").to_owned()
    }

    /// A kubeconfig for `token`; the file has the user's name.
    pub fn kubeconfig(&self, user: &str, token: &str) -> PathBuf {
        kubeconfig(&self.place, self.port, user, token)
    }

    /// The same for nodens by way of another port.
    pub fn kubeconfig_by(&self, file: &str, port: u16) -> PathBuf {
        kubeconfig(&self.place, port, file, NODENS)
    }

    /// Where the API server listens.
    pub fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Watches `targets` as client-go does, in protobuf, without reading what they mean, until it is
    /// dropped. The user of this kubeconfig is the administrator.
    pub fn watch_by(&self, config: &Path, targets: &[&str]) -> tokio::task::JoinSet<()> {
        let text = std::fs::read_to_string(config).expect("a kubeconfig");
        std::fs::write(config, text.replace(NODENS, ADMIN)).expect("a kubeconfig");
        let client = self.runtime.block_on(connect(config));
        let mut watches = tokio::task::JoinSet::new();
        for target in targets {
            let target = format!(
                "{target}&watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
            );
            let request = http::Request::get(target)
                .header("accept", "application/vnd.kubernetes.protobuf;stream=watch")
                .body(Vec::new())
                .expect("a request");
            let client = client.clone();
            let watch = async move {
                let lines = client.request_stream(request).await.expect("a watch");
                let mut sink = futures_util::io::sink();
                let _ = futures_util::io::copy(lines, &mut sink).await;
            };
            watches.spawn_on(watch, self.runtime.handle());
        }
        watches
    }

    /// One request; the code and the body.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.runtime.block_on(ask(&self.client, method, path, body))
    }

    /// One request that must succeed.
    pub fn must(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (code, value) = self.ask(method, path, body);
        assert!((200..300).contains(&code), "{method} {path}: {code} {value}");
        value
    }

    /// Applies an object on the server's side, with strict validation of its fields, as `kubectl` may.
    pub fn apply(&self, object: &Value) {
        let query = "fieldManager=test&fieldValidation=Strict&force=true";
        let request = http::Request::patch(format!("{}?{query}", path(object)))
            .header("content-type", "application/apply-patch+yaml")
            .body(object.to_string().into_bytes())
            .expect("a request");
        let applied = self.runtime.block_on(self.client.request_text(request));
        applied.unwrap_or_else(|error| panic!("{}: {error}", path(object)));
    }

    /// One request with another token; the code and the body.
    pub fn ask_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> (u16, Value) {
        let config = self.kubeconfig("other", token);
        self.runtime.block_on(async { ask(&connect(&config).await, method, path, body).await })
    }

    /// Makes an object.
    pub fn make(&self, object: &Value) -> Value {
        self.must("POST", &folder(object), Some(object))
    }

    /// Makes many objects, many at a time.
    pub fn make_all(&self, objects: &[Value]) -> Vec<Value> {
        let make = |object: &Value| {
            let (client, object) = (self.client.clone(), object.clone());
            async move {
                let (code, value) = ask(&client, "POST", &folder(&object), Some(&object)).await;
                assert!((200..300).contains(&code), "{object}: {code} {value}");
                value
            }
        };
        let all = futures_util::stream::iter(objects.iter().map(make));
        self.runtime.block_on(all.buffered(32).collect())
    }

    /// Puts an object in its older self's place.
    pub fn replace(&self, object: &Value) -> Value {
        self.must("PUT", &path(object), Some(object))
    }

    /// Deletes an object.
    pub fn delete(&self, object: &Value) {
        self.must("DELETE", &path(object), None);
    }

    /// Everything that nodens may, and CoreDNS with the same token.
    fn allow(&self) {
        let rules = json!([
            { "apiGroups": [""], "resources": ["namespaces", "services", "pods"], "verbs": ["list", "watch"] },
            { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
        ]);
        let api = "rbac.authorization.k8s.io/v1";
        self.make(&json!({ "apiVersion": api, "kind": "ClusterRole",
            "metadata": { "name": "nodens" }, "rules": rules }));
        self.bind();
    }

    /// Gives the role to nodens.
    pub fn bind(&self) {
        let group = "rbac.authorization.k8s.io";
        self.make(&json!({ "apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding",
            "metadata": { "name": "nodens" },
            "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": "nodens" },
            "subjects": [{ "apiGroup": group, "kind": "User", "name": "nodens" }] }));
    }

    /// Takes the role away from nodens.
    pub fn unbind(&self) {
        let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/nodens";
        self.must("DELETE", bindings, None);
    }

    /// What is outside the cluster: a DNS server that knows [`OUTSIDE`] and nothing else.
    pub fn world(&self) -> CoreDns {
        let hosts = format!("hosts {{\n 192.0.2.80 {OUTSIDE}\n 2001:db8::80 {OUTSIDE}\n ttl 5\n}}");
        CoreDns::start(&self.programs, &hosts)
    }

    /// nodens on this API server, with further lines of `[cluster]`; perhaps not synced.
    pub fn nodens_unsynced(&self, upstream: std::net::SocketAddr, cluster: &str) -> Daemon {
        let config = self.kubeconfig("nodens", NODENS);
        let table = format!("[cluster]\nsource = \"watch\"\nkubeconfig = {config:?}\n{cluster}");
        Setup::towards(upstream).tables(&table).start()
    }

    /// The same, synced.
    pub fn nodens(&self, upstream: std::net::SocketAddr, cluster: &str) -> Daemon {
        let daemon = self.nodens_unsynced(upstream, cluster);
        let apex = || wire::udp(daemon.address(), &question("cluster.local", qtype::SOA));
        let is_synced = until(START, || apex().has(flag::AA));
        assert!(is_synced, "never synced:\n{}", daemon.log());
        daemon
    }

    /// CoreDNS on this API server; its server block holds `extra` besides the kubernetes plugin.
    pub fn coredns(&self, options: &str, extra: &str) -> CoreDns {
        let config = self.kubeconfig("coredns", NODENS);
        let kubernetes = format!(
            "kubernetes cluster.local in-addr.arpa ip6.arpa {{\n kubeconfig {}\n {options}\n}}",
            config.display()
        );
        CoreDns::start(&self.programs, &format!("ready 127.0.0.1:READY\n{kubernetes}\n{extra}"))
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        // The API server first: without etcd it would complain for a while.
        self.server = None;
        let _ = self.etcd.ended();
    }
}

/// A way to an API server of somebody in another network namespace: made and used on one thread in it.
pub struct Way {
    runtime: tokio::runtime::Runtime,
    client: kube::Client,
}

impl Way {
    /// By this kubeconfig.
    pub fn by(config: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let client = runtime.block_on(connect(config));
        Self { runtime, client }
    }

    /// Makes an object.
    pub fn make(&self, object: &Value) {
        self.must("POST", &folder(object), Some(object));
    }

    /// Deletes an object.
    pub fn delete(&self, object: &Value) {
        self.must("DELETE", &path(object), None);
    }

    /// One request that must succeed.
    fn must(&self, method: &str, path: &str, body: Option<&Value>) {
        let (code, value) = self.runtime.block_on(ask(&self.client, method, path, body));
        assert!((200..300).contains(&code), "{method} {path}: {code} {value}");
    }
}

/// Starts an API server and waits until it is ready.
fn serve(programs: &Path, place: &Place, ports: (u16, u16), flags: &[&str]) -> Process {
    let (port, etcd_port) = ports;
    let mut server = Command::new(programs.join("kube-apiserver"));
    let file = |name: &str, path: &Path| format!("--{name}={}", path.display());
    server.args([
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        format!("--secure-port={port}"),
        file("cert-dir", place.as_path()),
        file("token-auth-file", &place.path("tokens.csv")),
        file("service-account-signing-key-file", &place.path("accounts.key")),
        file("service-account-key-file", &place.path("accounts.pub")),
    ]);
    server.args([
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/112",
        "--disable-admission-plugins=ServiceAccount",
        "--enable-priority-and-fairness=false",
    ]);
    server.args(flags);
    let mut server = Process::start(server, &place.path("apiserver.log"));
    let config = kubeconfig(place, port, "admin", ADMIN);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let is_ready = until(START, || {
        assert!(server.ended().is_none(), "the API server ended:\n{}", server.log());
        if !place.path("apiserver.crt").exists() {
            return false;
        }
        runtime.block_on(async {
            let client = connect(&config).await;
            ask(&client, "GET", "/readyz", None).await.0 == 200
                && ask(&client, "GET", "/api/v1/namespaces/default", None).await.0 == 200
        })
    });
    assert!(is_ready, "the API server is not ready:\n{}", server.log());
    server
}

/// Writes a kubeconfig.
fn kubeconfig(place: &Place, port: u16, user: &str, token: &str) -> PathBuf {
    let authority = place.path("apiserver.crt");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{ "name": "here", "cluster": {
            "server": format!("https://127.0.0.1:{port}"), "certificate-authority": authority } }],
        "users": [{ "name": user, "user": { "token": token } }],
        "contexts": [{ "name": "here", "context": { "cluster": "here", "user": user } }],
    });
    place.write(&format!("{user}.kubeconfig"), &config.to_string())
}

/// A client by a kubeconfig.
async fn connect(config: &Path) -> kube::Client {
    let config = kube::config::Kubeconfig::read_from(config).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await;
    kube::Client::try_from(config.expect("a right kubeconfig")).expect("a client")
}

/// One request; code 0 when nobody answers.
async fn ask(
    client: &kube::Client,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> (u16, Value) {
    let request = http::Request::builder().method(method).uri(path);
    let request = request.header("content-type", "application/json");
    let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    match client.request_text(request.body(body).expect("a request")).await {
        Ok(text) => (200, serde_json::from_str(&text).unwrap_or(Value::String(text))),
        Err(kube::Error::Api(status)) => (status.code, json!(status.message)),
        Err(error) => (0, json!(error.to_string())),
    }
}

/// The path of an object's kind.
fn folder(object: &Value) -> String {
    let text = |name: &str| object[name].as_str().expect("a kind").to_owned();
    let (version, kind) = (text("apiVersion"), text("kind").to_lowercase());
    let root = if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") };
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{root}/namespaces/{namespace}/{kind}s"),
        None => format!("{root}/{kind}s"),
    }
}

/// The path of an object.
pub fn path(object: &Value) -> String {
    format!("{}/{}", folder(object), object["metadata"]["name"].as_str().expect("a name"))
}

/// A running CoreDNS.
pub struct CoreDns {
    _process: Process,
    pub address: std::net::SocketAddr,
    _place: Place,
}

impl CoreDns {
    /// One server on a free port with these plugins; `READY` in them is another free port, on which the
    /// plugin `ready` answers.
    pub fn start(programs: &Path, plugins: &str) -> Self {
        let place = Place::new();
        let (port, ready) = (free_port(), free_port());
        let plugins = plugins.replace("READY", &ready.to_string());
        let text = format!(".:{port} {{\n bind 127.0.0.1\n errors\n{plugins}\n}}\n");
        let file = place.write("Corefile", &text);
        let mut command = Command::new(programs.join("coredns"));
        command.arg("-conf").arg(file);
        let mut process = Process::start(command, &place.path("log"));
        let here = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let is_ready = until(START, || {
            assert!(process.ended().is_none(), "CoreDNS ended:\n{}", process.log());
            let asked = plugins.contains("ready ").then(|| {
                crate::harness::http::over_tcp(([127, 0, 0, 1], ready).into(), "GET", "/ready", "")
            });
            match asked {
                // The plugin answers before the sockets are bound, the version is said after it.
                Some(reply) => {
                    reply.is_some_and(|reply| reply.status == 200)
                        && process.log().contains("CoreDNS-")
                }
                None => std::net::TcpStream::connect(here).is_ok(),
            }
        });
        assert!(is_ready, "CoreDNS is not ready:\n{}", process.log());
        Self { _process: process, address: here, _place: place }
    }
}
