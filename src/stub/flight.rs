//! One lookup on its way, and the socket that several share.

use std::io;
use std::net::UdpSocket;
use std::time::Instant;

use super::demand::{Done, End, Load};
use super::habit::Asking;
use super::sockets::{Arrival, Outbox};
use super::wanted::{self, Said};
use crate::dns::Rcode;

/// One lookup on its way.
pub(super) struct Flight {
    /// Tells lookups apart that have the same place one after the other.
    pub(super) generation: u32,
    /// Tells a deadline that counts from older ones.
    pub(super) timer: u32,
    pub(super) is_live: bool,
    pub(super) server: usize,
    pub(super) wanted: usize,
    pub(super) candidate: usize,
    pub(super) asking: Asking,
    pub(super) ids: [u16; 2],
    pub(super) rcodes: [Option<Rcode>; 2],
    pub(super) has_answers: bool,
    pub(super) sent: u32,
    pub(super) retries: u32,
    pub(super) responses: u32,
    pub(super) truncated: u32,
    pub(super) intended: Instant,
    pub(super) left: Option<Instant>,
    /// The one of all lookups that it is.
    pub(super) turn: u64,
    /// Of its last response.
    pub(super) arrival: Option<Arrival>,
    /// Its own, unless sockets are kept.
    pub(super) socket: Option<UdpSocket>,
    pub(super) lane: usize,
}

/// A socket that is kept, and whose lookup has which id.
pub(super) struct Lane {
    pub(super) socket: UdpSocket,
    /// The flight's index + 1 for each id; 0 is nobody's.
    pub(super) ids: Vec<u32>,
    pub(super) outbox: Outbox,
}

impl Flight {
    /// A lookup that is about to leave, in the place of `old`.
    pub(super) fn new(old: Option<&Self>, server: usize, wanted: usize, intended: Instant) -> Self {
        Self {
            generation: old.map_or(0, |old| old.generation.wrapping_add(1)),
            timer: old.map_or(0, |old| old.timer.wrapping_add(1)),
            is_live: true,
            server,
            wanted,
            candidate: 0,
            asking: Asking::new(1),
            ids: [0; 2],
            rcodes: [None; 2],
            has_answers: false,
            sent: 0,
            retries: 0,
            responses: 0,
            truncated: 0,
            intended,
            left: None,
            turn: 0,
            arrival: None,
            socket: None,
            lane: 0,
        }
    }

    /// What has become of it. Its last response ends it, else `now`.
    pub(super) fn done(&self, gave_up: bool, now: Instant) -> Done {
        let end = match gave_up {
            true => End::GaveUp,
            false if self.asking.is_partial() => End::Partial,
            false => End::Answered,
        };
        let arrival = self.arrival.filter(|_| end == End::Answered);
        // A stamp from before it left is that of a clock that was set meanwhile.
        let stamp = arrival.and_then(|arrival| arrival.stamped).filter(|at| Some(*at) >= self.left);
        let read = arrival.map_or(now, |arrival| arrival.read);
        Done {
            server: self.server,
            end,
            intended: self.intended,
            took: stamp.unwrap_or(read).saturating_duration_since(self.intended),
            unread: stamp.map(|stamp| read.saturating_duration_since(stamp)),
            late: self.left.unwrap_or(now).saturating_duration_since(self.intended),
            sent: self.sent,
            retries: self.retries,
            responses: self.responses,
            rcodes: self.rcodes,
            truncated: self.truncated,
        }
    }

    /// The question that a datagram answers, and what it says; `None` when it is none of ours.
    pub(super) fn read(&self, messages: &[Box<[u8]>], response: &[u8]) -> Option<(usize, Said)> {
        let id = wanted::id_of(response);
        let mut both = messages.iter().zip(self.ids).enumerate();
        both.find_map(|(question, (message, ours))| {
            let is_owed = ours == id && self.asking.owed() & 1 << question != 0;
            let said = wanted::read(message, response).filter(|_| is_owed)?;
            Some((question, said))
        })
    }

    /// Notes what a response says, and when it came.
    pub(super) fn note(&mut self, question: usize, said: Said, arrival: Arrival) {
        self.arrival = Some(arrival);
        self.responses += 1;
        self.truncated += u32::from(said.is_truncated);
        self.has_answers |= said.has_answers;
        if let Some(rcode) = self.rcodes.get_mut(question) {
            *rcode = Some(said.rcode);
        }
    }
}

impl Lane {
    /// Nobody uses it yet.
    pub(super) fn new(socket: UdpSocket) -> Self {
        Self { socket, ids: vec![0; 1 << 16], outbox: Outbox::default() }
    }

    /// Gives ids back.
    pub(super) fn release(&mut self, ids: [u16; 2], owner: u32) {
        for id in ids {
            if let Some(held) = self.ids.get_mut(usize::from(id)).filter(|held| **held == owner) {
                *held = 0;
            }
        }
    }

    /// Takes an id that nobody has; a random one, so that late responses find nobody.
    pub(super) fn claim(&mut self, owner: u32) -> u16 {
        let mut id: u16 = rand::random();
        // With all ids taken the last one looked at changes hands: its owner waits in vain.
        for _ in 0..u16::MAX {
            if self.ids.get(usize::from(id)) == Some(&0) {
                break;
            }
            id = id.wrapping_add(1);
        }
        if let Some(held) = self.ids.get_mut(usize::from(id)) {
            *held = owner;
        }
        id
    }
}

/// The messages that a lookup is about now.
pub(super) fn messages<'a>(load: &'a Load, flight: &Flight) -> &'a [Box<[u8]>] {
    load.wanted.get(flight.wanted).map_or(&[], |wanted| wanted.messages(flight.candidate))
}

/// Why a socket is not to be had, and what to do about it.
pub(super) fn reason(error: &io::Error, live: u64) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => format!(
            "too few descriptors: {live} lookups wait, each with a socket of its own; raise the limit \
             (ulimit -n), keep sockets (--sockets), or ask less"
        ),
        Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE | libc::EAGAIN) => format!(
            "too few source ports: {live} lookups wait, each with a port of its own; name more local \
             addresses (--sources), keep sockets (--sockets), or ask less"
        ),
        _ => format!("no socket towards the server: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;

    #[test]
    fn a_latency_ends_when_the_response_came_unless_the_clock_was_set_meanwhile() {
        let intended = clock::now();
        let at = |millis| intended + Duration::from_millis(millis);
        let mut flight = Flight::new(None, 0, 0, intended);
        flight.left = Some(at(1));
        let mut done = |stamped| {
            flight.arrival = Some(Arrival { read: at(9), stamped });
            let done = flight.done(false, at(20));
            (done.took.as_millis(), done.unread.map(|unread| unread.as_millis()))
        };
        assert_eq!(done(Some(at(3))), (3, Some(6)));
        assert_eq!(done(None), (9, None));
        assert_eq!(done(Some(intended)), (9, None), "before it left");
        assert_eq!(flight.done(true, at(20)).took.as_millis(), 20, "given up");
    }
}
