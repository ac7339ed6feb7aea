//! Messages that wait for another one.

mod operations;
mod recovery;

use std::sync::Arc;

use super::operate::{alice, settled_with, target};
use super::*;
use crate::message::Otherwise;
use crate::record::{Accept, DependentRow, End, Parent, ParentEnd};

/// A message that is sent, and one that waits for it.
fn pair(otherwise: Otherwise) -> (Message, Message) {
    let parent = message("alice");
    (parent.clone(), after(&parent, otherwise))
}

/// A message that is in nobody's way.
fn to(user: &str) -> MessageBuilder {
    super::to(user).ordering_key(MessageId::random().to_string())
}

fn message(user: &str) -> Message {
    to(user).build().unwrap()
}

fn after(parent: &Message, otherwise: Otherwise) -> Message {
    to("alice").after(parent.id(), otherwise).build().unwrap()
}

fn ended(rig: &Rig, reason: EndReason) -> u64 {
    rig.machine.stats().counters.ended[reason.index()]
}

impl Rig {
    fn offered_ids(&self) -> Vec<MessageId> {
        self.offers.iter().map(|(_, delivery)| delivery.message.id()).collect()
    }

    fn refused(&mut self, message: &Message) -> Refusal {
        let ticket = self.send(message);
        self.commit();
        self.answer(ticket).unwrap().clone().unwrap_err()
    }

    /// Opens what this one's log says again.
    fn again(&self) -> Self {
        Self { machine: self.replayed(), next: Seq::first_of(Epoch(2)), now: self.now, ..Self::new() }
    }

    /// The row of alice in a settlement, and what settled with it.
    fn settle_row(&mut self) -> (UserRow, Vec<(Seq, Arc<Accept>)>, Seq) {
        let reflects = self.next;
        let parts = settle(self);
        let row = parts.iter().flat_map(|part| &part.rows).next_back().map(|(_, row)| row.clone());
        (row.unwrap_or_default(), parts.into_iter().flat_map(|part| part.entries).collect(), reflects)
    }

    /// A life in which this store is all there is.
    fn over(store: &[(Seq, Arc<Accept>)], epoch: u32) -> Self {
        let settled = store.last().map_or(Seq::ZERO, |(seq, _)| seq.next());
        let born = Birth { store_empty: false, settled, epoch: Epoch(epoch), ..birth(Config::default()) };
        let mut rig = Self::born(born);
        rig.machine.counters.accepted = store.len() as u64;
        rig.machine.counters.accepted_bytes = store.iter().map(|(_, accept)| accept.message.cost()).sum();
        rig
    }

    /// Answers loads, of alice with this row.
    fn load_with(&mut self, store: &[(Seq, Arc<Accept>)], row: &UserRow, reflects: Seq) {
        while let Some((load, query)) = self.loads.pop() {
            if !matches!(query, Query::User(_) | Query::Row(_)) {
                self.load_one(load, query, store, reflects);
                continue;
            }
            let mut held = Holdings::default();
            let lives = |seq: &Seq, accept: &Accept| {
                let lane = &row.lanes[accept.lane().index()];
                *seq > lane.cursor && !lane.ended.contains(seq)
            };
            let living = store.iter().filter(|(seq, accept)| lives(seq, accept));
            living.for_each(|(_, accept)| held.add(accept.lane(), accept.message.cost()));
            let found = Found::User { row: Some(Box::new(row.clone())), held: Some(held), reflects };
            self.input(Input::Loaded { load, found: Box::new(found) });
        }
        self.commit();
    }

    fn dependents(&self) -> Vec<DependentRow> {
        self.machine.snapshot(&alice()).and_then(|user| user.dependents).unwrap_or_default()
    }
}

#[test]
fn a_dependent_is_offered_when_its_parent_is_delivered_and_not_before_in_a_place_behind_the_others() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let (parent, dependent) = pair(Otherwise::Cancel);
    let first = rig.accept(&parent);
    let place = rig.accept(&dependent);
    assert_eq!(place.lane, LaneId::Scheduled);
    let other = rig.accept(&message("alice"));
    assert_eq!(rig.offered(), [first, other]);
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(first, Verdict::Delivered)] });
    assert_eq!(rig.offers.len(), 2, "before the end of the parent is durable");
    rig.commit();
    let (_, delivery) = rig.offers.last().unwrap().clone();
    assert_eq!((delivery.message.id(), delivery.entry.lane), (dependent.id(), LaneId::Normal));
    assert_eq!((delivery.message.after(), delivery.redelivered), (None, false));
    assert!(delivery.entry.seq > other.seq);
    assert_eq!(rig.moves, [(place, delivery.entry)]);
    rig.say(1, delivery.entry, Verdict::Delivered);
    rig.say(1, other, Verdict::Delivered);
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.accepted, counters.live(), counters.ended[0]), (3, 0, 3));
    assert_eq!(rig.replayed().stats().counters, counters);
    assert_eq!(rig.dependents(), []);
}

