//! Tasks that resolve one query after another, on one worker: a task and its future, 3 kB which are
//! too large for the allocator's quick bins, are made for many queries, not for each.

use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Tasks that wait for work, at most; more of them, which a busy moment needed, end.
const MAX_IDLE: usize = 256;

/// The tasks that wait for a job `J`.
pub struct Slots<J>(Mutex<Vec<Arc<Slot<J>>>>);

/// One task's mailbox.
struct Slot<J>(Mutex<Mail<J>>);

/// What lies in a mailbox.
struct Mail<J> {
    job: Option<J>,
    /// The task, while it waits.
    waiting: Option<Waker>,
}

impl<J> Default for Slots<J> {
    /// No task yet.
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<J: Send + 'static> Slots<J> {
    /// Gives `job` to a task that waits, or to a new one, which does it by `work`.
    ///
    /// Must be called on the worker, always the same one, with the same `work`.
    pub fn give<F>(self: &Arc<Self>, job: J, work: impl Fn(J) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let idle = locked(&self.0).pop();
        match idle {
            Some(slot) => slot.put(job),
            None => {
                let slot = Arc::new(Slot(Mutex::new(Mail { job: Some(job), waiting: None })));
                tokio::spawn(Arc::clone(self).go_on(slot, work));
            }
        }
    }

    /// Does what lies in the mailbox, and whatever is given to this task afterwards.
    #[expect(clippy::manual_async_fn, reason = "a function's arguments lie in its future twice")]
    fn go_on<F>(
        self: Arc<Self>,
        slot: Arc<Slot<J>>,
        work: impl Fn(J) -> F + Send,
    ) -> impl Future<Output = ()> + Send
    where
        F: Future<Output = ()> + Send,
    {
        async move {
            loop {
                let job = poll_fn(|context| slot.poll(context)).await;
                work(job).await;
                let mut idle = locked(&self.0);
                if idle.len() >= MAX_IDLE {
                    return;
                }
                idle.push(Arc::clone(&slot));
            }
        }
    }
}

impl<J> Slot<J> {
    /// Leaves a job and wakes the task.
    fn put(&self, job: J) {
        let mut mail = locked(&self.0);
        mail.job = Some(job);
        let waiting = mail.waiting.take();
        drop(mail);
        // Where it does not wait yet it will look before it does.
        waiting.into_iter().for_each(Waker::wake);
    }

    /// The job that was left.
    fn poll(&self, context: &Context<'_>) -> Poll<J> {
        let mut mail = locked(&self.0);
        if let Some(job) = mail.job.take() {
            return Poll::Ready(job);
        }
        mail.waiting = Some(context.waker().clone());
        Poll::Pending
    }
}

/// Locks; nobody panics between two writes.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts a job as done, some of them after a while.
    async fn dawdle((job, done): (usize, Arc<AtomicUsize>)) {
        for _ in 0..job % 3 {
            tokio::task::yield_now().await;
        }
        done.fetch_add(1, Ordering::Relaxed);
    }

    #[tokio::test]
    async fn every_job_is_done_once_and_tasks_take_one_after_another() {
        let (slots, done) = (Arc::new(Slots::default()), Arc::new(AtomicUsize::new(0)));
        for round in 0..50usize {
            for job in 0..MAX_IDLE + 10 {
                let done = Arc::clone(&done);
                slots.give((job, done), dawdle);
            }
            let expected = (round + 1) * (MAX_IDLE + 10);
            while done.load(Ordering::Relaxed) < expected {
                tokio::task::yield_now().await;
            }
        }
        while locked(&slots.0).len() < MAX_IDLE {
            tokio::task::yield_now().await;
        }
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        assert!(tasks <= MAX_IDLE + 10, "{tasks} tasks");
        assert_eq!(done.load(Ordering::Relaxed), 50 * (MAX_IDLE + 10));
    }
}
