//! The loss ledger, what receivers are told of it, and where messages stand.

use core::num::NonZeroU32;

use super::devices::{device, every, lane, ring};
use super::operate::{alice, settled_with, target};
use super::*;
use crate::machine::ledger::{Keep, Ledger};
use crate::machine::verdict::MAX_RECENT_ENDS;
use crate::record::{LedgerRow, LedgerRows, Slot, Told};

fn short(ttl_ms: u64) -> Message {
    to("alice").ttl(Duration::from_millis(ttl_ms)).build().unwrap()
}

fn short_for_every() -> Message {
    every().ttl(Duration::from_millis(10)).build().unwrap()
}

fn ledger(rig: &mut Rig) -> LedgerRows {
    let ticket = rig.operate(Operation::Ledger(alice()));
    *rig.done(ticket).unwrap().unwrap().ledger
}

fn locate(rig: &mut Rig, operation: Target) -> Result<Located, OperationError> {
    let ticket = rig.operate(Operation::Locate(operation));
    rig.done(ticket).unwrap().map(|done| done.located.unwrap())
}

/// Of whoever sends without saying who they are.
fn anonymous(message: &Message) -> Target {
    Target { sender: Some(None), ..target(message.id()) }
}

fn status(rig: &mut Rig, message: &Message) -> Option<Status> {
    locate(rig, anonymous(message)).ok().map(|located| located.status)
}

/// Expires, and is recorded.
fn expired(rig: &mut Rig) -> (Message, EntryRef) {
    let message = short(10);
    let entry = rig.accept(&message);
    rig.pass(Duration::from_millis(10));
    (message, entry)
}

fn told(rig: &mut Rig, link: u64, told: bool) {
    rig.input(Input::GapsTold { link: LinkId(link), told });
    rig.commit();
}

#[test]
fn whatever_ends_undelivered_has_a_row_and_what_is_delivered_has_none() {
    let mut rig = Rig::new();
    rig.machine.config.max_attempts = NonZeroU32::MIN;
    rig.attach(1, "alice", "phone");
    let delivered = message("alice");
    let entry = rig.accept(&delivered);
    rig.say(1, entry, Verdict::Delivered);
    let mut expected = Vec::new();
    for (verdict, reason) in [
        (Verdict::Unconfirmed, EndReason::Unconfirmed),
        (Verdict::Rejected, EndReason::Rejected),
        (Verdict::Nack(None), EndReason::Dead),
    ] {
        let message = message("alice");
        let entry = rig.accept(&message);
        rig.say(1, entry, verdict);
        expected.push((message.id(), entry, reason, true));
    }
    rig.input(Input::Detach(LinkId(1)));
    let cancelled = message("alice");
    let entry = rig.accept(&cancelled);
    rig.operate(Operation::Cancel(target(cancelled.id())));
    rig.commit();
    expected.push((cancelled.id(), entry, EndReason::Cancelled, false));
    let rows = ledger(&mut rig).rows;
    let of = |row: &LedgerRow| {
        let entry = EntryRef { lane: row.lane, seq: row.place };
        (row.id.unwrap(), entry, row.reason, row.possibly_delivered)
    };
    assert_eq!(rows.iter().map(of).collect::<Vec<_>>(), expected);
    assert_eq!(rows[2].attempts, 1);
    assert!(rows.is_sorted_by_key(|row| row.ended));
}

#[test]
fn the_newest_rows_are_kept_up_to_the_bound_and_as_long_as_configured() {
    for keep in [0, 2, 3, 4] {
        let mut rig = Rig::with(Config { ledger_rows: keep, ..Config::default() });
        rig.attach(1, "alice", "phone");
        let ended: Vec<_> = (0..3).map(|_| expired(&mut rig).1.seq).collect();
        let LedgerRows { rows, forgotten, .. } = ledger(&mut rig);
        let dropped = 3_usize.saturating_sub(keep);
        assert_eq!(rows.iter().map(|row| row.place).collect::<Vec<_>>(), ended[dropped..]);
        assert_eq!(forgotten, ended[..dropped].last().copied().unwrap_or_default());
    }
    let mut rig = Rig::with(Config { ledger_age: Duration::from_secs(60), ..Config::default() });
    rig.attach(1, "alice", "phone");
    let (_, first) = expired(&mut rig);
    rig.pass(Duration::from_secs(60));
    assert_eq!(ledger(&mut rig).rows.len(), 1);
    rig.pass(Duration::from_millis(1));
    assert_eq!(
        ledger(&mut rig),
        LedgerRows { forgotten: first.seq, gaps: ledger(&mut rig).gaps, ..LedgerRows::default() }
    );
}

