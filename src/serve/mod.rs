//! Faces stub resolvers: takes queries in, gives every one its response.
//!
//! [`front`] looks at a message: refused, answered from the cache, or a miss. [`udp`] and [`tcp`] are
//! the front ends, [`socket`], [`batch`] and [`system`] their system calls. A miss goes through [`handler`], the one
//! `RequestHandler` for every way in; [`reply`] writes what is not a stored response; [`quota`]
//! shares what is bounded fairly among sources, [`seats`] the TCP connections.
//! It refuses to decide what the answer is: that is `resolve`.

pub mod allow;
pub mod batch;
mod connection;
pub mod front;
pub mod handler;
pub mod quota;
pub mod reply;
pub mod seats;
pub mod socket;
pub mod system;
pub mod tcp;
pub mod udp;

use std::io;
use std::sync::Arc;

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
    tcp: Vec<std::net::TcpListener>,
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
    bound.tcp.push(socket::tcp(listen).map_err(failed("TCP"))?);
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
    pub fn start(self, serve: &Serve, runners: &Runners<'_>) -> io::Result<()> {
        let all: Vec<_> = self.udp.iter().flatten().map(Arc::downgrade).collect();
        runners.front.watch_drops(all);
        for (index, sockets) in self.udp.into_iter().enumerate() {
            udp::start(index, sockets, runners)?;
        }
        tcp::start(self.tcp, serve, runners)
    }
}
