//! One query and its response on one connected UDP socket.

use std::cell::RefCell;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::lease::{Lease, NoSocket, Towards};
use super::ports::PortClass;
use super::spare;
use super::verify::{Asked, Verdict};

/// The largest datagram there is; we advertise far less, but what is cut here cannot be judged.
const MAX_DATAGRAM: usize = 65_535;

thread_local! {
    /// Where datagrams are received; what is kept of them is copied.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_DATAGRAM].into());
}

/// Why a tuple has its socket.
const HELD: &str = "who releases a tuple has it no more";

/// A connected socket on a port of its own. It carries one exchange at a time.
#[derive(Debug)]
pub struct Tuple {
    // There until the tuple is released. Dropped first: the port is free before its rest begins.
    socket: Option<AsyncFd<UdpSocket>>,
    lease: Lease,
    /// Nothing that was sent waits for its response.
    is_settled: bool,
}

impl Drop for Tuple {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            self.lease.end(socket.get_ref(), self.is_settled);
        }
    }
}

/// A socket between two exchanges, without a port.
#[derive(Debug)]
pub struct Spare(AsyncFd<UdpSocket>);

impl Spare {
    /// The socket on a port of `class`.
    ///
    /// # Errors
    /// As [`Towards::renew`]; the socket is closed.
    pub fn renew(
        self,
        towards: &Arc<Towards>,
        class: PortClass,
        rest: Duration,
    ) -> Result<Tuple, NoSocket> {
        // Not when it was released: what was being delivered at that moment has arrived by now.
        if !spare::empty(self.0.get_ref()) {
            return Err(NoSocket::Refused(io::ErrorKind::Other.into()));
        }
        let lease = towards.renew(self.0.get_ref(), class, rest)?;
        Ok(Tuple { socket: Some(self.0), lease, is_settled: true })
    }
}

impl Tuple {
    /// Registers a socket with the runtime.
    ///
    /// # Errors
    /// [`NoSocket`] when the kernel watches no more descriptors.
    pub fn new((socket, lease): (UdpSocket, Lease)) -> Result<Self, NoSocket> {
        // A connected socket learns of ICMP errors by a bare EPOLLERR, which wakes no reader.
        let interest = Interest::READABLE | Interest::ERROR;
        // SAFETY: a `UdpSocket` owns its descriptor and gives the same one until it is dropped,
        // which it is with the `AsyncFd`; nothing here takes it out or closes it before.
        let socket = unsafe { AsyncFd::register_with_interest(socket, interest) }
            .map_err(io::Error::from)?;
        Ok(Self { socket: Some(socket), lease, is_settled: true })
    }

    /// Ends the tuple: its port rests. Gives back the socket where it needs not be closed for that.
    pub fn release(mut self) -> Option<Spare> {
        let socket = self.socket.take()?;
        self.lease.end(socket.get_ref(), self.is_settled);
        let is_free = self.lease.is_movable() && spare::disconnect(socket.get_ref()).is_ok();
        is_free.then(|| Spare(socket))
    }

    /// Sends the query.
    ///
    /// # Errors
    /// What the kernel says: no route, or an earlier ICMP error. A full send buffer is a lost packet.
    pub fn send(&mut self, asked: &Asked) -> io::Result<()> {
        self.is_settled = false;
        let socket = self.socket.as_ref().expect(HELD);
        let send = || match socket.get_ref().send(asked.wire()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other.map(|_| ()),
        };
        // A kept socket may still hold the error of an earlier exchange; reading it clears it.
        send().or_else(|_| send())
    }

    /// Waits for the next datagram and judges it.
    ///
    /// # Errors
    /// An ICMP error for the query, as the kernel reports it.
    /// # Cancel safety
    /// A datagram is either judged or still in the socket.
    pub async fn receive(&mut self, asked: &Asked) -> io::Result<Verdict> {
        let socket = self.socket.as_ref().expect(HELD);
        loop {
            let mut ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
            let judged = ready.try_io(|socket| {
                BUFFER.with_borrow_mut(|buffer| {
                    let length = socket.get_ref().recv(buffer)?;
                    Ok(asked.judge_datagram(buffer.get(..length).unwrap_or_default()))
                })
            });
            match judged {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(judged) => {
                    // A kept socket that still counts as readable would cost its next exchange a
                    // receive that finds nothing. What else is queued is found after the next arrival.
                    if !matches!(judged, Ok(Verdict::Ignored | Verdict::WrongCase)) {
                        ready.clear_ready();
                        self.is_settled = judged.is_ok();
                    }
                    return judged;
                }
                Err(_would_block) => {}
            }
        }
    }
}
