//! People: they come, receive for a while over a bad connection, and go. Most are away at any time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::Sink;
use tokio::task::JoinSet;

use super::child::World;
use super::logs::{Entry, now_ms};
use super::plan::{Copy, DEVICES, Dice, number_of, user_name};

/// Of a thousand batches, so many break the connection before they arrive, ...
const BROKEN_BEFORE: u64 = 10;
/// ... so many arrive and break it before the answer is back, ...
const BROKEN_AFTER: u64 = 10;
/// ... and so many fail for now.
const FAILED: u64 = 5;
/// Once all is sent, a person leaves when nothing has come for so long; twice as long each time everybody has come.
/// Were it always as short, and the disk slow, everybody would leave before their first message was read.
const QUIET: Duration = Duration::from_millis(40);
/// How often that is doubled at most.
const DOUBLINGS: u32 = 6;
/// The longest visit.
const MAX_STAY: Duration = Duration::from_secs(5);

/// Starts as many visitors as there are people online at a time.
pub(crate) fn start(world: &Arc<World>) -> JoinSet<()> {
    let shared = Arc::new(Shared {
        online: (0..world.plan.users).map(|_| AtomicBool::new(false)).collect(),
        next: AtomicU32::new(0),
    });
    let visitors = (world.plan.users / 20).clamp(1, 200);
    (0..visitors).map(|number| visit(Arc::clone(world), Arc::clone(&shared), number)).collect()
}

struct Shared {
    /// A person comes with one device at a time.
    online: Vec<AtomicBool>,
    /// Whose turn it is once all is sent.
    next: AtomicU32,
}

/// Comes as one person after another.
async fn visit(world: Arc<World>, shared: Arc<Shared>, number: u32) {
    let mut dice = Dice::new(u64::from(world.life) << 32 | u64::from(number) << 8 | 1);
    while !world.all_ended.load(Ordering::Acquire) {
        let (user, quiet) = match world.all_sent.load(Ordering::Acquire) {
            true => {
                let turn = shared.next.fetch_add(1, Ordering::Relaxed);
                (turn % world.plan.users, Some(QUIET * (1 << (turn / world.plan.users).min(DOUBLINGS))))
            }
            false => (dice.below(u64::from(world.plan.users)) as u32, None),
        };
        let Some(online) = shared.online.get(user as usize) else { return };
        if online.swap(true, Ordering::AcqRel) {
            tokio::time::sleep(QUIET).await;
            continue;
        }
        // At the end with each device, for what waits for it alone.
        let devices = match quiet {
            Some(_) => 0..DEVICES.len(),
            None => {
                let device = dice.below(DEVICES.len() as u64) as usize;
                device..device + 1
            }
        };
        for device in devices {
            if let Err(error) = stay(&world, (user, device), &mut dice, quiet).await {
                world.fail(error);
            }
        }
        online.store(false, Ordering::Release);
    }
}

/// One visit, with one device: handlers are attached to the engines that it has, the connection to the outbox.
async fn stay(
    world: &Arc<World>,
    (user, device): (u32, usize),
    dice: &mut Dice,
    quiet: Option<Duration>,
) -> Result<(), super::Failure> {
    let name = user_name(user);
    let active = Arc::new(AtomicU64::new(now_ms()));
    let own = Copy::For(device);
    let mut handlers = Vec::new();
    for copy in [Copy::Any, own] {
        let handler = Handler { world: Arc::clone(world), active: Arc::clone(&active), copy };
        handlers.push(world.inboxes[copy.code()].attach(name.as_str(), "app", handler)?);
    }
    let connection = Connection {
        world: Arc::clone(world),
        dice: Dice::new(dice.next()),
        active: Arc::clone(&active),
        own,
    };
    let _connection = world.outbox.attach(name.as_str(), DEVICES[device], connection)?;
    let Some(quiet) = quiet else {
        tokio::time::sleep(Duration::from_millis(20 + dice.below(200))).await;
        return Ok(());
    };
    let began = now_ms();
    loop {
        tokio::time::sleep(QUIET / 4).await;
        let now = now_ms();
        let since = |then: u64| Duration::from_millis(now.saturating_sub(then));
        if since(active.load(Ordering::Relaxed)) >= quiet || since(began) >= MAX_STAY {
            return Ok(());
        }
    }
}

/// The way from the outbox to the person's engine: it breaks before and after batches arrive.
struct Connection {
    world: Arc<World>,
    dice: Dice,
    active: Arc<AtomicU64>,
    /// The copies that are for this device.
    own: Copy,
}

impl Sink for Connection {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        self.active.store(now_ms(), Ordering::Relaxed);
        let entries: Vec<EntryRef> = batch.iter().map(|delivery| delivery.entry).collect();
        let all = |verdict: Verdict| entries.iter().map(|entry| (*entry, verdict.clone())).collect();
        if self.dice.per_mille(BROKEN_BEFORE) {
            return all(Verdict::Disconnected);
        }
        if self.dice.per_mille(FAILED) {
            return all(Verdict::Nack(Some(Duration::from_millis(10))));
        }
        let (own, any): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|delivery| delivery.entry.lane.slot().is_some());
        let mut verdicts = Vec::new();
        for (copy, batch) in [(Copy::Any, any), (self.own, own)] {
            if !batch.is_empty() {
                verdicts.extend(self.world.inboxes[copy.code()].inbox().receive(batch).await);
            }
        }
        if self.dice.per_mille(BROKEN_AFTER) {
            return all(Verdict::Disconnected);
        }
        verdicts
    }
}

/// What a message is for: writes down that it was applied, before it says so.
struct Handler {
    world: Arc<World>,
    active: Arc<AtomicU64>,
    copy: Copy,
}

impl Sink for Handler {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        self.active.store(now_ms(), Ordering::Relaxed);
        batch.iter().map(|delivery| (delivery.entry, self.apply(delivery))).collect()
    }
}

impl Handler {
    fn apply(&self, delivery: &Delivery) -> Verdict {
        let number = number_of(delivery.message.id());
        let line = Entry::got_line(number, delivery.redelivered, delivery.entry.seq.get(), self.copy);
        if let Err(error) = self.world.receivers_log.line(&line) {
            self.world.fail(format!("cannot write {}: {error}", super::logs::RECEIVERS));
            return Verdict::Busy(Duration::from_secs(1));
        }
        self.world.note_applied(number, self.copy);
        Verdict::Delivered
    }
}
