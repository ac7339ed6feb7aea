//! Any bytes in a segment file replay as groups or as damage, and take no more memory than the file.
#![no_main]

use std::sync::Arc;

use counting::{Counting, bounded};
use lastmile::ports::Journal;
use lastmile::record::Seq;
use lastmile::storage::disk::{Disk, MemoryDisk};
use lastmile::storage::journal::{FileJournal, JournalConfig};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|bytes: &[u8]| {
    let disk = MemoryDisk::new();
    for (id, part) in bytes.chunks(64 << 10).take(3).enumerate() {
        let file = disk.create_zeroed(&format!("segment-{id:06}.journal"), part.len() as u64).unwrap();
        file.write_at(0, part).unwrap();
    }
    let config = JournalConfig { segment_bytes: 64 << 10, segments: 3 };
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let Ok(mut journal) = FileJournal::open(disk, config) else { return };
    bounded(bytes.len().max(4096), || {
        let _ = journal.replay(Seq::ZERO, &mut |_| Ok(()));
    });
});
