//! The journal port: the only thing a sender waits for.
//!
//! A journal is a bounded ring of segments. It stores *groups*: each group is one atomic, ordered set of records,
//! made durable together. The journal does not know what a record is; it is told how many there are, so that every
//! record has a place in the log, its [`Seq`].

use crate::record::{Epoch, Seq};

/// One atomic set of records, as it was appended.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// The place of the group's first record in the log; record `i` has the place `first + i`.
    pub first: Seq,
    /// How many records the group holds (at least one).
    pub count: u32,
    /// The records: each one as a little-endian `u32` length and its encoding (see `storage`'s record codec).
    pub records: &'a [u8],
}

/// What an append did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Set when this append left the previous segment: every record of it lies below this place.
    pub sealed_before: Option<Seq>,
}

/// How much room the journal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalSpace {
    /// Segments in the ring.
    pub segments: u32,
    /// Segments that hold nothing that is still needed.
    pub free: u32,
    /// Usable bytes of one segment.
    pub segment_bytes: u64,
    /// The largest `records` of one group that `append` takes.
    pub max_group_bytes: u64,
}

/// A group at the end of the log that was cut off because it was incomplete or damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailCut {
    /// The place of the first record that was cut, as far as it can be known.
    pub first: Seq,
    /// What was wrong, for people.
    pub reason: String,
}

/// What a replay found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Replay {
    /// Groups handed to the visitor.
    pub groups: u64,
    /// Records handed to the visitor.
    pub records: u64,
    /// The place after the last record seen, settled or not ([`Seq::ZERO`] for an empty journal).
    pub end: Seq,
    /// The newest epoch seen in any segment header.
    pub epoch: Epoch,
    /// The end of the log was incomplete: a crash in the middle of a write, or damage to the last group.
    pub tail_cut: Option<TailCut>,
    /// Damage in the middle of the log: good groups follow it, so something acknowledged may be lost.
    pub damaged: Vec<TailCut>,
}

/// Why the journal could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// A newer owner has opened this journal. Nothing was stored; this handle will never write again.
    #[error(
        "journal is owned by epoch {current:?}, this handle holds {held:?}: nothing was written; drop this engine"
    )]
    Fenced {
        /// The epoch this handle was opened with.
        held: Epoch,
        /// The epoch that owns the journal now.
        current: Epoch,
    },
    /// Every segment holds records that have not settled yet. Nothing was stored; settle and try again.
    #[error("journal is full: nothing was written; it has room again once its oldest segment has settled")]
    Full,
    /// The group is larger than `max_group_bytes`. Nothing was stored.
    #[error(
        "group of {bytes} bytes is over the journal's limit of {max}: nothing was written; send less at once, or configure larger segments"
    )]
    TooLarge {
        /// The size asked for.
        bytes: u64,
        /// The largest size taken.
        max: u64,
    },
    /// A write or a sync failed. Whether the groups since the last successful sync are stored is unknown; the
    /// journal takes no more of them until [`Journal::heal`] has fenced them off.
    #[error(
        "journal I/O failed ({op}: {source}): what was written since the last sync is unknown; heal before writing on"
    )]
    Io {
        /// The operation that failed.
        op: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// An earlier failure has not been healed. Nothing was stored.
    #[error(
        "an earlier failure of the journal is not healed: nothing was written; heal it before writing on"
    )]
    NeedsHeal,
    /// The files are of a newer format. Nothing was touched.
    #[error(
        "journal format {found} is newer than {supported}, the newest this build reads: nothing was touched; upgrade lastmile"
    )]
    FormatTooNew {
        /// The version found on disk.
        found: u16,
        /// The newest version this build reads.
        supported: u16,
    },
    /// The visitor of a replay asked to stop with an error.
    #[error("replay was stopped ({0}): nothing was changed; replay again from the beginning")]
    Stopped(String),
}

/// A durable, bounded, ordered log of groups.
///
/// The order of calls is: `replay` once, `begin` once, then any mix of `append`, `sync`, `recycle` and, after a
/// failure, `heal`.
pub trait Journal: Send {
    /// Hands every surviving group that has records at or above `from` to `visit`, in commit order.
    ///
    /// # To ensure correctness
    /// - A group is handed over whole or not at all, exactly as it was appended, and no group twice.
    /// - Every group that a successful `sync` covered and no `recycle` released is handed over, unless the medium
    ///   lost it; then it is named in [`Replay::damaged`] or [`Replay::tail_cut`].
    /// - Stale bytes of recycled segments are never handed over. Groups behind a fence are skipped.
    /// - Never panics and never allocates more than the files are long, whatever the bytes are.
    ///
    /// # Errors
    /// [`JournalError::Io`], [`JournalError::FormatTooNew`], [`JournalError::Stopped`]. The journal is unchanged.
    fn replay(
        &mut self,
        from: Seq,
        visit: &mut dyn FnMut(Group<'_>) -> Result<(), String>,
    ) -> Result<Replay, JournalError>;

    /// Takes ownership for `epoch` and starts a fresh segment. What came before stays until it is recycled.
    ///
    /// # To ensure correctness
    /// From now on every other handle's calls fail with [`JournalError::Fenced`].
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when `epoch` is not above every epoch seen; [`JournalError::Full`];
    /// [`JournalError::Io`].
    fn begin(&mut self, epoch: Epoch) -> Result<(), JournalError>;

    /// Writes one group (one write call). It is not durable before the next successful [`Journal::sync`].
    ///
    /// `may_use_reserve` lets a group without new messages use the last free segment, so that acknowledgements go
    /// on being recorded while settling is stuck.
    ///
    /// # To ensure correctness
    /// The caller never gives out a place twice: `group.first` lies behind every group before it, also behind one whose
    /// append or sync failed, for that may be stored.
    ///
    /// # Errors
    /// Any [`JournalError`]. After [`JournalError::Io`] nothing is taken until [`Journal::heal`] succeeds.
    fn append(
        &mut self,
        epoch: Epoch,
        group: Group<'_>,
        may_use_reserve: bool,
    ) -> Result<Appended, JournalError>;

    /// Makes every group appended so far durable (one fdatasync).
    ///
    /// # To ensure correctness
    /// `Ok` means that the groups survive a power cut on a device that honours flushes.
    ///
    /// # Errors
    /// [`JournalError::Io`]: the outcome of the groups since the last successful sync is unknown.
    fn sync(&mut self, epoch: Epoch) -> Result<(), JournalError>;

    /// Leaves the segment that failed and durably fences off every group that no successful sync covered.
    ///
    /// # To ensure correctness
    /// After `Ok` a replay never hands over a group that was not covered by a successful sync before the failure,
    /// and `append` works again. A failed heal may be tried again; it changes nothing that was synced.
    ///
    /// # Errors
    /// [`JournalError::Io`], [`JournalError::Full`], [`JournalError::Fenced`].
    fn heal(&mut self, epoch: Epoch) -> Result<(), JournalError>;

    /// Releases every sealed segment whose records all lie below `before`.
    ///
    /// The caller promises that everything in them that matters is durable in the store.
    ///
    /// # Errors
    /// [`JournalError::Fenced`].
    fn recycle(&mut self, epoch: Epoch, before: Seq) -> Result<(), JournalError>;

    /// The room there is now.
    fn space(&self) -> JournalSpace;
}
