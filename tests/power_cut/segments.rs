//! In which order sled's segments become durable.

use std::collections::HashMap;

use super::trace::Event;

/// sled's segments: what is written at a multiple of this goes on in another one.
pub(crate) const BYTES: u64 = 512 << 10;

/// One use of a segment.
#[derive(Clone, Copy)]
struct Use {
    segment: u64,
    /// The event of its last write.
    written: usize,
}

/// How often sled went on to another segment, and each time that it did so before the one before the last was durable.
pub(crate) fn begun_too_early(events: &[Event]) -> (usize, Vec<String>) {
    let (mut uses, mut syncs, mut durable) = (Vec::<Use>::new(), HashMap::new(), 0);
    let (mut begun, mut early) = (0, Vec::new());
    for (i, event) in events.iter().enumerate() {
        match event {
            Event::SyncBegins { path, thread } if path.ends_with("/db/db") => drop(syncs.insert(*thread, i)),
            Event::SyncEnds { path, thread } if path.ends_with("/db/db") => {
                durable = durable.max(syncs.remove(thread).unwrap_or(0));
            }
            // A recovery wipes whole segments, and syncs that itself.
            Event::Write { path, at, bytes } if path.ends_with("/db/db") && (bytes.len() as u64) < BYTES => {
                let segment = at / BYTES;
                if at.is_multiple_of(BYTES) {
                    let before_the_last = uses.len().checked_sub(2).map(|before| uses[before]);
                    if let Some(open) = before_the_last.filter(|before| before.written >= durable) {
                        early
                            .push(format!("event {i}: segment {segment}, with {} not durable", open.segment));
                    }
                    begun += 1;
                    uses.push(Use { segment, written: i });
                }
                if let Some(used) = uses.iter_mut().rev().find(|used| used.segment == segment) {
                    used.written = i;
                }
            }
            _ => {}
        }
    }
    (begun, early)
}
