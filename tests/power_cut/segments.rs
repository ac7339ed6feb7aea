//! In which order sled's segments become durable.

use std::collections::HashMap;

use super::trace::Event;

/// sled's segments: what is written at a multiple of this goes on in another one.
pub(crate) const BYTES: u64 = 512 << 10;
/// A segment's header: a checksum, its place in the log, and up to where the log was said to be durable.
const HEADER: usize = 20;
/// What the numbers of a header are combined with.
const FLIP: u64 = 0x7FFF_FFFF_FFFF_FFFF;

/// One use of a segment.
#[derive(Clone, Copy)]
struct Use {
    /// Its place in the log.
    place: u64,
    /// Where in the file it is.
    at: u64,
    /// The events of its header and of its last write.
    begun: usize,
    written: usize,
}

impl Use {
    /// The header that these bytes begin with, if they do: its place, and the segment of the log up to which it vouches.
    fn header(bytes: &[u8]) -> Option<(u64, u64)> {
        let number =
            |from: usize| Some(u64::from_le_bytes(bytes.get(from..from + 8)?.try_into().ok()?) ^ FLIP);
        let (place, durable) = (number(4)?, number(12)?);
        // Zeros, with which a recovery wipes what is free, say something else.
        let is_one = bytes.len() > HEADER && place.is_multiple_of(BYTES) && durable.wrapping_add(1) <= place;
        is_one.then(|| (place, if durable > place { 0 } else { durable / BYTES * BYTES }))
    }

    /// Whether a recovery that trusts the log before `vouched` trusts what no sync had covered.
    fn is_trusted_too_early(&self, vouched: u64, durable: usize) -> bool {
        // Places of older ones may be in use again.
        let is_recent = self.place + 2 * BYTES >= vouched;
        let whole = is_recent && self.place < vouched && self.written >= durable;
        // Where it begins to check, there must be a beginning.
        whole || self.place == vouched && self.begun >= durable
    }
}

/// How often sled went on to another segment, and each time that its header vouched for what was not durable.
pub(crate) fn vouched_too_early(events: &[Event]) -> (usize, Vec<String>) {
    let (mut uses, mut syncs, mut durable) = (Vec::<Use>::new(), HashMap::new(), 0);
    let mut early = Vec::new();
    for (i, event) in events.iter().enumerate() {
        match event {
            Event::SyncBegins { path, thread } if path.ends_with("/db/db") => drop(syncs.insert(*thread, i)),
            Event::SyncEnds { path, thread } if path.ends_with("/db/db") => {
                durable = durable.max(syncs.remove(thread).unwrap_or(0));
            }
            Event::Write { path, at, bytes } if path.ends_with("/db/db") => {
                let header = at.is_multiple_of(BYTES).then(|| Use::header(bytes)).flatten();
                if let Some((place, vouched)) = header {
                    for open in uses.iter().filter(|open| open.is_trusted_too_early(vouched, durable)) {
                        early.push(format!("event {i}: {place:#x} vouches for {:#x}", open.place));
                    }
                    uses.push(Use { place, at: *at, begun: i, written: i });
                } else if let Some(open) = uses.iter_mut().rev().find(|open| open.at == at / BYTES * BYTES) {
                    open.written = i;
                }
            }
            _ => {}
        }
    }
    (uses.len(), early)
}
