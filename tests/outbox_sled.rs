//! The outbox on the default store: large messages leave no blob files, and everything is there after a reopening.
#![cfg(feature = "sled")]

use std::sync::Arc;

use lastmile::machine::{Found, Query, Survivors};
use lastmile::record::{Accept, Epoch, LaneId, Seq};
use lastmile::storage::SledStore;
use lastmile::storage::outbox::{Identity, OutboxStore, Progress, Settlement};
use lastmile::{Message, StreamId, Timestamp, UserId};

#[test]
fn a_megabyte_settles_without_a_blob_file() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity { stream: StreamId::from_u128(1), digest_key: 1 };
    let open = || {
        let store = SledStore::open(dir.path()).unwrap();
        OutboxStore::open(Arc::new(store), Some(dir.path().join("manifest")), Epoch(0), identity).unwrap()
    };
    let (outbox, opened) = open();
    let entries = (1..8)
        .map(|seq| {
            let message = Message::to("bob", "a.b", vec![seq as u8; 1 << 20]).build().unwrap();
            (Seq::new(seq), Arc::new(Accept::new(message, Timestamp::ZERO)))
        })
        .collect();
    let part = Survivors { entries, ..Survivors::default() };
    let mut settlement = Settlement::new(vec![part], Seq::new(9), Vec::new(), Timestamp::ZERO);
    while settlement.step(&outbox, opened.epoch).unwrap() != Progress::Done {}
    drop((settlement, outbox));
    let (outbox, opened) = open();
    assert_eq!(opened.settled, Seq::new(9));
    let query = Query::Page {
        user: UserId::new("bob").unwrap(),
        lane: LaneId::Normal,
        after: Seq::ZERO,
        ended: Vec::new(),
        max_messages: 100,
        max_bytes: u64::MAX,
    };
    let Found::Page(page) = outbox.load(&query).unwrap() else { panic!("not a page") };
    assert_eq!(page.entries.len(), 7);
    for (seq, accept) in page.entries {
        assert_eq!(accept.message.payload().as_ref(), vec![seq.get() as u8; 1 << 20]);
    }
    assert!(outbox.verify(&mut |_| {}).unwrap().damage.is_empty());
    let blobs = dir.path().join("db").join("blobs");
    let count = std::fs::read_dir(blobs).map_or(0, Iterator::count);
    assert_eq!(count, 0, "sled never fsyncs a blob file");
}
