//! Who may connect now: token buckets for each address, each user and all together, and slots for those who must wait.
//!
//! A connection that is let in takes a token of each bucket. One that is not is told when to come back: its slot. Slots of
//! the global bucket are given out one after the other, at the configured rate, so a crowd that comes at once comes back
//! spread over just the time it takes to let it in; nobody's slot moves back because others came later. A client that
//! comes in its slot is let in by that reservation. So it is with the turns of those who wait for the bucket of their address:
//! whoever comes in its turn has paid its address, and stands in line with everybody else then.
//!
//! Who is asked to leave is given a slot of its own, beside those of newcomers: most of them come back elsewhere, so nothing is
//! taken from the global bucket before one comes back here, in its slot, and is let in.
//!
//! Failed attempts (bad credentials, broken protocol) cost their address a penalty that doubles with each and is forgiven
//! with time.
//!
//! A connection of which nothing is known yet, not even a hello, costs a place among the handshakes that are under way. One
//! address has a few of them, and one with a penalty has one.
//!
//! Memory is bounded. Addresses and users are LRUs: whoever falls out of them starts with a full bucket, which costs at most
//! one burst; the global bucket has no memory to lose. Slots are no LRU, as the oldest one is the one that is due next: they
//! are as many as fit into `max_wait`, and whoever came behind those has none.

mod slots;
#[cfg(test)]
mod tests;

use core::hash::BuildHasher as _;
use core::num::{NonZeroU32, NonZeroUsize};
use core::time::Duration;

use hashbrown::HashMap;
use lru::LruCache;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};

use self::slots::{Due, Slots};
use super::code::Code;
use super::frame::Refused;
use crate::digest::Digester;
use crate::id::UserId;
use crate::time::Timestamp;

/// A rate with some tolerance.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// One connection in this time, in the long run. Not zero.
    pub every: Duration,
    /// How many at once.
    pub burst: u32,
}

/// Limits of an [`Admission`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AdmissionConfig {
    /// Of one address. Default: one a second, ten at once.
    pub address: Rate,
    /// Of one user, over all devices. Default: one in two seconds, ten at once.
    pub user: Rate,
    /// Of all. Default: 500 a second, 1,000 at once.
    pub global: Rate,
    /// How many addresses, and how many users, are remembered. Default: 65,536.
    pub max_remembered: NonZeroUsize,
    /// The penalty after the first failure; each further one doubles it. Default: 1 s.
    pub penalty: Duration,
    /// The longest penalty. Default: 15 minutes.
    pub max_penalty: Duration,
    /// In this time half of the failures are forgiven, and in a part of it as much less. Default: 5 minutes.
    pub half_life: Duration,
    /// By how much what is asked for is spread. Default: 200 ms.
    pub jitter: Duration,
    /// No slot is given that is further away: who comes then is asked to come back after this time, spread over as much
    /// again (one after the other, if it is for its address), without a slot. So nobody can take all slots for ever. Default:
    /// 5 minutes.
    ///
    /// It bounds what is remembered of slots, too: one for each [`Rate::every`] of `global` in this time and the minute for
    /// which a slot is kept. That is 180,000 by default, 11 MB when a crowd of that size has come, and nothing before; with
    /// higher rates at most 1,048,576. As many may wait for the bucket of their address, and as many may have been asked to
    /// leave.
    pub max_wait: Duration,
    /// Handshakes of one address that are under way at once; one that has a penalty has one. Whoever comes then is asked to
    /// come back. Default: 128.
    pub max_handshakes: NonZeroU32,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            address: Rate { every: Duration::from_secs(1), burst: 10 },
            user: Rate { every: Duration::from_secs(2), burst: 10 },
            global: Rate { every: Duration::from_millis(2), burst: 1000 },
            max_remembered: NonZeroUsize::new(65_536).expect("a literal above zero"),
            penalty: Duration::from_secs(1),
            max_penalty: Duration::from_secs(900),
            half_life: Duration::from_secs(300),
            jitter: Duration::from_millis(200),
            max_wait: Duration::from_secs(300),
            max_handshakes: NonZeroU32::new(128).expect("a literal above zero"),
        }
    }
}

/// Slots that are remembered at most, whatever the rate is.
const MAX_SLOTS: u64 = 1 << 20;
/// When somebody is asked to come back for whom there is no room, and no slot either.
const LATER: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

/// A token bucket as one number: when it will be full (the generic cell rate algorithm of ITU-T I.371).
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// In microseconds.
    full_at: u64,
}

