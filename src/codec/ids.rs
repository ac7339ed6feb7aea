//! The bytes of remembered ids: a chunk is a version and rows that lean on the row before.
//!
//! ```text
//! version u8 | row …
//! row: tag u8 | [sender u128] | key u128 | [content u64] | [place step] | [time step] | [devices varint]
//! ```
//!
//! Rows of a chunk come by sender and place, so most have the sender of the row before, are at the next place or a few
//! behind it, and were accepted at its time or a little later; of what one message to many leaves, all say the same. Such
//! a row takes 17 bytes, and 25 or a few more when it says something else. The tag says what is there; steps are varints,
//! either way.

use super::{CodecError, Fields, RECORD_VERSION, check_version, put_step, put_varint};
use crate::record::{DedupRow, Seq, Slots};
use crate::time::Timestamp;

const NEW_SENDER: u8 = 1;
const NEW_CONTENT: u8 = 2;
/// Without it, the place is the next one.
const NEW_PLACE: u8 = 4;
const NEW_TIME: u8 = 8;
/// It is for other devices than the one before it.
const NEW_DEVICES: u8 = 16;
const TAGS: u8 = NEW_SENDER | NEW_CONTENT | NEW_PLACE | NEW_TIME | NEW_DEVICES;
/// No row takes more in a chunk.
pub const MAX_DEDUP_BYTES: usize = 67;

/// What the first row of a chunk leans on.
const NOTHING: DedupRow = DedupRow {
    sender: 0,
    key: 0,
    content: 0,
    seq: Seq::ZERO,
    at: Timestamp::from_millis(0),
    among: Slots::NONE,
};

/// Appends a remembered id to a chunk: behind this one, or as its first.
pub fn encode_dedup(row: &DedupRow, before: Option<&DedupRow>, out: &mut Vec<u8>) {
    if before.is_none() {
        out.push(RECORD_VERSION);
    }
    let before = before.unwrap_or(&NOTHING);
    let changed = |changed, tag| if changed { tag } else { 0 };
    let tag = changed(row.sender != before.sender, NEW_SENDER)
        | changed(row.content != before.content, NEW_CONTENT)
        | changed(row.seq != before.seq.plus(1), NEW_PLACE)
        | changed(row.at != before.at, NEW_TIME)
        | changed(row.among != before.among, NEW_DEVICES);
    out.push(tag);
    if tag & NEW_SENDER != 0 {
        out.extend_from_slice(&row.sender.to_le_bytes());
    }
    out.extend_from_slice(&row.key.to_le_bytes());
    if tag & NEW_CONTENT != 0 {
        out.extend_from_slice(&row.content.to_le_bytes());
    }
    if tag & NEW_PLACE != 0 {
        put_step(before.seq.get(), row.seq.get(), out);
    }
    if tag & NEW_TIME != 0 {
        put_step(before.at.as_millis(), row.at.as_millis(), out);
    }
    if tag & NEW_DEVICES != 0 {
        put_varint(row.among.bits().into(), out);
    }
}

/// The remembered ids of a chunk. Ends after the first error.
#[must_use]
pub fn decode_dedup(bytes: &[u8]) -> DedupRows<'_> {
    DedupRows { fields: Fields(bytes), before: None }
}

/// Iterator of [`decode_dedup`].
#[derive(Clone, Debug)]
pub struct DedupRows<'a> {
    fields: Fields<'a>,
    before: Option<DedupRow>,
}

impl DedupRows<'_> {
    fn row(&mut self) -> Result<DedupRow, CodecError> {
        let short = || CodecError::Body("a chunk of ids is cut short".to_owned());
        if self.before.is_none() {
            let [version] = self.fields.take::<1>().ok_or_else(short)?;
            check_version(0, version)?;
        }
        let before = self.before.unwrap_or(NOTHING);
        let [tag] = self.fields.take::<1>().ok_or_else(short)?;
        if tag > TAGS {
            return Err(CodecError::Body(format!("tag {tag} of a remembered id")));
        }
        let mut row = before;
        if tag & NEW_SENDER != 0 {
            row.sender = self.fields.u128().ok_or_else(short)?;
        }
        row.key = self.fields.u128().ok_or_else(short)?;
        if tag & NEW_CONTENT != 0 {
            row.content = self.fields.u64().ok_or_else(short)?;
        }
        row.seq = before.seq.plus(1);
        if tag & NEW_PLACE != 0 {
            row.seq = Seq::new(self.fields.step_from(before.seq.get()).ok_or_else(short)?);
        }
        if tag & NEW_TIME != 0 {
            let at = self.fields.step_from(before.at.as_millis()).ok_or_else(short)?;
            row.at = Timestamp::from_millis(at);
        }
        if tag & NEW_DEVICES != 0 {
            let bits = self.fields.varint().and_then(|bits| u32::try_from(bits).ok()).ok_or_else(short)?;
            row.among = Slots::from_bits(bits);
        }
        Ok(row)
    }
}

