//! Export and import.

use super::*;

fn filled() -> OutboxStore {
    let (outbox, opened) = open(&MemoryStore::new());
    for first in [100, 200, 300] {
        let mut part = Survivors { entries: entries("bob", first..first + 50, 300), ..Survivors::default() };
        part.entries.extend(entries("al", [first + 60], 20_000));
        part.dedup = (first..first + 90).map(|seq| id(1, seq, seq)).collect();
        part.rows = vec![(user("bob"), row(first + 100, 120, &[201, 203]))];
        settle(&outbox, opened.epoch, vec![part], first + 100);
    }
    outbox
}

fn exported(outbox: &OutboxStore) -> Vec<u8> {
    let mut bytes = Vec::new();
    let carried = outbox.export(&mut bytes).unwrap();
    assert_eq!(carried, Carried { messages: 130, ids: 270, rows: 1, damaged: 0 });
    bytes
}

fn import(bytes: &[u8]) -> (MemoryStore, Result<Carried, ImportError>) {
    let store = MemoryStore::new();
    let result = OutboxStore::import(Arc::new(store.clone()), None, &mut &*bytes);
    (store, result)
}

#[test]
fn an_import_loads_as_what_was_exported() {
    let outbox = filled();
    let (store, carried) = import(&exported(&outbox));
    assert_eq!(carried.unwrap().messages, 130);
    let other = Identity { stream: StreamId::from_u128(99), digest_key: 99 };
    let (copy, opened) = OutboxStore::open(Arc::new(store.clone()), None, Epoch(0), other).unwrap();
    assert_eq!((opened.identity, opened.settled), (FRESH, outbox.settled()));
    assert_eq!(opened.counters, outbox.table().counters);
    for name in ["bob", "al"] {
        assert_eq!(places(&copy, name), places(&outbox, name));
        assert_eq!(totals(&copy, name), totals(&outbox, name));
    }
    assert_eq!(ids(&copy, 1, 0), ids(&outbox, 1, 0));
    let report = copy.verify(&mut |_| {}).unwrap();
    assert!(report.damage.is_empty() && report.live == 130);
    let again = OutboxStore::import(Arc::new(store), None, &mut &*exported(&outbox));
    assert!(matches!(again, Err(ImportError::NotEmpty)));
}

#[test]
fn what_is_no_whole_export_is_refused_and_leaves_the_store_empty() {
    let bytes = exported(&filled());
    let mut cuts: Vec<usize> = (0..200).chain((0..200).map(|back| bytes.len() - 1 - back)).collect();
    cuts.extend((0..bytes.len()).step_by(997));
    for len in cuts {
        let (store, result) = import(&bytes[..len]);
        assert!(
            matches!(result, Err(ImportError::Truncated { .. } | ImportError::NotAnExport)),
            "{len} bytes: {result:?}"
        );
        assert!(census(&store).is_empty(), "{len} bytes left something");
    }
    for at in (0..400).chain((400..bytes.len()).step_by(499)) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        let (store, result) = import(&flipped);
        assert!(result.is_err(), "a flip at {at} was not noticed");
        assert!(census(&store).is_empty());
    }
    assert!(matches!(import(b"").1, Err(ImportError::NotAnExport)));
    assert!(matches!(import(&[7; 5000]).1, Err(ImportError::NotAnExport)));
    let mut newer = bytes;
    newer[8] = 2;
    assert!(matches!(import(&newer).1, Err(ImportError::FormatTooNew { found: 2, .. })));
}