#[test]
fn a_late_confirmation_takes_the_row_away() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let (message, entry) = expired(&mut rig);
    assert_eq!(status(&mut rig, &message), Some(Status::Ended(EndReason::Expired)));
    rig.say(1, entry, Verdict::Delivered);
    assert_eq!(ledger(&mut rig).rows, []);
    assert_eq!(status(&mut rig, &message), Some(Status::Ended(EndReason::Delivered)));
}

#[test]
fn a_receiver_is_told_once_of_what_expired_while_they_were_away() {
    let mut rig = Rig::new();
    let entries = [short(10), short(20), message("alice"), short(30)].map(|message| rig.accept(&message));
    rig.pass(Duration::from_secs(1));
    rig.attach(1, "alice", "phone");
    let gap = Gap {
        lane: LaneId::Normal,
        first: entries[0].seq,
        last: entries[3].seq,
        expired: 3,
        dead: 0,
        evicted: 0,
    };
    rig.commit();
    assert_eq!(rig.gaps_told, [(LinkId(1), vec![gap])]);
    assert_eq!(rig.offered(), [entries[2]]);
    rig.attach(2, "alice", "laptop");
    assert_eq!(rig.gaps_told.len(), 1, "one at a time");
    rig.input(Input::GapsTold { link: LinkId(1), told: true });
    let (user, device) = (alice(), DeviceId::new("watch").unwrap());
    rig.input(Input::Attach { link: LinkId(9), user, device });
    assert_eq!(rig.gaps_told.len(), 1, "also before that is durable");
    rig.commit();
    assert!(matches!(rig.log.last(), Some((_, Record::Told(Told { gap: of, .. }))) if *of == gap));
    rig.attach(3, "alice", "tablet");
    assert_eq!((rig.gaps_told.len(), ledger(&mut rig).gaps), (1, vec![]));
}

#[test]
fn a_gap_that_was_not_taken_note_of_is_told_to_the_next_device_and_what_came_meanwhile_too() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    expired(&mut rig);
    assert_eq!(rig.gaps_told.len(), 1);
    expired(&mut rig);
    assert_eq!(rig.gaps_told.len(), 1, "it is being told");
    rig.attach(2, "alice", "laptop");
    rig.input(Input::Detach(LinkId(1)));
    assert_eq!((rig.gaps_told[1].0, rig.gaps_told[1].1[0].expired), (LinkId(2), 2));
    told(&mut rig, 1, true);
    assert_eq!(ledger(&mut rig).gaps[0].expired, 2, "whoever left has nothing to say any more");
    told(&mut rig, 2, false);
    expired(&mut rig);
    assert_eq!(
        (rig.gaps_told[2].0, rig.gaps_told[2].1[0].expired),
        (LinkId(2), 2),
        "with the next thing that happens"
    );
    // What expired meanwhile stays a gap.
    rig.input(Input::GapsTold { link: LinkId(2), told: true });
    rig.pass(Duration::ZERO);
    assert_eq!((rig.gaps_told[3].1[0].expired, ledger(&mut rig).gaps[0].expired), (1, 1));
}

#[test]
fn what_was_withdrawn_or_replaced_or_refused_by_its_receiver_is_no_gap() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let rejected = rig.accept(&message("alice"));
    rig.say(1, rejected, Verdict::Rejected);
    let cancelled = message("alice");
    rig.accept(&cancelled);
    rig.operate(Operation::Cancel(target(cancelled.id())));
    rig.commit();
    for _ in 0..2 {
        rig.accept(&to("alice").collapse_key("state").build().unwrap());
    }
    assert_eq!((rig.gaps_told.len(), ledger(&mut rig).rows.len()), (0, 3));
}

