//! The bytes of user rows. Every list is a blob of items of fixed width, so that what a row takes in
//! memory is bounded by its bytes.

mod devices;

use serde::{Deserialize, Serialize};

use self::devices::{pack_devices, unpack_devices};
use super::{Blob, CodecError, Fields, RECORD_VERSION, check_version, decode_borrowed, encode_value};
use crate::id::{MessageId, StreamId};
use crate::record::{Epoch, Gap, InboxRow, LaneId, LaneRow, LedgerRow, LedgerRows, NewestRow, Seq, UserRow};
use crate::status::EndReason;
use crate::time::Timestamp;

/// The version of the rows of users who have, or had, registered devices: a list of them follows the body of the first
/// version, behind the length of that.
const WITH_DEVICES: u8 = 2;

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
    #[serde(borrow)]
    ledger: Blob<'a>,
    forgotten: Seq,
    #[serde(borrow)]
    gaps: Blob<'a>,
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
    let start = out.len();
    out.push(RECORD_VERSION);
    let (reflects, exposed) = (row.reflects, row.exposed);
    let (ledger, gaps) = (pack_ledger(&row.ledger.rows), pack_gaps(&row.ledger.gaps));
    let (inbox, newest) = (Blob(&inbox), Blob(&newest));
    let (ledger, gaps, forgotten) = (Blob(&ledger), Blob(&gaps), row.ledger.forgotten);
    encode_value(&RowWire { reflects, exposed, lanes, inbox, newest, ledger, forgotten, gaps }, out);
    if !row.devices.is_empty() {
        let body = out.split_off(start + 1);
        out.truncate(start);
        out.push(WITH_DEVICES);
        out.extend_from_slice(&(body.len() as u64).to_le_bytes());
        out.extend_from_slice(&body);
        pack_devices(&row.devices, out);
    }
}

/// What [`encode_row`] wrote.
///
/// # Errors
/// [`CodecError`].
pub fn decode_row(bytes: &[u8]) -> Result<UserRow, CodecError> {
    let (version, mut body) = bytes.split_first().ok_or(CodecError::Truncated { bytes: 0, needed: 1 })?;
    let mut devices = Vec::new();
    if *version == WITH_DEVICES {
        let mut fields = Fields(body);
        let short = || CodecError::Body("a row with devices is cut short".to_owned());
        let len = usize::try_from(fields.u64().ok_or_else(short)?).unwrap_or(usize::MAX);
        body = fields.bytes(len).ok_or_else(short)?;
        devices = unpack_devices(fields.0)?;
    } else {
        check_version(0, *version)?;
    }
    let wire: RowWire<'_> = decode_borrowed(body)?;
    let mut row = UserRow { reflects: wire.reflects, exposed: wire.exposed, ..UserRow::default() };
    for (lane, wire) in row.lanes.iter_mut().zip(wire.lanes) {
        lane.cursor = wire.cursor;
        lane.ended = unpack(wire.ended.0, |item: &[u8; PLACE_BYTES]| Seq::new(u64::from_le_bytes(*item)))?;
        lane.attempts = unpack(wire.attempts.0, unpack_attempt)?;
    }
    row.inbox = unpack_inbox(wire.inbox.0)?;
    row.newest = unpack(wire.newest.0, unpack_newest)?.into_iter().collect::<Result<_, _>>()?;
    row.ledger = LedgerRows {
        rows: unpack(wire.ledger.0, unpack_ledger)?.into_iter().collect::<Result<_, _>>()?,
        forgotten: wire.forgotten,
        gaps: unpack(wire.gaps.0, unpack_gap)?.into_iter().collect::<Result<_, _>>()?,
    };
    row.devices = devices;
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
        out.push(row.lane.code());
        out.extend_from_slice(&row.floor.get().to_le_bytes());
        out.extend_from_slice(&(row.seen.len() as u64).to_le_bytes());
        out.extend_from_slice(&pack_places(&row.seen));
    }
    out
}

const NEWEST_BYTES: usize = 57;