impl Iterator for DedupRows<'_> {
    type Item = Result<DedupRow, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.fields.0.is_empty() {
            return None;
        }
        let row = self.row();
        match &row {
            Ok(row) => self.before = Some(*row),
            Err(_) => self.fields = Fields(&[]),
        }
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(rows: &[DedupRow]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (n, row) in rows.iter().enumerate() {
            let before = n.checked_sub(1).map(|n| &rows[n]);
            encode_dedup(row, before, &mut bytes);
        }
        bytes
    }

    fn row(n: u64) -> DedupRow {
        let at = Timestamp::from_millis(1_700_000_000_000 + n / 50);
        let among = Slots::NONE;
        DedupRow { sender: 5, key: u128::from(n) << 64, content: 9, seq: Seq::new(7 << 40 | n), at, among }
    }

    #[test]
    fn ids_round_trip_and_those_of_one_message_to_many_take_17_bytes() {
        let many: Vec<_> = (0..100).map(row).collect();
        assert!(encode(&many).len() <= MAX_DEDUP_BYTES + 99 * 17 + 1);
        let extremes = [
            DedupRow { sender: u128::MAX, content: u64::MAX, seq: Seq::MAX, at: Timestamp::NEVER, ..row(1) },
            NOTHING,
            row(3),
            DedupRow { content: 1, among: Slots::from_bits(u32::MAX), ..row(4) },
            DedupRow { sender: 1, ..row(2) },
        ];
        for rows in [&many[..], &extremes, &many[..1], &[]] {
            assert_eq!(decode_dedup(&encode(rows)).collect::<Result<Vec<_>, _>>().unwrap(), rows);
        }
        for one in extremes {
            assert!(encode(&[one]).len() <= MAX_DEDUP_BYTES);
        }
    }

    #[test]
    fn bytes_are_those_of_version_1() {
        let rows = [row(0), row(2), DedupRow { content: 8, at: row(50).at, ..row(3) }];
        let mut expected = vec![1, 15];
        expected.extend_from_slice(&5_u128.to_le_bytes());
        expected.extend_from_slice(&0_u128.to_le_bytes());
        expected.extend_from_slice(&9_u64.to_le_bytes());
        expected.extend_from_slice(&[128, 128, 128, 128, 128, 192, 3]);
        expected.extend_from_slice(&[128, 160, 171, 254, 249, 98]);
        expected.push(4);
        expected.extend_from_slice(&(2_u128 << 64).to_le_bytes());
        expected.extend_from_slice(&[4, 10]);
        expected.extend_from_slice(&(3_u128 << 64).to_le_bytes());
        expected.extend_from_slice(&8_u64.to_le_bytes());
        expected.push(2);
        assert_eq!(encode(&rows), expected);
    }

    #[test]
    fn what_is_cut_short_or_of_a_newer_version_is_an_error_once() {
        let bytes = encode(&[row(0), row(1), row(2)]);
        for len in 1..bytes.len() {
            let read: Vec<_> = decode_dedup(&bytes[..len]).collect();
            assert!(read.len() <= 3 && read.iter().rev().skip(1).all(Result::is_ok), "{len}");
            assert!(read.last().unwrap().is_err() || read.len() < 3);
        }
        let mut newer = bytes.clone();
        newer[0] = 2;
        let error = decode_dedup(&newer).next().unwrap().unwrap_err();
        assert!(error.is_too_new());
        let mut tagged = bytes;
        tagged[1] = 32;
        assert_eq!(decode_dedup(&tagged).count(), 1);
    }
}
