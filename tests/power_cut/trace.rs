//! What `shim.c` wrote down, read back.

use std::fs;
use std::path::Path;

/// Bytes before the path of each entry.
const HEAD: usize = 32;

/// One thing a process did to the files below the root. Paths are relative to that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Opened for writing, and created if it was not there.
    Open {
        path: String,
        truncate: bool,
    },
    Write {
        path: String,
        at: u64,
        bytes: Vec<u8>,
    },
    SetLen {
        path: String,
        len: u64,
    },
    /// The file is at least that long now.
    Extend {
        path: String,
        len: u64,
    },
    /// A sync is about to begin: of a file or a directory.
    SyncBegins {
        path: String,
        thread: u32,
    },
    /// It returned `Ok`.
    SyncEnds {
        path: String,
        thread: u32,
    },
    /// A `sync_file_range`, which guarantees nothing.
    RangeSync {
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Remove {
        path: String,
    },
    MakeDir {
        path: String,
    },
    /// A whole line of the process's own log.
    Told(String),
}

impl Event {
    /// The file or directory it is about.
    pub(crate) fn path(&self) -> Option<&str> {
        match self {
            Self::Open { path, .. }
            | Self::Write { path, .. }
            | Self::SetLen { path, .. }
            | Self::Extend { path, .. }
            | Self::SyncBegins { path, .. }
            | Self::SyncEnds { path, .. }
            | Self::RangeSync { path }
            | Self::Remove { path }
            | Self::MakeDir { path } => Some(path),
            Self::Rename { from, .. } => Some(from),
            Self::Told(_) => None,
        }
    }
}

/// Reads a whole trace.
///
/// # Panics
/// When the trace is cut, or the process did what the model of the disk knows nothing of.
pub(crate) fn read(file: &Path) -> Vec<Event> {
    let bytes = fs::read(file).expect("the shim made the trace when the process began");
    let (mut rest, mut events) = (bytes.as_slice(), Vec::new());
    while !rest.is_empty() {
        let (head, behind) = rest.split_at(HEAD);
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
        let (path, behind) = behind.split_at(word(16) as usize);
        let (other, behind) = behind.split_at(word(20) as usize);
        let (data, behind) = behind.split_at(word(24) as usize);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("paths and lines are UTF-8");
        let at = u64::from_ne_bytes(head[8..16].try_into().unwrap());
        let (path, thread) = (text(path), word(4));
        events.push(match word(0) as u8 {
            b'O' => Event::Open { path, truncate: at == 1 },
            b'W' => Event::Write { path, at, bytes: data.to_vec() },
            b'T' => Event::SetLen { path, len: at },
            b'A' => Event::Extend { path, len: at },
            b'B' => Event::SyncBegins { path, thread },
            b'E' => Event::SyncEnds { path, thread },
            b'S' => Event::RangeSync { path },
            b'R' => Event::Rename { from: path, to: text(other) },
            b'U' => Event::Remove { path },
            b'M' => Event::MakeDir { path },
            b'L' => Event::Told(text(data).trim_end().to_owned()),
            other => panic!("{path}: the model knows no call {:?}", char::from(other)),
        });
        rest = behind;
    }
    events
}
