//! Configurations for simulated sessions.

use core::ops::Range;
use core::time::Duration;

use crate::session::SessionConfig;
use crate::testing::sim::Random;

/// Small, so that every limit is met.
pub(in crate::testing) fn small_config(random: &mut Random, bytes: Range<u64>) -> SessionConfig {
    let mut config = SessionConfig::default();
    config.window.messages = 1 + random.below(12) as u32;
    config.window.reserve = random.below(4) as u32;
    config.window.bytes = bytes.start + random.below(bytes.end - bytes.start);
    config.max_queue = 1 + random.index(16);
    config.limits.max_items = 1 + random.index(8);
    config.ack_every = 1 + random.index(8);
    config.ack_delay = Duration::from_millis(random.below(200));
    config.linger = Duration::from_millis(random.below(3) * 20);
    config.heartbeat = Duration::from_secs(2 + random.below(20));
    config.keep = Duration::from_secs(20 + random.below(120));
    config.stall_after = Duration::from_millis(200 + random.below(5000));
    config.park_after = config.stall_after + Duration::from_millis(random.below(10_000));
    config
}

/// Some speak JSON.
pub(in crate::testing) fn choose_codecs(config: &mut SessionConfig, random: &mut Random) {
    #[cfg(feature = "json")]
    if random.chance(30) {
        config.codecs = crate::session::frame::Codecs::JSON;
    }
    #[cfg(not(feature = "json"))]
    let _ = (config, random);
}

/// Some repeat a publish in a new life, some do not.
pub(in crate::testing) fn horizon(config: &SessionConfig) -> Duration {
    if config.max_publishes.is_multiple_of(2) { Duration::ZERO } else { config.max_horizon }
}
