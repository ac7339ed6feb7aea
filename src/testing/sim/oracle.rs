//! What must be true, kept outside of the engine: a fold of the records that are durable, and who was told what.

mod batches;
mod collapse;
mod dependents;
mod devices;
mod ends;
mod ledger;
mod operations;
mod places;
mod reads;
mod recovery;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::plan::Plan;
use crate::id::{CollapseKey, DeviceId, MessageId, UserId};
use crate::machine::{Accepted, Change, Delivery, EntryRef, Operation, Refusal, Ticket, Verdict};
use crate::message::{Durability, Message};
use crate::record::{Accept, Admission, Counters, End, Epoch, LaneId, Origin, Record, Seq};
use crate::status::{EndReason, Status};
use crate::time::Timestamp;

/// Sender, recipient and id: what makes a message the same one.
type Identity = (Option<UserId>, UserId, MessageId);

fn identity(message: &Message) -> Identity {
    (message.sender().cloned(), message.recipient().clone(), message.id())
}

/// A message that was durable once.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) accept: Arc<Accept>,
    pub(super) end: Option<EndReason>,
    pub(super) attempts: u32,
    /// A receiver has it: a sink took it, or the other engine accepted it.
    pub(super) applied: bool,
    /// An operation's end of it is durable, whatever came after.
    pub(super) withdrawn: Option<EndReason>,
    /// Some sink was handed it, in whatever life.
    pub(super) offered: bool,
    /// It had ended otherwise before it was confirmed.
    pub(super) was_upgraded: bool,
    status: Option<Status>,
    said: BTreeSet<EndReason>,
}

/// Records that may or may not be stored.
#[derive(Clone, Debug)]
pub(super) struct Maybe {
    records: Vec<(Seq, Record)>,
    /// The operating system has them: a mere kill must not lose them.
    survives_kill: bool,
}

/// One engine's oracle.
#[derive(Clone, Debug, Default)]
pub(super) struct Oracle {
    pub(super) messages: BTreeMap<Seq, Kept>,
    /// All ends that were recorded, by the places of their records.
    pub(super) ends: BTreeMap<Seq, End>,
    pub(super) counters: Counters,
    /// Durable records that the journal must hand over in a replay.
    log: BTreeMap<Seq, Record>,
    maybe: Vec<Maybe>,
    by_identity: HashMap<Identity, Vec<Seq>>,
    by_sender: HashMap<Option<UserId>, Vec<Seq>>,
    origins: HashSet<(UserId, Origin)>,
    /// Sends that wait for an answer.
    pub(super) waiting: HashMap<Ticket, Message>,
    /// What was sent together.
    batches: Vec<batches::Batch>,
    /// Operations that wait for an answer, and all that were ever asked for.
    pub(super) operations: HashMap<Ticket, operations::Asked>,
    withdrawals: Vec<Operation>,
    /// Where messages have moved.
    moved_to: HashMap<Seq, Seq>,
    /// Where messages went when they became dead letters, or were sent again.
    went_to: HashMap<Seq, Seq>,
    /// The newest message of each user and collapse key, and its version.
    newest: HashMap<(UserId, CollapseKey), (Vec<Seq>, Option<u64>)>,
    /// The versions that were accepted in this life.
    versions: HashMap<(UserId, CollapseKey), BTreeSet<u64>>,
    /// What waits for another message, and how that has ended.
    dependents: BTreeMap<Seq, dependents::Waits>,
    /// Where the parents were of what was sent, if they waited then.
    parents: HashMap<Ticket, Seq>,
    /// What devices each user has, and had.
    slots: HashMap<UserId, devices::Slots>,
    /// How far each user has read, and how far they ever had.
    reads: HashMap<UserId, reads::Marks>,
    /// What each user's ledger should say.
    ledgers: HashMap<UserId, ledger::Expected>,
    pub(super) latest: Timestamp,
    pub(super) exposed: HashMap<UserId, Epoch>,
    /// In which epoch that ended each user was exposed last.
    exposed_before: HashMap<UserId, Epoch>,
    /// Everything below this place is in the store, as the machines may know.
    pub(super) settled: Seq,
    /// Buffered messages answered in this life: on their way, whatever becomes of the first write.
    promised: Vec<Message>,
    failures: Vec<String>,
    /// Answers given, by outcome.
    pub(super) accepted: u64,
    pub(super) duplicates: u64,
}

impl Oracle {
    /// Notes a violation.
    pub(super) fn fail(&mut self, what: impl Into<String>) {
        self.failures.push(what.into());
    }

    pub(super) fn take_failure(&mut self) -> Option<String> {
        self.failures.drain(..).next()
    }

    // ------------------------------------------------------------------------------------------------ the journal

