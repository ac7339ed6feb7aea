//! Messages whose time is still to come.

use super::operate::{alice, settled, settled_with, target};
use super::*;
use crate::record::Record;

const HOUR: Duration = Duration::from_secs(3600);

fn in_an_hour(rig: &Rig) -> MessageBuilder {
    to("alice").not_before(rig.now.after(HOUR))
}

impl Rig {
    fn deliver(&mut self, message: &Message) -> EntryRef {
        let entry = self.accept(message);
        self.say(1, entry, Verdict::Delivered);
        entry
    }

    fn deliver_all(&mut self) {
        for _ in 0..9 {
            let offered = self.offered().into_iter().map(|entry| (entry, Verdict::Delivered)).collect();
            self.input(Input::Verdicts { link: LinkId(1), verdicts: offered });
            self.commit();
        }
    }
}

#[test]
fn a_scheduled_message_is_offered_at_its_time_and_not_before_in_a_new_place_behind_the_others() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let late = in_an_hour(&rig).build().unwrap();
    let place = rig.accept(&late);
    assert_eq!(place.lane, LaneId::Scheduled);
    let others = [rig.deliver(&message("alice")), rig.deliver(&message("alice"))];
    assert_eq!(rig.offered(), others);
    rig.pass(HOUR - Duration::from_millis(1));
    assert_eq!(rig.offered(), others, "a millisecond too early");
    rig.pass(Duration::from_millis(20));
    let (_, delivery) = rig.offers.last().unwrap().clone();
    assert_eq!((delivery.message.id(), delivery.entry.lane), (late.id(), LaneId::Normal));
    assert_eq!((delivery.message.not_before(), delivery.redelivered), (None, false));
    assert_eq!(rig.moves, [(place, delivery.entry)]);
    assert!(delivery.entry.seq > others[1].seq);
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.accepted, counters.live()), (3, 1), "it is one message wherever it waits");
    let ends = rig.changes.iter().filter(|change| change.status.is_terminal());
    assert_eq!(ends.count(), 2, "moving is no end");
}

#[test]
fn a_time_that_is_over_is_now_and_a_volatile_message_has_none() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let past = to("alice").not_before(rig.now).build().unwrap();
    assert_eq!(rig.accept(&past).lane, LaneId::Normal);
    assert_eq!(rig.offers.len(), 1);
    let volatile = in_an_hour(&rig).durability(Durability::Volatile).build();
    assert!(matches!(volatile.unwrap_err().flaw(), crate::MessageFlaw::VolatileSchedule));
}

#[test]
fn a_ttl_counts_from_the_time_a_message_was_scheduled_for() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let ttl = Duration::from_secs(10);
    let message = in_an_hour(&rig).ttl(ttl).build().unwrap();
    rig.accept(&message);
    rig.pass(HOUR + Duration::from_secs(1));
    assert_eq!(rig.offers.last().unwrap().1.message.id(), message.id());
    rig.pass(ttl);
    assert_eq!(rig.machine.stats().counters.ended[EndReason::Expired.index()], 1);
    // Nobody was there when its time came, nor when it was over.
    rig.accept(&in_an_hour(&rig).ttl(ttl).build().unwrap());
    rig.input(Input::Detach(LinkId(1)));
    rig.pass(HOUR + ttl);
    let offers = rig.offers.len();
    rig.attach(2, "alice", "phone");
    rig.pass(Duration::from_millis(20));
    assert_eq!(
        (rig.offers.len(), rig.machine.stats().counters.ended[EndReason::Expired.index()]),
        (offers, 2)
    );
}

