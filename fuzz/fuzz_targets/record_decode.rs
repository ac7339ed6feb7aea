//! Any bytes are records or an error, and take no more memory than they are worth, sealed ones too. Nothing that was not
//! sealed is opened.
#![no_main]

use std::sync::Arc;

use lastmile::KeyId;
use lastmile::codec::{decode_records, encode_record, encode_records};
use lastmile::ports::{Key, Keyring};
use lastmile::storage::cipher;
use libfuzzer_sys::fuzz_target;
use support::{Counting, bounded};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|bytes: &[u8]| {
    bounded(bytes.len(), || {
        for record in decode_records(u32::MAX, bytes) {
            if record.is_err() {
                break;
            }
        }
    });
    let cipher = cipher(Arc::new(Keyring::new(KeyId(7), Key::new([7; 32]))));
    bounded(bytes.len(), || cipher.decode_records(u32::MAX, bytes).take_while(Result::is_ok).for_each(drop));
    for record in decode_records(u32::MAX, bytes).map_while(Result::ok) {
        let mut again = Vec::new();
        encode_record(&record, &mut again);
        assert_eq!(decode_records(1, &again).next().and_then(Result::ok).as_ref(), Some(&record));
        let mut sealed = Vec::new();
        cipher.encode_record(&record, &mut sealed);
        assert_eq!(cipher.decode_records(1, &sealed).next().and_then(Result::ok), Some(record));
    }
    let records: Vec<_> = decode_records(u32::MAX, bytes).map_while(Result::ok).collect();
    let mut again = Vec::new();
    encode_records(&records, &mut again);
    assert!(decode_records(records.len() as u32, &again).map(Result::unwrap).eq(records));
});
