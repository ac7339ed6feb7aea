//! Limits and policies, each with its default and the reason for it.

use core::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use core::time::Duration;

use crate::event::EventName;
use crate::message::{DevicePolicy, MAX_PAYLOAD_BYTES};
use crate::record::MAX_SLOTS;

macro_rules! nz {
    ($kind:ident, $value:expr) => {
        const { $kind::new($value).expect("a literal above zero") }
    };
}

/// What becomes of a message whose attempts are spent, or which its receiver refuses for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// It ends and is kept as a dead letter, which can be looked at and sent again. What waits behind it goes on.
    #[default]
    Park,
    /// It ends and is gone. What waits behind it goes on.
    Skip,
    /// It is tried until it is delivered, expires, is withdrawn or refused for good, however many attempts that takes;
    /// what waits behind it with the same ordering key waits too. One that is refused for good ends and is kept as a dead
    /// letter; what waits behind it goes on.
    Block,
}

/// What becomes of a message for somebody whose outbox is full. Whatever is dropped ends as
/// [`Evicted`](crate::EndReason::Evicted), in the commit of what takes its place. Never dropped are what has a higher
/// priority than the new message, what is in flight just now, what is scheduled, and dead letters. A batch, a replacement,
/// a dead letter that is sent again and what another engine delivers drop nothing: they are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// It is refused; its sender has it back.
    #[default]
    Reject,
    /// What was accepted first is dropped for it, whatever its priority, as long as that is not a higher one.
    DropOldest,
    /// What has the lowest priority is dropped for it; of that, what was accepted first.
    DropLowest,
}

/// The most messages that are dropped for one. A larger number of small messages does not give way to a large one, which is
/// refused.
pub const MAX_EVICTED: usize = 64;

/// The most events in [`Config::coalesce`]: each send looks through them.
const MAX_COALESCED: usize = 64;

/// The most rows of the ledger that are kept for a user.
const MAX_LEDGER_ROWS: usize = 1024;

/// The most conversations of one user of which it can be kept how far they were read.
const MAX_READ_MARKS: usize = 4096;

/// Which ends are kept for [`Engine::ends`](crate::Engine::ends), over all users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeepEnds {
    /// None.
    Nothing,
    /// Those of messages, and of their copies for single devices, that were not delivered ([`EndReason::is_loss`]), and what
    /// corrects them: late confirmations. What rang and another device has answered is not among them.
    ///
    /// [`EndReason::is_loss`]: crate::EndReason::is_loss
    #[default]
    Undelivered,
    /// All.
    All,
}