    /// A group is being written.
    pub(super) fn appending(&mut self, records: Vec<(Seq, Record)>) {
        self.maybe.push(Maybe { records, survives_kill: false });
    }

    /// The operating system has every group so far.
    pub(super) fn written(&mut self) {
        self.maybe.iter_mut().for_each(|group| group.survives_kill = true);
    }

    /// A write or sync failed: nothing is promised any more.
    pub(super) fn failed(&mut self) {
        self.maybe.iter_mut().for_each(|group| group.survives_kill = false);
    }

    /// Every group so far is durable.
    pub(super) fn synced(&mut self, plan: &Plan) {
        for group in std::mem::take(&mut self.maybe) {
            self.fold_group(plan, group.records);
        }
    }

    /// A whole group is durable.
    fn fold_group(&mut self, plan: &Plan, records: Vec<(Seq, Record)>) {
        self.check_units(&records, plan);
        self.check_copies(&records);
        for (seq, record) in records {
            self.durable(plan, seq, record);
        }
        self.check_batches();
        self.check_newest();
        self.check_dependents(plan);
        self.check_rings();
    }

    /// What was not synced is fenced off for good; or nothing of it was written at all.
    pub(super) fn fenced(&mut self) {
        self.maybe.clear();
    }

    /// Everything below this place is in the store.
    pub(super) fn recycled(&mut self, before: Seq) {
        self.log = self.log.split_off(&before);
    }

    /// Folds a durable record.
    fn durable(&mut self, plan: &Plan, seq: Seq, record: Record) {
        match &record {
            Record::Accept(accept) => self.fold_accept(plan, seq, accept),
            Record::End(end) => self.fold_end(plan, seq, end),
            Record::Attempt(attempt) => {
                self.latest = self.latest.max(Timestamp::ZERO);
                match self.messages.get_mut(&attempt.seq) {
                    Some(kept) => kept.attempts = attempt.attempts,
                    None => {
                        self.fail(format!("attempt recorded for {:?}, which was never accepted", attempt.seq))
                    }
                }
            }
            Record::Exposed(exposed) => {
                self.exposed.insert(exposed.user.clone(), exposed.epoch);
            }
            Record::Told(told) => self.fold_told(told),
            Record::Device(change) => self.fold_device(plan, change),
            Record::Read(read) => self.fold_read(read),
            Record::Floor(_) => {}
        }
        self.log.insert(seq, record);
    }

    fn fold_accept(&mut self, plan: &Plan, seq: Seq, accept: &Arc<Accept>) {
        let message = &accept.message;
        self.latest = self.latest.max(accept.at);
        if accept.lane() == LaneId::Dead {
            self.counters.buried += 1;
            self.counters.buried_bytes += message.cost();
        }
        if accept.counts() {
            self.counters.accepted += 1;
            self.counters.accepted_bytes += message.cost();
        }
        match accept.origin {
            Some(origin) => {
                // Volatile places begin anew with every life of the sender.
                let volatile = origin.seq.epoch() == Epoch::default();
                let is_copy = accept.device.is_some_and(|device| device.is_copy);
                if !self.origins.insert((message.recipient().clone(), origin)) && !volatile && !is_copy {
                    self.fail(format!("applied twice: {origin:?} for {}", message.recipient()));
                }
            }
            None if !accept.is_sent() => {}
            None => self.check_window(plan, seq, accept),
        }
        self.check_device(seq, accept);
        self.fold_newest(seq, accept);
        self.fold_dependent(seq, accept);
        if matches!(accept.admission, Admission::Requeued { .. }) {
            let slot = accept.device.map(|device| device.slot);
            self.lives_again(message.recipient(), message.id(), slot);
        }
        let kept = Kept {
            accept: Arc::clone(accept),
            end: None,
            attempts: 0,
            applied: false,
            withdrawn: None,
            offered: false,
            was_upgraded: false,
            status: None,
            said: BTreeSet::new(),
        };
        if self.messages.insert(seq, kept).is_some() {
            self.fail(format!("place {seq:?} was given away twice"));
        }
    }

    /// An id within the dedup window must not be accepted again.
    fn check_window(&mut self, plan: &Plan, seq: Seq, accept: &Accept) {
        let message = &accept.message;
        let sent = self.by_sender.entry(message.sender().cloned()).or_default();
        let known = self.by_identity.entry(identity(message)).or_default();
        if let Some(before) = known.last().and_then(|seq| Some((*seq, self.messages.get(seq)?))) {
            let (place, kept) = before;
            let since = sent.iter().rev().take_while(|other| **other > place).count();
            let young = accept.at.since(kept.accept.at) <= plan.config.dedup_age;
            if young && since < plan.config.dedup_ids.get() {
                let (id, age) = (message.id(), accept.at.since(kept.accept.at));
                self.failures.push(format!(
                    "accepted twice within the dedup window: {id} at {place:?} and {seq:?}, {since} ids and {age:?} later"
                ));
            }
        }
        known.push(seq);
        sent.push(seq);
    }

