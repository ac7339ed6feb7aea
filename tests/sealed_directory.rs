//! A sealed directory and a build or an engine without keys. Runs with and without the feature `encryption`.
#![cfg(all(feature = "runtime", feature = "sled"))]

mod common;

use common::tree_of;
use lastmile::codec::{CodecError, decode_records};
use lastmile::storage::SledStore;
use lastmile::{BuildError, Engine, KeyError, KeyId, Message};

#[tokio::test]
async fn a_directory_that_says_it_is_sealed_is_refused_without_keys_and_left_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::builder(SledStore::open(dir.path()).unwrap()).build().unwrap();
    engine.send(Message::to("alice", "chat.message", "hello").build().unwrap()).await.unwrap();
    engine.shutdown(std::time::Duration::from_secs(20)).await;
    drop(engine);
    std::fs::write(dir.path().join("SEALED"), "lastmile sealed 1\nkey 7 0123456789abcdef\n").unwrap();
    let before = tree_of(dir.path());
    match Engine::builder(SledStore::open(dir.path()).unwrap()).build() {
        Err(BuildError::Sealed(error)) => assert_eq!(error, KeyError::NoKeys { key: KeyId(7) }),
        other => panic!("{other:?}"),
    }
    assert_eq!(tree_of(dir.path()), before);
    std::fs::write(dir.path().join("SEALED"), "garbage").unwrap();
    let before = tree_of(dir.path());
    assert!(matches!(
        Engine::builder(SledStore::open(dir.path()).unwrap()).build(),
        Err(BuildError::Open(_))
    ));
    assert_eq!(tree_of(dir.path()), before);
}

/// Sealed with key 7, whose bytes are all 7.
#[test]
fn a_sealed_record_is_told_from_a_damaged_and_from_an_unknown_one() {
    let golden = include_bytes!("golden/record-sealed.v1.bin");
    let expected = CodecError::Sealed(KeyError::NoKeys { key: KeyId(7) });
    assert_eq!(decode_records(1, golden).collect::<Vec<_>>(), [Err(expected.clone())]);
    assert!(!expected.is_too_new());
}
