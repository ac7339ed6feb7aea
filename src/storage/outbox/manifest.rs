//! The manifest: the table of runs in a file of its own, so that damage to the store can be named.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use super::meta::{Meta, MetaError};
use crate::codec::Cipher;

/// Replaces the manifest: wholly, durably, or not at all.
pub(super) fn write(path: &Path, meta: &Meta, cipher: &Cipher) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&fresh)?;
    file.write_all(&meta.encode(cipher))?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

/// The manifest, if there is one that is whole.
pub(super) fn read(path: &Path, cipher: &Cipher) -> Result<Option<Meta>, MetaError> {
    match fs::read(path) {
        Ok(bytes) => match Meta::decode(&bytes, cipher) {
            Ok(meta) => Ok(Some(meta)),
            Err(error @ (MetaError::TooNew { .. } | MetaError::Sealed(_))) => Err(error),
            // It is only there to name losses; the store does not depend on it.
            Err(_) => Ok(None),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(MetaError::Store(crate::ports::StoreError::Io { op: "read manifest", source })),
    }
}
