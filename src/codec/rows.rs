//! The bytes of user rows. Every list is a blob of items of fixed width, so that what a row takes in
//! memory is bounded by its bytes.

use serde::{Deserialize, Serialize};

use super::{Blob, CodecError, Fields, RECORD_VERSION, check_version, decode_borrowed, encode_value};
use crate::id::StreamId;
use crate::record::{Epoch, InboxRow, LaneId, LaneRow, NewestRow, Seq, UserRow};
use crate::time::Timestamp;

/// A user's row between its type and its bytes; every list is a blob of fixed-width items.
#[derive(Serialize, Deserialize)]
struct RowWire<'a> {
    reflects: Seq,
    exposed: Epoch,
    #[serde(borrow)]
    lanes: [LaneWire<'a>; LaneId::COUNT],
    #[serde(borrow)]
    inbox: Blob<'a>,
    #[serde(borrow)]
    newest: Blob<'a>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct LaneWire<'a> {
    cursor: Seq,
    #[serde(borrow)]
    ended: Blob<'a>,
    #[serde(borrow)]
    attempts: Blob<'a>,
}

const PLACE_BYTES: usize = 8;
const ATTEMPT_BYTES: usize = 20;

/// Appends a user's row as `version u8 · body`.
pub fn encode_row(row: &UserRow, out: &mut Vec<u8>) {
    let lists: Vec<(Vec<u8>, Vec<u8>)> = row.lanes.iter().map(lane_lists).collect();
    let mut lanes = [LaneWire { cursor: Seq::ZERO, ended: Blob(&[]), attempts: Blob(&[]) }; LaneId::COUNT];
    for ((wire, lane), (ended, attempts)) in lanes.iter_mut().zip(&row.lanes).zip(&lists) {
        *wire = LaneWire { cursor: lane.cursor, ended: Blob(ended), attempts: Blob(attempts) };
    }
    let (inbox, newest) = (pack_inbox(&row.inbox), pack_newest(&row.newest));
    out.push(RECORD_VERSION);
    let (reflects, exposed) = (row.reflects, row.exposed);
    let (inbox, newest) = (Blob(&inbox), Blob(&newest));
    encode_value(&RowWire { reflects, exposed, lanes, inbox, newest }, out);
}

/// What [`encode_row`] wrote.
///
/// # Errors
/// [`CodecError`].
pub fn decode_row(bytes: &[u8]) -> Result<UserRow, CodecError> {
    let (version, body) = bytes.split_first().ok_or(CodecError::Truncated { bytes: 0, needed: 1 })?;
    check_version(0, *version)?;
    let wire: RowWire<'_> = decode_borrowed(body)?;
    let mut row = UserRow { reflects: wire.reflects, exposed: wire.exposed, ..UserRow::default() };
    for (lane, wire) in row.lanes.iter_mut().zip(wire.lanes) {
        lane.cursor = wire.cursor;
        lane.ended = unpack(wire.ended.0, |item: &[u8; PLACE_BYTES]| Seq::new(u64::from_le_bytes(*item)))?;
        lane.attempts = unpack(wire.attempts.0, unpack_attempt)?;
    }
    row.inbox = unpack_inbox(wire.inbox.0)?;
    row.newest = unpack(wire.newest.0, unpack_newest)?.into_iter().collect::<Result<_, _>>()?;
    Ok(row)
}

fn lane_lists(lane: &LaneRow) -> (Vec<u8>, Vec<u8>) {
    let mut attempts = Vec::with_capacity(lane.attempts.len().saturating_mul(ATTEMPT_BYTES));
    for (seq, count, at) in &lane.attempts {
        attempts.extend_from_slice(&seq.get().to_le_bytes());
        attempts.extend_from_slice(&count.to_le_bytes());
        attempts.extend_from_slice(&at.as_millis().to_le_bytes());
    }
    (pack_places(&lane.ended), attempts)
}

fn pack_places(places: &[Seq]) -> Vec<u8> {
    places.iter().flat_map(|seq| seq.get().to_le_bytes()).collect()
}

fn unpack<const N: usize, T>(bytes: &[u8], item: impl Fn(&[u8; N]) -> T) -> Result<Vec<T>, CodecError> {
    let (items, rest) = bytes.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(CodecError::Trailing { bytes: rest.len() });
    }
    Ok(items.iter().map(item).collect())
}

