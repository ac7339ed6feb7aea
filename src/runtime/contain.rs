//! The host's code: transports, sinks, handlers, authenticators. Whatever it does is kept inside, a panic too.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tracing::{Instrument, Span};

/// The host's code under way.
pub(super) type Running<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Calls it; `None` when it panics.
pub(super) fn called<T>(call: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(call)).ok()
}

/// Runs it to its end; `None` when it panics, then or when it is dropped.
pub(super) fn contained<'a, T, F>(future: F) -> Running<'a, Option<T>>
where
    F: Future<Output = T> + Send + 'a,
{
    let mut future = Contained(Some(Box::pin(future)));
    Box::pin(async move { poll_fn(|context| future.poll(context)).await })
}

/// Runs the host's code in a span of its own; `None` when it panics, also when it is made.
pub(super) async fn caught<'a, T>(span: Span, run: impl FnOnce() -> Running<'a, T>) -> Option<T> {
    let done = match called(run) {
        Some(future) => contained(future.instrument(span.clone())).await,
        None => None,
    };
    if done.is_none() {
        span.record("error.type", "panic");
    }
    done
}

/// A future that may panic when it is polled, and when it is dropped.
struct Contained<F: Future>(Option<Pin<Box<F>>>);

impl<F: Future> Contained<F> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<F::Output>> {
        let Some(future) = &mut self.0 else { return Poll::Pending };
        match called(|| future.as_mut().poll(context)) {
            Some(Poll::Ready(done)) => Poll::Ready(Some(done)),
            Some(Poll::Pending) => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

impl<F: Future> Drop for Contained<F> {
    fn drop(&mut self) {
        let future = self.0.take();
        let _ = called(|| drop(future));
    }
}
