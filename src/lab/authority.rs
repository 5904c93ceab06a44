//! The lab's cluster DNS: a small authoritative server for `cluster.local` on hickory-server.
//!
//! Its records are a table that scenarios change while it runs. It knows no delegation, no DNSSEC, and
//! no transfers.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Header, HeaderCounts, Metadata, ResponseCode};
use hickory_proto::rr::rdata::{PTR, SOA};
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::oneshot;

use super::LabError;
use super::namespace::Namespace;

/// Seconds that stub resolvers and caches may keep an answer.
const TTL: u32 = 5;
/// UDP sockets at each address: the kernel spreads queries over them, and each has a receive buffer of its
/// own. A burst that one could not hold would look like lost races.
const SOCKETS: usize = 4;
/// Bytes of a receive buffer; the kernel gives less where `net.core.rmem_max` is smaller.
const BUFFER: usize = 4 << 20;
/// How long an idle TCP connection stays.
const IDLE: Duration = Duration::from_secs(10);

/// Owner names with their records; names that exist without records are NODATA.
type Table = BTreeMap<LowerName, Vec<Record>>;

/// The records that all servers of a lab share.
#[derive(Clone)]
pub(super) struct Zone {
    table: Arc<ArcSwap<Table>>,
    soa: Arc<Record>,
}

impl Zone {
    /// A zone `cluster.local` without names.
    pub(super) fn new() -> Self {
        let apex = name("cluster.local");
        let (master, person) = (name("ns.dns.cluster.local"), name("hostmaster.cluster.local"));
        let soa = SOA::new(master, person, 1, 7200, 1800, 86_400, TTL);
        let soa = Record::from_rdata(apex, TTL, RData::SOA(soa));
        Self { table: Arc::default(), soa: Arc::new(soa) }
    }

    /// Gives a name these addresses, in place of those that it had; without any it goes.
    pub(super) fn put(&self, owner: &str, addresses: &[IpAddr]) {
        let owner = name(owner);
        let record = |ip: &IpAddr| Record::from_rdata(owner.clone(), TTL, RData::from(*ip));
        let records: Vec<_> = addresses.iter().map(record).collect();
        self.table.rcu(|table| {
            let mut table = Table::clone(table);
            match records.is_empty() {
                true => table.remove(&LowerName::from(&owner)),
                false => table.insert(LowerName::from(&owner), records.clone()),
            };
            table
        });
    }

    /// Gives an address's reverse name a name.
    pub(super) fn point(&self, address: IpAddr, target: &str) {
        let owner = Name::from(address);
        let record = Record::from_rdata(owner.clone(), TTL, RData::PTR(PTR(name(target))));
        self.table.rcu(|table| {
            let mut table = Table::clone(table);
            table.insert(LowerName::from(&owner), vec![record.clone()]);
            table
        });
    }

    /// What the zone says to a question; `None` for NXDOMAIN.
    fn answers(&self, owner: &LowerName, rtype: RecordType) -> Option<Vec<Record>> {
        let table = self.table.load();
        let records = table.get(owner)?;
        Some(records.iter().filter(|record| record.record_type() == rtype).cloned().collect())
    }
}

/// A domain name out of our own text.
fn name(text: &str) -> Name {
    Name::from_utf8(format!("{text}.")).expect("names of the lab are domain names")
}

#[async_trait::async_trait]
impl RequestHandler for Zone {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = true;
        let answers = match request.request_info() {
            Ok(info) => self.answers(info.query.name(), info.query.query_type()),
            Err(_) => None,
        };
        if answers.is_none() {
            metadata.response_code = ResponseCode::NXDomain;
        }
        let answers = answers.unwrap_or_default();
        let soa = answers.is_empty().then_some(&*self.soa);
        let builder = MessageResponseBuilder::from_message_request(request);
        let response = builder.build(metadata, answers.iter(), [], soa, []);
        let sent = response_handle.send_response(response).await;
        sent.unwrap_or_else(|_| {
            ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
        })
    }
}

/// A running server; it ends when this is dropped.
pub(super) struct Authority {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Authority {
    /// Serves `zone` inside a namespace, at these addresses, by UDP and TCP.
    ///
    /// # Errors
    /// When a socket cannot be bound.
    pub(super) fn start(
        namespace: &Arc<Namespace>,
        addresses: Vec<SocketAddr>,
        zone: Zone,
    ) -> Result<Self, LabError> {
        let (stop, stopped) = oneshot::channel();
        let (bound, is_bound) = std::sync::mpsc::channel();
        let inside = Arc::clone(namespace);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let started = inside.enter().and_then(|()| runtime.map_err(LabError::Runtime));
            let Ok(runtime) = started.map_err(|error| bound.send(Err(error))) else { return };
            runtime.block_on(async {
                let mut server = Server::new(zone);
                let listening = listen(&mut server, &addresses).await;
                let is_up = listening.is_ok();
                let _ = bound.send(listening);
                if is_up {
                    let _ = stopped.await;
                }
            });
        });
        is_bound.recv().unwrap_or(Err(LabError::Vanished("the cluster DNS")))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Binds all sockets.
async fn listen(server: &mut Server<Zone>, addresses: &[SocketAddr]) -> Result<(), LabError> {
    for at in addresses {
        let refused = |reason| LabError::Listen { at: *at, reason };
        for _ in 0..SOCKETS {
            server.register_socket(udp(*at).map_err(refused)?);
        }
        let listener = TcpListener::bind(at).await.map_err(refused)?;
        server.register_listener(listener, IDLE, 512);
    }
    Ok(())
}

/// A UDP socket that shares its address.
fn udp(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None)?;
    socket.set_reuse_port(true)?;
    socket.set_recv_buffer_size(BUFFER)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_its_addresses_by_type_and_goes_when_it_has_none() {
        let zone = Zone::new();
        let owner = LowerName::from(&name("web.default.svc.cluster.local"));
        assert!(zone.answers(&owner, RecordType::A).is_none());
        let addresses = ["198.18.0.1".parse().expect("v4"), "2001:db8::1".parse().expect("v6")];
        zone.put("web.default.svc.cluster.local", &addresses);
        let one = |rtype| zone.answers(&owner, rtype).expect("the name exists").len();
        assert_eq!((one(RecordType::A), one(RecordType::AAAA), one(RecordType::TXT)), (1, 1, 0));
        zone.put("web.default.svc.cluster.local", &[]);
        assert!(zone.answers(&owner, RecordType::A).is_none());
    }
}