#[test]
fn a_ledger_survives_settling_and_a_replay_counts_nothing_twice() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    rig.machine.handle_gaps_told(LinkId(1), false);
    expired(&mut rig);
    let before = rig.next;
    rig.input(Input::Settle { before });
    let rows: Vec<_> = core::mem::take(&mut rig.survivors).into_iter().flat_map(|part| part.rows).collect();
    rig.input(Input::Settled { before });
    let (_, row) = rows.into_iter().find(|(user, _)| *user == alice()).unwrap();
    assert_eq!((row.ledger.rows.len(), row.ledger.gaps.len()), (1, 1));
    expired(&mut rig);
    let mut live = ledger(&mut rig);
    // The next life replays all of it, and reads the row then.
    let birth = Birth { epoch: Epoch(2), store_empty: false, ..birth(Config::default()) };
    let mut again = Rig::born(birth);
    for (seq, record) in &rig.log {
        again.machine.replay(*seq, record, true);
    }
    again.now = rig.now;
    let ticket = again.operate(Operation::Ledger(alice()));
    let (load, _) = again.loads.pop().unwrap();
    let found = Found::User { row: Some(Box::new(row)), held: Some(Holdings::default()), reflects: before };
    again.input(Input::Loaded { load, found: Box::new(found) });
    let replayed = *again.done(ticket).unwrap().unwrap().ledger;
    live.gaps.iter_mut().for_each(|gap| assert_eq!(gap.expired, 2));
    assert_eq!(replayed, live);
}

#[test]
fn where_a_message_stands_is_known_from_its_acceptance_to_its_end() {
    let mut rig = Rig::new();
    let message = message("alice");
    assert_eq!(status(&mut rig, &message), None);
    let entry = rig.accept(&message);
    assert_eq!(status(&mut rig, &message), Some(Status::Accepted));
    rig.attach(1, "alice", "phone");
    assert_eq!(status(&mut rig, &message), Some(Status::Sent));
    rig.say(1, entry, Verdict::Nack(None));
    let located = locate(&mut rig, anonymous(&message)).unwrap();
    assert_eq!((located.status, located.attempts, located.possibly_delivered), (Status::Retrying, 1, true));
    rig.pass(Duration::from_secs(600));
    rig.say(1, entry, Verdict::Delivered);
    assert_eq!(status(&mut rig, &message), Some(Status::Ended(EndReason::Delivered)));
    let remembered = locate(&mut rig, target(message.id())).unwrap();
    assert_eq!((remembered.status, remembered.entry), (Status::Ended(EndReason::Delivered), Some(entry)));
}

#[test]
fn where_a_message_stands_is_read_from_the_store_and_is_not_guessed_of_what_came_since() {
    let mut rig = Rig::new();
    let known = message("alice");
    rig.accept(&known);
    let (store, reflects) = settled_with(&mut rig);
    let tickets = [&known, &message("alice")].map(|m| rig.operate(Operation::Locate(anonymous(m))));
    rig.load_from(&store, reflects);
    assert_eq!(rig.done(tickets[0]).unwrap().unwrap().located.unwrap().status, Status::Accepted);
    assert_eq!(rig.done(tickets[1]), Some(Err(OperationError::NotWaiting)));
    // One that is accepted while it is looked for was not found, and is not said to have been delivered.
    let late = message("alice");
    let ticket = rig.send(&late);
    rig.load_from(&store, reflects);
    rig.operate(Operation::Ledger(alice()));
    rig.load_from(&store, reflects);
    let asked = rig.operate(Operation::Locate(anonymous(&late)));
    rig.commit();
    rig.load_from(&store, reflects);
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
    assert_eq!(rig.done(asked), Some(Err(OperationError::NotWaiting)));
}

#[test]
fn of_a_message_that_may_be_among_damaged_ones_it_is_not_said_that_it_was_delivered() {
    for named in [false, true] {
        let mut rig = Rig::new();
        let message = message("alice");
        let entry = rig.accept(&message);
        let (_, reflects) = settled_with(&mut rig);
        let asked = rig.operate(Operation::Locate(anonymous(&message)));
        while let Some((load, query)) = rig.loads.pop() {
            let (Query::Place { .. } | Query::Id { .. }) = query else {
                rig.load_one(load, query, &[], reflects);
                continue;
            };
            let damaged = vec![named.then_some((LaneId::Normal, entry.seq))];
            let matches = Matches { damaged, ..Matches::default() };
            rig.input(Input::Loaded { load, found: Box::new(Found::Matches(matches)) });
        }
        assert_eq!(rig.done(asked), Some(Err(OperationError::StoreUnreadable)), "{named}");
    }
}

