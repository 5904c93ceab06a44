//! The sockets of one thread's lookups: those that are kept, and the one that is ready for what is due next.

use std::io;
use std::net::UdpSocket;

use super::demand::Load;
use super::flight::{Flight, Lane};
use super::sockets::{self, Poll};

/// Kept sockets have tokens from here on.
const KEPT: u64 = 1 << 63;

/// What a token stands for.
pub(super) enum Token {
    /// The place of a kept socket.
    Lane(usize),
    /// The place and the generation of a lookup that has a socket of its own.
    Flight(usize, u32),
}

/// All sockets of a thread, and what tells which of them have something.
pub(super) struct Rack {
    pub(super) poll: Poll,
    pub(super) lanes: Vec<Lane>,
    /// For the lookup of this turn: a socket is made while there is time, not when it should send.
    ready: Option<(u64, UdpSocket)>,
}

impl Rack {
    /// Opens the sockets that are kept.
    ///
    /// # Errors
    /// When there is no descriptor.
    pub(super) fn new(load: &Load) -> io::Result<Self> {
        let mut rack = Self { poll: Poll::new()?, lanes: Vec::new(), ready: None };
        for server in &load.servers {
            for index in 0..load.kept.unwrap_or(0) {
                let at = usize::try_from(index).unwrap_or(0) % load.sources.len().max(1);
                let socket = sockets::open(*server, load.sources.get(at).copied(), 0)?;
                sockets::widen(&socket);
                let token = KEPT | u64::try_from(rack.lanes.len()).unwrap_or(0);
                rack.poll.add(&socket, token)?;
                rack.lanes.push(Lane::new(socket));
            }
        }
        Ok(rack)
    }

    /// Makes the socket of the lookup that is due next, unless sockets are kept. One that cannot be had
    /// is told when it is needed.
    pub(super) fn make_ready(&mut self, load: &Load, turn: u64) {
        let is_ready = self.ready.as_ref().is_some_and(|(of, _)| *of == turn);
        if is_ready || !self.lanes.is_empty() {
            return;
        }
        self.ready = load
            .due(turn)
            .and_then(|(_, server)| {
                let server = load.servers.get(server)?;
                sockets::open(*server, load.source(turn), load.port(turn)).ok()
            })
            .map(|socket| (turn, socket));
    }

    /// Gives a lookup a socket of its own: the one that is ready, or a new one.
    ///
    /// # Errors
    /// What the kernel says: no descriptor, no port.
    pub(super) fn renew(
        &mut self,
        load: &Load,
        index: usize,
        flight: &mut Flight,
    ) -> io::Result<()> {
        let ready = self.ready.take_if(|(turn, _)| *turn == flight.turn && flight.sent == 0);
        let socket = match ready {
            Some((_, socket)) => socket,
            None => {
                let Some(server) = load.servers.get(flight.server) else { return Ok(()) };
                // One that begins anew takes the port that the kernel draws.
                let port = if flight.sent == 0 { load.port(flight.turn) } else { 0 };
                sockets::open(*server, load.source(flight.turn), port)?
            }
        };
        let token = u64::from(flight.generation) << 32 | u64::try_from(index).unwrap_or(0);
        self.poll.add(&socket, token & !KEPT)?;
        flight.socket = Some(socket);
        Ok(())
    }

    /// Sends what waits in kept sockets.
    pub(super) fn flush(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.outbox.flush(&lane.socket));
    }
}

impl Token {
    /// Reads what [`Poll`] told.
    pub(super) fn of(token: u64) -> Self {
        let place = |bits| usize::try_from(bits).unwrap_or(0);
        match token & KEPT {
            0 => Self::Flight(place(token & 0xffff_ffff), u32::try_from(token >> 32).unwrap_or(0)),
            _ => Self::Lane(place(token & !KEPT)),
        }
    }
}
