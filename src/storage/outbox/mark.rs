//! `SEALED`: a file beside the store's own that says which keys an opening needs, so that a wrong one is found before
//! anything else is touched.
//!
//! ```text
//! lastmile sealed 1
//! key 7 0123456789abcdef        a key's number and its check, in hexadecimal; one line for each key
//! ```
//!
//! It is there from before the first sealed byte. It names the key of the table and those of the journal; keys of runs
//! are in the table, as a run without its key keeps nobody from opening the others. The table is sealed itself: without
//! this file the same keys are refused, later.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use super::OpenError;
use crate::codec::{Cipher, KeyMark};
use crate::id::KeyId;
use crate::ports::{Store, StoreError};

/// The file's name. The store's directory knows it too.
pub(in crate::storage) const NAME: &str = "SEALED";
const HEAD: &str = "lastmile sealed 1";

/// The keys that an opening of this store needs. Nothing is touched.
pub(super) fn check(store: &dyn Store, cipher: &Cipher) -> Result<Vec<KeyMark>, OpenError> {
    let Some(home) = store.home() else { return Ok(Vec::new()) };
    let text = match fs::read(home.join(NAME)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(StoreError::Io { op: "read SEALED", source }.into()),
    };
    match core::str::from_utf8(&text).ok().and_then(parse) {
        Some(marks) => {
            marks.iter().try_for_each(|mark| cipher.knows(*mark))?;
            Ok(marks)
        }
        // With keys, the table says whether they are the right ones, and the file is written anew.
        None if cipher.seals() => Ok(Vec::new()),
        None => Err(OpenError::Damaged("messages are sealed, the file SEALED is damaged".to_owned())),
    }
}

fn parse(text: &str) -> Option<Vec<KeyMark>> {
    let mut lines = text.lines();
    let marks = |line: &str| {
        let (key, check) = line.strip_prefix("key ")?.split_once(' ')?;
        Some(KeyMark { key: KeyId(key.parse().ok()?), check: u64::from_str_radix(check, 16).ok()? })
    };
    lines.next().filter(|head| *head == HEAD)?;
    let marks: Vec<_> = lines.map(marks).collect::<Option<_>>()?;
    (!marks.is_empty()).then_some(marks)
}

/// Says which keys the next opening needs: wholly, durably, or not at all. Does nothing where it says so already, where
/// nothing is sealed, and without a directory.
pub(super) fn write(store: &dyn Store, cipher: &Cipher, others: &[KeyMark]) -> Result<(), StoreError> {
    let (Some(home), Some(current)) = (store.home(), cipher.current()) else { return Ok(()) };
    let mut marks = others.to_vec();
    marks.push(current);
    marks.sort_unstable();
    marks.dedup();
    let lines = marks.iter().map(|mark| format!("key {} {:016x}\n", mark.key, mark.check));
    let text = format!("{HEAD}\n{}", lines.collect::<String>());
    if fs::read(home.join(NAME)).is_ok_and(|found| found == text.as_bytes()) {
        return Ok(());
    }
    replace(home, text.as_bytes()).map_err(|source| StoreError::Io { op: "write SEALED", source })
}

fn replace(home: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = home.join("SEALED.new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, home.join(NAME))?;
    #[cfg(unix)]
    File::open(home)?.sync_all()?;
    Ok(())
}