#[test]
fn a_dead_letter_is_located_as_what_it_ended_as_and_lives_when_it_is_sent_again() {
    let mut rig = Rig::new();
    rig.machine.config.max_attempts = NonZeroU32::MIN;
    rig.attach(1, "alice", "phone");
    let message = message("alice");
    let entry = rig.accept(&message);
    rig.say(1, entry, Verdict::Nack(None));
    let located = locate(&mut rig, target(message.id())).unwrap();
    assert_eq!((located.status, located.entry.unwrap().lane), (Status::Ended(EndReason::Dead), LaneId::Dead));
    rig.operate(Operation::Requeue(DeadLetters::of(alice())));
    rig.commit();
    assert_eq!(ledger(&mut rig).rows, []);
    let again = rig.offered().last().copied().unwrap();
    assert_eq!(locate(&mut rig, target(message.id())).unwrap().status, Status::Sent);
    rig.say(1, again, Verdict::Delivered);
    let located = locate(&mut rig, target(message.id())).unwrap();
    assert_eq!((located.status, located.entry), (Status::Ended(EndReason::Delivered), Some(again)));
}

/// Found by the simulator: one that moved meanwhile was withdrawn besides the one that had been.
#[test]
fn of_two_messages_with_one_id_only_one_is_withdrawn_also_when_the_other_moves() {
    let mut rig = Rig::new();
    let of = |sender: &str, priority| {
        to("alice").id(MessageId::from_u128(7)).sender(sender).priority(priority).build().unwrap()
    };
    let theirs = |sender: &str| Target {
        user: alice(),
        id: MessageId::from_u128(7),
        sender: Some(Some(UserId::new(sender).unwrap())),
    };
    rig.accept(&of("bob", Priority::High));
    rig.accept(&of("carol", Priority::Normal));
    rig.operate(Operation::Cancel(theirs("bob")));
    rig.operate(Operation::Reprioritise(theirs("carol"), Priority::Low));
    let ticket = rig.operate(Operation::Cancel(target(MessageId::from_u128(7))));
    rig.commit();
    rig.commit();
    assert_eq!(rig.done(ticket).unwrap().unwrap().messages, 1);
    assert_eq!(rig.machine.stats().counters.live(), 1);
}

/// Found by the simulator: it was said to have been delivered.
#[test]
fn a_dead_letter_that_is_sent_again_while_it_is_looked_for_is_found_where_it_waits() {
    let mut rig = Rig::new();
    rig.machine.config.max_attempts = NonZeroU32::MIN;
    rig.attach(1, "alice", "phone");
    let message = message("alice");
    let entry = rig.accept(&message);
    rig.say(1, entry, Verdict::Nack(None));
    rig.operate(Operation::Requeue(DeadLetters::of(alice())));
    let ticket = rig.operate(Operation::Locate(anonymous(&message)));
    rig.commit();
    let located = rig.done(ticket).unwrap().unwrap().located.unwrap();
    assert!(!matches!(located.status, Status::Ended(_)), "{located:?}");
    assert!(located.entry.unwrap().seq > entry.seq && located.possibly_delivered);
}

/// Found by the simulator: whoever left before that was durable was told twice, and as many others never.
#[test]
fn whoever_leaves_before_it_is_durable_that_they_were_told_is_not_told_again() {
    let mut rig = Rig::new();
    rig.accept(&short(10));
    rig.pass(Duration::from_secs(1));
    rig.attach(1, "alice", "phone");
    let (store, reflects) = settled_with(&mut rig);
    let row = {
        let keep = rig.machine.keep();
        rig.machine.users.get_mut(&alice()).unwrap().row(reflects, keep)
    };
    rig.input(Input::GapsTold { link: LinkId(1), told: true });
    rig.input(Input::Detach(LinkId(1)));
    assert_eq!(rig.gaps_told.len(), 1);
    let (user, device) = (alice(), DeviceId::new("laptop").unwrap());
    rig.input(Input::Attach { link: LinkId(2), user, device });
    while let Some((load, _)) = rig.loads.pop() {
        let (row, held) = (Some(Box::new(row.clone())), Some(Holdings::default()));
        rig.input(Input::Loaded { load, found: Box::new(Found::User { row, held, reflects }) });
    }
    rig.commit();
    assert_eq!((rig.gaps_told.len(), store.len()), (1, 0));
    assert_eq!(ledger(&mut rig).gaps, []);
}

