//! Where tasks are started, so that each one is owned.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Starts a task on the engine's tokio runtime.
pub(super) fn spawn(handle: &Handle, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    handle.spawn(task)
}

/// Starts a thread.
pub(super) fn thread(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(format!("lastmile-{name}")).spawn(body)
}
