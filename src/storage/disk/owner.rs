//! Who may write to the journal on a disk.

use parking_lot::{Mutex, MutexGuard};

use crate::record::Epoch;

/// The owner of the journal on one disk, shared by all handles of one process.
///
/// A journal handle holds the owner's lock while it writes or syncs, so a newer handle's `begin` happens before or
/// after an older handle's call, never within it: once `begin` has returned, nothing the older handle does reaches
/// the disk. The lock is uncontended as long as there is one handle.
///
/// What is *not* promised: handles whose disks do not share an `Owner` (two processes, or two
/// [`RealDisk`](super::RealDisk)s on one directory) do not see each other. The directory lock of the store keeps
/// those apart.
#[derive(Debug, Default)]
pub struct Owner(Mutex<Ownership>);

/// What the lock guards.
#[derive(Debug, Default)]
pub(crate) struct Ownership {
    /// The epoch that may write; zero before the first `begin`.
    pub(crate) epoch: Epoch,
    /// Grows with every change of the journal's files, so that a `begin` can tell that a replay is out of date.
    pub(crate) changes: u64,
}

impl Owner {
    /// An owner that nobody holds yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The epoch that owns the journal now; `Epoch(0)` when nobody does.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.0.lock().epoch
    }

    /// Takes the ownership from every handle, as the end of a process does. A disk calls it when it simulates a
    /// crash; handles from before get `Fenced` from then on.
    pub fn revoke(&self) {
        let mut owner = self.0.lock();
        owner.epoch = Epoch(0);
        owner.changes = owner.changes.wrapping_add(1);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Ownership> {
        self.0.lock()
    }
}