fn pack_newest(newest: &[NewestRow]) -> Vec<u8> {
    let mut out = Vec::with_capacity(newest.len().saturating_mul(NEWEST_BYTES));
    for row in newest {
        out.extend_from_slice(&row.key.to_le_bytes());
        out.push(row.lane.code());
        out.extend_from_slice(&row.id.as_u128().to_le_bytes());
        for number in [row.seq.get(), row.cost, row.version] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }
    out
}

fn unpack_newest(item: &[u8; NEWEST_BYTES]) -> Result<NewestRow, CodecError> {
    let mut fields = Fields(item);
    let key = fields.u128().unwrap_or_default();
    let lane = unpack_lane(&mut fields)?;
    let id = MessageId::from_u128(fields.u128().unwrap_or_default());
    let mut number = || fields.u64().unwrap_or_default();
    Ok(NewestRow { key, lane, id, seq: Seq::new(number()), cost: number(), version: number() })
}

fn unpack_lane(fields: &mut Fields<'_>) -> Result<LaneId, CodecError> {
    let [lane] = fields.take::<1>().unwrap_or([u8::MAX]);
    LaneId::from_index(lane).ok_or_else(|| CodecError::Body(format!("lane {lane}")))
}

const LEDGER_BYTES: usize = 48;

/// `ended u64 · place u64 · at u64 · attempts u32 · lane u8 · reason u8 · possibly delivered u8 · has an id u8 · id u128`
fn pack_ledger(rows: &[LedgerRow]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len().saturating_mul(LEDGER_BYTES));
    for row in rows {
        for number in [row.ended.get(), row.place.get(), row.at.as_millis()] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&row.attempts.to_le_bytes());
        let flags = [u8::from(row.possibly_delivered), u8::from(row.id.is_some())];
        out.extend_from_slice(&[row.lane.code(), row.reason as u8, flags[0], flags[1]]);
        out.extend_from_slice(&row.id.map_or(0, MessageId::as_u128).to_le_bytes());
    }
    out
}

fn unpack_ledger(item: &[u8; LEDGER_BYTES]) -> Result<LedgerRow, CodecError> {
    let mut fields = Fields(item);
    let [ended, place, at] = [(); 3].map(|()| fields.u64().unwrap_or_default());
    let attempts = fields.take::<4>().map_or(0, u32::from_le_bytes);
    let lane = unpack_lane(&mut fields)?;
    let [reason, possibly_delivered, has_id] = fields.take::<3>().unwrap_or_default();
    let known = EndReason::ALL.into_iter().find(|known| *known as u8 == reason);
    let reason = known.ok_or_else(|| CodecError::Body(format!("end for reason {reason}")))?;
    if possibly_delivered > 1 || has_id > 1 {
        return Err(CodecError::Body("a flag that is neither set nor not".to_owned()));
    }
    let id = fields.u128().filter(|_| has_id == 1).map(MessageId::from_u128);
    let (ended, place) = (Seq::new(ended), Seq::new(place));
    let (at, possibly_delivered) = (Timestamp::from_millis(at), possibly_delivered == 1);
    Ok(LedgerRow { id, ended, lane, place, reason, possibly_delivered, attempts, at })
}

const GAP_BYTES: usize = 29;

/// `first u64 · last u64 · expired u32 · dead u32 · evicted u32 · lane u8`
fn pack_gaps(gaps: &[Gap]) -> Vec<u8> {
    let mut out = Vec::with_capacity(gaps.len().saturating_mul(GAP_BYTES));
    for gap in gaps {
        for place in [gap.first, gap.last] {
            out.extend_from_slice(&place.get().to_le_bytes());
        }
        for messages in [gap.expired, gap.dead, gap.evicted] {
            out.extend_from_slice(&messages.to_le_bytes());
        }
        out.push(gap.lane.code());
    }
    out
}

fn unpack_gap(item: &[u8; GAP_BYTES]) -> Result<Gap, CodecError> {
    let mut fields = Fields(item);
    let [first, last] = [(); 2].map(|()| Seq::new(fields.u64().unwrap_or_default()));
    let [expired, dead, evicted] = [(); 3].map(|()| fields.take::<4>().map_or(0, u32::from_le_bytes));
    Ok(Gap { lane: unpack_lane(&mut fields)?, first, last, expired, dead, evicted })
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
