//! An upstream on loopback that does as a script says, by UDP and TCP on one random port.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use super::message;
use crate::dns::{Qtype, Rcode};

/// One query as it came in.
#[derive(Clone, Debug)]
pub struct Seen {
    pub wire: Vec<u8>,
    pub from: SocketAddr,
    pub by_tcp: bool,
    /// How many came before, by UDP and TCP together.
    pub index: usize,
}

impl Seen {
    /// The message's id.
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.wire[0], self.wire[1]])
    }

    /// The question's type.
    pub fn qtype(&self) -> Qtype {
        message::qtype(&self.wire)
    }
}

/// One thing that the upstream does about a query.
#[derive(Clone, Debug)]
pub enum Act {
    /// Sends a message: one datagram, or with its length by TCP.
    Send(Vec<u8>),
    /// Sends bytes as they are: half a message by TCP, say.
    Raw(Vec<u8>),
    Wait(Duration),
    /// Closes the TCP connection.
    Close,
}

/// What to do about each query; an empty list drops it.
pub type Script = dyn Fn(&Seen) -> Vec<Act> + Send + Sync;

/// A scripted upstream; it ends when this is dropped.
pub struct Scripted {
    pub address: SocketAddr,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

/// What the tasks share.
struct State {
    script: Mutex<Arc<Script>>,
    seen: Mutex<Vec<Seen>>,
}

impl State {
    /// Records a query and asks the script.
    fn take(&self, wire: Vec<u8>, from: SocketAddr, by_tcp: bool) -> Vec<Act> {
        let seen = {
            let mut all = self.seen.lock().expect("no test panics with it");
            let seen = Seen { wire, from, by_tcp, index: all.len() };
            all.push(seen.clone());
            seen
        };
        let script = Arc::clone(&self.script.lock().expect("no test panics with it"));
        script(&seen)
    }
}

/// The ordinary behaviour: one A record 192.0.2.1, NODATA for other types.
pub fn well_behaved(seen: &Seen) -> Vec<Act> {
    vec![Act::Send(match seen.qtype() {
        Qtype::A => message::answer_a(&seen.wire, [192, 0, 2, 1], 60),
        _ => message::negative(&seen.wire, Rcode::NOERROR, 60),
    })]
}

impl Scripted {
    /// Starts an upstream on 127.0.0.1.
    pub async fn start(script: impl Fn(&Seen) -> Vec<Act> + Send + Sync + 'static) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), script).await
    }

    /// Starts an upstream at `address`; port 0 takes a random one that is free for both.
    pub async fn start_at(
        address: SocketAddr,
        script: impl Fn(&Seen) -> Vec<Act> + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind(address).await.expect("a TCP port");
            match UdpSocket::bind(tcp.local_addr().expect("it is bound")).await {
                Ok(udp) => break (udp, tcp),
                Err(_) if address.port() == 0 => {}
                Err(error) => panic!("no UDP port: {error}"),
            }
        };
        let address = udp.local_addr().expect("it is bound");
        let script: Mutex<Arc<Script>> = Mutex::new(Arc::new(script));
        let state = Arc::new(State { script, seen: Mutex::default() });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(Arc::new(udp), Arc::clone(&state)));
        tasks.spawn(serve_tcp(tcp, Arc::clone(&state)));
        Self { address, state, _tasks: tasks }
    }

    /// Changes what it does from the next query on.
    pub fn behave(&self, script: impl Fn(&Seen) -> Vec<Act> + Send + Sync + 'static) {
        *self.state.script.lock().expect("no test panics with it") = Arc::new(script);
    }

    /// All queries so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().expect("no test panics with it").clone()
    }

    /// How many queries came so far.
    pub fn count(&self) -> usize {
        self.state.seen.lock().expect("no test panics with it").len()
    }
}

/// Answers datagrams, each in a task of its own.
async fn serve_udp(socket: Arc<UdpSocket>, state: Arc<State>) {
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; 65_535];
    loop {
        // An error is an ICMP message about an earlier response; nothing is lost by it.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let acts = state.take(buffer[..length].to_vec(), from, false);
        let socket = Arc::clone(&socket);
        tasks.spawn(async move {
            for act in acts {
                match act {
                    Act::Send(bytes) | Act::Raw(bytes) => {
                        let _ = socket.send_to(&bytes, from).await;
                    }
                    Act::Wait(span) => tokio::time::sleep(span).await,
                    Act::Close => {}
                }
            }
        });
        while tasks.try_join_next().is_some() {}
    }
}

/// Answers connections, each in a task of its own.
async fn serve_tcp(listener: TcpListener, state: Arc<State>) {
    let mut tasks = JoinSet::new();
    loop {
        let Ok((stream, from)) = listener.accept().await else { continue };
        tasks.spawn(serve_connection(stream, from, Arc::clone(&state)));
        while tasks.try_join_next().is_some() {}
    }
}

/// Answers the queries of one connection as they come; the script may close it.
async fn serve_connection(stream: TcpStream, from: SocketAddr, state: Arc<State>) {
    let (mut reader, writer) = stream.into_split();
    let writer = Arc::new(tokio::sync::Mutex::new(writer));
    let (close, mut closed) = tokio::sync::mpsc::unbounded_channel::<()>();
    let mut tasks = JoinSet::new();
    loop {
        let length = tokio::select! {
            length = reader.read_u16() => length,
            _ = closed.recv() => return,
        };
        let Ok(length) = length else { return };
        let mut wire = vec![0; usize::from(length)];
        if reader.read_exact(&mut wire).await.is_err() {
            return;
        }
        let acts = state.take(wire, from, true);
        let (writer, close) = (Arc::clone(&writer), close.clone());
        tasks.spawn(async move {
            for act in acts {
                match act {
                    Act::Send(bytes) => {
                        let length =
                            u16::try_from(bytes.len()).expect("a DNS message").to_be_bytes();
                        let _ =
                            writer.lock().await.write_all(&[&length, &bytes[..]].concat()).await;
                    }
                    Act::Raw(bytes) => {
                        let _ = writer.lock().await.write_all(&bytes).await;
                    }
                    Act::Wait(span) => tokio::time::sleep(span).await,
                    Act::Close => {
                        let _ = close.send(());
                    }
                }
            }
        });
    }
}
