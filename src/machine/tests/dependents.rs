//! Messages that wait for another one.

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
        let known = Accepted { entry: place, duplicate: true };
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

#[test]
fn a_crash_between_the_end_of_a_parent_and_what_follows_changes_nothing() {
    for otherwise in [Otherwise::Release, Otherwise::Cancel] {
        for delivered in [true, false] {
            let mut rig = Rig::new();
            rig.attach(1, "alice", "phone");
            let (parent, dependent) = pair(otherwise);
            let entry = rig.accept(&parent);
            rig.accept(&dependent);
            let verdict = if delivered { Verdict::Delivered } else { Verdict::Rejected };
            rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(entry, verdict)] });
            let (commit, records) = rig.open.pop_front().unwrap();
            for record in records {
                rig.log.push((rig.next, record));
                rig.next = rig.next.plus(1);
            }
            let _ = commit;
            // The end is durable, and the process dies.
            let mut again = rig.again();
            assert_eq!(again.dependents().iter().filter(|row| row.ended.is_some()).count(), 1);
            again.attach(2, "alice", "phone");
            again.commit();
            let goes = delivered || otherwise == Otherwise::Release;
            assert_eq!(again.offered_ids(), if goes { vec![dependent.id()] } else { vec![] });
            assert_eq!(ended(&again, EndReason::Cancelled), u64::from(!goes));
        }
    }
}

#[test]
fn what_has_settled_is_read_and_goes_also_when_its_recipient_is_not_there() {
    let mut rig = Rig::new();
    let parents = [message("alice"), message("alice")];
    for parent in &parents {
        rig.accept(parent);
    }
    let dependents = parents.clone().map(|parent| after(&parent, Otherwise::Cancel));
    for dependent in &dependents {
        rig.accept(dependent);
    }
    let (row, store, reflects) = rig.settle_row();
    assert_eq!((row.dependents.len(), store.len()), (2, 4));
    let mut rig = Rig::over(&store, 2);
    let cancel = rig.operate(Operation::Cancel(target(parents[1].id())));
    rig.load_with(&store, &row, reflects);
    assert_eq!(rig.done(cancel).unwrap().unwrap().messages, 1);
    rig.load_with(&store, &row, reflects);
    assert_eq!((ended(&rig, EndReason::Cancelled), rig.machine.stats().counters.live()), (2, 2));
    rig.attach(1, "alice", "phone");
    rig.load_with(&store, &row, reflects);
    assert_eq!(rig.offered_ids(), [parents[0].id()]);
    rig.say(1, rig.offers[0].1.entry, Verdict::Delivered);
    rig.load_with(&store, &row, reflects);
    assert_eq!(rig.offered_ids(), [parents[0].id(), dependents[0].id()]);
}

/// The row says what the journal does not any more; what the journal says comes on top of it, wherever it begins.
#[test]
fn a_row_and_the_journal_together_say_how_a_parent_ended() {
    let (parent, dependent) = pair(Otherwise::Cancel);
    for from in 0..4 {
        let mut rig = Rig::new();
        rig.accept(&parent);
        rig.accept(&dependent);
        let (row, store, reflects) = rig.settle_row();
        let mut live = Rig::over(&store, 2);
        let mut log = Vec::new();
        match from {
            0 => {}
            1 => {
                let end = End {
                    user: alice(),
                    lane: LaneId::Normal,
                    seq: store[0].0,
                    id: None,
                    reason: EndReason::Delivered,
                    upgrades: None,
                    possibly_delivered: true,
                    attempts: 0,
                    cost: parent.cost(),
                    at: live.now,
                };
                log.push(Record::End(end));
            }
            moves => {
                // It was moved, and perhaps delivered where it went.
                let message = parent.with_priority(Priority::High);
                let admission = Admission::Moved;
                let moved = Accept { admission, ..Accept::new(message, live.now) };
                let end = |lane, seq, reason| End {
                    user: alice(),
                    lane,
                    seq,
                    id: None,
                    reason,
                    upgrades: None,
                    possibly_delivered: false,
                    attempts: 0,
                    cost: parent.cost(),
                    at: Timestamp::ZERO,
                };
                let to = Seq::first_of(Epoch(2));
                log.push(Record::Accept(Arc::new(moved)));
                log.push(Record::End(end(LaneId::Normal, store[0].0, EndReason::Moved)));
                if moves == 3 {
                    log.push(Record::End(end(LaneId::High, to, EndReason::Delivered)));
                }
            }
        }
        for record in &log {
            live.machine.replay(live.next, record, true);
            live.next = live.next.plus(1);
        }
        live.next = Seq::first_of(Epoch(3));
        live.attach(1, "alice", "phone");
        live.load_with(&store, &row, reflects);
        live.load_with(&store, &row, reflects);
        let goes = from == 1 || from == 3;
        let expected = if goes { dependent.id() } else { parent.id() };
        assert_eq!(live.offered_ids(), [expected], "{from}");
        if !goes {
            live.say(1, live.offers[0].1.entry, Verdict::Delivered);
            live.load_with(&store, &row, reflects);
            assert_eq!(live.offered_ids(), [parent.id(), dependent.id()], "{from}");
        }
    }
}

