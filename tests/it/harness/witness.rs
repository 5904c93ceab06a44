//! How late this machine is for everybody: a bare echo over loopback beside a test under load.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

/// How often the echo is asked.
const EVERY: Duration = Duration::from_millis(5);

/// An echo under way: one thread asks, another answers, and neither does anything else.
pub struct Witness {
    is_over: Arc<AtomicBool>,
    asking: JoinHandle<Duration>,
    answering: JoinHandle<()>,
}

impl Witness {
    /// Starts it on the loopback of the calling thread's namespace.
    pub fn start() -> Self {
        let socket = || UdpSocket::bind("127.0.0.1:0").expect("a port");
        let (asks, answers) = (socket(), socket());
        asks.connect(answers.local_addr().expect("bound")).expect("a route");
        answers.connect(asks.local_addr().expect("bound")).expect("a route");
        // Nobody waits for ever where a datagram is lost.
        answers.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        asks.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        let is_over = Arc::<AtomicBool>::default();
        let (ends, ends_too) = (Arc::clone(&is_over), Arc::clone(&is_over));
        let answering = spawn(move || {
            while !ends.load(Ordering::Acquire) {
                if answers.recv(&mut [0]).is_ok() {
                    let _ = answers.send(&[0]);
                }
            }
        });
        let asking = spawn(move || {
            let (mut longest, mut due) = (Duration::ZERO, Instant::now());
            while !ends_too.load(Ordering::Acquire) {
                due += EVERY;
                sleep(due.saturating_duration_since(Instant::now()));
                let _ = asks.send(&[0]).and_then(|_| asks.recv(&mut [0]));
                longest = longest.max(due.elapsed());
                // One pause is one delay, not many.
                due = due.max(Instant::now() - EVERY);
            }
            longest
        });
        Self { is_over, asking, answering }
    }

    /// Ends it; the longest that any echo came after its time.
    pub fn end(self) -> Duration {
        self.is_over.store(true, Ordering::Release);
        self.answering.join().expect("it only answers");
        self.asking.join().expect("it only asks")
    }
}