impl Bucket {
    /// When the next token is there; now or before means at once.
    fn ready(self, rate: Rate) -> u64 {
        let every = micros(rate.every).max(1);
        let depth = every.saturating_mul(u64::from(rate.burst.max(1)).saturating_sub(1));
        self.full_at.saturating_sub(depth)
    }

    /// Takes a token, at once or in advance.
    fn take(&mut self, now: u64, rate: Rate) {
        self.full_at = self.full_at.max(now).saturating_add(micros(rate.every).max(1));
    }
}

/// What is remembered of an address.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    bucket: Bucket,
    /// When the last one comes back that was told to come behind all turns.
    beyond: u64,
    /// Failures, in 1/65,536, and since when they are forgiven.
    failures: u64,
    since: u64,
    /// Until when it has a penalty.
    barred: u64,
}

impl Known {
    /// When somebody comes back who has no turn: one after the other behind those who have one, and when that leads too far, from
    /// there again.
    fn beyond(&mut self, now: u64, rate: Rate, max_wait: u64) -> u64 {
        let from = now.saturating_add(max_wait);
        let next = self.beyond.max(from).saturating_add(micros(rate.every));
        self.beyond = if next > from.saturating_add(max_wait.saturating_mul(3)) { from } else { next };
        self.beyond
    }
}

/// What is remembered of a user.
#[derive(Clone, Copy, Debug, Default)]
struct Devices {
    bucket: Bucket,
    /// When the last one comes back that was refused.
    told: u64,
}

/// One failure.
const FAILURE: u64 = 1 << 16;

/// What is left of failures after a time: half of them after each half-life, and between, 2⁻ˣ as 1 − 2x/3 + x²/6, which is
/// within half of a percent.
fn forgiven(failures: u64, elapsed: u64, half_life: u64) -> u64 {
    const ONE: u128 = 1 << 16;
    let halvings = elapsed.checked_div(half_life).unwrap_or(0).min(63);
    let x = u128::from(elapsed % half_life) * ONE / u128::from(half_life);
    let left = ONE - 2 * x / 3 + x * x / (6 * ONE);
    u64::try_from(u128::from(failures >> halvings) * left / ONE).unwrap_or(u64::MAX)
}

/// Decides who may connect now.
///
/// Ask [`Admission::begin`] when a connection comes, before anything is read from it, and say [`Admission::done`] when its
/// handshake is over, however it ended. Ask [`Admission::arrive`] when its hello has come, [`Admission::identify`] when it is
/// authenticated, and say [`Admission::failed`] when it broke the protocol or its credentials were refused.
#[derive(Debug)]
pub struct Admission {
    config: AdmissionConfig,
    digester: Digester,
    rng: ChaCha8Rng,
    addresses: LruCache<u64, Known>,
    users: LruCache<u64, Devices>,
    /// Who has a token of all and of its address for when.
    slots: Slots,
    /// Who has a token of its address for when.
    turns: Slots,
    /// Who was asked to leave, and to come back when.
    farewells: Slots,
    /// Handshakes of addresses that have some.
    handshakes: HashMap<u64, u32>,
    global: Bucket,
    /// Spreads those who are asked to leave.
    leaving: Bucket,
}

impl Admission {
    /// Nobody has come yet. The key must not be guessable: addresses and users come from outside.
    #[must_use]
    pub fn new(config: AdmissionConfig, key: u128, seed: u64) -> Self {
        let max = config.max_remembered;
        let slots = micros(config.max_wait).saturating_add(slots::GRACE) / micros(config.global.every).max(1);
        let slots = usize::try_from(slots.clamp(1, MAX_SLOTS)).unwrap_or(usize::MAX);
        Self {
            config,
            digester: Digester::new(key),
            rng: ChaCha8Rng::seed_from_u64(seed),
            addresses: LruCache::new(max),
            users: LruCache::new(max),
            slots: Slots::new(slots),
            turns: Slots::new(slots),
            farewells: Slots::new(slots),
            handshakes: HashMap::new(),
            global: Bucket::default(),
            leaving: Bucket::default(),
        }
    }

    /// A connection has come from this address (whatever the host takes for one), and nothing was read from it.
    ///
    /// # Errors
    /// [`Refused`] with when to come back, because so many others from there are at this point. Nothing was taken, and
    /// [`Admission::done`] must not be said of it.
    pub fn begin(&mut self, now: Timestamp, address: &[u8]) -> Result<(), Refused> {
        let now = now.as_millis().saturating_mul(1000);
        let key = self.digester.hash_one(address);
        let barred = self.addresses.peek(&key).map_or(0, |known| known.barred);
        let max = if barred > now { 1 } else { self.config.max_handshakes.get() };
        let under_way = self.handshakes.get(&key).copied().unwrap_or(0);
        if under_way >= max {
            return Err(match barred > now {
                true => self.refuse(Code::Penalised, barred, now),
                false => self.later(Code::RateLimited),
            });
        }
        self.handshakes.insert(key, under_way.saturating_add(1));
        Ok(())
    }