/// Found by the simulator: a settlement had written the row and came to nothing, and what had ended since waited again.
#[test]
fn what_a_row_names_and_the_journal_has_ended_does_not_wait_again() {
    let mut rig = Rig::new();
    let (parent, dependent) = pair(Otherwise::Cancel);
    rig.accept(&parent);
    rig.accept(&dependent);
    rig.input(Input::Settle { before: rig.next });
    let rows = core::mem::take(&mut rig.survivors).into_iter().flat_map(|part| part.rows);
    let (_, row) = rows.last().unwrap();
    let reflects = rig.next;
    rig.operate(Operation::Cancel(target(dependent.id())));
    rig.commit();
    assert_eq!(row.dependents.len(), 1);
    let born = Birth { store_empty: false, epoch: Epoch(2), ..birth(Config::default()) };
    let mut again = Rig::born(born);
    for (seq, record) in &rig.log {
        again.machine.replay(*seq, record, true);
    }
    again.attach(1, "alice", "phone");
    again.load_with(&[], &row, reflects);
    assert_eq!(again.dependents(), []);
}

#[test]
fn a_row_that_says_that_a_parent_has_ended_is_acted_upon_by_whoever_reads_it() {
    let mut rig = Rig::new();
    let (parent, dependent) = pair(Otherwise::Cancel);
    let entry = rig.accept(&parent);
    rig.accept(&dependent);
    let (mut row, store, reflects) = rig.settle_row();
    row.lanes[LaneId::Normal.index()].cursor = entry.seq;
    row.dependents[0].ended = Some(ParentEnd::Otherwise);
    let mut rig = Rig::over(&store, 2);
    let locate = rig.operate(Operation::Locate(target(dependent.id())));
    rig.load_with(&store, &row, reflects);
    rig.load_with(&store, &row, reflects);
    assert!(rig.done(locate).unwrap().is_ok());
    assert_eq!(ended(&rig, EndReason::Cancelled), 1);
}

#[test]
fn a_store_that_cannot_be_read_delays_it_and_loses_nothing() {
    let mut rig = Rig::new();
    let (parent, dependent) = pair(Otherwise::Cancel);
    rig.accept(&parent);
    rig.accept(&dependent);
    let (row, store, reflects) = rig.settle_row();
    let mut rig = Rig::over(&store, 2);
    rig.attach(1, "alice", "phone");
    rig.load_with(&store, &row, reflects);
    rig.input(Input::Verdicts {
        link: LinkId(1),
        verdicts: vec![(rig.offers[0].1.entry, Verdict::Delivered)],
    });
    let (commit, _) = rig.open.pop_front().unwrap();
    rig.input(Input::Persisted { commit, first: rig.next });
    rig.next = rig.next.plus(1);
    let pages: Vec<_> =
        rig.loads.drain(..).filter(|(_, query)| matches!(query, Query::Page { .. })).collect();
    for (load, _) in pages {
        rig.input(Input::LoadFailed(load));
    }
    assert_eq!(rig.offers.len(), 1);
    rig.pass(Duration::from_secs(2));
    rig.load_with(&store, &row, reflects);
    assert_eq!(rig.offered_ids(), [parent.id(), dependent.id()]);
}

#[test]
fn the_number_of_dependents_is_bounded_at_minus_one_zero_and_plus_one() {
    let max_dependents = NonZeroUsize::new(3).unwrap();
    let mut rig = Rig::with(Config { max_dependents, ..Config::default() });
    rig.attach(1, "alice", "phone");
    let parent = message("alice");
    let entry = rig.accept(&parent);
    let dependents: Vec<_> = (0..4).map(|_| after(&parent, Otherwise::Cancel)).collect();
    let tickets: Vec<_> = dependents.iter().map(|dependent| rig.send(dependent)).collect();
    assert_eq!(rig.answer(tickets[3]), Some(&Err(Refusal::TooManyDependents { max: 3 })));
    assert!(Refusal::TooManyDependents { max: 3 }.is_retryable());
    rig.commit();
    assert_eq!(rig.dependents().len(), 3);
    // A commit that fails gives its share back, and so does what has gone.
    rig.operate(Operation::Cancel(target(dependents[0].id())));
    rig.commit();
    let ticket = rig.send(&dependents[3]);
    let (commit, _) = rig.open.pop_front().unwrap();
    rig.input(Input::PersistFailed { commit, unknown: false });
    assert_eq!(rig.answer(ticket), Some(&Err(Refusal::Degraded)));
    rig.accept(&dependents[3]);
    assert_eq!(rig.refused(&after(&parent, Otherwise::Cancel)), Refusal::TooManyDependents { max: 3 });
    rig.say(1, entry, Verdict::Delivered);
    assert_eq!(rig.offers.len(), 4);
    assert_eq!(rig.dependents(), []);
    rig.accept(&after(&parent, Otherwise::Cancel));
}

