//! Losses that were found and may not have been heard of: in a file of their own, until there is a settlement after.
//!
//! The manifest names what a store has lost, and the opening that finds it writes a new one. Without this file a crash in
//! between, or before somebody has asked, would make the loss unknown for ever. So each opening names it until the first
//! settlement behind it.

use std::path::{Path, PathBuf};

use super::meta::{Meta, MetaError};
use super::open::Loss;
use super::{OutboxStore, manifest};
use crate::codec::Cipher;
use crate::ports::StoreError;

/// Beside the manifest.
const NAME: &str = "LOST";

fn path_of(manifest: &Path) -> PathBuf {
    manifest.with_file_name(NAME)
}

/// Adds what earlier openings have found to what this one has, and makes all of it durable.
pub(super) fn remember(
    manifest: Option<&Path>,
    found: &mut Vec<Loss>,
    table: &Meta,
) -> Result<(), MetaError> {
    let Some(path) = manifest.map(path_of) else { return Ok(()) };
    let before = manifest::read(&path, &Cipher::plain())?.map_or_else(Vec::new, |before| before.runs);
    let is_new = |run: &_| !found.iter().any(|loss| loss.run == *run);
    let before: Vec<_> = before.into_iter().filter(is_new).collect();
    if !found.is_empty() {
        let mut all = table.clone();
        all.runs = found.iter().map(|loss| loss.run.clone()).chain(before.iter().cloned()).collect();
        all.dropping.clear();
        // Nothing of it is a secret then, and it needs no key that may be gone when it is read.
        all.digest_key = 0;
        let written = manifest::write(&path, &all, &Cipher::plain());
        written.map_err(|source| StoreError::Io { op: "write LOST", source })?;
    }
    found.extend(before.into_iter().map(|run| Loss { chunks: run.chunks, run }));
    Ok(())
}

impl OutboxStore {
    /// There was a settlement after the opening that has named them.
    pub(super) fn forget_losses(&self) -> Result<(), StoreError> {
        let Some(path) = self.inner.manifest.as_deref().map(path_of) else { return Ok(()) };
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::Io { op: "remove LOST", source })
            }
            _ => Ok(()),
        }
    }
}