/// Found by a review: the laptop was told that it had missed what it had, and the phone, which had missed it, nothing.
#[test]
fn a_gap_of_one_device_is_told_to_that_device_alone() {
    let mut rig = Rig::new();
    ["phone", "laptop"].into_iter().for_each(|name| rig.register(name));
    rig.attach(2, "alice", "laptop");
    let message = short_for_every();
    let entries = rig.accepted(&message).entries();
    rig.say(2, entries[1], Verdict::Delivered);
    rig.pass(Duration::from_millis(10));
    rig.commit();
    assert_eq!((ledger(&mut rig).gaps.len(), rig.gaps_told.len()), (1, 0), "it has it");
    rig.attach(1, "alice", "phone");
    let told_of: Vec<_> = rig.gaps_told.iter().map(|(link, gaps)| (*link, gaps[0].lane.slot())).collect();
    assert_eq!(told_of, [(LinkId(1), entries[0].lane.slot())]);
    told(&mut rig, 1, true);
    assert_eq!(ledger(&mut rig).gaps, []);
}

#[test]
fn of_what_a_removed_device_missed_the_next_one_in_its_slot_is_told_nothing() {
    let mut rig = Rig::new();
    ["phone", "laptop"].into_iter().for_each(|name| rig.register(name));
    rig.attach(2, "alice", "laptop");
    rig.accepted(&short_for_every());
    rig.pass(Duration::from_millis(10));
    told(&mut rig, 2, false);
    assert_eq!(ledger(&mut rig).gaps.len(), 2);
    rig.settled_by(Operation::Unregister(alice(), device("phone"))).unwrap();
    rig.register("tablet");
    rig.attach(1, "alice", "tablet");
    let gaps = ledger(&mut rig).gaps;
    assert_eq!(gaps.iter().map(|gap| gap.lane.slot()).collect::<Vec<_>>(), [Some(Slot::new(1).unwrap())]);
    assert!(rig.gaps_told.iter().all(|(link, _)| *link == LinkId(2)), "{:?}", rig.gaps_told);
}

/// Found by a review: what was damaged after it had been moved was said to have been delivered.
#[test]
fn of_a_message_that_was_moved_and_then_damaged_it_is_not_said_that_it_was_delivered() {
    let mut ledger = Ledger::default();
    let row = LedgerRow {
        id: None,
        ended: Seq::new(9),
        lane: LaneId::Normal,
        place: Seq::new(7),
        reason: EndReason::Dead,
        possibly_delivered: true,
        attempts: 0,
        at: Timestamp::ZERO,
    };
    let rows = LedgerRows { rows: vec![row], ..LedgerRows::default() };
    ledger.merge(&rows, Seq::ZERO, Keep::new(&Config::default(), Timestamp::ZERO));
    let knows = [5, 7, 8].map(|place| ledger.knows_all_since(Seq::new(place)));
    assert_eq!(knows, [false, false, true]);
}

#[test]
fn what_a_device_is_told_while_it_is_removed_and_registered_again_is_not_said_of_its_next_life() {
    let mut rig = Rig::with_two();
    rig.accepted(&short_for_every());
    rig.pass(Duration::from_millis(10));
    assert_eq!(rig.gaps_told.len(), 1, "the phone is being told");
    rig.settled_by(Operation::Unregister(alice(), device("phone"))).unwrap();
    rig.register("phone");
    let before = rig.log.len();
    rig.input(Input::GapsTold { link: LinkId(1), told: true });
    rig.commit();
    let said = rig
        .log
        .iter()
        .skip(before)
        .filter(|(_, record)| matches!(record, Record::Told(told) if told.gap.lane == lane(0)));
    assert_eq!(said.count(), 0);
    assert_eq!(rig.gaps_told.last().map(|(link, _)| *link), Some(LinkId(2)), "the other one is next");
}