    // --------------------------------------------------------------------------------------------------- answers

    /// A send was handed to the engine.
    pub(super) fn sent(&mut self, ticket: Ticket, message: Message) {
        self.sent_alone(&message);
        self.waiting.insert(ticket, message);
    }

    /// A send was answered.
    pub(super) fn answered(&mut self, ticket: Ticket, result: &Result<Accepted, Refusal>) {
        let Some(message) = self.waiting.remove(&ticket) else {
            return self.fail(format!("{ticket:?} was answered twice, or never asked"));
        };
        self.answered_in_batch(ticket, result);
        self.check_parent(ticket, &message, result);
        match result {
            Ok(accepted) => self.check_promise(&message, *accepted),
            Err(Refusal::Conflict) => {
                let same =
                    |other: &Message| identity(other) == identity(&message) && !same_content(other, &message);
                if !self.any_known(same) {
                    self.fail(format!(
                        "{} refused as a conflict, with nothing it conflicts with",
                        message.id()
                    ));
                }
            }
            Err(refusal) => self.check_outdated(&message, refusal),
        }
    }

    /// At the end, nobody waits for an answer any more.
    pub(super) fn check_answered(&mut self) {
        if let Some((ticket, message)) = self.waiting.iter().min_by_key(|(ticket, _)| **ticket) {
            self.failures.push(format!("{ticket:?} was never answered: {}", message.id()));
        }
    }

    fn check_promise(&mut self, message: &Message, accepted: Accepted) {
        if message.durability() == Durability::Volatile {
            return self.fold_version(message);
        }
        if accepted.duplicate {
            self.duplicates += 1;
        } else {
            self.accepted += 1;
        }
        let same = |other: &Message| identity(other) == identity(message) && same_content(other, message);
        let durable = self.by_identity.get(&identity(message)).into_iter().flatten();
        let durable = durable.filter_map(|seq| self.messages.get(seq)).any(|kept| same(&kept.accept.message));
        let inbound = |kept: &Kept| kept.accept.origin.is_some() && same(&kept.accept.message);
        if durable || self.messages.get(&accepted.entry.seq).is_some_and(inbound) {
            return;
        }
        // Inbound repeats are answered without a place.
        if accepted.duplicate && self.messages.values().any(inbound) {
            return;
        }
        let mut written =
            self.maybe.iter().filter(|group| group.survives_kill).flat_map(|group| &group.records);
        let written =
            written.any(|(_, record)| matches!(record, Record::Accept(accept) if same(&accept.message)));
        match message.durability() {
            Durability::Buffered if written => self.promised.push(message.clone()),
            durability => self.fail(format!(
                "{} answered Ok ({durability:?}, duplicate: {}) before its record was {}",
                message.id(),
                accepted.duplicate,
                if durability == Durability::Buffered { "written" } else { "durable" }
            )),
        }
    }

    /// Whether a message for which this holds was ever accepted, or may have been, or is on its way.
    fn any_known(&self, holds: impl Fn(&Message) -> bool) -> bool {
        let maybe = self.maybe.iter().flat_map(|group| &group.records);
        let mut maybe = maybe.filter_map(|(_, record)| match record {
            Record::Accept(accept) => Some(&accept.message),
            _ => None,
        });
        self.messages.values().any(|kept| holds(&kept.accept.message))
            || maybe.any(&holds)
            || self.waiting.values().any(&holds)
            || self.promised.iter().any(&holds)
            || self.replacements().any(&holds)
    }

    // -------------------------------------------------------------------------------------------------- delivery

