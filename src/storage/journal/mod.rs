//! The journal: preallocated segment files, written a group at a time.
//!
//! ```text
//! segment-000002.journal
//! ├ block 0    header: version, id, generation, epoch, continues + chain, first number, base, oldest, salt (twice)
//! ├ block 1    group: header (generation, number, epoch, count, first, length, checksums, chain) + records + zeros
//! ├ block 4    group …
//! └ …          zeros, or stale groups of an earlier generation
//! ```
//!
//! # Invariants
//! - **One group, one write, one fdatasync**, also for the first group of a segment (its header rides along).
//! - **A chain.** A group names the checksum of the group before it, and the first one that of the segment header,
//!   which names the last group of the log before. Checksums are salted per segment, so neither stale bytes nor a
//!   payload made to look like a group can ever replay.
//! - **Each segment header is a fence.** It says up to which group everything before it counts (`continues`). Healing
//!   and opening are therefore the same step: start a fresh segment with a durable header. What a replay has ruled
//!   out once never comes back, and a group that is missing below `continues` is known to be damage.
//! - **Released segments are marked**, durably, before they are written again; a crash can neither bring their
//!   groups back nor mistake them for damage.
//! - **A replay touches nothing**; files are created, and groups that may be in memory only are written again, by
//!   `begin`.
//!
//! # When it is full
//! Appends use the configured ring only, and leave its last free segment to callers that may use the reserve.
//! Opening and healing may use that one too, then a segment that holds no group, then *one* spare file beyond the
//! ring, which is removed once the header of a later segment says that it is not needed. If even the spare is taken, healing answers `Full` (recycling works
//! while the journal waits to be healed), and opening succeeds without a segment: appends answer `Full` until
//! something was recycled. So an engine always opens, and the files stay within `segments + 1`.
//!
//! # Who may write
//! Handles on one [`Disk`](crate::storage::disk::Disk) share its [`Owner`](crate::storage::disk::Owner) and fence each
//! other. Between processes, the store's directory lock does.
//!
//! What the journal deliberately does not know: what a record is, which records still matter, and time.

mod config;
mod file;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod forge;
mod format;
mod layout;
mod memory;
mod replay;
mod ring;
#[cfg(test)]
mod tests;
mod writer;

pub use config::{JournalConfig, JournalConfigError};
pub use file::FileJournal;
pub use format::FORMAT_VERSION;
pub use memory::MemoryJournal;
