//! The resolver runtime: one thread with a tokio runtime of its own per worker.
//!
//! Not one runtime with several workers: what begins on a thread stays there (a tuple belongs to
//! one thread), and a worker that hangs is seen by its own pulse.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

use crate::clock;
use crate::pulse::{Pulse, Pulses};

/// How often a worker says that it goes round.
const BEAT: Duration = Duration::from_millis(200);

/// How long workers are waited for at the end: one that hangs must not keep the process alive.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// The workers' threads.
pub struct Workers {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl Workers {
    /// Starts `count` workers.
    ///
    /// # Errors
    /// When a runtime or a thread cannot be made.
    pub fn start(count: usize, pulses: &Pulses) -> io::Result<Self> {
        let (stop, _) = watch::channel(false);
        let mut workers = Self { handles: Vec::new(), threads: Vec::new(), stop };
        for index in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            workers.handles.push(runtime.handle().clone());
            let pulse = pulses.register(format!("resolver-{index}"));
            let stopped = workers.stop.subscribe();
            let run = move || runtime.block_on(go_round(pulse, stopped));
            let name = format!("resolver-{index}");
            workers.threads.push(std::thread::Builder::new().name(name).spawn(run)?);
        }
        Ok(workers)
    }

    /// One handle per worker.
    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// Ends all workers, waiting for a second at most; what they still do is dropped.
    pub fn stop(self) {
        self.stop.send_replace(true);
        let deadline = clock::now() + STOP_PATIENCE;
        // A worker that panicked has ended too.
        let is_over = || self.threads.iter().all(JoinHandle::is_finished);
        while !is_over() && clock::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !is_over() {
            tracing::warn!("a resolver worker hangs; leaving without it");
        }
    }
}

/// Beats until told to stop; the worker's tasks run beside it.
async fn go_round(pulse: Arc<Pulse>, mut stopped: watch::Receiver<bool>) {
    let stop = stopped.wait_for(|stop| *stop);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            _ = &mut stop => return,
            () = tokio::time::sleep(BEAT) => pulse.beat(),
        }
    }
}
