//! The bytes of user rows. Every list is a blob of items of fixed width, so that what a row takes in
//! memory is bounded by its bytes.

mod devices;

use serde::{Deserialize, Serialize};

use self::devices::{pack_devices, unpack_devices};
use super::{Blob, CodecError, Fields, RECORD_VERSION, decode_borrowed, encode_value};
use crate::id::{MessageId, StreamId};
use crate::record::{
    Copies, DependentRow, Epoch, Gap, InboxRow, LaneId, LaneRow, LedgerRow, LedgerRows, NewestRow, Parent,
    ParentEnd, ReadMark, ReadRow, Seq, Slots, UserRow,
};
use crate::status::EndReason;
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

/// The version of a row of somebody who has messages that wait for others: that of the first one, and those.
const WITH_DEPENDENTS: u8 = 2;
/// The version of a row of somebody who has, or had, registered devices: that of the second one, and those.
const WITH_DEVICES: u8 = 3;
/// The version of a row of somebody who has read something: that of the third one, and how far.
const WITH_READS: u8 = 4;
/// The version of a row of somebody with whom something rang that another device answered: that of the fourth one, from
/// where on those are known, and they. In older ones they stand among the losses.
const WITH_ELSEWHERE: u8 = 5;
/// The newest of them. Whoever raises it raises the formats of the table of runs: see `META_VERSION`.
pub(crate) const ROW_VERSION: u8 = WITH_ELSEWHERE;

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
    let (reflects, exposed) = (row.reflects, row.exposed);
    let (ledger, gaps) = (pack_ledger(&row.ledger.rows), pack_gaps(&row.ledger.gaps));
    let (inbox, newest) = (Blob(&inbox), Blob(&newest));
    let (ledger, gaps, forgotten) = (Blob(&ledger), Blob(&gaps), row.ledger.forgotten);
    let wire = RowWire { reflects, exposed, lanes, inbox, newest, ledger, forgotten, gaps };
    let mut devices = Vec::new();
    pack_devices(&row.devices, &mut devices);
    let reads = pack_reads(&row.reads);
    let (elsewhere, since) = (pack_ledger(&row.ledger.elsewhere), row.ledger.elsewhere_forgotten);
    let was_elsewhere = !elsewhere.is_empty() || since != Seq::ZERO;
    let has_copies = !devices.is_empty() || !reads.is_empty() || was_elsewhere;
    let dependents = pack_dependents(&row.dependents, has_copies);
    match (dependents.is_empty(), devices.is_empty()) {
        _ if was_elsewhere => {
            out.push(WITH_ELSEWHERE);
            let parts = [&dependents, &devices, &reads, &elsewhere].map(|part| Blob(part));
            encode_value(&(wire, parts, since), out);
        }
        _ if !reads.is_empty() => {
            out.push(WITH_READS);
            encode_value(&(wire, Blob(&dependents), Blob(&devices), Blob(&reads)), out);
        }
        (true, true) => {
            out.push(RECORD_VERSION);
            encode_value(&wire, out);
        }
        (false, true) => {
            out.push(WITH_DEPENDENTS);
            encode_value(&(wire, Blob(&dependents)), out);
        }
        (_, false) => {
            out.push(WITH_DEVICES);
            encode_value(&(wire, Blob(&dependents), Blob(&devices)), out);
        }
    }
}

