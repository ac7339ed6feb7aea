//! Where tasks are started, so that each one is owned.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::committer::JournalGauge;
use super::contain::{called, contained};

/// Starts a task on the engine's tokio runtime.
pub(super) fn spawn(handle: &Handle, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    handle.spawn(task)
}

/// Starts a task that is a part of the engine: should it panic, that is said.
pub(super) fn part(
    handle: &Handle,
    name: &'static str,
    gauge: &Arc<JournalGauge>,
    task: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let gauge = gauge.clone();
    spawn(handle, async move { gone(name, &gauge, contained(task).await) })
}

/// Starts a thread that is a part of the engine: should it panic, that is said.
pub(super) fn thread(
    name: &'static str,
    gauge: &Arc<JournalGauge>,
    body: impl FnOnce() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let gauge = gauge.clone();
    let body = move || gone(name, &gauge, called(body));
    std::thread::Builder::new().name(format!("lastmile-{name}")).spawn(body)
}

/// Whatever the host plugs in is kept inside where it is called, but for its clock: it was that, or it is a bug.
fn gone(name: &'static str, gauge: &JournalGauge, ended: Option<()>) {
    if ended.is_none() {
        gauge.degraded.store(true, Ordering::Relaxed);
        tracing::error!(
            part = name,
            "a part of the engine panicked and is gone: what was accepted is safe; open the engine again, and report this"
        );
    }
}
