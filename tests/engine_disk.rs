//! A bound on what the store takes on disk, with sled's files as they are.
#![cfg(all(feature = "runtime", feature = "sled", feature = "testing"))]

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::time::Duration;

use lastmile::machine::Refusal;
use lastmile::storage::SledStore;
use lastmile::testing::ScriptedSink;
use lastmile::{Config, Engine, Message};

const LONG: Duration = Duration::from_secs(30);

fn open(dir: &Path, max_disk_bytes: Option<u64>) -> Engine {
    let mut config = Config::default();
    config.max_disk_bytes = max_disk_bytes.and_then(NonZeroU64::new);
    config.max_payload_bytes = NonZeroUsize::new(64 << 10).unwrap();
    config.max_commit_bytes = NonZeroU64::new(256 << 10).unwrap();
    let store = SledStore::open(dir).unwrap();
    Engine::builder(store).config(config).journal_size(1 << 20, 4).build().unwrap()
}

fn large(n: u64) -> Message {
    // Nothing that a store could make smaller.
    let mut state = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut body = Vec::with_capacity(16 << 10);
    while body.len() < 16 << 10 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        body.extend_from_slice(&state.to_le_bytes());
    }
    Message::to(format!("user-{}", n % 8), "file.chunk", body).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_as_large_as_it_may_be_refuses_and_says_what_to_do_and_goes_on_delivering() {
    let dir = tempfile::tempdir().unwrap();
    let taken = {
        let engine = open(dir.path(), None);
        engine.send(large(0)).await.unwrap();
        engine.shutdown(LONG).await;
        engine.stats().await.map_or(0, |stats| stats.disk_bytes)
    };
    let max = taken + (6 << 20);
    let engine = open(dir.path(), Some(max));
    let mut refused = None;
    for n in 1..4000 {
        match engine.send(large(n)).await {
            Ok(_) => {}
            Err(error) if matches!(error.reason(), Refusal::DiskFull { .. }) => {
                refused = Some(error);
                break;
            }
            // The journal waits for the store.
            Err(error) if error.is_retryable() => {}
            Err(error) => panic!("{error}"),
        }
    }
    let refused = refused.expect("4,000 messages of 16 KiB take more than the bound");
    let Refusal::DiskFull { bytes, max: said } = refused.reason() else { panic!("{refused}") };
    assert!(*bytes >= max && *said == max && refused.is_retryable(), "{refused}");
    assert!(refused.to_string().contains("export"), "{refused}");
    // What was accepted before does not wait for room.
    let sink = ScriptedSink::new();
    let _attached: Vec<_> =
        (0..8).map(|n| engine.attach(format!("user-{n}"), "phone", sink.clone()).unwrap()).collect();
    let drained = async {
        while engine.stats().await.unwrap().waiting > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG * 4, drained).await.expect("it drains");
    engine.shutdown(LONG).await;
    drop(engine);
    // Nothing can be sent right from the opening, and a larger bound heals it.
    let engine = open(dir.path(), Some(max));
    assert_eq!(engine.send(large(1)).await.unwrap_err().kind(), "disk_full");
    engine.shutdown(LONG).await;
    drop(engine);
    let engine = open(dir.path(), Some(u64::MAX));
    engine.send(large(2)).await.unwrap();
    engine.shutdown(LONG).await;
}