#[test]
fn what_waits_can_be_withdrawn_replaced_and_moved_and_goes_on_waiting() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let parent = message("alice");
    let entry = rig.accept(&parent);
    let [cancelled, moved, edited, freed] = [0; 4].map(|_| after(&parent, Otherwise::Cancel));
    for dependent in [&cancelled, &moved, &edited, &freed] {
        rig.accept(dependent);
    }
    rig.operate(Operation::Cancel(target(cancelled.id())));
    let up = rig.operate(Operation::Reprioritise(target(moved.id()), Priority::Critical));
    let edit = after(&parent, Otherwise::Release);
    let replace = rig.operate(Operation::Replace(target(edited.id()), edit.clone()));
    let now = message("alice");
    rig.operate(Operation::Replace(target(freed.id()), now.clone()));
    let strange = after(&cancelled, Otherwise::Release);
    let unfit = rig.operate(Operation::Replace(target(edit.id()), strange));
    rig.commit();
    assert_eq!(rig.done(up).unwrap().unwrap().accepted.unwrap().entry.lane, LaneId::Scheduled);
    assert_eq!(rig.done(replace).unwrap().unwrap().messages, 1);
    assert_eq!(rig.offered_ids(), [parent.id(), now.id()]);
    let again = rig.operate(Operation::Replace(target(edit.id()), after(&cancelled, Otherwise::Release)));
    rig.commit();
    assert_eq!(rig.done(again), Some(Err(OperationError::Unfit)));
    assert!(rig.done(unfit).unwrap().is_err());
    rig.say(1, entry, Verdict::Delivered);
    assert_eq!(rig.offered_ids()[2..], [moved.id(), edit.id()]);
    assert_eq!(rig.offers[2].1.entry.lane, LaneId::Critical);
    assert_eq!(rig.replayed().stats().counters, rig.machine.stats().counters);
}

#[test]
fn a_parent_is_followed_wherever_it_goes_also_while_it_is_looked_for() {
    let mut rig = Rig::new();
    let parent = to("alice").not_before(rig.now.after(Duration::from_secs(60))).build().unwrap();
    rig.accept(&parent);
    let dependent = after(&parent, Otherwise::Cancel);
    rig.operate(Operation::Reprioritise(target(parent.id()), Priority::High));
    // Its move is on its way to the disk.
    let ticket = rig.send(&dependent);
    assert_eq!(rig.answer(ticket), None);
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
    rig.operate(Operation::Reprioritise(target(parent.id()), Priority::Low));
    rig.commit();
    rig.attach(1, "alice", "phone");
    rig.pass(Duration::from_secs(61));
    rig.pass(Duration::from_millis(20));
    assert_eq!(rig.offered_ids(), [parent.id()]);
    let Parent { lane, seq } = rig.dependents()[0].parent;
    assert_eq!(EntryRef { lane, seq }, rig.offered()[0]);
    rig.say(1, rig.offered()[0], Verdict::Delivered);
    assert_eq!(rig.offered_ids(), [parent.id(), dependent.id()]);
}

/// Found by the simulator: it was to be moved on as soon as it had moved, and what waited for it was told the place between.
#[test]
fn a_parent_that_moves_twice_at_once_is_where_it_went_last() {
    let mut rig = Rig::new();
    let parent = message("alice");
    rig.accept(&parent);
    let dependent = after(&parent, Otherwise::Cancel);
    rig.operate(Operation::Reprioritise(target(parent.id()), Priority::High));
    let ticket = rig.send(&dependent);
    rig.operate(Operation::Reprioritise(target(parent.id()), Priority::Low));
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
    let Parent { lane, seq } = rig.dependents()[0].parent;
    let waiting = rig.machine.snapshot(&alice()).unwrap().lanes[LaneId::Low.index()].live.clone();
    assert_eq!((lane, vec![seq]), (LaneId::Low, waiting));
}

