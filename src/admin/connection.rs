//! Connections with limits: how many at one time, how long each lives, how much it may send us.
//!
//! One request per connection, so a connection that lives long is stuck. When there are too many, the
//! oldest is cut: whoever holds connections open cannot keep a probe out.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::Sleep;

/// Connections of one listener at one time.
const CONNECTIONS: usize = 32;

/// From accept to the last byte of the response.
const LIFETIME: Duration = Duration::from_secs(10);

/// Bytes that one connection may send: a request line and headers, nothing else is read.
const REQUEST_BYTES: usize = 16 * 1024;

/// A listener whose connections are limited.
pub(super) struct Limited<L> {
    listener: L,
    /// The living connections, oldest first; dropping a sender cuts its connection.
    living: VecDeque<oneshot::Sender<()>>,
}

impl<L> Limited<L> {
    /// Limits what `listener` accepts.
    pub(super) fn new(listener: L) -> Self {
        Self { listener, living: VecDeque::with_capacity(CONNECTIONS) }
    }
}

impl<L: Listener> Listener for Limited<L> {
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = self.listener.accept().await;
        self.living.retain(|connection| !connection.is_closed());
        if self.living.len() >= CONNECTIONS {
            self.living.pop_front();
            tracing::debug!("too many admin connections, the oldest is cut");
        }
        let (keep, cut) = oneshot::channel();
        self.living.push_back(keep);
        let end = Box::pin(tokio::time::sleep(LIFETIME));
        (Connection { stream, end, cut, may_send: REQUEST_BYTES }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// One connection; reading and writing fail once it has lived too long, was cut or sent too much.
pub(super) struct Connection<S> {
    stream: S,
    end: Pin<Box<Sleep>>,
    cut: oneshot::Receiver<()>,
    may_send: usize,
}

impl<S> Connection<S> {
    /// The reason why the connection must end; wakes the task when there is one later.
    fn limit(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        let is_over = self.end.as_mut().poll(cx).is_ready();
        let is_cut = Pin::new(&mut self.cut).poll(cx).is_ready();
        (is_over || is_cut).then(|| io::ErrorKind::TimedOut.into())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(error) = self.limit(cx) {
            return Poll::Ready(Err(error));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = buffer.filled().len().saturating_sub(before);
        let Some(left) = self.may_send.checked_sub(read) else {
            // A failed read leaves the buffer as it was.
            buffer.set_filled(before);
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        };
        self.may_send = left;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.limit(cx) {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.limit(cx) {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.limit(cx) {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::mpsc;

    use super::*;

    /// Accepts what the test hands it.
    struct Handed(mpsc::Receiver<DuplexStream>);

    impl Listener for Handed {
        type Io = DuplexStream;
        type Addr = ();

        async fn accept(&mut self) -> (DuplexStream, ()) {
            (self.0.recv().await.expect("the test hands one"), ())
        }

        fn local_addr(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A limited listener, and `count` pairs of far and accepted ends.
    async fn accepted(count: usize) -> Vec<(DuplexStream, Connection<DuplexStream>)> {
        let (hand, handed) = mpsc::channel(1);
        let mut listener = Limited::new(Handed(handed));
        let mut pairs = Vec::new();
        for _ in 0..count {
            let (far, near) = duplex(64);
            hand.send(near).await.expect("the listener lives");
            pairs.push((far, listener.accept().await.0));
        }
        // The listener outlives its connections, as in the daemon.
        std::mem::forget(listener);
        pairs
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_connection_ends_after_its_lifetime() {
        let start = crate::clock::now();
        let (_far, mut near) = accepted(1).await.remove(0);
        let error = near.read_u8().await.expect_err("nothing was sent");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let waited = crate::clock::now() - start;
        assert!(waited >= LIFETIME && waited < 2 * LIFETIME, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_asker_that_does_not_read_ends_after_the_lifetime() {
        let (_far, mut near) = accepted(1).await.remove(0);
        let error = near.write_all(&[0; 1000]).await.expect_err("64 bytes fit");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn one_too_many_cuts_the_oldest_and_only_it() {
        let start = crate::clock::now();
        let mut pairs = accepted(CONNECTIONS + 1).await;
        let (_far, mut oldest) = pairs.remove(0);
        oldest.read_u8().await.expect_err("cut");
        assert_eq!(crate::clock::now(), start, "at once");
        for (far, near) in &mut pairs {
            far.write_u8(1).await.expect("lives");
            assert_eq!(near.read_u8().await.expect("lives"), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_request_ends_the_connection() {
        let (mut far, mut near) = accepted(1).await.remove(0);
        let sender = tokio::spawn(async move { while far.write_all(b"x").await.is_ok() {} });
        let mut sink = Vec::new();
        let error = near.read_to_end(&mut sink).await.expect_err("too much");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(sink.len() <= REQUEST_BYTES);
        drop(near);
        sender.await.expect("no panic");
    }
}