#[test]
fn what_is_scheduled_can_be_withdrawn_replaced_and_moved_and_counts_against_quotas() {
    let max = core::num::NonZeroU32::new(2).unwrap();
    let mut rig = Rig::with(Config { max_user_messages: max, ..Config::default() });
    rig.attach(1, "alice", "phone");
    let messages = [in_an_hour(&rig).build().unwrap(), in_an_hour(&rig).build().unwrap()];
    for message in &messages {
        rig.accept(message);
    }
    let ticket = rig.send(&message("alice"));
    assert!(matches!(rig.answer(ticket), Some(Err(Refusal::OutboxFull { messages: 2, .. }))));
    let up = rig.operate(Operation::Reprioritise(target(messages[0].id()), Priority::Critical));
    rig.commit();
    let moved = rig.done(up).unwrap().unwrap().accepted.unwrap().entry;
    assert_eq!(moved.lane, LaneId::Scheduled, "its time has not come");
    let now = to("alice").build().unwrap();
    let replace = rig.operate(Operation::Replace(target(messages[1].id()), now.clone()));
    rig.commit();
    assert_eq!(rig.done(replace).unwrap().unwrap().messages, 1);
    assert_eq!(rig.offers.last().unwrap().1.message.id(), now.id());
    rig.pass(HOUR);
    rig.pass(Duration::from_millis(20));
    let (_, delivery) = rig.offers.last().unwrap();
    assert_eq!((delivery.message.id(), delivery.entry.lane), (messages[0].id(), LaneId::Critical));
    let last = in_an_hour(&rig).build().unwrap();
    rig.say(1, rig.offers.last().unwrap().1.entry, Verdict::Delivered);
    rig.accept(&last);
    let cancel = rig.operate(Operation::Cancel(target(last.id())));
    rig.commit();
    assert_eq!(rig.done(cancel).unwrap().unwrap().possibly_delivered, 0);
    rig.pass(2 * HOUR);
    assert_ne!(rig.offers.last().unwrap().1.message.id(), last.id());
}

#[test]
fn repeats_are_recognised_before_and_after_it_has_moved_and_after_a_replay() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let message = in_an_hour(&rig).sender("bob").build().unwrap();
    let place = rig.accept(&message);
    let is_repeat = |rig: &mut Rig| {
        let ticket = rig.send(&message);
        let answer = rig.answer(ticket).unwrap().clone().unwrap();
        (answer.duplicate, answer.entry.seq) == (true, place.seq)
    };
    assert!(is_repeat(&mut rig));
    let mut before =
        Rig { machine: rig.replayed(), next: Seq::first_of(Epoch(2)), now: rig.now, ..Rig::new() };
    rig.pass(Duration::from_secs(1800));
    rig.pass(Duration::from_secs(1801));
    assert_eq!(rig.moves.len(), 1);
    assert!(is_repeat(&mut before));
    let mut after =
        Rig { machine: rig.replayed(), next: Seq::first_of(Epoch(2)), now: rig.now, ..Rig::new() };
    let snapshot = |rig: &Rig| rig.machine.snapshot(&alice()).unwrap().totals;
    assert_eq!(snapshot(&after), snapshot(&rig));
    after.attach(1, "alice", "phone");
    assert_eq!((after.offers.len(), after.offers[0].1.message.id()), (1, message.id()));
    // Replayed before its time, it comes when that has come.
    before.attach(1, "alice", "phone");
    assert!(before.offers.is_empty());
    before.pass(HOUR + Duration::from_millis(20));
    assert_eq!(before.offers[0].1.message.id(), message.id());
}

#[test]
fn what_came_due_while_nobody_was_there_is_read_from_the_store_in_order_and_the_rest_waits() {
    let now = Rig::new().now;
    let at = |hours: u32| to("alice").not_before(now.after(HOUR * hours)).build().unwrap();
    let messages = [at(2), at(1), at(4)];
    let (mut rig, store, reflects) = settled(&messages);
    rig.pass(HOUR * 3);
    rig.attach(1, "alice", "phone");
    rig.load_from(&store, reflects);
    rig.commit();
    let offered = |rig: &Rig| rig.offers.iter().map(|(_, d)| d.message.id()).collect::<Vec<_>>();
    rig.deliver_all();
    assert_eq!(offered(&rig), [messages[0].id(), messages[1].id()]);
    rig.pass(HOUR - Duration::from_millis(1));
    assert!(rig.loads.is_empty(), "nothing is due");
    rig.pass(Duration::from_millis(20));
    rig.load_from(&store, reflects);
    rig.commit();
    assert_eq!(offered(&rig)[2], messages[2].id());
    assert_eq!(rig.machine.stats().counters.live(), 1);
}

