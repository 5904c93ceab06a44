//! Faces stub resolvers: takes queries in, gives every one its response.
//!
//! [`front`] looks at a message: refused, answered from the cache, or a miss. [`udp`] and [`tcp`] are
//! the front ends, [`socket`], [`batch`] and [`system`] their system calls. A miss waits in `room` while too
//! many are worked on, is worked on in `slots`, goes through [`handler`], the one `RequestHandler` for every way in, and leaves by
//! `departures`; [`reply`] writes what is not a stored response; [`quota`] shares what is bounded
//! fairly among sources, [`seats`] the TCP connections.
//! It refuses to decide what the answer is: that is `resolve`.

pub mod allow;
pub mod batch;
mod connection;
mod departures;
pub mod front;
pub mod handler;
pub mod quota;
pub mod reply;
mod room;
pub mod seats;
mod slots;
pub mod socket;
pub mod system;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod udp;

use std::io;
use std::sync::{Arc, mpsc};

use thiserror::Error;

use self::front::Front;
use self::socket::UdpSocket;
use crate::config::{Listen, Serve};
use crate::pulse::Pulses;
use crate::shutdown::Shutdown;

/// Why a listen address cannot be served.
#[derive(Debug, Error)]
#[error("cannot listen on {} ({protocol}): {source}{}", .listen.address, hint(.source))]
pub struct BindError {
    pub listen: Listen,
    pub protocol: &'static str,
    pub source: io::Error,
}

/// What mends a failure to bind.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another program answers there: stop it, or choose another `listen`, or \
             start with --take-over if it is an older nodens"
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE: run as root, or \
             `setcap cap_net_bind_service+ep` the program, or choose another port"
        }
        io::ErrorKind::AddrNotAvailable => "; no link of this host has the address",
        _ => "",
    }
}

/// Every socket of the front ends, bound and not yet read.
pub struct Bound {
    /// One list per serve thread.
    udp: Vec<Vec<Arc<UdpSocket>>>,
    tcp: Vec<(Listen, std::net::TcpListener)>,
    /// What was bound, in configuration order.
    pub addresses: Vec<Listen>,
}

/// Binds all of `listens`; defaults that cannot be bound for want of IPv6 are left out.
///
/// # Errors
/// The first address that cannot be bound, with the mend.
pub fn bind(listens: &[Listen], serve: &Serve, take_over: bool) -> Result<Bound, Box<BindError>> {
    let mut bound =
        Bound { udp: vec![Vec::new(); serve.threads], tcp: Vec::new(), addresses: Vec::new() };
    for listen in listens {
        match bind_one(listen, serve, take_over, &mut bound) {
            Err(error) if !listen.required && is_missing_address(&error.source) => {
                tracing::info!(address = %listen.address, "not on this host; left out");
            }
            Err(error) => return Err(error),
            Ok(()) => bound.addresses.push(listen.clone()),
        }
    }
    Ok(bound)
}

/// Binds one address for every thread, and for TCP.
fn bind_one(
    listen: &Listen,
    serve: &Serve,
    take_over: bool,
    bound: &mut Bound,
) -> Result<(), Box<BindError>> {
    let failed = |protocol| move |source| BindError { listen: listen.clone(), protocol, source };
    if !take_over {
        socket::probe(listen).map_err(|(protocol, source)| failed(protocol)(source))?;
    }
    for sockets in &mut bound.udp {
        sockets.push(Arc::new(UdpSocket::bind(listen, serve).map_err(failed("UDP"))?));
    }
    bound.tcp.push((listen.clone(), socket::tcp(listen).map_err(failed("TCP"))?));
    Ok(())
}

/// Tells whether the host simply does not have the address or its family.
fn is_missing_address(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// What the front ends run with.
pub struct Runners<'a> {
    pub front: &'a Arc<Front>,
    /// One handle per worker of the resolver runtime.
    pub workers: &'a [tokio::runtime::Handle],
    pub pulses: &'a Pulses,
    pub shutdown: &'a Shutdown,
}

impl Bound {
    /// Takes another's sockets over; both were bound for as many threads.
    pub fn extend(&mut self, other: Self) {
        for (ours, theirs) in self.udp.iter_mut().zip(other.udp) {
            ours.extend(theirs);
        }
        self.tcp.extend(other.tcp);
        self.addresses.extend(other.addresses);
    }

    /// Starts all front ends.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(self, serve: &Serve, runners: &Runners<'_>) -> io::Result<FrontEnds> {
        let front = Arc::clone(runners.front);
        front.watch_drops(self.udp.iter().flatten().map(Arc::downgrade));
        let threads = self.udp.into_iter().enumerate();
        let threads = threads.map(|(index, sockets)| udp::start(index, sockets, runners));
        let threads = threads.collect::<io::Result<_>>()?;
        let mut tcp = tcp::Acceptors::new(serve, runners);
        tcp.add(self.tcp, runners.pulses)?;
        Ok(FrontEnds { front, threads, tcp })
    }
}

/// The running front ends. They end with the drain, not with this value.
pub struct FrontEnds {
    front: Arc<Front>,
    /// Where each serve thread looks for more sockets.
    threads: Vec<mpsc::Sender<Arc<UdpSocket>>>,
    tcp: tcp::Acceptors,
}

impl FrontEnds {
    /// Serves more sockets, bound for as many threads; the first queries may wait 200 ms.
    ///
    /// # Errors
    /// When a listener cannot be registered with its runtime.
    pub fn add(&mut self, bound: Bound, pulses: &Pulses) -> io::Result<()> {
        self.front.watch_drops(bound.udp.iter().flatten().map(Arc::downgrade));
        for (thread, sockets) in self.threads.iter().zip(bound.udp) {
            for socket in sockets {
                // A thread that has ended drains, and so do we.
                let _ = thread.send(socket);
            }
        }
        self.tcp.add(bound.tcp, pulses)
    }
}