fn unpack_attempt(item: &[u8; ATTEMPT_BYTES]) -> (Seq, u32, Timestamp) {
    let mut fields = Fields(item);
    let seq = Seq::new(fields.u64().unwrap_or_default());
    let count = fields.take::<4>().map_or(0, u32::from_le_bytes);
    (seq, count, Timestamp::from_millis(fields.u64().unwrap_or_default()))
}

/// `stream u128 · lane u8 · floor u64 · n u64 · n × u64` for each, so no item is shorter than half its size in memory.
fn pack_inbox(inbox: &[InboxRow]) -> Vec<u8> {
    let mut out = Vec::new();
    for row in inbox {
        out.extend_from_slice(&row.stream.as_u128().to_le_bytes());
        out.push(row.lane as u8);
        out.extend_from_slice(&row.floor.get().to_le_bytes());
        out.extend_from_slice(&(row.seen.len() as u64).to_le_bytes());
        out.extend_from_slice(&pack_places(&row.seen));
    }
    out
}

const NEWEST_BYTES: usize = 41;

fn pack_newest(newest: &[NewestRow]) -> Vec<u8> {
    let mut out = Vec::with_capacity(newest.len().saturating_mul(NEWEST_BYTES));
    for row in newest {
        out.extend_from_slice(&row.key.to_le_bytes());
        out.push(row.lane as u8);
        for number in [row.seq.get(), row.cost, row.version] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }
    out
}

fn unpack_newest(item: &[u8; NEWEST_BYTES]) -> Result<NewestRow, CodecError> {
    let mut fields = Fields(item);
    let key = fields.u128().unwrap_or_default();
    let [lane] = fields.take::<1>().unwrap_or_default();
    let lane = LaneId::from_index(lane).ok_or_else(|| CodecError::Body(format!("lane {lane}")))?;
    let mut number = || fields.u64().unwrap_or_default();
    Ok(NewestRow { key, lane, seq: Seq::new(number()), cost: number(), version: number() })
}

fn unpack_inbox(bytes: &[u8]) -> Result<Vec<InboxRow>, CodecError> {
    let mut count = 0;
    let mut fields = Fields(bytes);
    while !fields.0.is_empty() {
        unpack_inbox_row(&mut fields)?;
        count += 1;
    }
    let mut rows = Vec::with_capacity(count);
    let mut fields = Fields(bytes);
    while !fields.0.is_empty() {
        let (mut row, seen) = unpack_inbox_row(&mut fields)?;
        row.seen = unpack(seen, |item: &[u8; PLACE_BYTES]| Seq::new(u64::from_le_bytes(*item)))?;
        rows.push(row);
    }
    Ok(rows)
}

fn unpack_inbox_row<'a>(fields: &mut Fields<'a>) -> Result<(InboxRow, &'a [u8]), CodecError> {
    let short = || CodecError::Body("inbox row is cut short".to_owned());
    let stream = StreamId::from_u128(fields.u128().ok_or_else(short)?);
    let [lane] = fields.take::<1>().ok_or_else(short)?;
    let lane = LaneId::from_index(lane).ok_or_else(|| CodecError::Body(format!("lane {lane}")))?;
    let floor = Seq::new(fields.u64().ok_or_else(short)?);
    let count = usize::try_from(fields.u64().ok_or_else(short)?).unwrap_or(usize::MAX);
    let seen = fields.bytes(count.saturating_mul(PLACE_BYTES)).ok_or_else(short)?;
    Ok((InboxRow { stream, lane, floor, seen: Vec::new() }, seen))
}
