//! What the tests of the sled store share.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lastmile::ports::{Batch, Flow, MAX_KEY_BYTES, Store, StoreError};
use lastmile::record::Epoch;

pub(crate) fn put(store: &impl Store, epoch: Epoch, key: &[u8], value: &[u8]) {
    let mut batch = Batch::new();
    batch.put(key.to_vec(), value.to_vec());
    store.apply(epoch, batch).unwrap();
}

/// How many rows there are; a damaged one fails the test.
pub(crate) fn count(store: &impl Store) -> usize {
    let mut n = 0;
    let mut visit = |_: &[u8], value: Result<&[u8], StoreError>| {
        value.unwrap();
        n += 1;
        Flow::Continue
    };
    store.scan(b"", &[0xFF; MAX_KEY_BYTES], &mut visit).unwrap();
    n
}

/// Every file and directory with its content and its time of change.
pub(crate) fn tree_of(root: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut tree = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::metadata(&path).unwrap();
        let content = if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else {
            fs::read(&path).unwrap()
        };
        tree.insert(path, (content, meta.modified().unwrap()));
    }
    tree
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
