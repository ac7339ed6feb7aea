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
        entry: EntryRef { lane: Priority::Normal, seq: Seq::new(1) },
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