    /// A batch was offered to a sink. `told` says whether the machines know all that is durable.
    pub(super) fn offered(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        (user, device): (&UserId, &DeviceId),
        batch: &[Delivery],
        told: bool,
    ) {
        for delivery in batch {
            if is_volatile(delivery.entry) {
                continue;
            }
            let seq = delivery.entry.seq;
            let is_exposed = match delivery.entry.lane.slot() {
                Some(slot) => self.is_exposed(user, slot, device, epoch),
                None => self.exposed.get(user) == Some(&epoch),
            };
            if !is_exposed {
                self.fail(format!("{seq:?} offered to {user} before the exposure was durable"));
            }
            let floor = delivery.floor;
            // A receiver knows priorities only.
            let live = |(seq, kept): &(&Seq, &Kept)| {
                **seq <= floor
                    && kept.end.is_none()
                    && kept.accept.message.recipient() == user
                    && kept.accept.lane().priority() == delivery.entry.lane.priority()
                    && kept.accept.lane().slot().is_none_or(|slot| delivery.entry.lane.slot() == Some(slot))
            };
            if let Some((below, _)) = self.messages.range(..=floor).find(|pair| live(pair)) {
                let what = format!("{seq:?} offered with floor {floor:?}, below which {below:?} is live");
                self.fail(what);
            }
            let Some(kept) = self.messages.get_mut(&seq) else {
                return self.fail(format!("{seq:?} offered, but it is not durable"));
            };
            kept.offered = true;
            let what = if kept.accept.lane().priority().is_none() {
                "from a lane that nothing is offered from"
            } else if kept.accept.message != delivery.message {
                "with another content"
            } else if kept.end.is_some() {
                "after its end"
            } else if kept.accept.expires() <= now {
                "after its TTL"
            } else if told && delivery.attempts < kept.attempts {
                "with attempts forgotten"
            } else {
                continue;
            };
            let what = format!("{seq:?} offered {what}");
            self.fail(what);
        }
    }

    /// A sink said something final about a message, true or not.
    pub(super) fn said(&mut self, entry: EntryRef, verdict: &Verdict) {
        let reason = match verdict {
            Verdict::Delivered | Verdict::Replied(_) => EndReason::Delivered,
            Verdict::Unconfirmed => EndReason::Unconfirmed,
            Verdict::Rejected => EndReason::Rejected,
            _ => return,
        };
        if let Some(kept) = self.messages.get_mut(&entry.seq) {
            kept.said.insert(reason);
        }
    }

    /// A receiver took a message, perhaps again. Its first time must come after those of all before it.
    pub(super) fn applied(&mut self, now: Timestamp, seq: Seq) {
        let Some(kept) = self.messages.get_mut(&seq).filter(|kept| !kept.applied) else { return };
        kept.applied = true;
        if kept.end.is_some() {
            return;
        }
        let (message, lane) = (kept.accept.message.clone(), kept.accept.lane());
        let before = self.messages.range(..seq).find(|(_, other)| {
            let theirs = &other.accept.message;
            !other.applied
                && other.end.is_none()
                // Its end is certain, though not yet recorded.
                && other.accept.expires() > now
                && !other.said.contains(&EndReason::Rejected)
                && theirs.recipient() == message.recipient()
                && other.accept.lane() == lane
                && theirs.ordering_key() == message.ordering_key()
        });
        if let Some((before, _)) = before {
            let what = format!("order: {seq:?} was applied before {before:?} of the same user, lane and key");
            self.fail(what);
        }
    }

    /// A status was announced.
    pub(super) fn announced(&mut self, change: &Change) {
        if is_volatile(change.entry) {
            return;
        }
        let (seq, next) = (change.entry.seq, change.status);
        let Some(kept) = self.messages.get_mut(&seq) else {
            return self.fail(format!("{next:?} announced for {seq:?}, which is not durable"));
        };
        let before = kept.status.replace(next).unwrap_or(Status::Accepted);
        let undurable = match next {
            Status::Ended(reason) => kept.end != Some(reason),
            Status::Retrying => kept.attempts < change.attempts,
            Status::Accepted | Status::Sent => false,
        };
        // An attempt has failed, and whoever asks is told so.
        let is_denied = next == Status::Accepted && kept.attempts > 0;
        if !before.may_become(next) && before != next {
            self.fail(format!("{seq:?} went from {before:?} to {next:?}"));
        } else if undurable {
            self.fail(format!("{next:?} announced for {seq:?} before its record was durable"));
        } else if is_denied {
            self.fail(format!("{next:?} announced for {seq:?}, of which an attempt had failed"));
        }
    }

    /// Messages that have not ended.
    pub(super) fn live(&self) -> impl Iterator<Item = (&Seq, &Kept)> {
        self.kept().filter(|(_, kept)| kept.accept.lane() != LaneId::Dead)
    }

    /// Messages that have not ended, and dead letters.
    pub(super) fn kept(&self) -> impl Iterator<Item = (&Seq, &Kept)> {
        self.messages.iter().filter(|(_, kept)| kept.end.is_none())
    }
}

/// Whether two messages say the same, as dedup sees it: everything but how long and how durably.
fn same_content(a: &Message, b: &Message) -> bool {
    a.payload() == b.payload()
        && a.event() == b.event()
        && a.priority() == b.priority()
        && a.ordering_key() == b.ordering_key()
        && a.headers().eq(b.headers())
}

pub(super) fn is_volatile(entry: EntryRef) -> bool {
    entry.seq.epoch() == Epoch::default()
}

/// A device's name.
pub(super) fn device(number: u64) -> DeviceId {
    DeviceId::new(format!("d{number}")).expect("a short name is a device id")
}
