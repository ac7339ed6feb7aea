//! Sockets whose peer does not take what it is sent are given up, and it is known how far a request had come.
//!
//! HTTP libraries bound how long a head or a body may take to come. Whoever asks and then does not read the answer would
//! keep a socket, a task and a buffer for ever all the same.

use std::future::Future as _;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Whether something was read that has not been answered yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Begun(Arc<AtomicBool>);

impl Begun {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A socket whose writes fail with [`ErrorKind::TimedOut`] once none of them has made progress for a while.
#[derive(Debug)]
pub(super) struct Patient<S> {
    io: S,
    patience: Duration,
    /// Made when a write has to wait, and dropped when one goes on: a socket that is read from has none.
    late: Option<Pin<Box<Sleep>>>,
    begun: Begun,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Patient<S> {
    pub(super) fn new(io: S, patience: Duration, begun: Begun) -> Self {
        Self { io, patience, late: None, begun }
    }

    /// What a write came to: itself, or an error once it has waited for too long.
    fn in_time<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let written = write(Pin::new(&mut self.io), cx);
        if written.is_ready() {
            self.late = None;
            return written;
        }
        let patience = self.patience;
        let late = self.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        late.as_mut().poll(cx).map(|()| Err(ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            this.begun.0.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.begun.0.store(false, Ordering::Relaxed);
        this.in_time(cx, |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().in_time(cx, |io, cx| io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().in_time(cx, |io, cx| io.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.begun.0.store(false, Ordering::Relaxed);
        this.in_time(cx, |io, cx| io.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up_and_one_that_is_slow_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(10);
        let mut ours = Patient::new(ours, Duration::from_secs(30), Begun::default());
        let reading = async {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_secs(29)).await;
                theirs.read_exact(&mut [0; 10]).await.unwrap();
            }
            theirs
        };
        let (written, mut theirs) = tokio::join!(ours.write_all(&[7; 200]), reading);
        written.unwrap();
        let began = Instant::now();
        let stuck = ours.write_all(&[7; 200]).await.unwrap_err();
        assert_eq!((stuck.kind(), began.elapsed().as_secs()), (ErrorKind::TimedOut, 30));
        theirs.read_exact(&mut [0; 10]).await.unwrap();
        ours.write_all(&[7; 10]).await.unwrap();
    }

    #[tokio::test]
    async fn what_was_read_and_not_answered_is_told_from_silence() {
        let begun = Begun::default();
        let (ours, mut theirs) = tokio::io::duplex(10);
        let mut ours = Patient::new(ours, Duration::from_secs(30), begun.clone());
        assert!(!begun.get());
        theirs.write_all(b"GET").await.unwrap();
        ours.read_exact(&mut [0; 3]).await.unwrap();
        assert!(begun.get());
        ours.write_all(b"200").await.unwrap();
        assert!(!begun.get());
    }
}