/// Everything that can be configured about delivery. `Default` suits a server; see each field.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The largest payload taken, in bytes. 256 KiB: larger things belong in object storage. At most 16 MiB.
    pub max_payload_bytes: NonZeroUsize,
    /// The most live messages of one user. 10,000: weeks of an active person's messages.
    pub max_user_messages: NonZeroU32,
    /// The most live bytes of one user. 64 MiB.
    pub max_user_bytes: NonZeroU64,
    /// What becomes of a message for somebody who has that many, or that much, already. [`Overflow::Reject`]. The limits of
    /// the whole shard always refuse: nobody's messages give way to somebody else's.
    pub overflow: Overflow,
    /// The most live messages of this shard (the engine divides its limit among shards). 100 million.
    pub max_total_messages: NonZeroU64,
    /// The most live bytes of this shard. 1 TiB.
    pub max_total_bytes: NonZeroU64,
    /// The most sends and operations that wait for a commit or a load in this shard; more are refused as overloaded. 65,536.
    pub max_pending: NonZeroUsize,
    /// About how many bytes of records one commit takes; more go into further commits, a larger message alone. 1 MiB. The
    /// engine lowers it to a quarter of what its journal takes in one group.
    pub max_commit_bytes: NonZeroU64,
    /// Ids remembered per sender; messages without a sender share one window. 100,000.
    pub dedup_ids: NonZeroUsize,
    /// How long an id is remembered. One hour.
    pub dedup_age: Duration,
    /// Ids kept in memory in this shard over all senders; the windows of idle senders fall to the store. 262,144
    /// (about 25 MB).
    pub max_dedup_resident: NonZeroUsize,
    /// How long this engine's own clients may go on repeating a send, counting the sessions they resume. The dedup
    /// window may not be shorter. 10 minutes.
    pub retry_horizon: Duration,
    /// The in-flight window of a sink in messages; critical ones have `critical_reserve` more. 64.
    pub max_in_flight: NonZeroU32,
    /// The in-flight window of a sink in bytes. 1 MiB. A single larger message is offered alone.
    pub max_in_flight_bytes: NonZeroU64,
    /// Messages beyond the window that only critical ones may use. 8.
    pub critical_reserve: u32,
    /// The most messages of one offer. 32.
    pub max_batch: NonZeroU32,
    /// How long after its acceptance a message may wait for others, so that they are offered together. None: each goes as
    /// soon as it can. A wait of less than 10 ms becomes one of 10 ms. Nothing waits once `max_batch` messages are there, or
    /// `max_in_flight_bytes`, or a critical or a volatile one.
    pub linger: Duration,
    /// Events of which only the newest waits, for each recipient and ordering key: of each that is named here and of all
    /// below it (`cursor` means `cursor.moved` too). A message of theirs that has no collapse key gets one, made of its event
    /// and its ordering key. None; at most 64. Batches, replacements and what another engine delivers are left as they are.
    pub coalesce: Vec<EventName>,
    /// The turn of each priority in bytes: deficit round robin adds this much per round. 256, 64, 16 and 4 KiB.
    pub shares: [NonZeroU32; 4],
    /// How many critical messages in a row go before the other lanes get one round. 16.
    pub critical_burst: NonZeroU32,
    /// How long a sink may take to confirm. 30 s.
    pub ack_deadline: Duration,
    /// The shortest wait after a failed attempt. 500 ms.
    pub backoff_floor: Duration,
    /// The longest. 5 min.
    pub backoff_cap: Duration,
    /// Failed attempts before a message counts as undeliverable. 20.
    pub max_attempts: NonZeroU32,
    /// What becomes of an undeliverable message, by priority. It is kept as a dead letter.
    pub on_failure: [OnFailure; 4],
    /// Dead letters kept for one user; when there are so many, a message that becomes undeliverable ends without being
    /// kept. 1,000.
    pub max_dead_letters: u32,
    /// Bytes of dead letters kept for one user, which do not count as live ones. 16 MiB.
    pub max_dead_bytes: u64,
    /// Dead letters kept of all users; at that many, further ones are not kept either. Each shard has its part. A million.
    pub max_total_dead_letters: u64,
    /// Their bytes. 16 GiB.
    pub max_total_dead_bytes: u64,
    /// What the store may take on disk, in bytes ([`Store::disk_bytes`](crate::ports::Store::disk_bytes)): from there on
    /// new messages are refused, until it takes less. The journal is not in it, which has a size of its own, and what it
    /// holds then settles all the same, so the store may take that much more; merging runs needs room as well. sled's file
    /// never shrinks: it takes `export` and `import` to make it small again. No bound.
    pub max_disk_bytes: Option<NonZeroU64>,
    /// Rows of the loss ledger kept for each user: how so many messages ended that were not delivered, the newest of them.
    /// At most 1,024; 64, which takes 3 KiB of the user's row. Of what rang and another device has answered as many are kept
    /// in a window of their own ([`LedgerRows::elsewhere`](crate::record::LedgerRows::elsewhere)).
    pub ledger_rows: usize,
    /// How long they are kept. 30 days. A row that is older is dropped when its user's row is next read or written.
    pub ledger_age: Duration,
    /// Which ends are kept over all users. [`KeepEnds::Undelivered`]. After a change, whoever reads them begins anew.
    pub keep_ends: KeepEnds,
    /// How many of them are kept, the newest. 65,536, which take about 4 MB on disk, and 10 MB in memory of
    /// those that have not settled.
    pub max_ends: NonZeroU64,
    /// How long they are kept. 30 days. Older ones go with the next settlement.
    pub ends_age: Duration,
    /// Ended messages above a lane's cursor (and those on the way there); at the bound, give or take one batch, only the lane's oldest message is offered. 2,048.
    pub max_gaps: NonZeroUsize,
    /// Settled messages of one lane held in memory for an attached user, and the size of one load. 256.
    pub max_resident: NonZeroUsize,
    /// Bytes of one load. 1 MiB.
    pub max_load_bytes: NonZeroU64,
    /// Places an inbox remembers per lane of one sender, above its floor; more are refused as busy, but for the oldest of
    /// the lane, without which the floor could not rise (then up to twice as many). 4,096.
    pub max_inbox_seen: NonZeroUsize,
    /// Lanes of other engines that one user's inbox remembers; a delivery of a further one is refused as busy. 1,024: four
    /// lanes of 256 engines.
    pub max_inbox_lanes: NonZeroUsize,
    /// Collapse keys remembered of one user; beyond, the one whose message was accepted longest ago is forgotten, and its
    /// message waits like any other. 64.
    pub max_collapse_keys: NonZeroUsize,
    /// Messages of one user that wait for another one at the same time ([`MessageBuilder::after`]); more are refused. 256. Their
    /// places are part of the user's row, which is written as a whole: 18 bytes each.
    ///
    /// [`MessageBuilder::after`]: crate::MessageBuilder::after
    pub max_dependents: NonZeroUsize,
    /// Volatile messages waiting for one user; more are refused. 256.
    pub max_volatile: NonZeroUsize,
    /// The most sinks attached to one user. 16.
    pub max_devices: NonZeroUsize,
    /// Which devices a message is for that does not say. [`DevicePolicy::AnyDevice`].
    pub devices: DevicePolicy,
    /// The most devices that can be registered for one user; more are refused. At most 32; 16.
    pub max_registered: NonZeroUsize,
    /// Conversations of one user of which it is kept how far they were read; of more, those whose marks lie furthest back
    /// are forgotten, and count as unread. 256, at most 4,096; each takes 32 bytes of the user's row.
    pub max_read_marks: NonZeroUsize,
    /// How long a registered device is kept that is not seen. When its user is next sent something for each device, registers
    /// or lists devices, attaches one, or has something that is due, it is removed, and what waits for it ends as [`DeviceGone`](crate::EndReason::DeviceGone). 90 days.
    pub device_age: Duration,
    /// Subscriptions to the changes of one user, one sender's messages or one event each, in the whole engine; more are
    /// refused, and so are more than 1,024 to the same one, for each of its changes is pushed to all of them. 65,536.
    pub max_subscriptions: usize,
    /// Subscriptions that name neither user, sender nor event; more are refused, for each of them is looked at for every
    /// change. 64.
    pub max_wide_subscriptions: usize,
    /// Changes a subscription holds until they are read; then the oldest are dropped, and it is told how many. 256.
    pub subscription_buffer: NonZeroUsize,
    /// Users whose devices have gone of whom it is remembered when they were last seen; the one whose device left longest ago
    /// is forgotten first. 65,536, which takes about 10 MB. In memory: a new opening remembers none.
    pub max_last_seen: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_payload_bytes: nz!(NonZeroUsize, 256 << 10),
            max_user_messages: nz!(NonZeroU32, 10_000),
            max_user_bytes: nz!(NonZeroU64, 64 << 20),
            overflow: Overflow::Reject,
            max_total_messages: nz!(NonZeroU64, 100_000_000),
            max_total_bytes: nz!(NonZeroU64, 1 << 40),
            max_pending: nz!(NonZeroUsize, 65_536),
            max_commit_bytes: nz!(NonZeroU64, 1 << 20),
            dedup_ids: nz!(NonZeroUsize, 100_000),
            dedup_age: Duration::from_secs(3600),
            max_dedup_resident: nz!(NonZeroUsize, 262_144),
            retry_horizon: Duration::from_secs(600),
            max_in_flight: nz!(NonZeroU32, 64),
            max_in_flight_bytes: nz!(NonZeroU64, 1 << 20),
            critical_reserve: 8,
            max_batch: nz!(NonZeroU32, 32),
            linger: Duration::ZERO,
            coalesce: Vec::new(),
            shares: [
                nz!(NonZeroU32, 256 << 10),
                nz!(NonZeroU32, 64 << 10),
                nz!(NonZeroU32, 16 << 10),
                nz!(NonZeroU32, 4 << 10),
            ],
            critical_burst: nz!(NonZeroU32, 16),
            ack_deadline: Duration::from_secs(30),
            backoff_floor: Duration::from_millis(500),
            backoff_cap: Duration::from_secs(300),
            max_attempts: nz!(NonZeroU32, 20),
            on_failure: [OnFailure::Park; 4],
            max_dead_letters: 1000,
            max_dead_bytes: 16 << 20,
            max_total_dead_letters: 1_000_000,
            max_total_dead_bytes: 16 << 30,
            max_disk_bytes: None,
            ledger_rows: 64,
            ledger_age: Duration::from_secs(30 * 24 * 60 * 60),
            keep_ends: KeepEnds::Undelivered,
            max_ends: nz!(NonZeroU64, 65_536),
            ends_age: Duration::from_secs(30 * 24 * 60 * 60),
            max_gaps: nz!(NonZeroUsize, 2048),
            max_resident: nz!(NonZeroUsize, 256),
            max_load_bytes: nz!(NonZeroU64, 1 << 20),
            max_inbox_seen: nz!(NonZeroUsize, 4096),
            max_inbox_lanes: nz!(NonZeroUsize, 1024),
            max_collapse_keys: nz!(NonZeroUsize, 64),
            max_dependents: nz!(NonZeroUsize, 256),
            max_volatile: nz!(NonZeroUsize, 256),
            max_devices: nz!(NonZeroUsize, 16),
            devices: DevicePolicy::AnyDevice,
            max_registered: nz!(NonZeroUsize, 16),
            max_read_marks: nz!(NonZeroUsize, 256),
            device_age: Duration::from_secs(90 * 24 * 60 * 60),
            max_subscriptions: 65_536,
            max_wide_subscriptions: 64,
            subscription_buffer: nz!(NonZeroUsize, 256),
            max_last_seen: 65_536,
        }
    }
}

