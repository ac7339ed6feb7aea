//! The counters of ends whose reasons came after the first eight: they stand before a table's row, so that tables in which
//! there are none are what they always were.
//!
//! ```text
//! counters u32 · reasons u32 · counters × reasons × u64        little-endian
//! ```

use crate::codec::Fields;
use crate::record::{Counters, FIRST_REASONS, Seq};

/// Nothing when all of them are 0.
pub(super) fn pack(counters: &[(Counters, Seq)]) -> Vec<u8> {
    let all = || counters.iter().map(|(counters, _)| counters.ended.get(FIRST_REASONS..).unwrap_or_default());
    if all().flatten().all(|n| *n == 0) {
        return Vec::new();
    }
    let reasons = all().next().map_or(0, <[u64]>::len);
    let mut out = Vec::new();
    for n in [counters.len(), reasons] {
        out.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes());
    }
    all().flatten().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
    out
}

/// What was packed, and what follows. A table with more reasons than this build knows is of a newer format.
pub(super) fn unpack(bytes: &[u8]) -> Option<(Vec<Vec<u64>>, &[u8])> {
    let mut fields = Fields(bytes);
    let (counters, reasons) = (fields.u32()? as usize, fields.u32()? as usize);
    let known = Counters::default().ended.len() - FIRST_REASONS;
    let len = counters.checked_mul(reasons)?.checked_mul(8)?;
    if reasons == 0 || reasons > known || len > fields.0.len() {
        return None;
    }
    let all = (0..counters).map(|_| (0..reasons).map(|_| fields.u64()).collect()).collect::<Option<_>>()?;
    Some((all, fields.0))
}

/// Puts them where they belong.
pub(super) fn put(counters: &mut [(Counters, Seq)], later: Vec<Vec<u64>>) {
    for ((counters, _), later) in counters.iter_mut().zip(later) {
        let places = counters.ended.iter_mut().skip(FIRST_REASONS);
        places.zip(later).for_each(|(place, n)| *place = n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_counters_come_back_and_none_take_no_bytes() {
        let mut all = vec![(Counters::default(), Seq::ZERO); 3];
        assert!(pack(&all).is_empty());
        for (n, (counters, _)) in (1..).zip(&mut all) {
            counters.ended[8] = n;
            counters.ended[9] = u64::MAX - n;
        }
        let mut bytes = pack(&all);
        bytes.extend_from_slice(b"rest");
        let (later, rest) = unpack(&bytes).unwrap();
        assert_eq!(rest, b"rest");
        let mut back = vec![(Counters::default(), Seq::ZERO); 3];
        put(&mut back, later);
        assert_eq!(back, all);
        for len in 0..bytes.len() - 4 {
            assert_eq!(unpack(&bytes[..len]), None, "{len}");
        }
        assert_eq!(unpack(&[255; 16]), None);
    }
}
