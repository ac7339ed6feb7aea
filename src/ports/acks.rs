//! Verdicts that come after a sink's `deliver` has returned.

use core::fmt;
use core::future::Future;
use core::pin::Pin;
use std::sync::Arc;

use crate::error::Closed;
use crate::machine::{EntryRef, Verdict};

/// A report under way.
pub type Reporting<'a> = Pin<Box<dyn Future<Output = Result<(), Closed>> + Send + 'a>>;

/// Takes verdicts. Engines implement it; so does a sink that has other sinks behind it.
pub trait Report: Send + Sync + 'static {
    /// Takes verdicts, in the order in which the messages were offered.
    ///
    /// # Errors
    /// [`Closed`] when nobody takes them any more: the messages will be offered again.
    fn report(&self, verdicts: Vec<(EntryRef, Verdict)>) -> Reporting<'_>;
}

/// Reports verdicts that come after `deliver` has returned. Cheap to clone.
#[derive(Clone)]
pub struct Acks(Arc<dyn Report>);

impl Acks {
    /// Verdicts that go there.
    #[must_use]
    pub fn new(report: impl Report) -> Self {
        Self(Arc::new(report))
    }

    /// Says what became of messages. Waits when the engine is busy.
    ///
    /// # Errors
    /// [`Closed`] when the engine is gone: the messages will be offered again when it is back.
    ///
    /// # Cancel safety
    /// Dropped before it returns, nothing was reported.
    pub async fn report(&self, verdicts: Vec<(EntryRef, Verdict)>) -> Result<(), Closed> {
        self.0.report(verdicts).await
    }
}

impl fmt::Debug for Acks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acks").finish_non_exhaustive()
    }
}
