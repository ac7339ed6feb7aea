//! Any bytes are records or an error, and take no more memory than they are worth.
#![no_main]

use counting::{Counting, bounded};
use lastmile::codec::{decode_records, encode_record, encode_records};
use libfuzzer_sys::fuzz_target;

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
    for record in decode_records(u32::MAX, bytes).map_while(Result::ok) {
        let mut again = Vec::new();
        encode_record(&record, &mut again);
        assert_eq!(decode_records(1, &again).next().and_then(Result::ok), Some(record));
    }
    let records: Vec<_> = decode_records(u32::MAX, bytes).map_while(Result::ok).collect();
    let mut again = Vec::new();
    encode_records(&records, &mut again);
    assert!(decode_records(records.len() as u32, &again).map(Result::unwrap).eq(records));
});