#[test]
fn a_store_that_cannot_be_read_when_something_is_due_is_asked_again() {
    let at = Rig::new().now.after(HOUR);
    let (mut rig, store, reflects) = settled(&[to("alice").not_before(at).build().unwrap()]);
    rig.pass(HOUR);
    rig.attach(1, "alice", "phone");
    let is_page = |rig: &Rig| rig.loads.iter().position(|(_, query)| matches!(query, Query::Page { .. }));
    while is_page(&rig).is_none() {
        let (load, query) = rig.loads.pop().unwrap();
        rig.loads.clear();
        assert!(matches!(query, Query::User(_) | Query::Row(_)));
        let mut held = held(1, store[0].1.message.cost());
        held.scheduled = 1;
        rig.input(Input::Loaded {
            load,
            found: Box::new(Found::User { row: None, held: Some(held), reflects }),
        });
    }
    let (load, _) = rig.loads.swap_remove(is_page(&rig).unwrap());
    rig.input(Input::LoadFailed(load));
    assert!(rig.offers.is_empty());
    rig.pass(Duration::from_secs(2));
    // The sweep would find it as well.
    rig.loads.retain(|(_, query)| !matches!(query, Query::Due { .. }));
    rig.load_from(&store, reflects);
    rig.commit();
    assert_eq!(rig.offers.len(), 1);
}

/// Found by the simulator: an operation that waited for its sender's ids looked only up to where the log had ended when it
/// was asked for, and the message had moved behind that.
#[test]
fn an_operation_that_waits_for_the_store_finds_a_message_that_has_moved_meanwhile() {
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(Config::default()) });
    rig.attach(1, "alice", "phone");
    rig.load_from(&[], Seq::ZERO);
    rig.commit();
    let late = in_an_hour(&rig).build().unwrap();
    let ticket = rig.send(&late);
    rig.load_from(&[], Seq::ZERO);
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
    rig.pass(HOUR - Duration::from_secs(1));
    rig.loads.clear();
    let new = to("alice").sender("bob").build().unwrap();
    let replace = rig.operate(Operation::Replace(target(late.id()), new));
    let waits: Vec<_> = rig.loads.drain(..).collect();
    assert!(matches!(waits[..], [(_, Query::Sender { .. })]), "{waits:?}");
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.moves.len(), 1);
    rig.input(Input::Loaded { load: waits[0].0, found: Box::new(Found::Sender(Vec::new())) });
    rig.commit();
    assert_eq!(rig.done(replace).unwrap().unwrap().messages, 1);
}

/// Its place in the lane is a new one, so that neither the lane's cursor nor a receiver's inbox waits for it.
#[test]
fn a_scheduled_message_holds_no_cursor_back() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    rig.accept(&in_an_hour(&rig).build().unwrap());
    let other = rig.accept(&message("alice"));
    rig.say(1, other, Verdict::Delivered);
    let last = rig.accept(&message("alice"));
    assert!(rig.offers.last().unwrap().1.floor >= other.seq);
    assert_eq!(rig.offered().last(), Some(&last));
}

#[test]
fn the_move_and_the_new_place_are_one_commit_and_whoever_withdraws_meanwhile_finds_it() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let message = in_an_hour(&rig).build().unwrap();
    rig.accept(&message);
    rig.now = rig.now.after(HOUR);
    rig.input(Input::Tick);
    let records = &rig.open.front().unwrap().1;
    assert!(matches!(records[..], [Record::Accept(_), Record::End(_)]), "{records:?}");
    let cancel = rig.operate(Operation::Cancel(target(message.id())));
    rig.commit();
    assert_eq!(rig.done(cancel).unwrap().unwrap().messages, 1);
    assert_eq!(rig.machine.stats().counters.live(), 0);
    assert!(rig.offers.is_empty());
    let (store, _) = settled_with(&mut rig);
    assert!(store.is_empty());
}
