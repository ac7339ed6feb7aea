//! The sizes and limits of one simulated life.

use core::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use core::time::Duration;

use super::random::Random;
use crate::config::{Config, KeepEnds, OnFailure, Overflow};
use crate::event::EventName;
use crate::message::DevicePolicy;
use crate::storage::journal::JournalConfig;

/// How large everything is, drawn from a seed: small, so that every limit is met.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed it was drawn from.
    pub seed: u64,
    /// Shards of each engine.
    pub shards: usize,
    /// Whether every opening has another number of shards.
    pub reshards: bool,
    /// People who receive; the even ones through the second engine.
    pub users: u64,
    /// People who send.
    pub senders: u64,
    /// Ordering keys, besides none.
    pub keys: u64,
    /// Each engine's limits.
    pub config: Config,
    /// Each engine's journal.
    pub journal: JournalConfig,
    /// How often a fault happens, in percent of the steps that ask for one.
    pub faults: u64,
}

fn of_u32(n: u64) -> NonZeroU32 {
    NonZeroU32::new(n as u32).unwrap_or(NonZeroU32::MIN)
}

fn of_usize(n: u64) -> NonZeroUsize {
    NonZeroUsize::new(n as usize).unwrap_or(NonZeroUsize::MIN)
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x91a7_0000_0000);
        let config = config(&mut random);
        Self {
            seed,
            shards: 1 + random.index(3),
            reshards: random.chance(20),
            users: 1 + random.below(5),
            senders: 1 + random.below(3),
            keys: random.below(3),
            config,
            journal: JournalConfig {
                segment_bytes: [32 << 10, 48 << 10, 64 << 10][random.index(3)],
                segments: 3 + random.below(3) as u32,
            },
            faults: [0, 30, 100][random.index(3)],
        }
    }
}

/// Which devices messages are for that do not say so.
const POLICIES: [DevicePolicy; 4] =
    [DevicePolicy::AnyDevice, DevicePolicy::AnyDevice, DevicePolicy::EveryDevice, DevicePolicy::RingAll];

fn config(random: &mut Random) -> Config {
    let dedup_ids = 4 + random.below(30);
    let in_flight = 1 + random.below(6);
    let reserve = random.below(3) as u32;
    let devices = 1 + random.below(3);
    let mut config = Config {
        max_payload_bytes: of_usize(8 << 10),
        max_user_messages: of_u32(4 + random.below(60)),
        max_user_bytes: NonZeroU64::new((9 << 10) + random.below(100 << 10)).unwrap_or(NonZeroU64::MIN),
        overflow: [Overflow::Reject, Overflow::DropOldest, Overflow::DropLowest][random.index(3)],
        max_total_messages: NonZeroU64::new(10 + random.below(120)).unwrap_or(NonZeroU64::MIN),
        max_pending: of_usize(2 + random.below(30)),
        dedup_ids: of_usize(dedup_ids),
        dedup_age: Duration::from_secs(60 + random.below(3600)),
        max_dedup_resident: of_usize(dedup_ids + random.below(20)),
        retry_horizon: Duration::from_secs(60),
        max_in_flight: of_u32(in_flight),
        max_in_flight_bytes: NonZeroU64::new(256 + random.below(12 << 10)).unwrap_or(NonZeroU64::MIN),
        critical_reserve: reserve,
        max_batch: of_u32(1 + random.below(5)),
        coalesce: if random.chance(20) {
            EventName::new("sim.hint").into_iter().collect()
        } else {
            Vec::new()
        },
        linger: Duration::from_millis(if random.chance(25) { 1 + random.below(300) } else { 0 }),
        critical_burst: of_u32(1 + random.below(5)),
        ack_deadline: Duration::from_secs(1 + random.below(30)),
        backoff_cap: Duration::from_secs(1 + random.below(60)),
        max_attempts: of_u32(1 + random.below(6)),
        on_failure: core::array::from_fn(|_| {
            [OnFailure::Park, OnFailure::Park, OnFailure::Skip, OnFailure::Block][random.index(4)]
        }),
        max_dead_letters: random.below(8) as u32,
        max_dead_bytes: 100 + random.below(20 << 10),
        max_total_dead_letters: if random.chance(30) { random.below(6) } else { 1000 },
        max_total_dead_bytes: if random.chance(30) { random.below(4 << 10) } else { 1 << 20 },
        max_disk_bytes: NonZeroU64::new(1000),
        max_dependents: of_usize(1 + random.below(6)),
        ledger_rows: random.index(12),
        max_gaps: of_usize(
            (in_flight + u64::from(reserve)) * devices + [random.below(16), 2048][random.index(2)],
        ),
        max_resident: of_usize(1 + random.below(12)),
        max_load_bytes: NonZeroU64::new(512 + random.below(16 << 10)).unwrap_or(NonZeroU64::MIN),
        max_inbox_seen: of_usize(4 + random.below(40)),
        max_volatile: of_usize(1 + random.below(5)),
        max_devices: of_usize(devices),
        max_registered: of_usize(1 + random.below(5)),
        devices: POLICIES[random.index(POLICIES.len())],
        device_age: Duration::from_secs(if random.chance(30) { 600 + random.below(90_000) } else { 1 << 40 }),
        // No number of their own, so that each seed goes on living the life it did.
        keep_ends: [KeepEnds::Undelivered, KeepEnds::All, KeepEnds::All][(dedup_ids % 3) as usize],
        max_read_marks: of_usize(1 + dedup_ids % 4),
        max_ends: NonZeroU64::new([1 + dedup_ids, 65_536][(in_flight % 2) as usize])
            .unwrap_or(NonZeroU64::MIN),
        ..Config::default()
    };
    // What blocks when it is refused for good would do so for ever: then every message fits for all devices.
    if config.on_failure.contains(&OnFailure::Block) {
        let copies = config.max_registered.get() as u64;
        config.max_user_messages = config.max_user_messages.max(of_u32(copies));
        let bytes = NonZeroU64::new((9 << 10) * copies).unwrap_or(NonZeroU64::MIN);
        config.max_user_bytes = config.max_user_bytes.max(bytes);
    }
    debug_assert_eq!(config.check(), Ok(()));
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plan_is_possible() {
        for seed in 0..1000 {
            let plan = Plan::of_seed(seed);
            assert_eq!(plan.config.check(), Ok(()), "seed {seed}");
            assert_eq!(plan.journal.validate(), Ok(()), "seed {seed}");
        }
    }
}
