//! An engine opens, or refuses with an error, over any disk and any store.
#![no_main]

use std::sync::Arc;

use lastmile::StreamId;
use lastmile::ports::{Batch, Journal, Store};
use lastmile::record::{Epoch, Seq};
use lastmile::storage::MemoryStore;
use lastmile::storage::disk::{Disk, MemoryDisk};
use lastmile::storage::journal::{FileJournal, JournalConfig};
use lastmile::storage::outbox::{Identity, OutboxStore, recover};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (for_store, for_disk) = bytes.split_at(bytes.len() / 2);
    let store = MemoryStore::new();
    let epoch = store.take_epoch(Epoch(0)).unwrap();
    for row in for_store.chunks(96) {
        let (key, value) = row.split_at(row.len().min(usize::from(row[0]) % 48));
        let mut batch = Batch::new();
        batch.put(key.to_vec(), value.to_vec());
        store.apply(epoch, batch).unwrap();
    }
    let disk = MemoryDisk::new();
    for (id, part) in for_disk.chunks(32 << 10).take(3).enumerate() {
        let file = disk.create_zeroed(&format!("segment-{id:06}.journal"), 32 << 10).unwrap();
        file.write_at(0, part).unwrap();
    }
    let config = JournalConfig { segment_bytes: 32 << 10, segments: 3 };
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let Ok(mut journal) = FileJournal::open(disk, config) else { return };
    let Ok(replay) = journal.replay(Seq::MAX, &mut |_| Ok(())) else { return };
    let fresh = Identity { stream: StreamId::from_u128(1), digest_key: 2 };
    let Ok((_outbox, opened)) = OutboxStore::open(Arc::new(store), None, replay.epoch, fresh) else { return };
    if recover(&opened, &mut journal, 2, &mut |_, _, _, _| {}).is_ok() {
        let _ = journal.begin(opened.epoch);
    }
});
