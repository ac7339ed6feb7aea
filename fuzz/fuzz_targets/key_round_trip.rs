//! What decodes as a key encodes to the same bytes.
#![no_main]

use lastmile::storage::outbox::keys::Key;
use libfuzzer_sys::fuzz_target;
use support::{Counting, bounded};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|bytes: &[u8]| {
    bounded(bytes.len(), || drop(Key::decode(bytes)));
    if let Some(key) = Key::decode(bytes) {
        assert_eq!(key.encode(), bytes);
    }
});
