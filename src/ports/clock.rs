//! Where the runtime takes its time from.

use crate::time::Timestamp;

/// A source of engine time.
pub trait Clock: Send + Sync + 'static {
    /// The current engine time.
    ///
    /// # To ensure correctness
    /// Two calls, one after the other, never return a smaller value the second time.
    fn now(&self) -> Timestamp;
}
