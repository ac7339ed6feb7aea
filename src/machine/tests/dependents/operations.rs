//! What becomes of what waits for another message when either is withdrawn, replaced, moved, expires, or has no room.

use super::*;

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
    let Parent { lane, seq, .. } = rig.dependents()[0].parent;
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
    let Parent { lane, seq, .. } = rig.dependents()[0].parent;
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