/// What [`encode_row`] wrote.
///
/// # Errors
/// [`CodecError`].
pub fn decode_row(bytes: &[u8]) -> Result<UserRow, CodecError> {
    let (version, body) = bytes.split_first().ok_or(CodecError::Truncated { bytes: 0, needed: 1 })?;
    type Parts<'a> = (RowWire<'a>, Vec<Result<DependentRow, CodecError>>, Blob<'a>, Blob<'a>);
    if *version > ROW_VERSION {
        return Err(CodecError::NewerVersion { kind: 0, found: *version });
    }
    let (mut elsewhere, mut elsewhere_forgotten) = (Blob(&[]), Seq::ZERO);
    let (wire, dependents, devices, reads): Parts<'_> = match *version {
        RECORD_VERSION => (decode_borrowed(body)?, Vec::new(), Blob(&[]), Blob(&[])),
        WITH_DEPENDENTS => {
            let (wire, dependents): (_, Blob<'_>) = decode_borrowed(body)?;
            (wire, unpack(dependents.0, unpack_dependent)?, Blob(&[]), Blob(&[]))
        }
        WITH_DEVICES => {
            let (wire, dependents, devices): (_, Blob<'_>, _) = decode_borrowed(body)?;
            (wire, unpack(dependents.0, unpack_dependent_of_copies)?, devices, Blob(&[]))
        }
        WITH_READS => {
            let (wire, dependents, devices, reads): (_, Blob<'_>, _, _) = decode_borrowed(body)?;
            (wire, unpack(dependents.0, unpack_dependent_of_copies)?, devices, reads)
        }
        WITH_ELSEWHERE => {
            let (wire, parts, since): (_, [Blob<'_>; 4], _) = decode_borrowed(body)?;
            let [dependents, devices, reads, theirs] = parts;
            (elsewhere, elsewhere_forgotten) = (theirs, since);
            (wire, unpack(dependents.0, unpack_dependent_of_copies)?, devices, reads)
        }
        unknown => return Err(CodecError::Body(format!("version {unknown}"))),
    };
    let mut row = UserRow { reflects: wire.reflects, exposed: wire.exposed, ..UserRow::default() };
    for (lane, wire) in row.lanes.iter_mut().zip(wire.lanes) {
        lane.cursor = wire.cursor;
        lane.ended = unpack(wire.ended.0, |item: &[u8; PLACE_BYTES]| Seq::new(u64::from_le_bytes(*item)))?;
        lane.attempts = unpack(wire.attempts.0, unpack_attempt)?;
    }
    row.inbox = unpack_inbox(wire.inbox.0)?;
    row.newest = unpack(wire.newest.0, unpack_newest)?.into_iter().collect::<Result<_, _>>()?;
    let ended = |blob: Blob<'_>| -> Result<Vec<LedgerRow>, CodecError> {
        unpack(blob.0, unpack_ledger)?.into_iter().collect()
    };
    let is_lost = |row: &LedgerRow| row.reason != EndReason::Elsewhere;
    let (rows, mut older): (Vec<_>, Vec<_>) = ended(wire.ledger)?.into_iter().partition(is_lost);
    older.append(&mut ended(elsewhere)?);
    row.ledger = LedgerRows {
        rows,
        forgotten: wire.forgotten,
        elsewhere: older,
        elsewhere_forgotten,
        gaps: unpack(wire.gaps.0, unpack_gap)?.into_iter().collect::<Result<_, _>>()?,
    };
    row.dependents = dependents.into_iter().collect::<Result<_, _>>()?;
    row.devices = unpack_devices(devices.0)?;
    row.reads = unpack(reads.0, unpack_read)?;
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

const DEPENDENT_BYTES: usize = 18;
const DEPENDENT_OF_COPIES_BYTES: usize = DEPENDENT_BYTES + 9;

/// `place u64 · parent u64 · parent's lane u8 · how that ended u8 (0: it waits, 1: delivered, 2: otherwise)`, and of whoever
/// has devices `among u32 · left u32 · stride u8`, all 0 if the parent is for none of them.
fn pack_dependents(rows: &[DependentRow], with_copies: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len().saturating_mul(DEPENDENT_OF_COPIES_BYTES));
    for row in rows {
        out.extend_from_slice(&row.seq.get().to_le_bytes());
        out.extend_from_slice(&row.parent.seq.get().to_le_bytes());
        let ended = match row.ended {
            None => 0,
            Some(ParentEnd::Delivered) => 1,
            Some(ParentEnd::Otherwise) => 2,
        };
        out.extend_from_slice(&[row.parent.lane.code(), ended]);
        if with_copies {
            let copies = row.parent.copies.map(|Copies { among, left, stride }| (among, left, stride));
            let (among, left, stride) = copies.unwrap_or((Slots::NONE, Slots::NONE, 0));
            [among, left].iter().for_each(|slots| out.extend_from_slice(&slots.bits().to_le_bytes()));
            out.push(stride);
        }
    }
    out
}

fn unpack_dependent_of_copies(item: &[u8; DEPENDENT_OF_COPIES_BYTES]) -> Result<DependentRow, CodecError> {
    let mut fields = Fields(item);
    let mut row = unpack_dependent(&fields.take::<DEPENDENT_BYTES>().unwrap_or([0; DEPENDENT_BYTES]))?;
    let [among, left] = [(); 2].map(|()| Slots::from_bits(fields.u32().unwrap_or_default()));
    let [stride] = fields.take::<1>().unwrap_or_default();
    row.parent.copies = match stride {
        0 if among.is_empty() && left.is_empty() => None,
        1 | 2 if among.has_all(left) => Some(Copies { among, left, stride }),
        _ => return Err(CodecError::Body(format!("copies {left:?} of {among:?}, {stride} apart"))),
    };
    if !super::device::fits(row.parent) {
        return Err(CodecError::Body("copies of a message for no device".to_owned()));
    }
    Ok(row)
}

fn unpack_dependent(item: &[u8; DEPENDENT_BYTES]) -> Result<DependentRow, CodecError> {
    let mut fields = Fields(item);
    let [seq, parent] = [(); 2].map(|()| Seq::new(fields.u64().unwrap_or_default()));
    let lane = unpack_lane(&mut fields)?;
    let ended = match fields.take::<1>() {
        Some([0]) => None,
        Some([1]) => Some(ParentEnd::Delivered),
        Some([2]) => Some(ParentEnd::Otherwise),
        other => return Err(CodecError::Body(format!("a parent that ended as {other:?}"))),
    };
    Ok(DependentRow { seq, parent: Parent::at(lane, parent), ended })
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

const READ_BYTES: usize = 32;

/// `conversation u128 · up to u64 · at u64`
fn pack_reads(reads: &[ReadRow]) -> Vec<u8> {
    let mut out = Vec::with_capacity(reads.len().saturating_mul(READ_BYTES));
    for ReadRow { conversation, mark } in reads {
        out.extend_from_slice(&conversation.to_le_bytes());
        out.extend_from_slice(&mark.up_to.get().to_le_bytes());
        out.extend_from_slice(&mark.at.as_millis().to_le_bytes());
    }
    out
}

fn unpack_read(item: &[u8; READ_BYTES]) -> ReadRow {
    let mut fields = Fields(item);
    let conversation = fields.u128().unwrap_or_default();
    let [up_to, at] = [(); 2].map(|()| fields.u64().unwrap_or_default());
    let mark = ReadMark { up_to: Seq::new(up_to), at: Timestamp::from_millis(at) };
    ReadRow { conversation, mark }
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
