//! Two sessions over an adversarial network: whatever breaks, nothing is lost, applied twice, or out of order.
//!
//! `LASTMILE_CASES=100000 cargo test --release -p lastmile-proptests --test session` lives as many lives.

use lastmile::session::frame::{Codec, Limits, decode, encode};
use lastmile::testing::pair::{Weather, live};
use proptest::prelude::*;

/// The protocol's description: its examples are the frames that are damaged here.
const DOC: &str = include_str!("../../docs/PROTOCOL.md");

/// Every example, in one codec or the other.
fn examples() -> Vec<Vec<u8>> {
    let fenced = |opening: &str| {
        let blocks = DOC.split(opening).skip(1).map(|part| part.split("```").next().unwrap_or_default());
        blocks.map(str::to_owned).collect::<Vec<_>>()
    };
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let unhex = |text: String| {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(byte).collect::<Vec<u8>>()
    };
    let json = fenced("```json frame\n").into_iter().map(|text| text.trim().as_bytes().to_vec());
    json.chain(fenced("```hex frame\n").into_iter().map(unhex)).collect()
}

fn cases() -> u32 {
    std::env::var("LASTMILE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn two_sessions_lose_nothing_repeat_nothing_and_keep_order(
        seed in any::<u64>(),
        messages in 1_u32..80,
        trouble in 0_u64..40,
        steps in 1_u32..500,
    ) {
        let lived = live(seed, Weather { messages, trouble, steps });
        prop_assert!(lived.is_ok(), "{:?}", lived);
    }

    #[test]
    fn a_damaged_frame_is_an_error_or_another_frame_that_survives_both_codecs(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let examples = examples();
        let mut bytes = examples[which.index(examples.len())].clone();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(frame) = decode(&bytes.into(), &Limits::default()) {
            for codec in [Codec::Binary, Codec::Json] {
                let mut again = Vec::new();
                encode(&frame, codec, &mut again);
                let same = decode(&again.into(), &Limits::default());
                prop_assert_eq!(same.as_ref(), Ok(&frame));
            }
        }
    }
}
