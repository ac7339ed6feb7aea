//! Where a message stands, also when it has ended: by what lives, by the ledger, and by the ids that are remembered.

use std::sync::Arc;

use super::Machine;
use super::dedup::Known;
use super::entry::EntryState;
use super::io::EntryRef;
use super::operate::{OperationId, Work};
use super::operation::{Located, Operation, Target};
use super::query::Query;
use crate::id::UserId;
use crate::record::{Accept, Admission, End, LedgerRow, LedgerRows, Seq};
use crate::status::{EndReason, Status};

impl Located {
    fn by(row: &LedgerRow) -> Self {
        Self {
            entry: Some(EntryRef { lane: row.lane, seq: row.place }),
            status: Status::Ended(row.reason),
            possibly_delivered: row.possibly_delivered,
            attempts: row.attempts,
            since: Some(row.at),
        }
    }

    fn ended(end: &End) -> Self {
        let possibly_delivered = end.possibly_delivered && end.reason != EndReason::Delivered;
        let entry = Some(EntryRef { lane: end.lane, seq: end.seq });
        let (status, attempts, since) = (Status::Ended(end.reason), end.attempts, Some(end.at));
        Self { entry, status, possibly_delivered, attempts, since }
    }

    /// Of a message that lives, or is kept as a dead letter.
    fn living(at: EntryRef, accept: &Accept, state: Option<EntryState>, attempts: u32, known: bool) -> Self {
        let entry = Some(at);
        let (status, since) = match (accept.admission, state) {
            (Admission::Buried(burial), _) => {
                let (status, attempts) = (Status::Ended(burial.reason), burial.attempts);
                let (possibly_delivered, since) = (burial.possibly_delivered, Some(burial.at));
                return Self { entry, status, possibly_delivered, attempts, since };
            }
            (_, Some(EntryState::InFlight(_))) => (Status::Sent, None),
            _ if attempts > 0 => (Status::Retrying, None),
            _ => (Status::Accepted, Some(accept.at)),
        };
        Self { entry, status, possibly_delivered: known, attempts, since }
    }
}

impl Machine {
    /// What must be read of the ids of a sender before it can be said where a message stands.
    pub(super) fn ids_to_locate(&mut self, target: &Target) -> Option<Query> {
        match self.remembered(target)? {
            Known::AskStore => {
                let sender = self.digester.user(target.sender.as_ref()?.as_ref());
                Some(Query::Sender { sender, since: self.dedup.since(self.now) })
            }
            Known::Seen(_) | Known::New | Known::Held => None,
        }
    }

    /// What is remembered of its id, if it says of which sender.
    fn remembered(&mut self, target: &Target) -> Option<Known> {
        let sender = target.sender.as_ref()?.as_ref();
        let key = self.digester.identity(sender, &target.user, target.id);
        Some(self.dedup.look_up(self.digester.user(sender), key, self.now))
    }

    /// A message was found that waits.
    pub(super) fn locate(
        &mut self,
        operation: OperationId,
        entry: EntryRef,
        accept: &Arc<Accept>,
        (state, known): (Option<EntryState>, bool),
    ) {
        let user = accept.message.recipient();
        let lane = self.users.get(user).map(|user| user.lane_ref(entry.lane));
        let attempts = lane.and_then(|lane| lane.attempts.get(&entry.seq)).map_or(0, |(n, _)| *n);
        if let Some(open) = self.operations.open.get_mut(&operation) {
            open.done.located = Some(Located::living(entry, accept, state, attempts, known));
        }
    }

    /// It has ended while it was looked for, and that is durable.
    pub(super) fn locate_ended(work: &Work, end: &End) -> Option<Located> {
        let locates = matches!(work, Work::Asked(_, Operation::Locate(_)) | Work::FindParent(_));
        let is_meant = locates && end.counts();
        is_meant.then(|| Located::ended(end))
    }

    /// It does not wait: how it ended, if anything says so.
    ///
    /// Of what was accepted behind `before`, nobody has looked whether it waits.
    pub(super) fn locate_in_ledger(&mut self, target: &Target, before: Seq) -> Option<Located> {
        let remembered = self.remembered(target);
        let ledger = &self.users.get(&target.user)?.ledger;
        // Accepted, gone, and not among those that ended otherwise.
        let delivered = match remembered {
            Some(Known::Seen(slot)) => Some(slot.seq).filter(|place| *place != Seq::ZERO && *place < before),
            _ => None,
        };
        match ledger.of(target.id) {
            // An older one had the same id.
            Some(row) if delivered.is_none_or(|place| place < row.ended) => Some(Located::by(row)),
            _ => delivered.filter(|place| ledger.knows_all_since(*place)).map(|_| Located {
                entry: None,
                status: Status::Ended(EndReason::Delivered),
                possibly_delivered: false,
                attempts: 0,
                since: None,
            }),
        }
    }

    /// What is known of a user's ledger.
    pub(super) fn read_ledger(&mut self, user: &UserId) -> LedgerRows {
        let keep = self.keep();
        self.users.get_mut(user).map(|user| user.ledger.rows(keep)).unwrap_or_default()
    }
}