#[test]
fn a_purge_takes_both_and_neither_comes_back() {
    for otherwise in [Otherwise::Release, Otherwise::Cancel] {
        let mut rig = Rig::new();
        rig.attach(1, "alice", "phone");
        let (parent, dependent) = pair(otherwise);
        rig.accept(&parent);
        rig.accept(&dependent);
        let purge = rig.operate(Operation::Purge(alice()));
        rig.commit();
        assert_eq!(rig.done(purge).unwrap().unwrap().messages, 2);
        assert_eq!((rig.offers.len(), rig.machine.stats().counters.live()), (1, 0));
        assert_eq!((rig.dependents(), ended(&rig, EndReason::Cancelled)), (vec![], 2));
    }
}

#[test]
fn its_ttl_and_its_time_count_while_it_waits() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let parent = message("alice");
    let entry = rig.accept(&parent);
    let wait = |to: MessageBuilder| to.after(parent.id(), Otherwise::Cancel);
    let short = wait(to("alice")).ttl(Duration::from_secs(5)).build().unwrap();
    let late = wait(to("alice")).not_before(rig.now.after(Duration::from_secs(60))).build().unwrap();
    let early = wait(to("alice")).not_before(rig.now.after(Duration::from_secs(7))).build().unwrap();
    for dependent in [&short, &late, &early] {
        rig.accept(dependent);
    }
    rig.pass(Duration::from_secs(6));
    assert_eq!(ended(&rig, EndReason::Expired), 1);
    rig.pass(Duration::from_secs(6));
    assert_eq!(rig.offers.len(), 1, "its time has come, and what it waits for has not");
    rig.say(1, entry, Verdict::Delivered);
    assert_eq!(rig.offered_ids(), [parent.id(), early.id()]);
    rig.pass(Duration::from_secs(49));
    rig.pass(Duration::from_millis(20));
    assert_eq!(rig.offered_ids(), [parent.id(), early.id(), late.id()]);
}

#[test]
fn what_waits_and_expires_while_nobody_is_there_ends() {
    let mut rig = Rig::new();
    let parent = message("alice");
    rig.accept(&parent);
    let short = to("alice").after(parent.id(), Otherwise::Cancel).ttl(Duration::from_secs(100));
    rig.accept(&short.build().unwrap());
    let (store, reflects) = settled_with(&mut rig);
    rig.pass(Duration::from_secs(120));
    rig.load_from(&store, reflects);
    rig.commit();
    assert_eq!((ended(&rig, EndReason::Expired), rig.machine.stats().counters.live()), (1, 1));
}

#[test]
fn a_dependent_takes_no_ones_room_and_counts_as_any_other() {
    let max_user_messages = core::num::NonZeroU32::new(2).unwrap();
    let overflow = crate::Overflow::DropOldest;
    let mut rig = Rig::with(Config { max_user_messages, overflow, ..Config::default() });
    let (parent, dependent) = pair(Otherwise::Cancel);
    rig.accept(&parent);
    rig.accept(&dependent);
    let refusal = rig.refused(&after(&parent, Otherwise::Cancel));
    assert!(matches!(refusal, Refusal::OutboxFull { messages: 2, .. }), "{refusal:?}");
    // Its parent gives way, and what waits for that ends with it.
    rig.accept(&message("alice"));
    assert_eq!(ended(&rig, EndReason::Evicted), 1);
    assert_eq!(ended(&rig, EndReason::Cancelled), 1);
}

#[test]
fn of_whom_the_row_was_lost_nobody_waits_for_ever() {
    for otherwise in [Otherwise::Release, Otherwise::Cancel] {
        let mut rig = Rig::new();
        let (parent, dependent) = pair(otherwise);
        rig.accept(&parent);
        rig.accept(&dependent);
        let (_, store, reflects) = rig.settle_row();
        let mut rig = Rig::over(&store[1..], 2);
        rig.attach(1, "alice", "phone");
        for _ in 0..3 {
            rig.load_with(&store[1..], &UserRow::default(), reflects);
        }
        assert_eq!(rig.offers.len(), usize::from(otherwise == Otherwise::Release));
        assert_eq!(ended(&rig, EndReason::Cancelled), u64::from(otherwise == Otherwise::Cancel));
    }
}

#[test]
fn what_another_engine_delivers_waits_for_nothing() {
    let mut rig = Rig::new();
    let message = to("alice").after(MessageId::from_u128(5), Otherwise::Cancel).build().unwrap();
    let delivery = Delivery {
        stream: StreamId::from_u128(2),
        entry: EntryRef { lane: LaneId::Normal, seq: Seq::new(5 << 40) },
        message,
        accepted_at: Timestamp::ZERO,
        attempts: 0,
        redelivered: false,
        floor: Seq::ZERO,
    };
    rig.input(Input::Receive(vec![(Ticket(1), delivery)]));
    rig.commit();
    assert_eq!(rig.answer(Ticket(1)).unwrap().as_ref().unwrap().entry.lane, LaneId::Normal);
}
