//! Foreign code under way: transports, authenticators, receivers, sources of credentials. A panic ends there.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::Poll;

/// A future of somebody else's, owned.
pub(super) type Running<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Runs it to its end; `None` when it panics.
pub(super) fn contained<T, F>(future: F) -> Running<Option<T>>
where
    F: Future<Output = T> + Send + 'static,
{
    Box::pin(async move {
        let mut future = pin!(future);
        poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Ready(done)) => Poll::Ready(Some(done)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => Poll::Ready(None),
        })
        .await
    })
}

/// Calls it; `None` when it panics.
pub(super) fn called<T>(call: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(call)).ok()
}
