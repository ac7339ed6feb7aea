use parking_lot::Mutex;

use super::*;
use crate::error::Closed;
use crate::record::{LaneId, Seq};
use crate::runtime::hub::Bounds;
use crate::status::{EndReason, Status};

const BOUNDS: Bounds = Bounds { keyed: 3, of_one_key: 3, wide: 2, buffer: 4 };

fn hub() -> Arc<Changes> {
    Arc::new(Hub::new(BOUNDS))
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn event(name: &str) -> EventName {
    EventName::new(name).unwrap()
}

fn place(seq: u64) -> EntryRef {
    EntryRef { lane: LaneId::Normal, seq: Seq::new(seq) }
}

/// Change `n` of a message from Bob about `call.ring`, whose id is its place.
fn change(of: &str, n: u64) -> Change {
    Change {
        user: user(of),
        entry: place(n),
        id: Some(MessageId::from_u128(n.into())),
        sender: Some(user("bob")),
        event: Some(event("call.ring")),
        status: Status::Ended(EndReason::Delivered),
        possibly_delivered: false,
        attempts: 0,
    }
}

fn heard(subscription: &mut Subscription) -> Vec<Seq> {
    core::iter::from_fn(|| subscription.try_recv().unwrap())
        .map(|heard| match heard {
            Heard::Changed(change) => change.entry.seq,
            Heard::Moved { to, .. } => to.seq,
            Heard::Read { mark, .. } => mark.up_to,
        })
        .collect()
}

#[test]
fn each_condition_lets_through_what_meets_it_and_nothing_else() {
    let unknown = Change { id: None, sender: None, event: None, ..change("alice", 1) };
    let id = MessageId::from_u128(1);
    let all = Filter::all();
    for (filter, known, of_another, not_in_memory) in [
        (all.clone(), true, true, true),
        (all.clone().user(user("alice")), true, false, true),
        (all.clone().entry(user("alice"), place(1)), true, false, true),
        (all.clone().entry(user("alice"), place(2)), false, false, false),
        (all.clone().message(user("alice"), id), true, false, false),
        (all.clone().message(user("alice"), MessageId::from_u128(9)), false, false, false),
        (all.clone().sender(user("bob")), true, true, false),
        (all.clone().sender(user("eve")), false, false, false),
        (all.clone().event(event("call")), true, true, false),
        (all.clone().event(event("call.ring.loud")), false, false, false),
        (all.clone().event(event("cal")), false, false, false),
        (all.clone().user(user("alice")).sender(user("eve")), false, false, false),
    ] {
        let matched = [&change("alice", 1), &change("carol", 1), &unknown].map(|c| filter.matches(c));
        assert_eq!(matched, [known, of_another, not_in_memory], "{filter:?}");
    }
}

#[test]
fn one_who_does_not_read_is_told_once_how_much_was_dropped_and_goes_on_with_the_newest() {
    let hub = hub();
    let mut slow = hub.subscribe(Filter::all()).unwrap();
    for n in 1..=4 {
        hub.publish(&change("alice", n));
    }
    assert_eq!(heard(&mut slow), [1, 2, 3, 4].map(Seq::new), "as many as fit lag nobody");
    for n in 1..=7 {
        hub.publish(&change("alice", n));
    }
    assert_eq!(slow.try_recv(), Err(HearError::Lagged(3)));
    assert_eq!(heard(&mut slow), [4, 5, 6, 7].map(Seq::new));
    hub.publish(&change("alice", 8));
    assert_eq!(heard(&mut slow), [Seq::new(8)]);
}

#[test]
fn at_the_bounds_subscriptions_are_refused_until_one_is_dropped() {
    let hub = hub();
    let of_alice = || hub.subscribe(Filter::all().user(user("alice")));
    let wide = || hub.subscribe(Filter::all());
    let mut some = vec![of_alice().unwrap(), of_alice().unwrap(), of_alice().unwrap()];
    let mut others = vec![wide().unwrap(), wide().unwrap()];
    assert_eq!(of_alice().unwrap_err(), SubscribeError::TooMany(3));
    assert_eq!(wide().unwrap_err(), SubscribeError::TooMany(2));
    some.pop();
    others.pop();
    some.push(of_alice().unwrap());
    others.push(wide().unwrap());
    drop((some, others));
    assert!(hub.is_idle());
    assert!(hub.keys() == 0, "whom nobody listens to is forgotten");
}

#[test]
fn ten_thousand_senders_have_a_subscription_each_and_a_change_reaches_its_own_alone() {
    let bounds = Bounds { keyed: 10_001, of_one_key: 2, wide: 0, buffer: 4 };
    let hub: Arc<Changes> = Arc::new(Hub::new(bounds));
    let of = |n: u32| Filter::all().sender(user(&format!("sender-{n}")));
    let mut some: Vec<_> = (0..10_000).map(|n| hub.subscribe(of(n)).unwrap()).collect();
    let from = |n: u32| Change { sender: Some(user(&format!("sender-{n}"))), ..change("alice", 1) };
    for n in [0, 4_711, 9_999] {
        let change = from(n);
        let about =
            About { user: &change.user, sender: change.sender.as_ref(), event: change.event.as_ref() };
        assert_eq!(hub.reached(about), 1);
        hub.publish(&change);
    }
    let all: Vec<_> = some.iter_mut().map(heard).collect();
    assert!(
        all.iter().enumerate().all(|(n, heard)| heard.len() == usize::from([0, 4_711, 9_999].contains(&n)))
    );
    let another = hub.subscribe(of(1)).unwrap();
    assert_eq!(hub.subscribe(of(2)).unwrap_err(), SubscribeError::TooMany(10_001));
    some.pop();
    assert_eq!(hub.subscribe(of(1)).unwrap_err(), SubscribeError::TooMany(2), "of one key");
    drop((some, another));
    assert!(hub.is_idle() && hub.keys() == 0);
}

#[test]
fn a_subscription_to_an_event_is_found_by_what_is_below_it_and_by_nothing_else() {
    let bounds = Bounds { keyed: 9, of_one_key: 9, wide: 0, buffer: 4 };
    let hub: Arc<Changes> = Arc::new(Hub::new(bounds));
    let names = ["call", "call.ring", "call.ring.again", "caller", "chat"];
    let mut some = names.map(|name| hub.subscribe(Filter::all().event(event(name))).unwrap());
    hub.publish(&change("alice", 1));
    assert_eq!(some.each_mut().map(|one| heard(one).len()), [1, 1, 0, 0, 0]);
    let unknown = Change { event: None, ..change("alice", 2) };
    hub.publish(&unknown);
    assert!(some.iter_mut().all(|one| heard(one).is_empty()));
}

#[test]
fn a_filter_that_names_a_user_and_a_sender_hears_of_it_once() {
    let hub = hub();
    let mut both = hub.subscribe(Filter::all().user(user("alice")).sender(user("bob"))).unwrap();
    hub.publish(&change("alice", 1));
    hub.publish(&change("carol", 2));
    assert_eq!(heard(&mut both), [Seq::new(1)]);
}

#[test]
fn a_subscription_to_a_place_follows_the_message_and_one_by_id_hears_of_no_move() {
    let hub = hub();
    let mut follows = hub.subscribe(Filter::all().entry(user("alice"), place(1))).unwrap();
    let mut by_id = hub.subscribe(Filter::all().message(user("alice"), MessageId::from_u128(5))).unwrap();
    hub.publish_move(&user("alice"), place(9), place(10));
    hub.publish_move(&user("alice"), place(1), place(5));
    hub.publish(&change("alice", 1));
    hub.publish(&change("alice", 5));
    assert_eq!(heard(&mut follows), [5, 5].map(Seq::new));
    assert_eq!(heard(&mut by_id), [Seq::new(5)]);
}

#[tokio::test]
async fn what_was_heard_before_the_end_is_read_and_then_the_end() {
    let hub = hub();
    let mut subscription = hub.subscribe(Filter::all()).unwrap();
    hub.publish(&change("alice", 1));
    hub.close();
    assert!(matches!(hub.subscribe(Filter::all()), Err(SubscribeError::Closed(_))));
    assert_eq!(subscription.recv().await, Ok(Heard::Changed(change("alice", 1))));
    assert_eq!(subscription.recv().await, Err(HearError::Closed(Closed)));
    drop(hub);
    assert_eq!(subscription.recv().await, Err(HearError::Closed(Closed)), "again and again");
}

#[tokio::test]
async fn a_wait_that_is_dropped_loses_nothing_and_one_that_waits_is_woken() {
    let hub = hub();
    let mut subscription = hub.subscribe(Filter::all()).unwrap();
    {
        let wait = subscription.recv();
        tokio::pin!(wait);
        tokio::select! {
            biased;
            heard = &mut wait => panic!("{heard:?}"),
            () = tokio::task::yield_now() => hub.publish(&change("alice", 1)),
        }
    }
    assert_eq!(subscription.recv().await, Ok(Heard::Changed(change("alice", 1))));
    let (heard, ()) = tokio::join!(subscription.recv(), async { hub.publish(&change("alice", 2)) });
    assert_eq!(heard, Ok(Heard::Changed(change("alice", 2))));
}

#[test]
fn waking_somebody_who_drops_a_subscription_does_not_lock_the_hub() {
    struct DropsAnother(Mutex<Option<Subscription>>);
    impl std::task::Wake for DropsAnother {
        fn wake(self: Arc<Self>) {
            self.0.lock().take();
        }
    }
    let hub = hub();
    let mut waits = hub.subscribe(Filter::all()).unwrap();
    let another = hub.subscribe(Filter::all()).unwrap();
    let waker = Arc::new(DropsAnother(Mutex::new(Some(another)))).into();
    let mut wait = Box::pin(waits.recv());
    assert!(Future::poll(wait.as_mut(), &mut core::task::Context::from_waker(&waker)).is_pending());
    hub.publish(&change("alice", 1));
    assert_eq!(hub.count(), 1);
}

#[test]
fn what_was_read_is_heard_by_those_who_listen_to_its_reader_and_by_no_filter_of_messages() {
    let hub = hub();
    let of_alice = Filter::all().user(user("alice"));
    let mark = ReadMark { up_to: Seq::new(7), at: crate::Timestamp::from_millis(1) };
    let filters = [
        (Filter::all(), 1),
        (of_alice.clone(), 1),
        (Filter::all().user(user("bob")), 0),
        (of_alice.clone().sender(user("bob")), 0),
        (of_alice.event(event("call")), 0),
        (Filter::all().entry(user("alice"), place(7)), 0),
        (Filter::all().message(user("alice"), MessageId::from_u128(7)), 0),
    ];
    for (filter, expected) in filters {
        let mut hears = hub.subscribe(filter.clone()).unwrap();
        hub.publish_read(&user("alice"), None, mark);
        assert_eq!(heard(&mut hears).len(), expected, "{filter:?}");
    }
}
