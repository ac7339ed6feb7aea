//! Any bytes are a frame or an error, take no more memory than they are worth, and a frame survives both codecs.
#![no_main]

use bytes::Bytes;
use lastmile::session::frame::{Codec, Limits, decode, encode};
use libfuzzer_sys::fuzz_target;
use support::{Counting, peak_of};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|input: &[u8]| {
    let (bytes, limits) = (Bytes::copy_from_slice(input), Limits::default());
    let mut frame = None;
    let peak = peak_of(|| frame = decode(&bytes, &limits).ok());
    // Twice what came: in JSON a text with escapes is unescaped into one more of at most its length, and base64 into less.
    // What a message is made of takes up to 18 bytes for each byte on the wire (some 370 for the shortest, of 37; 57 for the
    // shortest header, of three), but a frame has at most 256 messages of 32 headers.
    let messages = 18 * input.len().min(32 << 10);
    let most = 2 * input.len() + messages + (16 << 10);
    assert!(peak <= most, "{peak} bytes held for {} bytes of input", input.len());
    let Some(frame) = frame else { return };
    for codec in [Codec::Binary, Codec::Json] {
        let mut again = Vec::new();
        encode(&frame, codec, &mut again);
        let larger = Limits { max_frame: usize::MAX, ..limits };
        assert_eq!(decode(&Bytes::from(again), &larger).as_ref(), Ok(&frame), "{codec:?}");
    }
});
