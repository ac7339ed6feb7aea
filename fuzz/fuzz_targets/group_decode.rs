//! Whatever the segment files say, they replay as groups or as damage, and take no more memory than they are long. What a
//! replay handed over, the next one does too.
#![no_main]

use lastmile::ports::Journal;
use lastmile::record::Seq;
use lastmile::storage::journal::FileJournal;
use libfuzzer_sys::fuzz_target;
use support::input::Input;
use support::world::{JOURNAL, World, shared};
use support::{Counting, within};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a search for the next group reads at once, and as much again.
const SEARCHING: usize = 128 << 10;

fuzz_target!(|bytes: &[u8]| {
    let world = World::of(Input(bytes));
    let Ok(mut journal) = FileJournal::open(shared(&world.disk), JOURNAL) else { return };
    let mut epoch = None;
    let replay = || epoch = journal.replay(Seq::ZERO, &mut |_| Ok(())).ok().map(|replay| replay.epoch);
    within(2 * world.bytes + SEARCHING, replay);
    let Some(epoch) = epoch else { return };
    let before = support::world::groups(&mut journal);
    let next = lastmile::record::Epoch(epoch.0.saturating_add(1));
    if journal.begin(next).is_ok() {
        let mut again = FileJournal::open(shared(&world.disk), JOURNAL).expect("it was opened before");
        assert_eq!(support::world::groups(&mut again), before, "a replay after `begin` is another one");
    }
});
