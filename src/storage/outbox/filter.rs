//! A filter over the users of a run: it says that a run holds nothing of a user, or that it may hold something.
//!
//! A blocked Bloom filter: a user's digest names one block of 64 bytes, and five bits in it, so that a question costs
//! one miss of the processor's cache. It may be wrong in one direction only. It is of our own making because its bytes
//! are stored: what they mean must not hang on the release of a crate.
//!
//! # Bounds
//! 8 to 16 bits for each user of the run, which makes 2.5 to 0.1 % wrong answers, and at most 4 MiB for a run: beyond
//! 4 million users in one run, more answers are wrong. In memory and in the store it takes the same.

use crate::codec::Fields;
use crate::ports::MAX_VALUE_BYTES;

const BLOCK_BYTES: usize = 64;
const BLOCK_BITS: u64 = 512;
const PROBES: u32 = 5;
const PROBE_BITS: u32 = BLOCK_BITS.trailing_zeros();
/// The fewest bits for a user; folding stops above it.
const MIN_BITS: u64 = 8;
const MAX_BLOCKS: usize = 1 << 16;
/// Blocks in one stored value.
const BLOCKS_A_PART: usize = MAX_VALUE_BYTES / BLOCK_BYTES;

type Block = [u64; 8];

/// What a run knows of its users.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Filter {
    /// A power of two of them.
    blocks: Vec<Block>,
}

impl core::fmt::Debug for Filter {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Filter({} bytes)", self.blocks.len() * BLOCK_BYTES)
    }
}

impl Filter {
    /// An empty filter with room for so many users. A guess that is too high is made good by [`Self::fold`]; one that
    /// is too low makes more answers wrong.
    pub(super) fn with_room(users: u64) -> Self {
        let blocks = users.saturating_mul(MIN_BITS).div_ceil(BLOCK_BITS);
        let blocks = usize::try_from(blocks).unwrap_or(MAX_BLOCKS).clamp(1, MAX_BLOCKS).next_power_of_two();
        Self { blocks: vec![Block::default(); blocks] }
    }

    pub(super) fn insert(&mut self, digest: u128) {
        let at = self.block(digest);
        if let Some(block) = self.blocks.get_mut(at) {
            for (word, bit) in probes(digest) {
                block[word] |= bit;
            }
        }
    }

    /// Whether a user with this digest may be among those that were added. `false` is certain.
    pub(super) fn may_hold(&self, digest: u128) -> bool {
        let block = self.blocks.get(self.block(digest));
        block.is_some_and(|block| probes(digest).all(|(word, bit)| block[word] & bit != 0))
    }

    /// Makes the filter as small as so many users need.
    pub(super) fn fold(&mut self, users: u64) {
        while self.blocks.len() > 1
            && self.blocks.len() as u64 / 2 * BLOCK_BITS >= users.saturating_mul(MIN_BITS)
        {
            // A block is named by the digest's first bits: with one bit less, two neighbours are one.
            let halves = self.blocks.chunks_exact(2);
            self.blocks = halves.map(|two| core::array::from_fn(|i| two[0][i] | two[1][i])).collect();
        }
        self.blocks.shrink_to_fit();
    }

    /// The values it is stored as, in order.
    pub(super) fn parts(&self) -> impl Iterator<Item = Vec<u8>> {
        self.blocks
            .chunks(BLOCKS_A_PART)
            .map(|blocks| blocks.as_flattened().iter().flat_map(|word| word.to_le_bytes()).collect())
    }

    /// The filter whose parts lie behind one another in `bytes`; `None` when they are not what was stored.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let count = bytes.len() / BLOCK_BYTES;
        if !bytes.len().is_multiple_of(BLOCK_BYTES) || !count.is_power_of_two() || count > MAX_BLOCKS {
            return None;
        }
        let mut fields = Fields(bytes);
        let mut blocks = vec![Block::default(); count];
        for word in blocks.as_flattened_mut() {
            *word = fields.u64()?;
        }
        Some(Self { blocks })
    }

    /// The digest's first 64 bits, scaled to the number of blocks.
    fn block(&self, digest: u128) -> usize {
        let bits = self.blocks.len().trailing_zeros();
        let first = digest.checked_shr(128 - bits).unwrap_or(0);
        usize::try_from(first).unwrap_or(0)
    }
}

/// Where a digest's bits are in its block: from its last bits, which do not name the block.
fn probes(digest: u128) -> impl Iterator<Item = (usize, u64)> {
    (0..PROBES).map(move |i| {
        let at = (digest >> (i * PROBE_BITS)) as usize % BLOCK_BITS as usize;
        (at / 64, 1 << (at % 64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digester;
    use crate::id::UserId;

    fn digest(n: u64) -> u128 {
        Digester::new(7).user(UserId::new(format!("user-{n}").as_bytes()).ok().as_ref())
    }

    fn filled(room: u64, users: u64) -> Filter {
        let mut filter = Filter::with_room(room);
        (0..users).for_each(|n| filter.insert(digest(n)));
        filter.fold(users);
        filter
    }

    #[test]
    fn who_was_added_is_never_denied_whatever_the_room_was() {
        for (room, users) in [(0, 1), (1, 1), (1, 5_000), (64, 64), (5_000, 5_000), (1 << 20, 3_000), (65, 9)]
        {
            let filter = filled(room, users);
            assert!((0..users).all(|n| filter.may_hold(digest(n))), "{room} {users}");
            let stored = Filter::from_bytes(&filter.parts().collect::<Vec<_>>().concat());
            assert_eq!(stored, Some(filter));
        }
    }

    #[test]
    fn few_others_are_taken_for_one_of_them_and_the_size_is_bounded() {
        for (room, users) in [(20_000, 20_000), (100_000, 20_000), (16_384, 16_384)] {
            let filter = filled(room, users);
            let wrong = (0..100_000).filter(|n| filter.may_hold(digest(users + n))).count();
            assert!(wrong < 3_500, "{wrong} of 100000 with {users} users");
            let bits = filter.blocks.len() as u64 * BLOCK_BITS;
            assert!((MIN_BITS * users..=2 * MIN_BITS * users).contains(&bits), "{bits} for {users} users");
        }
        assert_eq!(Filter::with_room(u64::MAX).blocks.len() * BLOCK_BYTES, 4 << 20);
        assert!(filled(0, 0).parts().map(|part| part.len()).sum::<usize>() == BLOCK_BYTES);
        assert!(!filled(0, 0).may_hold(digest(1)));
    }

    #[test]
    fn bytes_that_are_no_filter_are_refused() {
        for len in [0, 1, 63, 65, 3 * BLOCK_BYTES] {
            assert_eq!(Filter::from_bytes(&vec![0; len]), None, "{len}");
        }
    }
}
