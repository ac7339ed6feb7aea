//! Where tasks are started, so that each one is owned.

use std::future::Future;

use tokio::task::JoinHandle;

/// Starts a task that ends by itself, with the connection it serves.
#[expect(clippy::disallowed_methods, reason = "the one place of this crate that starts tasks")]
pub(crate) fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(task)
}

/// A task that ends when this is dropped.
#[cfg(feature = "client")]
#[derive(Debug)]
pub(crate) struct Owned(JoinHandle<()>);

#[cfg(feature = "client")]
impl Owned {
    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(spawn(task))
    }
}

#[cfg(feature = "client")]
impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}
