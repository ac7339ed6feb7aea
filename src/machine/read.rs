//! How far people have read: a high-water mark for each of a user's conversations, which only rises.
//!
//! A user's row keeps as many as are configured; beyond, those that lie furthest back are forgotten, and count as unread. That
//! is the same whatever the order in which the marks are put together, and whatever the clock said.

use std::collections::BTreeMap;

use super::Machine;
use super::commit::Pending;
use super::io::{Action, Ticket};
use super::operation::Outcome;
use crate::id::{OrderingKey, UserId};
use crate::record::{Read, ReadMark, ReadRow, Record, Seq};

/// One user's marks.
#[derive(Debug, Default)]
pub(super) struct Reads {
    marks: BTreeMap<u128, ReadMark>,
}

impl Reads {
    fn raise(&mut self, row: ReadRow, max: usize) {
        let known = self.marks.entry(row.conversation).or_insert(row.mark);
        if row.mark.up_to > known.up_to {
            *known = row.mark;
        }
        while self.marks.len() > max {
            let back = self.marks.iter().min_by_key(|(conversation, mark)| (mark.up_to, **conversation));
            let back = back.map(|(conversation, _)| *conversation);
            back.and_then(|conversation| self.marks.remove(&conversation));
        }
    }

    /// Puts what the store has under what the journal has said since.
    pub(super) fn merge(&mut self, stored: &[ReadRow], max: usize) {
        stored.iter().for_each(|row| self.raise(*row, max));
    }

    pub(super) fn rows(&self) -> Vec<ReadRow> {
        self.marks.iter().map(|(&conversation, &mark)| ReadRow { conversation, mark }).collect()
    }
}

/// Marks that are on their way to the disk, by user and conversation.
pub(super) type ReadWaits = BTreeMap<(UserId, u128), Coming>;

/// Who waits for marks of one conversation to be durable, and up to where.
#[derive(Debug)]
pub(super) struct Coming {
    /// The conversation, as its readers name it: a record has a digest only.
    key: Option<OrderingKey>,
    waiting: Vec<(Seq, Ticket)>,
}

impl Machine {
    /// How the machine names a conversation of a user.
    #[must_use]
    pub fn conversation(&self, id: &UserId, key: Option<&OrderingKey>) -> u128 {
        let user = self.digester.user(Some(id)).to_le_bytes();
        let key = key.map_or(&[][..], |key| key.as_bytes());
        self.digester.bytes(&[&user[..], key].concat())
    }

    pub(super) fn mark_of(&self, id: &UserId, conversation: u128) -> Option<ReadMark> {
        self.users.get(id)?.reads.marks.get(&conversation).copied()
    }

    fn answer_mark(&mut self, ticket: Ticket, id: &UserId, conversation: u128) {
        let outcome = Outcome { read: self.mark_of(id, conversation), ..Outcome::default() };
        self.actions.push_back(Action::Done { ticket, result: Ok(outcome) });
    }

    /// Somebody has read a conversation up to a place. What lies ahead of everything accepted so far cannot have been read.
    pub(super) fn mark_read(&mut self, ticket: Ticket, id: &UserId, key: Option<&OrderingKey>, up_to: Seq) {
        let (now, up_to) = (self.now, up_to.min(self.applied.prev()));
        let conversation = self.conversation(id, key);
        if self.mark_of(id, conversation).is_some_and(|known| known.up_to >= up_to) {
            return self.answer_mark(ticket, id, conversation);
        }
        let new = || Coming { key: key.cloned(), waiting: Vec::new() };
        let Coming { waiting, .. } = self.read_waits.entry((id.clone(), conversation)).or_insert_with(new);
        let is_coming = waiting.iter().any(|(coming, _)| *coming >= up_to);
        waiting.push((up_to, ticket));
        self.device_waiting += 1;
        if !is_coming {
            let read = Read { user: id.clone(), conversation, up_to, at: now };
            self.current.push(Pending::Fact(Record::Read(read)));
        }
    }

    pub(super) fn read_up_to(&mut self, ticket: Ticket, id: &UserId, key: Option<&OrderingKey>) {
        let conversation = self.conversation(id, key);
        self.answer_mark(ticket, id, conversation);
    }

    pub(super) fn apply_read(&mut self, seq: Seq, read: &Read) {
        let max = self.config.max_read_marks.get();
        let Read { conversation, up_to, at, .. } = *read;
        let row = ReadRow { conversation, mark: ReadMark { up_to, at } };
        self.user_mut(&read.user).reads.raise(row, max);
        self.touch(&read.user, seq);
    }

    /// A mark is durable: whoever has waited for it is told. Each record of one conversation goes further than the one before,
    /// and is announced as what it is: of two in one commit the first is not said to be the second.
    pub(super) fn read_durable(&mut self, read: &Read) {
        let of = (read.user.clone(), read.conversation);
        let Some(Coming { key, waiting }) = self.read_waits.remove(&of) else { return };
        let (user, conversation) = of.clone();
        let mark = ReadMark { up_to: read.up_to, at: read.at };
        self.actions.push_back(Action::MarkedRead(user, key.clone(), conversation, mark));
        let (told, left): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(up_to, _)| *up_to <= read.up_to);
        for (_, ticket) in told {
            self.operations_answered();
            self.answer_mark(ticket, &read.user, read.conversation);
        }
        if !left.is_empty() {
            self.read_waits.insert(of, Coming { key, waiting: left });
        }
        self.let_go(&read.user);
    }
}
