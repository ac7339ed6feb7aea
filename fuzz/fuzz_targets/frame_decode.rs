//! Any bytes are a frame or an error, take no more memory than they are worth, and a frame survives both codecs.
#![no_main]

use bytes::Bytes;
use counting::{Counting, peak_of};
use lastmile::session::frame::{Codec, Limits, decode, encode};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|input: &[u8]| {
    let (bytes, limits) = (Bytes::copy_from_slice(input), Limits::default());
    let mut frame = None;
    // A message takes some hundred bytes of memory beside its own, and the shortest takes 30 on the wire; a list of
    // unread JSON fields takes 40 for each.
    let peak = peak_of(|| frame = decode(&bytes, &limits).ok());
    assert!(peak <= 32 * input.len() + 8192, "{peak} bytes held for {} bytes of input", input.len());
    let Some(frame) = frame else { return };
    for codec in [Codec::Binary, Codec::Json] {
        let mut again = Vec::new();
        encode(&frame, codec, &mut again);
        let larger = Limits { max_frame: usize::MAX, ..limits };
        assert_eq!(decode(&Bytes::from(again), &larger).as_ref(), Ok(&frame), "{codec:?}");
    }
});