    /// The handshake of a connection that [`Admission::begin`] let through is over.
    pub fn done(&mut self, address: &[u8]) {
        let key = self.digester.hash_one(address);
        if let Some(under_way) = self.handshakes.get_mut(&key) {
            *under_way = under_way.saturating_sub(1);
            if *under_way == 0 {
                self.handshakes.remove(&key);
            }
        }
    }

    /// A connection from this address says hello, perhaps with a key of the client (say, the user and the device of its hello)
    /// that tells clients behind one address apart when they come back in their slots.
    ///
    /// # Errors
    /// [`Refused`] with when to come back. Nothing was taken from any bucket, unless a slot was given: it takes a token of
    /// its address and one of all, so that one address can take no more slots than it may connect. Who waits for its address
    /// alone takes a token of that.
    pub fn arrive(&mut self, now: Timestamp, address: &[u8], client: &[u8]) -> Result<(), Refused> {
        let now = now.as_millis().saturating_mul(1000);
        let key = self.digester.hash_one(address);
        let barred = self.addresses.get_or_insert(key, Known::default).barred;
        if barred > now {
            return Err(self.refuse(Code::Penalised, barred, now));
        }
        let client = self.digester.hash_one((address, client));
        match self.slots.due(client, now) {
            // Too early: the slot stands, whoever asks how often.
            Some(Due::Early(at)) => return Err(self.refuse(Code::Overloaded, at, now)),
            // In time: its tokens were taken when the slot was given.
            Some(Due::Now) => {
                self.slots.take(client);
                return Ok(());
            }
            None => {}
        }
        if self.farewells.due(client, now) == Some(Due::Now) {
            self.farewells.take(client);
            // It did not go elsewhere, so others who come here stand behind it.
            self.global.take(now, self.config.global);
            return Ok(());
        }
        let has_paid = self.turn(now, key, client)?;
        let ready = self.global.ready(self.config.global);
        if ready > now && !self.has_slot(now, ready) {
            let back = now.saturating_add(micros(self.beyond_slots()));
            return Err(self.refuse(Code::Overloaded, back, now));
        }
        self.global.take(now, self.config.global);
        match self.addresses.get_mut(&key) {
            Some(known) if !has_paid => known.bucket.take(now, self.config.address),
            _ => self.turns.take(client),
        }
        if ready > now {
            self.slots.put(client, ready);
            return Err(self.refuse(Code::Overloaded, ready, now));
        }
        // Whoever came early, and was let in like anybody else, needs its slot no more.
        self.farewells.take(client);
        Ok(())
    }

    /// Whether a client's address has paid for it already; otherwise it has a token for it now. If neither, it is given a turn.
    fn turn(&mut self, now: u64, address: u64, client: u64) -> Result<bool, Refused> {
        match self.turns.due(client, now) {
            Some(Due::Early(at)) => return Err(self.refuse(Code::RateLimited, at, now)),
            Some(Due::Now) => return Ok(true),
            None => {}
        }
        let (rate, max_wait) = (self.config.address, micros(self.config.max_wait));
        let known = self.addresses.get_or_insert_mut(address, Known::default);
        let ready = known.bucket.ready(rate);
        if ready <= now {
            return Ok(false);
        }
        let back = if ready.saturating_sub(now) <= max_wait && self.turns.has_room(now) {
            known.bucket.take(now, rate);
            self.turns.put(client, ready);
            ready
        } else {
            known.beyond(now, rate, max_wait)
        };
        Err(self.refuse(Code::RateLimited, back, now))
    }

    /// A connection turned out to be this user's.
    ///
    /// # Errors
    /// [`Refused`] with when to come back, when the user connects too often.
    pub fn identify(&mut self, now: Timestamp, user: &UserId) -> Result<(), Refused> {
        let (now, rate) = (now.as_millis().saturating_mul(1000), self.config.user);
        let key = self.digester.hash_one(user.as_bytes());
        let max_wait = micros(self.config.max_wait);
        let devices = self.users.get_or_insert_mut(key, Devices::default);
        let ready = devices.bucket.ready(rate);
        if ready > now {
            // One after the other, so that not all of them come at once again.
            let next = devices.told.saturating_add(micros(rate.every)).max(ready);
            devices.told = if next.saturating_sub(now) > max_wait { ready } else { next };
            let back = devices.told;
            return Err(self.refuse(Code::RateLimited, back, now));
        }
        devices.bucket.take(now, rate);
        Ok(())
    }

