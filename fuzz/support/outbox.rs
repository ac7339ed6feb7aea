//! Everything that can be asked of an outbox, and what came of it.

use std::sync::Arc;

use lastmile::machine::{Found, Query};
use lastmile::ports::{Flow, Store};
use lastmile::record::{EndPosition, Epoch, LaneId, Seq};
use lastmile::storage::MemoryStore;
use lastmile::storage::outbox::keys::Key;
use lastmile::storage::outbox::{Carried, OutboxStore, Verified};
use lastmile::{MessageId, Timestamp, UserId};

use crate::shell::FRESH;

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    pub verified: Verified,
    pub carried: Carried,
    pub pages: u64,
    /// By place and by id.
    pub found: u64,
    pub rows: u64,
    pub ids: u64,
    pub due: u64,
    pub ends: u64,
    pub letters: u64,
}

/// Whose rows there are.
pub fn users_of(store: &dyn Store) -> (Vec<UserId>, Vec<u128>) {
    let (mut users, mut senders) = (Vec::new(), Vec::new());
    let _ = store.scan(&[0], &[0xFF], &mut |key, _| {
        match Key::decode(key) {
            Some(Key::Chunk { user, .. } | Key::User { user } | Key::Letters { user })
                if !users.contains(&user) =>
            {
                users.push(user);
            }
            Some(Key::Dedup { sender, .. }) if !senders.contains(&sender) => senders.push(sender),
            _ => {}
        }
        if users.len() < 8 && senders.len() < 8 { Flow::Continue } else { Flow::Stop }
    });
    (users, senders)
}

/// Asks for everything.
pub fn read(outbox: &OutboxStore, users: &[UserId], senders: &[u128], now: Timestamp) -> Reached {
    let mut reached = Reached::default();
    for user in users {
        let mut lanes = LaneId::ALL.to_vec();
        if let Ok(Found::User { row, .. }) = outbox.load(&Query::User(user.clone())) {
            reached.rows += u64::from(row.is_some());
            let devices = row.iter().flat_map(|row| &row.devices).map(|device| device.slot).take(2);
            lanes.extend(devices.map(|slot| LaneId::Device(slot, lastmile::Priority::Normal)));
        }
        for lane in lanes {
            let entries = pages(outbox, user, lane);
            reached.pages += entries.len() as u64;
            for (seq, id) in entries.into_iter().take(2) {
                reached.found += find(outbox, user, lane, seq, id);
            }
        }
    }
    for sender in senders {
        let query = Query::Sender { sender: *sender, since: Timestamp::ZERO, max: 64 };
        if let Ok(Found::Sender(rows)) = outbox.load(&query) {
            reached.ids += rows.len() as u64;
        }
    }
    reached.due = due(outbox, now);
    reached.ends = ends(outbox);
    reached.letters = outbox.letter_holders(None, 16).map_or(0, |users| users.len() as u64);
    reached.verified = outbox.verify(&mut |_| {}).unwrap_or_default();
    reached
}

fn pages(outbox: &OutboxStore, user: &UserId, lane: LaneId) -> Vec<(Seq, MessageId)> {
    let (mut after, mut entries) = (Seq::ZERO, Vec::new());
    for _ in 0..4 {
        let (user, ended) = (user.clone(), Vec::new());
        let query = Query::Page { user, lane, after, ended, max_messages: 16, max_bytes: 64 << 10 };
        let Ok(Found::Page(page)) = outbox.load(&query) else { break };
        entries.extend(page.entries.iter().map(|(seq, accept)| (*seq, accept.message.id())));
        let Some(more) = page.more_after else { break };
        after = more;
    }
    entries
}

/// How often a message is found that a page had.
fn find(outbox: &OutboxStore, user: &UserId, lane: LaneId, seq: Seq, id: MessageId) -> u64 {
    let (of, lanes) = (user.clone(), vec![lane]);
    let queries = [
        Query::Place { user: of.clone(), lanes, seq },
        Query::Id { user: of, id, max_messages: 16, max_bytes: 64 << 10 },
    ];
    let found = queries.iter().map(|query| match outbox.load(query) {
        Ok(Found::Matches(matches)) => u64::from(matches.entries.iter().any(|(place, _)| *place == seq)),
        _ => 0,
    });
    found.sum()
}

fn due(outbox: &OutboxStore, until: Timestamp) -> u64 {
    let (mut after, mut found) = (None, 0);
    for _ in 0..8 {
        let query = Query::Due { until, since: (Timestamp::ZERO, 0), after };
        let Ok(Found::Due { users, more, .. }) = outbox.load(&query) else { break };
        found += users.len() as u64;
        if more.is_none() {
            break;
        }
        after = more;
    }
    found
}

fn ends(outbox: &OutboxStore) -> u64 {
    let (mut after, mut found) = (EndPosition::START, 0);
    for _ in 0..4 {
        let Ok(ends) = outbox.read_ends(after, 16) else { break };
        let Some(last) = ends.last() else { break };
        assert!(last.position > after, "the feed of ends goes round in circles");
        (after, found) = (last.position, found + ends.len() as u64);
    }
    found
}

/// Exports an outbox and imports that. What is exported whole, is imported whole.
pub fn copy(outbox: &OutboxStore) -> Option<(Carried, Vec<u8>)> {
    let mut stream = Vec::new();
    let carried = outbox.export(&mut stream).ok()?;
    Some((carried, stream))
}

/// Imports a stream into an empty store, which is empty again when that fails.
pub fn import(stream: &[u8]) -> Option<(Carried, OutboxStore)> {
    let store = MemoryStore::new();
    let Ok(carried) = OutboxStore::import(Arc::new(store.clone()), None, &mut &*stream) else {
        let mut rows = 0;
        let count = &mut |_: &[u8], _: Result<&[u8], _>| {
            rows += 1;
            Flow::Stop
        };
        store.scan(&[0], &[0xFF], count).expect("memory does not fail");
        assert_eq!(rows, 0, "an import failed and left something behind");
        return None;
    };
    let (outbox, _) =
        OutboxStore::open(Arc::new(store), None, Epoch(0), FRESH).expect("what was imported can be opened");
    Some((carried, outbox))
}