/// A configuration that cannot keep the promises. Nothing was opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("impossible configuration, nothing was opened: {what}")]
pub struct ConfigError {
    what: String,
}

impl ConfigError {
    /// A contradiction, in words that say what to change.
    #[must_use]
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }
}

impl Config {
    /// With commits of at most a quarter of what a journal takes in one group, so that records that are longer than
    /// estimated still fit.
    #[must_use]
    pub fn for_groups_of(mut self, max_group_bytes: u64) -> Self {
        let quarter = NonZeroU64::new(max_group_bytes / 4).unwrap_or(NonZeroU64::MIN);
        self.max_commit_bytes = self.max_commit_bytes.min(quarter);
        self
    }

    /// Checks that the limits fit together.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first contradiction and what to change.
    pub fn check(&self) -> Result<(), ConfigError> {
        let fail = |what: String| Err(ConfigError::new(what));
        if self.max_payload_bytes.get() > MAX_PAYLOAD_BYTES {
            return fail(format!("max_payload_bytes is over {MAX_PAYLOAD_BYTES}"));
        }
        if self.dedup_age < self.retry_horizon {
            return fail(
                "dedup_age is shorter than retry_horizon: a late repeat would be accepted twice".into(),
            );
        }
        if self.max_dedup_resident.get() < self.dedup_ids.get() {
            return fail("max_dedup_resident is below dedup_ids: one sender's window would not fit".into());
        }
        if self.backoff_floor > self.backoff_cap || self.backoff_floor.is_zero() {
            return fail("backoff_floor must be above zero and not above backoff_cap".into());
        }
        if self.coalesce.len() > MAX_COALESCED {
            return fail(format!(
                "coalesce names more than {MAX_COALESCED} events: name what they begin with"
            ));
        }
        if self.ledger_rows > MAX_LEDGER_ROWS {
            return fail(format!("ledger_rows is over {MAX_LEDGER_ROWS}: they are part of the user's row"));
        }
        if self.max_registered.get() > MAX_SLOTS {
            return fail(format!("max_registered is over {MAX_SLOTS}"));
        }
        if self.max_read_marks.get() > MAX_READ_MARKS {
            return fail(format!("max_read_marks is over {MAX_READ_MARKS}: they are part of the user's row"));
        }
        if self.ack_deadline.is_zero() {
            return fail("ack_deadline is zero: every offer would fail at once".into());
        }
        let window = (self.max_in_flight.get() as usize).saturating_add(self.critical_reserve as usize);
        if self.max_gaps.get() < window.saturating_mul(self.max_devices.get()) {
            return fail("max_gaps is below what max_devices windows can end out of order".into());
        }
        if self.max_user_bytes.get() < self.max_payload_bytes.get() as u64 {
            return fail(
                "max_user_bytes is below max_payload_bytes: the largest message would never fit".into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_consistent() {
        assert_eq!(Config::default().check(), Ok(()));
    }

    #[test]
    fn at_most_64_events_are_coalesced() {
        for (n, fits) in [(MAX_COALESCED - 1, true), (MAX_COALESCED, true), (MAX_COALESCED + 1, false)] {
            let coalesce = (0..n).map(|i| EventName::new(format!("e{i}")).unwrap()).collect();
            assert_eq!(Config { coalesce, ..Config::default() }.check().is_ok(), fits, "{n}");
        }
    }

    #[test]
    fn a_dedup_window_shorter_than_the_retry_horizon_is_refused() {
        let config = Config { dedup_age: Duration::from_secs(1), ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("retry_horizon"));
    }
}
