//! Who has ever signed in: a file with a name a line.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// The most names that are remembered.
const MAX_PEOPLE: usize = 1_000;
/// The longest name, in characters.
const MAX_NAME: usize = 32;

/// Everybody who has signed in.
pub(crate) struct People {
    path: PathBuf,
    names: Mutex<BTreeSet<String>>,
}

impl People {
    /// Reads the file, if it is there.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let text = match std::fs::read_to_string(&path) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        let names = text.lines().filter_map(name).take(MAX_PEOPLE).map(str::to_owned).collect();
        Ok(Self { path, names: Mutex::new(names) })
    }

    /// Remembers somebody; `false` if there is no room.
    pub(crate) fn add(&self, name: &str) -> io::Result<bool> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.contains(name) {
            return Ok(true);
        }
        if names.len() >= MAX_PEOPLE {
            return Ok(false);
        }
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&self.path)?;
        writeln!(file, "{name}")?;
        names.insert(name.to_owned());
        Ok(true)
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<String> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// The name, if it is one: 1 to 32 characters without control characters or the `|` that ordering keys are made with.
pub(crate) fn name(text: &str) -> Option<&str> {
    let text = text.trim();
    let fits = !text.is_empty() && text.chars().count() <= MAX_NAME;
    (fits && !text.chars().any(|c| c.is_control() || c == '|')).then_some(text)
}
