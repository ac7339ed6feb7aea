//! Two sessions over an adversarial network: whatever breaks, nothing is lost, applied twice, or out of order.
//!
//! `LASTMILE_CASES=100000 cargo test --release -p lastmile-proptests --test session` lives as many lives.

use lastmile::testing::pair::{Weather, live};
use proptest::prelude::*;

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
}
