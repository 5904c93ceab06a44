//! Responses of misses on their way out: all that one turn of a worker makes ready leave together.
//!
//! A system call for each would also wake its receiver each time, which costs more than the rest of it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::batch::{BATCH, Peer};
use super::quota::Share;
use super::socket::UdpSocket;
use crate::metrics::Metrics;
use crate::shutdown::Owed;

/// How often a response waits for room in the send buffer, a millisecond each.
const SEND_TRIES: usize = 5;

/// One response that is ready.
pub struct Departure {
    /// To whom, and the message.
    pub response: (Peer, Vec<u8>),
    pub socket: Arc<UdpSocket>,
    /// Given back when the response is sent.
    pub _held: (Share, Owed),
}

/// Where responses are left to be sent; what is queued is bounded by the shares that it holds.
#[derive(Clone)]
pub struct Departures(UnboundedSender<Departure>);

impl Departures {
    /// A queue that `worker` empties until every clone of it is dropped.
    pub fn start(worker: &Handle, metrics: Arc<Metrics>) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        worker.spawn(send_all(receiver, metrics));
        Self(sender)
    }

    /// Leaves a response to be sent.
    pub fn push(&self, departure: Departure) {
        // Nobody takes it only when the worker has ended, and we with it.
        let _ = self.0.send(departure);
    }
}

/// Sends what is queued. The task is woken by the first response of a turn, and runs after all other
/// tasks that were ready by then: their responses are here too.
async fn send_all(mut queue: UnboundedReceiver<Departure>, metrics: Arc<Metrics>) {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        for group in batch.chunk_by_mut(|one, next| Arc::ptr_eq(&one.socket, &next.socket)) {
            let lost = send(group).await;
            if lost > 0 {
                metrics.serve.send_failures.inc_by(lost);
            }
        }
        batch.clear();
    }
}

/// Sends responses of one socket; gives back how many the kernel did not take.
async fn send(mut group: &mut [Departure]) -> u64 {
    let (mut lost, mut waits) = (0, 0);
    while let Some(first) = group.first() {
        let socket = Arc::clone(&first.socket);
        let sent = socket.send(group.iter_mut().map(|departure| &mut departure.response));
        let done = match sent {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && waits < SEND_TRIES => {
                waits += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            // The first one is refused: skip it, the others may still go.
            Err(_) => {
                lost += 1;
                1
            }
        };
        group = &mut group[done..];
    }
    lost
}
