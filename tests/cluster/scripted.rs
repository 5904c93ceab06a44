//! An API server that says what a test tells it to, over plain HTTP: faults that a real one shows rarely,
//! and lists that cost it no CPU.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use crate::harness::Place;

/// One request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub target: String,
    pub authorization: String,
}

impl Asked {
    /// Whether it wants a whole list.
    pub fn is_list(&self) -> bool {
        self.target.contains("sendInitialEvents=true")
    }
}

/// What is said next on a running watch.
enum Next {
    Line(String),
    End,
}

/// What the server knows and has seen.
#[derive(Default)]
struct State {
    /// By the name of a stream: the lines of its list.
    lists: BTreeMap<&'static str, Arc<Vec<String>>>,
    running: Vec<(&'static str, Sender<Next>)>,
    asked: Vec<Asked>,
    /// How many connections were made.
    connections: usize,
    /// Answers to come in place of watches.
    refusals: Vec<u16>,
    /// The only token that is known, if not every one is.
    token: Option<&'static str>,
}

/// The server; its threads live as long as the process.
pub struct Scripted {
    port: u16,
    state: Arc<Mutex<State>>,
    place: Place,
}

/// The streams: three kinds, and the EndpointSlices that are asked for by name.
pub const STREAMS: [&str; 4] = ["namespaces", "services", "endpointslices", "named"];

impl Scripted {
    /// One with nothing in it.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(&stream, &state));
            }
        });
        Self { port, state, place: Place::new() }
    }

    /// Puts what is in the list of `stream` from now on; running watches are not told.
    pub fn hold(&self, stream: &'static str, objects: &[Value]) {
        let line = |object| json!({ "type": "ADDED", "object": object }).to_string() + "\n";
        self.lock().lists.insert(stream, Arc::new(objects.iter().map(line).collect()));
    }

    /// Says an event on the running watch of `stream`.
    pub fn say(&self, stream: &str, kind: &str, object: &Value) {
        assert!(self.try_say(stream, kind, object), "nobody watches {stream}");
    }

    /// The same; tells whether anybody watches.
    pub fn try_say(&self, stream: &str, kind: &str, object: &Value) -> bool {
        let line = json!({ "type": kind, "object": object }).to_string() + "\n";
        let state = self.lock();
        let running = state.running.iter().rev().find(|(name, _)| *name == stream);
        running.is_some_and(|(_, lines)| lines.send(Next::Line(line)).is_ok())
    }

    /// Makes every running watch fail: its version is too old.
    pub fn forget(&self) {
        let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "too old resource version", "reason": "Expired", "code": 410 });
        for stream in STREAMS {
            if self.lock().running.iter().any(|(name, _)| *name == stream) {
                self.say(stream, "ERROR", &status);
            }
        }
    }

    /// Ends every running watch, as its time does.
    pub fn end(&self) {
        for (_, lines) in self.lock().running.drain(..) {
            let _ = lines.send(Next::End);
        }
    }

    /// Answers the next requests with these codes.
    pub fn refuse(&self, codes: &[u16]) {
        self.lock().refusals.extend(codes);
    }

    /// Knows no token but this one from now on: all others get a 401. Running watches go on.
    pub fn know(&self, token: &'static str) {
        self.lock().token = Some(token);
    }

    /// All that has been asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> usize {
        self.lock().connections
    }

    /// A kubeconfig with this user.
    pub fn kubeconfig(&self, user: &Value) -> PathBuf {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{ "name": "here",
                "cluster": { "server": format!("http://127.0.0.1:{}", self.port) } }],
            "users": [{ "name": "user", "user": user }],
            "contexts": [{ "name": "here", "context": { "cluster": "here", "user": "user" } }],
        });
        self.place.write("kubeconfig", &config.to_string())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic elsewhere")
    }
}

/// Which stream a target is of.
fn stream_of(target: &str) -> &'static str {
    let path = target.split('?').next().unwrap_or_default();
    let is_named = target.contains("%20in%20");
    let kind = STREAMS.into_iter().find(|stream| path.ends_with(stream));
    if is_named { "named" } else { kind.expect("a path that nodens asks for") }
}

/// Answers the requests on one connection.
fn serve(stream: &TcpStream, state: &Mutex<State>) {
    state.lock().expect("no panic elsewhere").connections += 1;
    while answer(stream, state).is_some() {}
}

/// Answers one request; after a refusal the connection stays, its end is the end of a watch.
fn answer(stream: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let asked = read(stream)?;
    let name = stream_of(&asked.target);
    let (list, lines) = {
        let mut state = state.lock().expect("no panic elsewhere");
        state.asked.push(asked.clone());
        if let Some(code) = state.refusals.pop() {
            return refuse(stream, code).ok();
        }
        let is_known = |token| asked.authorization == format!("Bearer {token}");
        if !state.token.is_none_or(is_known) {
            return refuse(stream, 401).ok();
        }
        let (sender, lines) = channel();
        state.running.push((name, sender));
        (asked.is_list().then(|| state.lists.get(name).cloned()), lines)
    };
    // That the other side is gone is no fault of ours.
    let _ = watch(stream, list, &lines);
    None
}

/// Reads the head of a request.
fn read(stream: &TcpStream) -> Option<Asked> {
    let mut asked = Asked { target: String::new(), authorization: String::new() };
    for line in BufReader::new(stream).lines() {
        let line = line.ok()?;
        if let Some(rest) = line.strip_prefix("GET ") {
            asked.target = rest.split(' ').next()?.to_owned();
        } else if let Some(token) = line.strip_prefix("authorization: ") {
            asked.authorization = token.to_owned();
        } else if line.is_empty() {
            break;
        }
    }
    (!asked.target.is_empty()).then_some(asked)
}

/// Answers with a code.
fn refuse(mut stream: &TcpStream, code: u16) -> std::io::Result<()> {
    let body = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "refused by the test", "reason": "Forbidden", "code": code })
    .to_string();
    let head = format!("HTTP/1.1 {code} No\r\ncontent-type: application/json");
    let length = body.len();
    stream.write_all(format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes())
}

/// Says a list, if one is asked for, and what comes, until it ends.
fn watch(
    stream: &TcpStream,
    list: Option<Option<Arc<Vec<String>>>>,
    lines: &Receiver<Next>,
) -> std::io::Result<()> {
    let mut out = BufWriter::new(stream);
    write!(out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n")?;
    if let Some(list) = list {
        for line in list.iter().flat_map(|list| list.iter()) {
            out.write_all(line.as_bytes())?;
        }
        let end = json!({ "type": "BOOKMARK", "object": { "kind": "Any", "apiVersion": "v1", "metadata": {
            "resourceVersion": "1", "annotations": { "k8s.io/initial-events-end": "true" } } } });
        writeln!(out, "{end}")?;
    }
    out.flush()?;
    while let Ok(Next::Line(line)) = lines.recv() {
        out.write_all(line.as_bytes())?;
        out.flush()?;
    }
    Ok(())
}
