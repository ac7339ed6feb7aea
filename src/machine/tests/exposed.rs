//! What is said to have been offered, or perhaps: neither too little nor too much.

use super::operate::{alice, target};
use super::*;

impl Rig {
    /// Settles everything; alice leaves memory, and is read from the store from now on.
    pub(super) fn settle_alice(&mut self) -> (Vec<(Seq, std::sync::Arc<crate::record::Accept>)>, Seq) {
        let reflects = self.next;
        let parts = settle(self);
        let rows = parts.iter().flat_map(|part| &part.rows).filter(|(id, _)| *id == alice());
        self.row = rows.map(|(_, row)| row.clone()).next_back().or(self.row.take());
        assert_eq!(self.machine.stats().resident_users, 0);
        (parts.into_iter().flat_map(|part| part.entries).collect(), reflects)
    }

    fn answered(&mut self, operation: Operation, store: &Store) -> Result<Outcome, OperationError> {
        let ticket = self.operate(operation);
        self.load_from(&store.0, store.1);
        self.commit();
        self.done(ticket).expect("it is answered when it is durable")
    }
}

type Store = (Vec<(Seq, std::sync::Arc<crate::record::Accept>)>, Seq);

/// Alice was here, got what there was, and left memory; this came when she was away, and has settled.
fn settled_while_away(message: &Message) -> (Rig, Store) {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let before = rig.accept(&to("alice").build().unwrap());
    rig.say(1, before, Verdict::Delivered);
    rig.input(Input::Detach(LinkId(1)));
    rig.settle_alice();
    rig.accept(message);
    let store = rig.settle_alice();
    (rig, store)
}

/// Found by an audit: whoever had been exposed in this epoch was taken to have been offered whatever came since.
#[test]
fn what_came_for_somebody_who_had_left_was_offered_to_nobody_also_when_it_has_settled() {
    let moved = message("alice");
    let (mut rig, store) = settled_while_away(&moved);
    let done = rig.answered(Operation::Reprioritise(target(moved.id()), Priority::High), &store);
    assert_eq!(done.map(|done| done.messages), Ok(1));

    let cancelled = message("alice");
    let (mut rig, store) = settled_while_away(&cancelled);
    let done = rig.answered(Operation::Cancel(target(cancelled.id())), &store).unwrap();
    assert_eq!((done.messages, done.possibly_delivered), (1, 0));

    let short = to("alice").ttl(Duration::from_secs(5)).build().unwrap();
    let (mut rig, store) = settled_while_away(&short);
    rig.pass(Duration::from_secs(60));
    rig.load_from(&store.0, store.1);
    rig.commit();
    let ended = rig.changes.iter().find(|change| change.status == Status::Ended(EndReason::Expired));
    assert!(!ended.expect("it has expired").possibly_delivered);

    let (mut rig, store) = settled_while_away(&message("alice"));
    rig.offers.clear();
    rig.attach(1, "alice", "phone");
    rig.load_from(&store.0, store.1);
    assert_eq!(rig.offers.iter().map(|(_, delivery)| delivery.redelivered).collect::<Vec<_>>(), [false]);
}

/// Found by an audit: whoever left made everything before the last place that was offered count as offered, in all lanes.
#[test]
fn of_what_is_in_memory_only_that_was_offered_that_a_sink_was_handed() {
    let config = Config { max_in_flight: 1.try_into().unwrap(), ..Config::default() };
    let mut rig = Rig::with(config);
    rig.attach(1, "alice", "phone");
    let of_key = |key: &str| to("alice").ordering_key(key).build().unwrap();
    let [first, second, third] = ["one", "one", "two"].map(of_key);
    let low = to("alice").priority(Priority::Low).build().unwrap();
    let places = [&first, &second, &low, &third].map(|message| rig.accept(message));
    rig.say(1, places[0], Verdict::Nack(None));
    assert_eq!(rig.offered(), [places[0], places[2]]);
    rig.input(Input::Detach(LinkId(1)));
    for (message, is_moved) in [(&first, false), (&second, true), (&low, false), (&third, true)] {
        let to = Priority::High;
        let done = rig.answered(Operation::Reprioritise(target(message.id()), to), &Store::default());
        assert_eq!(
            done.map(|done| done.messages),
            if is_moved { Ok(1) } else { Err(OperationError::Offered) }
        );
    }
}

#[test]
fn of_what_has_left_memory_each_lane_knows_how_far_it_was_offered() {
    let config = Config { max_in_flight: 1.try_into().unwrap(), ..Config::default() };
    let mut rig = Rig::with(config);
    rig.attach(1, "alice", "phone");
    let low = to("alice").priority(Priority::Low).build().unwrap();
    let [offered, behind] = [(); 2].map(|()| message("alice"));
    let first = rig.accept(&offered);
    rig.accept(&low);
    rig.accept(&behind);
    assert_eq!(rig.offered(), [first]);
    rig.input(Input::Detach(LinkId(1)));
    let store = rig.settle_alice();
    let locate = |rig: &mut Rig, message: &Message| {
        let done = rig.answered(Operation::Locate(target(message.id())), &store).unwrap();
        done.located.unwrap().possibly_delivered
    };
    assert_eq!([&offered, &low, &behind].map(|message| locate(&mut rig, message)), [true, false, false]);
    // And it goes on knowing that when she has come and gone.
    rig.attach(2, "alice", "phone");
    rig.load_from(&store.0, store.1);
    rig.input(Input::Detach(LinkId(2)));
    assert_eq!([&offered, &behind].map(|message| locate(&mut rig, message)), [true, false]);
}

#[test]
fn what_waits_for_somebody_from_an_earlier_life_may_have_been_offered_when_they_were_exposed_then() {
    let mut rig = Rig::new();
    let [before, after] = [(); 2].map(|()| message("alice"));
    rig.attach(1, "alice", "phone");
    rig.accept(&before);
    let mut rig = Rig { machine: rig.replayed(), next: Seq::first_of(Epoch(2)), ..Rig::new() };
    rig.accept(&after);
    let store = rig.settle_alice();
    for (message, known) in [(&before, true), (&after, false)] {
        let done = rig.answered(Operation::Locate(target(message.id())), &store).unwrap();
        assert_eq!(done.located.unwrap().possibly_delivered, known);
    }
}
