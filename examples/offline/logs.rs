//! What senders and receivers write down for themselves, outside of any engine, and how it is read back.
//!
//! | line | file | written | what it proves after a SIGKILL |
//! |---|---|---|---|
//! | `try N T` | senders | before `send` | the message may be in the outbox or not |
//! | `ok N T D P` | senders | after `send` answered | it was accepted: it must arrive or end with a reason |
//! | `got N T R E C` | receivers | by the handler, before it confirms | it was applied; without it no engine heard `Delivered` |
//!
//! N is the message's number, T milliseconds of wall time, D whether it was a repeat, P its place in the outbox (0 when it
//! is not known), R whether the handler was told that it may have seen it before, E its place in the receiving engine,
//! C which copy it is (0 when it was for any device).
//!
//! Each line is one `write` to a file opened for appending: when the call has returned, the line is in the operating
//! system and no SIGKILL takes it back. A line that was cut off proves nothing and is skipped; each life starts with a
//! line end, so that it spoils no other.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use super::plan::Copy;

/// The senders' file.
pub(crate) const SENDERS: &str = "senders.log";
/// The receivers' file.
pub(crate) const RECEIVERS: &str = "receivers.log";

/// An append-only file.
#[derive(Debug)]
pub(crate) struct Log(Mutex<File>);

impl Log {
    pub(crate) fn append_to(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(b"\n")?;
        Ok(Self(Mutex::new(file)))
    }

    /// Writes one line with one call.
    pub(crate) fn line(&self, text: &str) -> io::Result<()> {
        let line = format!("{text}\n");
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).write_all(line.as_bytes())
    }
}

/// An `ok` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ok {
    pub(crate) at: u64,
    pub(crate) duplicate: bool,
    pub(crate) place: u64,
}

/// A `got` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) at: u64,
    pub(crate) redelivered: bool,
    pub(crate) entry: u64,
    pub(crate) copy: Copy,
}

/// A line of either file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Try { number: u32 },
    Ok { number: u32, ok: Ok },
    Got { number: u32, got: Got },
}

impl Entry {
    pub(crate) fn try_line(number: u32) -> String {
        format!("try {number} {}", now_ms())
    }

    pub(crate) fn ok_line(number: u32, duplicate: bool, place: u64) -> String {
        format!("ok {number} {} {} {place}", now_ms(), u8::from(duplicate))
    }

    pub(crate) fn got_line(number: u32, redelivered: bool, entry: u64, copy: Copy) -> String {
        format!("got {number} {} {} {entry} {}", now_ms(), u8::from(redelivered), copy.code())
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let kind = words.next()?;
        let number = words.next()?.parse().ok()?;
        let mut field = || words.next()?.parse::<u64>().ok();
        let at = field()?;
        let entry = match kind {
            "try" => Self::Try { number },
            "ok" => Self::Ok { number, ok: Ok { at, duplicate: field()? == 1, place: field()? } },
            "got" => {
                let (redelivered, entry) = (field()? == 1, field()?);
                let copy = *Copy::ALL.get(usize::try_from(field()?).ok()?)?;
                Self::Got { number, got: Got { at, redelivered, entry, copy } }
            }
            _ => return None,
        };
        words.next().is_none().then_some(entry)
    }
}

/// Hands every whole line of a file to `visit`; returns how many lines made no sense. A missing file is empty.
pub(crate) fn read(path: &Path, mut visit: impl FnMut(Entry)) -> io::Result<u64> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let (mut reader, mut line, mut torn) = (BufReader::with_capacity(1 << 20, file), String::new(), 0);
    while reader.read_line(&mut line)? > 0 {
        match line.strip_suffix('\n').map(Entry::parse) {
            Some(Some(entry)) => visit(entry),
            Some(None) if line == "\n" => {}
            _ => torn += 1,
        }
        line.clear();
    }
    Ok(torn)
}

/// Wall time, which parent, child and all lives share.
#[expect(clippy::disallowed_methods, reason = "an example has no engine's clock to ask")]
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
