//! Numbers that are mostly small: seven bits a byte, lowest first, and differences that may go either way.

use super::Fields;

/// Appends a number.
pub(crate) fn put_varint(mut n: u64, out: &mut Vec<u8>) {
    while n > 0x7f {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Appends how far `to` is from `from`, either way.
pub(crate) fn put_step(from: u64, to: u64, out: &mut Vec<u8>) {
    let step = to.wrapping_sub(from) as i64;
    put_varint(((step << 1) ^ (step >> 63)) as u64, out);
}

impl Fields<'_> {
    /// What [`put_varint`] wrote; `None` also for what it would have written shorter.
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.take::<1>()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            n |= bits << shift;
            if byte & 0x80 == 0 {
                return (byte != 0 || shift == 0).then_some(n);
            }
        }
        None
    }

    /// Where [`put_step`] went, from here.
    pub(crate) fn step_from(&mut self, from: u64) -> Option<u64> {
        let n = self.varint()?;
        Some(from.wrapping_add((n >> 1) ^ (n & 1).wrapping_neg()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_steps_round_trip_and_have_one_form() {
        let numbers = [0, 1, 127, 128, 16_383, 16_384, u64::MAX / 2, u64::MAX / 2 + 1, u64::MAX];
        for from in numbers {
            for to in numbers {
                let mut bytes = Vec::new();
                put_varint(to, &mut bytes);
                put_step(from, to, &mut bytes);
                let mut fields = Fields(&bytes);
                assert_eq!((fields.varint(), fields.step_from(from)), (Some(to), Some(to)));
                assert!(fields.0.is_empty());
                for len in 0..bytes.len() {
                    let mut short = Fields(&bytes[..len]);
                    assert_eq!(short.varint().and_then(|_| short.step_from(from)), None);
                }
            }
        }
        for wrong in [&[0x80, 0][..], &[0xff; 10], &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2]]
        {
            assert_eq!(Fields(wrong).varint(), None);
        }
    }
}
