//! The inbox: deliveries of other engines, taken once and in order.

use super::*;

#[test]
fn an_inbox_takes_a_delivery_once_and_forgets_below_the_floor() {
    let mut sender = Rig::new();
    sender.attach(1, "alice", "phone");
    sender.accept(&message("alice"));
    let delivery = sender.offers[0].1.clone();
    let mut inbox = Rig::new();
    let receive = |rig: &mut Rig, n, delivery: &Delivery| {
        rig.input(Input::Receive(vec![(Ticket(n), delivery.clone())]));
    };
    receive(&mut inbox, 1, &delivery);
    receive(&mut inbox, 2, &delivery);
    inbox.commit();
    receive(&mut inbox, 3, &delivery);
    let duplicates: Vec<_> =
        (1..4).map(|n| inbox.answer(Ticket(n)).unwrap().as_ref().unwrap().duplicate).collect();
    assert_eq!(duplicates, [false, true, true]);
    let next = Delivery {
        floor: delivery.entry.seq,
        entry: EntryRef { seq: delivery.entry.seq.plus(5), ..delivery.entry },
        ..delivery.clone()
    };
    receive(&mut inbox, 4, &next);
    inbox.commit();
    let row = &inbox.machine.snapshot(delivery.message.recipient()).unwrap().inbox[0];
    assert_eq!((row.floor, row.seen.as_slice()), (delivery.entry.seq, &[next.entry.seq][..]));
    receive(&mut inbox, 5, &delivery);
    assert_eq!(inbox.answer(Ticket(5)), Some(&Err(Refusal::Obsolete)));
}

/// Found by the simulator: a volatile message has no place of its own in the sender's log.
#[test]
fn an_inbox_hands_a_volatile_delivery_on_and_remembers_nothing_of_it() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "handler");
    let hint = to("alice").durability(Durability::Volatile).build().unwrap();
    let delivery = Delivery {
        message: hint,
        stream: StreamId::from_u128(2),
        entry: EntryRef { lane: LaneId::Normal, seq: Seq::new(1) },
        floor: Seq::first_of(Epoch(9)),
        accepted_at: rig.now,
        attempts: 0,
        redelivered: false,
    };
    rig.input(Input::Receive(vec![(Ticket(1), delivery)]));
    assert!(rig.answer(Ticket(1)).unwrap().is_ok());
    assert_eq!(rig.offers.len(), 1);
    assert!(rig.machine.snapshot(&UserId::new("alice").unwrap()).unwrap().inbox.is_empty());
}

/// A delivery of another engine, the `n`th of its log.
fn delivery(n: u64, message: Message) -> Delivery {
    Delivery {
        entry: EntryRef { lane: message.lane(), seq: Seq::first_of(Epoch(3)).plus(n) },
        message,
        stream: StreamId::from_u128(2),
        floor: Seq::ZERO,
        accepted_at: Timestamp::from_millis(1),
        attempts: 0,
        redelivered: false,
    }
}

fn keyed(n: u64, key: &str) -> Delivery {
    delivery(n, to("alice").ordering_key(key).build().unwrap())
}

fn big(key: &str) -> Message {
    Message::to("alice", "chat.message", vec![0; 900]).ordering_key(key).build().unwrap()
}

fn receive(rig: &mut Rig, batch: Vec<Delivery>) -> Vec<Ticket> {
    let tickets: Vec<_> = (0..batch.len() as u64).map(|n| Ticket(rig.tickets + 1 + n)).collect();
    rig.tickets += batch.len() as u64;
    rig.input(Input::Receive(tickets.iter().copied().zip(batch).collect()));
    tickets
}

fn is_ok(rig: &Rig, tickets: &[Ticket]) -> Vec<bool> {
    tickets.iter().map(|ticket| rig.answer(*ticket).expect("not answered").is_ok()).collect()
}

/// An applied message that overtakes one of its own key cannot be called back.
#[test]
fn what_follows_a_refused_delivery_of_its_key_is_refused_and_other_keys_go_on() {
    let config = Config { max_user_bytes: core::num::NonZeroU64::new(1000).unwrap(), ..Config::default() };
    let mut rig = Rig::with(config);
    let batch = vec![keyed(1, "a"), delivery(2, big("a")), keyed(3, "b"), keyed(4, "a")];
    rig.accept(&Message::to("alice", "chat.message", vec![0; 100]).build().unwrap());
    let tickets = receive(&mut rig, batch.clone());
    rig.commit();
    assert_eq!(is_ok(&rig, &tickets), [true, false, true, false]);
    let again = receive(&mut rig, vec![keyed(4, "a")]);
    rig.commit();
    assert_eq!(is_ok(&rig, &again), [true], "a batch holds its keys only until it is through");
}

#[test]
fn a_delivery_that_is_refused_for_good_holds_nothing_back() {
    let max_payload_bytes = core::num::NonZeroUsize::new(100).unwrap();
    let mut rig = Rig::with(Config { max_payload_bytes, ..Config::default() });
    let wrong_lane =
        Delivery { entry: EntryRef { lane: LaneId::Low, ..keyed(1, "a").entry }, ..keyed(1, "a") };
    let tickets = receive(&mut rig, vec![wrong_lane, delivery(2, big("a")), keyed(3, "a")]);
    rig.commit();
    assert_eq!(rig.answer(tickets[0]), Some(&Err(Refusal::Conflict)));
    assert!(matches!(rig.answer(tickets[1]), Some(Err(Refusal::PayloadTooLarge { .. }))));
    assert_eq!(is_ok(&rig, &tickets), [false, false, true]);
}

