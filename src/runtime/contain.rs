//! The host's code: what it does is kept inside.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;

use tracing::{Instrument, Span};

/// The host's code under way.
pub(super) type Running<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs the host's code in a span of its own; `None` when it panics, then or when it is dropped.
pub(super) async fn caught<'a, T>(span: Span, run: impl FnOnce() -> Running<'a, T>) -> Option<T> {
    let future = catch_unwind(AssertUnwindSafe(run)).ok();
    let done = match future {
        Some(future) => {
            let mut future = Contained(Some(Box::pin(future.instrument(span.clone()))));
            poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.poll(context))) {
                Ok(Poll::Ready(done)) => Poll::Ready(Some(done)),
                Ok(Poll::Pending) => Poll::Pending,
                Err(_) => Poll::Ready(None),
            })
            .await
        }
        None => None,
    };
    if done.is_none() {
        span.record("error.type", "panic");
    }
    done
}

/// A future that may panic when it is dropped, too.
struct Contained<F: Future>(Option<Pin<Box<F>>>);

impl<F: Future> Contained<F> {
    fn poll(&mut self, context: &mut std::task::Context<'_>) -> Poll<F::Output> {
        match &mut self.0 {
            Some(future) => future.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

impl<F: Future> Drop for Contained<F> {
    fn drop(&mut self) {
        let future = self.0.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
    }
}
