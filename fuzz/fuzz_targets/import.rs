//! Any stream is imported or refused, leaves the store empty when it is refused, and takes no more memory than it is worth.
//! What was imported can be exported, and that can be imported.
#![no_main]

use lastmile::Timestamp;
use libfuzzer_sys::fuzz_target;
use support::input::Input;
use support::outbox::{copy, import, read, users_of};
use support::{Counting, stream, within};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Beside what is imported, its copy, and what they are written from: two filters of at most 4 MiB.
const AT_LEAST: usize = 16 << 20;
const FOR_A_BYTE: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let stream =
        if bytes.first() == Some(&u8::MAX) { bytes[1..].to_vec() } else { stream::of(&mut Input(bytes)) };
    within(FOR_A_BYTE * stream.len() + AT_LEAST, || try_import(&stream));
});

fn try_import(stream: &[u8]) {
    let Some((_, outbox)) = import(stream) else { return };
    let (users, senders) = users_of(&**outbox.store());
    read(&outbox, &users, &senders, Timestamp::from_millis(u64::MAX / 2));
    let (carried, stream) = copy(&outbox).expect("memory does not fail");
    let (again, _) = import(&stream).expect("what is exported can be imported");
    assert_eq!((again.messages, again.ids, again.rows), (carried.messages, carried.ids, carried.rows));
}