#[test]
fn a_parent_that_ends_otherwise_lets_it_go_or_ends_it_as_was_asked_for() {
    for otherwise in [Otherwise::Release, Otherwise::Cancel] {
        for how in 0..5 {
            let attempts = core::num::NonZeroU32::MIN;
            let mut rig = Rig::with(Config { max_attempts: attempts, ..Config::default() });
            rig.attach(1, "alice", "phone");
            let parent = to("alice").ttl(Duration::from_secs(5)).build().unwrap();
            let dependent = after(&parent, otherwise);
            let first = rig.accept(&parent);
            rig.accept(&dependent);
            match how {
                0 => rig.say(1, first, Verdict::Rejected),
                1 => rig.say(1, first, Verdict::Nack(None)),
                2 => rig.say(1, first, Verdict::Unconfirmed),
                3 => rig.pass(Duration::from_secs(6)),
                _ => {
                    rig.operate(Operation::Cancel(target(parent.id())));
                    rig.commit();
                }
            }
            let goes = otherwise == Otherwise::Release;
            assert_eq!(rig.offered_ids().contains(&dependent.id()), goes, "{how}");
            assert_eq!(ended(&rig, EndReason::Cancelled), u64::from(!goes) + u64::from(how == 4), "{how}");
            let change = rig.changes.iter().find(|change| change.id == Some(dependent.id()));
            let cancelled = Status::Ended(EndReason::Cancelled);
            assert_eq!(change.map(|change| change.status).filter(|_| !goes), (!goes).then_some(cancelled));
            assert_eq!(rig.replayed().stats().counters, rig.machine.stats().counters);
        }
    }
}

#[test]
fn a_chain_goes_one_after_the_other_and_ends_as_a_whole() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let mut chain = vec![message("alice")];
    for n in 0..8 {
        chain.push(after(&chain[n], Otherwise::Cancel));
    }
    for message in &chain {
        rig.accept(message);
    }
    for n in 0..4 {
        assert_eq!(rig.offered_ids(), chain[..=n].iter().map(Message::id).collect::<Vec<_>>());
        rig.say(1, rig.offers[n].1.entry, Verdict::Delivered);
    }
    rig.say(1, rig.offers[4].1.entry, Verdict::Rejected);
    assert_eq!((rig.offers.len(), ended(&rig, EndReason::Cancelled)), (5, 4));
    assert_eq!(rig.machine.stats().counters.live(), 0);
}

#[test]
fn what_waits_for_something_that_has_ended_goes_at_once_or_is_refused_and_says_how_that_ended() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let (delivered, rejected) = (message("alice"), message("alice"));
    let entry = rig.accept(&delivered);
    rig.say(1, entry, Verdict::Delivered);
    let entry = rig.accept(&rejected);
    rig.say(1, entry, Verdict::Rejected);
    let goes = [after(&delivered, Otherwise::Cancel), after(&rejected, Otherwise::Release)];
    for dependent in &goes {
        let place = rig.accept(dependent);
        let offered = rig.offers.last().unwrap().1.clone();
        assert_eq!((offered.message.id(), offered.entry.lane), (dependent.id(), LaneId::Normal));
        // Its sender's repeats are answered with the place that it was accepted in, wherever that was.
        let ticket = rig.send(dependent);
        let known = Accepted::at(place).again();
        assert_eq!(rig.answer(ticket), Some(&Ok(known)));
    }
    let refusal = rig.refused(&after(&rejected, Otherwise::Cancel));
    assert_eq!(refusal, Refusal::ParentEnded { reason: EndReason::Rejected });
    assert!(refusal.is_final());
    // Sent once more, it is waited for again.
    rig.operate(Operation::Requeue(DeadLetters::of(alice())));
    rig.commit();
    rig.accept(&after(&rejected, Otherwise::Cancel));
    assert_eq!(rig.dependents().len(), 1);
}

#[test]
fn only_a_message_of_the_same_sender_to_the_same_recipient_is_a_parent() {
    let mut rig = Rig::new();
    let parent = to("alice").sender("bob").build().unwrap();
    rig.accept(&parent);
    let of_bob = |to: MessageBuilder| to.after(parent.id(), Otherwise::Release);
    for stranger in [
        of_bob(to("alice")).sender("carol"),
        of_bob(to("alice")),
        of_bob(to("dave")).sender("bob"),
        to("alice").sender("bob").after(MessageId::from_u128(7), Otherwise::Release),
    ] {
        assert_eq!(rig.refused(&stranger.build().unwrap()), Refusal::UnknownParent);
    }
    assert!(rig.accept(&of_bob(to("alice")).sender("bob").build().unwrap()).lane == LaneId::Scheduled);
    assert_eq!(rig.machine.stats().pending, 0);
    let dependent = of_bob(to("alice")).sender("bob").build().unwrap();
    rig.input(Input::SendBatch(vec![(Ticket(90), parent), (Ticket(91), dependent)]));
    assert_eq!(rig.answer(Ticket(91)), Some(&Err(Refusal::DependentInBatch)));
}

#[test]
fn a_dependent_that_comes_while_its_parent_is_committed_waits_for_that() {
    for fails in [false, true] {
        let mut rig = Rig::new();
        let (parent, dependent) = pair(Otherwise::Cancel);
        let tickets = [rig.send(&parent), rig.send(&dependent)];
        assert_eq!((rig.answer(tickets[1]), rig.machine.stats().pending), (None, 2));
        if fails {
            let (commit, records) = rig.open.pop_front().unwrap();
            assert_eq!(records.len(), 1);
            rig.input(Input::PersistFailed { commit, unknown: false });
            assert_eq!(rig.answer(tickets[1]), Some(&Err(Refusal::UnknownParent)));
        } else {
            rig.commit();
            assert_eq!(rig.answer(tickets[1]).unwrap().as_ref().unwrap().entry.lane, LaneId::Scheduled);
        }
        assert_eq!(rig.machine.stats().pending, 0);
    }
}

#[test]
fn a_parent_that_is_ending_is_waited_for_and_nothing_waits_for_what_is_no_more() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let (parent, dependent) = pair(Otherwise::Cancel);
    let entry = rig.accept(&parent);
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(entry, Verdict::Delivered)] });
    let ticket = rig.send(&dependent);
    assert_eq!(rig.answer(ticket), None);
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
    assert_eq!(rig.offered_ids(), [parent.id(), dependent.id()]);
}