#[test]
fn calls_that_were_answered_push_no_loss_out_of_the_ledger_and_are_delivered_as_a_whole() {
    let mut rig = Rig::with(Config { ledger_rows: 2, ..Config::default() });
    rig.join_two();
    let (lost, entry) = expired(&mut rig);
    let calls: Vec<_> = (0..3).map(|_| ring()).collect();
    for call in &calls {
        let copies = rig.accepted(call).entries();
        rig.say(2, copies[1], Verdict::Delivered);
    }
    let held = ledger(&mut rig);
    assert_eq!(held.rows.iter().map(|row| row.id).collect::<Vec<_>>(), [Some(lost.id())]);
    assert_eq!(held.forgotten, Seq::ZERO);
    let kept: Vec<_> = held.elsewhere.iter().map(|row| (row.id.unwrap(), row.reason)).collect();
    assert_eq!(kept, [&calls[1], &calls[2]].map(|call| (call.id(), EndReason::Elsewhere)), "the newest");
    assert!(held.elsewhere_forgotten > entry.seq);
    assert_eq!(rig.count_of(EndReason::Elsewhere), 3, "the counters are exact");
    // After a crash and without its sender only the ledger says something: that another device has it.
    let mut late = Rig::new();
    late.machine = rig.replayed();
    let mut whole = |call: &Message| locate(&mut late, target(call.id())).map(|found| found.status);
    assert_eq!(whole(&calls[2]), Ok(Status::Ended(EndReason::Delivered)));
    assert_eq!(whole(&calls[0]), Err(OperationError::NotWaiting), "nothing is known of it");
    assert_eq!(rig.replayed().snapshot(&alice()).unwrap().ledger, Some(held));
}

#[test]
fn of_a_copy_whose_row_was_dropped_it_is_not_said_that_its_device_had_it() {
    let mut rig = Rig::with(Config { ledger_rows: 0, ..Config::default() });
    rig.join_two();
    let call = ring();
    let copies = rig.accepted(&call).entries();
    rig.say(2, copies[1], Verdict::Delivered);
    let ticket = rig.operate(Operation::Locate(anonymous(&call)));
    let found = rig.done(ticket).unwrap();
    let copies = found.iter().flat_map(|found| &found.copies);
    assert!(copies.into_iter().all(|copy| copy.located.is_none()), "{found:?}");
}

#[test]
fn of_a_message_that_was_moved_into_a_page_that_is_damaged_it_is_not_said_that_it_was_delivered() {
    let mut rig = Rig::new();
    let message = message("alice");
    let from = rig.accept(&message);
    rig.operate(Operation::Reprioritise(target(message.id()), Priority::High));
    rig.commit();
    let (_, moved) = rig.moves.pop().unwrap();
    assert!(moved.seq > from.seq);
    let (store, reflects) = settled_with(&mut rig);
    let answer_loads = |rig: &mut Rig| {
        while let Some((load, query)) = rig.loads.pop() {
            let Query::Page { lane: LaneId::High, .. } = query else {
                rig.load_one(load, query, &store, reflects);
                continue;
            };
            let damaged = vec![(moved.seq, message.cost())];
            let page = Page { entries: Vec::new(), damaged, more_after: None, reflects };
            rig.input(Input::Loaded { load, found: Box::new(Found::Page(page)) });
            rig.commit();
        }
    };
    rig.attach(1, "alice", "phone");
    answer_loads(&mut rig);
    assert_eq!(
        ledger(&mut rig).rows.iter().map(|row| (row.id, row.place)).collect::<Vec<_>>(),
        [(None, moved.seq)]
    );
    assert_eq!(status(&mut rig, &message), None, "it is remembered by the place that it has left");
}

/// Found by an audit: that many ends of anybody's, and what was confirmed late was not believed any more.
#[test]
fn a_confirmation_is_believed_as_long_as_the_ledger_has_the_end_and_counts_once() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    rig.attach(2, "bob", "phone");
    let late = to("alice").ttl(Duration::from_secs(1)).build().unwrap();
    let entry = rig.accept(&late);
    rig.pass(Duration::from_secs(2));
    for _ in 0..=MAX_RECENT_ENDS {
        let other = rig.accept(&message("bob"));
        rig.say(2, other, Verdict::Unconfirmed);
    }
    // Said twice before it is durable.
    let verdicts = vec![(entry, Verdict::Delivered), (entry, Verdict::Delivered)];
    rig.input(Input::Verdicts { link: LinkId(1), verdicts });
    rig.commit();
    let stats = rig.machine.stats();
    assert_eq!((stats.counters.upgraded, stats.counters.ended[EndReason::Expired.index()]), (1, 0));
    assert_eq!(stats.stray_verdicts, 1);
    let last = rig.changes.last().unwrap();
    assert_eq!((last.status, last.id), (Status::Ended(EndReason::Delivered), Some(late.id())));
    assert_eq!(rig.replayed().stats().counters, stats.counters);
}