#[test]
fn what_waited_for_a_load_behind_a_refused_delivery_is_refused_too() {
    let config = Config { max_user_bytes: core::num::NonZeroU64::new(500).unwrap(), ..Config::default() };
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(config) });
    let batch = vec![keyed(1, "a"), delivery(2, big("a")), keyed(3, "a"), keyed(4, "b")];
    let tickets = receive(&mut rig, batch);
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::User(_) | Query::Row(_)), "{query:?}");
    let found = Found::User { row: None, held: Some(held(0, 0)), reflects: Seq::ZERO };
    rig.input(Input::Loaded { load, found: Box::new(found) });
    rig.commit();
    assert_eq!(is_ok(&rig, &tickets), [true, false, false, true]);
}

/// A repeat of a delivery that is being committed fails with it, and must take along what it came with.
#[test]
fn what_was_admitted_after_a_commit_that_fails_fails_too() {
    let mut rig = Rig::new();
    let first = receive(&mut rig, vec![keyed(1, "a")]);
    let commit = rig.open.pop_front().unwrap().0;
    let batch = vec![(Ticket(10), keyed(1, "a")), (Ticket(11), keyed(2, "a"))];
    // As a driver that finds both at once.
    rig.machine.handle(rig.now, Input::Receive(batch));
    rig.machine.handle(rig.now, Input::PersistFailed { commit, unknown: true });
    rig.drain();
    rig.commit();
    assert_eq!(is_ok(&rig, &[first[0], Ticket(10), Ticket(11)]), [false, false, false]);
    assert_eq!(rig.machine.stats().counters.accepted, 0);
    assert_eq!(rig.machine.stats().pending, 0);
}

/// A written delivery may still be lost with the power: its sender must not be told that it has arrived.
#[test]
fn a_buffered_delivery_is_confirmed_when_it_is_durable_and_not_when_it_is_written() {
    let mut rig = Rig::new();
    let hint = to("alice").durability(Durability::Buffered).build().unwrap();
    let tickets = receive(&mut rig, vec![delivery(1, hint)]);
    let commit = rig.open.front().unwrap().0;
    rig.input(Input::Written(commit));
    assert!(rig.answer(tickets[0]).is_none());
    rig.commit();
    assert!(rig.answer(tickets[0]).unwrap().is_ok());
}

/// Found by the simulator, once a lane could go on trying for ever: what came after it had filled the memory, and the
/// message that held the floor back was refused for that.
#[test]
fn a_full_memory_takes_the_oldest_of_a_lane_and_no_other() {
    let two = core::num::NonZeroUsize::new(2).unwrap();
    let mut rig = Rig::with(Config { max_inbox_seen: two, ..Config::default() });
    let newer = receive(&mut rig, vec![keyed(5, "a"), keyed(6, "b")]);
    rig.commit();
    let full = receive(&mut rig, vec![keyed(7, "c")]);
    let oldest = receive(&mut rig, vec![keyed(4, "d")]);
    rig.commit();
    let older = receive(&mut rig, vec![keyed(3, "e")]);
    rig.commit();
    let bound = receive(&mut rig, vec![keyed(2, "f")]);
    assert_eq!(is_ok(&rig, &newer), [true, true]);
    assert_eq!(rig.answer(full[0]), Some(&Err(Refusal::Overloaded)));
    assert_eq!((is_ok(&rig, &oldest), is_ok(&rig, &older)), (vec![true], vec![true]));
    assert_eq!(rig.answer(bound[0]), Some(&Err(Refusal::Overloaded)), "twice as many is the bound");
    let floor = Seq::first_of(Epoch(3)).plus(6);
    let next = receive(&mut rig, vec![Delivery { floor, ..keyed(7, "c") }]);
    rig.commit();
    assert!(rig.answer(next[0]).is_some());
    let after = receive(&mut rig, vec![Delivery { floor, ..keyed(8, "c") }]);
    rig.commit();
    assert_eq!(is_ok(&rig, &after), [true]);
}

#[test]
fn an_inbox_remembers_so_many_lanes_of_other_engines_and_refuses_the_next_as_busy() {
    let two = core::num::NonZeroUsize::new(2).unwrap();
    let mut rig = Rig::with(Config { max_inbox_lanes: two, ..Config::default() });
    let from = |stream, n| Delivery { stream: StreamId::from_u128(stream), ..keyed(n, "a") };
    let both_known = receive(&mut rig, vec![from(2, 1), from(3, 1), from(2, 2)]);
    let one_more = receive(&mut rig, vec![from(4, 1)]);
    rig.commit();
    let later = receive(&mut rig, vec![from(4, 1)]);
    let known = receive(&mut rig, vec![from(3, 2)]);
    rig.commit();
    assert_eq!(is_ok(&rig, &both_known), [true; 3]);
    assert_eq!(rig.answer(one_more[0]), Some(&Err(Refusal::InboxFull)));
    assert_eq!(rig.answer(later[0]), Some(&Err(Refusal::InboxFull)));
    assert_eq!(is_ok(&rig, &known), [true]);
}