    /// A connection from this address failed by its own fault: the next one must wait, longer each time.
    pub fn failed(&mut self, now: Timestamp, address: &[u8]) {
        let now = now.as_millis().saturating_mul(1000);
        let (penalty, max) = (micros(self.config.penalty), micros(self.config.max_penalty));
        let half_life = micros(self.config.half_life).max(1);
        let known = self.addresses.get_or_insert_mut(self.digester.hash_one(address), Known::default);
        let left = forgiven(known.failures, now.saturating_sub(known.since), half_life);
        known.failures = left.saturating_add(FAILURE);
        let doublings =
            u32::try_from((known.failures + FAILURE / 2) / FAILURE - 1).unwrap_or(u32::MAX).min(40);
        let barred = penalty.saturating_mul(1_u64.checked_shl(doublings).unwrap_or(u64::MAX)).min(max);
        known.barred = now.saturating_add(barred);
        // Waiting it out is no good behaviour yet.
        known.since = known.barred;
    }

    /// When a client that is asked to leave is to come back, one after the other at the global rate: for go-aways. `address` and
    /// `client` are those it came with, see [`Admission::arrive`]: whoever comes back here then is let in. Whoever is asked twice
    /// keeps its slot. One that would be further away than `max_wait` is not given: they come back after that, spread over as
    /// much again.
    pub fn farewell(&mut self, now: Timestamp, address: &[u8], client: &[u8]) -> Duration {
        let now = now.as_millis().saturating_mul(1000);
        let client = self.digester.hash_one((address, client));
        let given = match self.farewells.due(client, now) {
            Some(Due::Early(at)) => Some(at),
            _ => None,
        };
        // Behind those who have a slot, or were let in a moment ago, but in the way of nobody who comes.
        let mut leaving = Bucket { full_at: self.leaving.full_at.max(self.global.full_at) };
        let ready = given.unwrap_or_else(|| leaving.ready(self.config.global).max(now));
        if ready.saturating_sub(now) > micros(self.config.max_wait) {
            return self.beyond_slots();
        }
        if given.is_none() {
            leaving.take(now, self.config.global);
            self.leaving = leaving;
            if self.farewells.has_room(now) {
                self.farewells.put(client, ready);
            }
        }
        Duration::from_micros(ready.saturating_sub(now)).saturating_add(self.jitter())
    }

    /// Asks somebody to come back for whom there is no room now, and of whom nothing is known that would deserve a slot: in
    /// 5 to 30 s. Nothing is taken from any bucket.
    pub fn later(&mut self, code: Code) -> Refused {
        let (from, to) = LATER;
        let spread = micros(to.saturating_sub(from)).saturating_add(1);
        let drawn = Duration::from_micros(self.rng.next_u64().checked_rem(spread).unwrap_or(0));
        Refused { code, retry_after: Some(from.saturating_add(drawn)), text: code.text().to_owned() }
    }

    /// Whether there is a slot at that time, and room to remember it.
    fn has_slot(&mut self, now: u64, ready: u64) -> bool {
        ready.saturating_sub(now) <= micros(self.config.max_wait) && self.slots.has_room(now)
    }

    /// When somebody comes back who has no slot: behind those who have one, and not all at once.
    fn beyond_slots(&mut self) -> Duration {
        let max_wait = micros(self.config.max_wait);
        let spread = self.rng.next_u64().checked_rem(max_wait.max(1)).unwrap_or(0);
        Duration::from_micros(max_wait.saturating_add(spread))
    }

    /// How many addresses, users, slots of all three kinds and addresses with handshakes are remembered.
    #[must_use]
    pub fn remembered(&self) -> usize {
        let slots = self.slots.len() + self.turns.len() + self.farewells.len();
        [self.addresses.len(), self.users.len(), slots, self.handshakes.len()].iter().sum()
    }

    fn jitter(&mut self) -> Duration {
        let spread = micros(self.config.jitter).saturating_add(1);
        Duration::from_micros(self.rng.next_u64().checked_rem(spread).unwrap_or(0))
    }

    fn refuse(&mut self, code: Code, ready: u64, now: u64) -> Refused {
        let wait = Duration::from_micros(ready.saturating_sub(now)).saturating_add(self.jitter());
        // Rounded up: a client that comes a part of a millisecond early would be refused again.
        let millis = u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        let retry_after = Some(Duration::from_millis(millis));
        Refused { code, retry_after, text: code.text().to_owned() }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
