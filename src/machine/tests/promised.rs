//! Operations on buffered messages that were answered and are not durable yet.

use super::operate::{alice, target};
use super::*;

fn buffered() -> Message {
    to("alice").durability(Durability::Buffered).build().unwrap()
}

/// A message that was answered when it was written; with `fails`, its first sync has failed, and the journal has healed.
fn answered(fails: bool) -> (Rig, Message) {
    let mut rig = Rig::new();
    let message = buffered();
    let ticket = rig.send(&message);
    let commit = rig.open.front().unwrap().0;
    rig.input(Input::Written(commit));
    assert!(rig.answer(ticket).unwrap().is_ok());
    if fails {
        rig.input(Input::Writable(false));
        rig.open.clear();
        rig.machine.handle(rig.now, Input::PersistFailed { commit, unknown: true });
        rig.machine.handle(rig.now, Input::Writable(true));
    }
    (rig, message)
}

/// Found by an audit: until it was durable it was not found, though its sender had been told that it was accepted.
#[test]
fn what_was_answered_before_it_is_durable_is_withdrawn_replaced_and_moved_like_everything_else() {
    for fails in [false, true] {
        for what in 0..4 {
            let (mut rig, message) = answered(fails);
            let instead = to("alice").id(MessageId::from_u128(9)).build().unwrap();
            let ticket = rig.operate(match what {
                0 => Operation::Cancel(target(message.id())),
                1 => Operation::Purge(alice()),
                2 => Operation::Replace(target(message.id()), instead),
                _ => Operation::Reprioritise(target(message.id()), Priority::High),
            });
            assert_eq!(rig.done(ticket), None, "it waits for what it is about");
            rig.attach(1, "alice", "phone");
            rig.commit();
            let done = rig.done(ticket).expect("it is durable").expect("it was found");
            assert_eq!((done.messages, done.possibly_delivered), (1, 0), "{what}");
            let offered: Vec<_> = rig.offers.iter().map(|(_, delivery)| delivery.entry).collect();
            assert_eq!(offered, done.accepted.map(|accepted| accepted.entry).into_iter().collect::<Vec<_>>());
            assert_eq!((rig.machine.stats().pending, rig.machine.stats().recording), (0, 0));
        }
    }
}

#[test]
fn an_operation_waits_for_what_was_answered_before_it_and_for_nothing_that_comes_later() {
    let (mut rig, message) = answered(false);
    let (first, records) = rig.open.pop_front().unwrap();
    let ticket = rig.operate(Operation::Cancel(target(message.id())));
    rig.send(&buffered());
    rig.input(Input::Written(rig.open.front().unwrap().0));
    let place = rig.next;
    rig.next = rig.next.plus(records.len() as u64);
    rig.input(Input::Persisted { commit: first, first: place });
    let (second, _) = rig.open.pop_front().unwrap();
    let (end, records) = rig.open.pop_front().expect("it goes on without the second message");
    assert!(matches!(&records[..], [Record::End(end)] if end.seq == place), "{records:?}");
    let commits = [second, end].into_iter().zip(0..);
    commits.for_each(|(commit, n)| rig.input(Input::Persisted { commit, first: place.plus(1 + n) }));
    assert_eq!(rig.done(ticket).unwrap().unwrap().messages, 1);
    assert_eq!(rig.machine.stats().counters.live(), 1);
}

/// Found by review: what somebody else sent meanwhile, and was told to be accepted, went as well.
#[test]
fn a_purge_that_waits_for_what_was_answered_spares_what_was_accepted_behind_that() {
    let mut rig = Rig::new();
    let (buffered, later) = (buffered(), message("alice"));
    rig.send(&buffered);
    rig.input(Input::Written(rig.open.front().unwrap().0));
    let purge = rig.operate(Operation::Purge(alice()));
    let sent = rig.send(&later);
    // Both become durable before the machine is told of either.
    let place = rig.next;
    let commits: Vec<_> = rig.open.drain(..).collect();
    for (commit, records) in commits {
        rig.machine.handle(rig.now, Input::Persisted { commit, first: rig.next });
        rig.next = rig.next.plus(records.len() as u64);
    }
    rig.input(Input::Tick);
    rig.commit();
    let ended: Vec<_> = rig.changes.iter().filter(|change| change.status.is_terminal()).collect();
    assert_eq!(ended.iter().map(|change| change.entry.seq).collect::<Vec<_>>(), [place]);
    assert_eq!(rig.done(purge).unwrap().unwrap().messages, 1);
    assert!(rig.answer(sent).unwrap().is_ok());
    assert_eq!(rig.machine.stats().counters.live(), 1);
}

#[test]
fn operations_that_wait_for_a_sync_count_against_the_bound_of_those_without_an_answer() {
    let config = Config { max_pending: NonZeroUsize::new(2).unwrap(), ..Config::default() };
    let mut rig = Rig::with(config);
    rig.send(&buffered());
    rig.input(Input::Written(rig.open.front().unwrap().0));
    let first = rig.operate(Operation::Purge(alice()));
    let second = rig.operate(Operation::Purge(alice()));
    assert_eq!((rig.done(first), rig.done(second)), (None, Some(Err(OperationError::Overloaded))));
    rig.commit();
    assert_eq!(rig.done(first).unwrap().unwrap().messages, 1);
}
