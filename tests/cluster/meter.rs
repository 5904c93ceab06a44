//! Counts what goes between somebody and the API server: every byte of TCP payload, both ways.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A way to a server that counts.
pub struct Meter {
    pub port: u16,
    bytes: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
}

impl Meter {
    /// A way to `server`, for as long as the process lives.
    pub fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (bytes, connections) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let meter = Self { port, bytes: Arc::clone(&bytes), connections: Arc::clone(&connections) };
        std::thread::spawn(move || {
            for here in listener.incoming().flatten() {
                let Ok(there) = TcpStream::connect(server) else { continue };
                connections.fetch_add(1, Ordering::Relaxed);
                for (from, to) in [(&here, &there), (&there, &here)] {
                    let (from, to) = (from.try_clone(), to.try_clone());
                    let (from, to) = (from.expect("a copy"), to.expect("a copy"));
                    let bytes = Arc::clone(&bytes);
                    std::thread::spawn(move || carry(from, to, &bytes));
                }
            }
        });
        meter
    }

    /// Bytes so far, both ways.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Carries bytes one way until either side ends.
fn carry(mut from: TcpStream, mut to: TcpStream, bytes: &AtomicU64) {
    let mut buffer = vec![0; 65_536];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        bytes.fetch_add(len as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
