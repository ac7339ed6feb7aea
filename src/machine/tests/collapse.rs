//! Collapse keys: of a user's waiting messages with the same one, only the newest stays.

use core::num::NonZeroU32;

use super::operate::{alice, settled_with, target};
use super::*;
use crate::EventName;

fn state() -> MessageBuilder {
    to("alice").collapse_key("order/7")
}

fn version(version: u64) -> Message {
    state().version(version).build().unwrap()
}

fn ended(rig: &Rig, reason: EndReason) -> u64 {
    rig.machine.stats().counters.ended[reason.index()]
}

#[test]
fn the_newest_takes_the_place_of_the_one_that_waits_in_one_commit_whatever_its_priority() {
    let mut rig = Rig::new();
    let old = rig.accept(&state().build().unwrap());
    let other = rig.accept(&to("alice").collapse_key("order/8").build().unwrap());
    let bobs = rig.accept(&to("bob").collapse_key("order/7").build().unwrap());
    let new = state().priority(Priority::High).build().unwrap();
    let ticket = rig.send(&new);
    let records = &rig.open.front().unwrap().1;
    assert!(
        matches!(&records[..], [Record::Accept(_), Record::End(end)] if end.seq == old.seq),
        "{records:?}"
    );
    assert!(rig.answer(ticket).is_none(), "not before it is durable");
    rig.commit();
    let place = rig.answer(ticket).unwrap().clone().unwrap().entry;
    assert_eq!(ended(&rig, EndReason::Replaced), 1);
    rig.attach(1, "alice", "phone");
    assert_eq!(rig.offered(), [place, other]);
    assert_eq!(rig.machine.stats().counters.live(), 3, "{bobs:?} is another one's");
}

#[test]
fn many_of_a_key_that_are_sent_at_once_come_to_the_newest() {
    let mut rig = Rig::new();
    let messages: Vec<_> = (0..5).map(|_| state().build().unwrap()).collect();
    let tickets: Vec<_> = messages.iter().map(|message| rig.send(message)).collect();
    assert_eq!(rig.open.len(), 1, "each takes the place of the one before it");
    rig.commit();
    assert!(tickets.iter().all(|ticket| rig.answer(*ticket).unwrap().is_ok()));
    assert_eq!((ended(&rig, EndReason::Replaced), rig.machine.stats().counters.live()), (4, 1));
    rig.attach(1, "alice", "phone");
    let offered: Vec<_> = rig.offers.iter().map(|(_, delivery)| delivery.message.id()).collect();
    assert_eq!(offered, [messages[4].id()]);
    assert_eq!(rig.machine.stats().pending, 0);
}

/// All that waited were looked at again with each commit.
#[test]
fn each_of_many_that_wait_behind_one_of_their_key_is_taken_up_once_in_its_turn() {
    let mut rig = Rig::new();
    let messages: Vec<_> = (0..500).map(|_| state().build().unwrap()).collect();
    let tickets: Vec<_> = messages.iter().map(|message| rig.send(message)).collect();
    rig.commit();
    let places = tickets.iter().map(|ticket| rig.answer(*ticket).unwrap().clone().unwrap().entry.seq);
    assert!(places.is_sorted(), "in the order in which they were sent");
    assert_eq!(rig.machine.stats().counters.live(), 1);
    assert_eq!(rig.machine.looked_at, 2 * 500 - 1, "when they came, and in their turn");
    assert_eq!(rig.machine.unanswered(), 0);
}

#[test]
fn what_cannot_be_accepted_in_its_turn_does_not_hold_up_those_behind_it() {
    let mut rig = Rig::new();
    let first = rig.send(&version(5));
    let (outdated, repeat, last) = (rig.send(&version(3)), rig.send(&version(4)), rig.send(&version(6)));
    rig.commit();
    let answers = [first, outdated, repeat, last].map(|ticket| rig.answer(ticket).unwrap().is_ok());
    assert_eq!(answers, [true, false, false, true]);
    assert_eq!((rig.machine.stats().counters.live(), rig.machine.unanswered()), (1, 0));
}

#[test]
fn beyond_the_bound_the_oldest_fence_is_forgotten_first_also_after_the_row_was_read_again() {
    let max = NonZeroUsize::new(3).unwrap();
    let config = Config { max_collapse_keys: max, ..Config::default() };
    let fence = |key: &str, version| to("alice").collapse_key(key).version(version).build().unwrap();
    // The order of keys' digests is none of age.
    let keys = ["a", "b", "c", "d", "e", "f"];
    let mut rig = Rig::with(config.clone());
    rig.attach(1, "alice", "phone");
    for key in keys {
        let entry = rig.accept(&fence(key, 7));
        rig.say(1, entry, Verdict::Delivered);
    }
    let known = |rig: &mut Rig| {
        keys.map(|key| {
            let ticket = rig.send(&fence(key, 1));
            let refused = matches!(rig.answer(ticket), Some(Err(Refusal::Outdated { newest: 7 })));
            // What was not refused is not to become newest.
            if let Some((commit, _)) = rig.open.pop_front() {
                rig.input(Input::PersistFailed { commit, unknown: false });
            }
            refused
        })
    };
    assert_eq!(known(&mut rig), [false, false, false, true, true, true]);
    rig.input(Input::Detach(LinkId(1)));
    rig.commit();
    let row = settle(&mut rig).into_iter().flat_map(|part| part.rows).next().unwrap().1;
    let reflects = rig.next;
    let birth = Birth { epoch: Epoch(2), store_empty: false, settled: reflects, ..birth(config) };
    let mut reborn = Rig::born(birth);
    let ticket = reborn.send(&fence("g", 7));
    while let Some((load, query)) = reborn.loads.pop() {
        let found = match query {
            Query::User(_) => {
                Found::User { row: Some(Box::new(row.clone())), held: Some(held(0, 0)), reflects }
            }
            _ => Found::Sender(Vec::new()),
        };
        reborn.input(Input::Loaded { load, found: Box::new(found) });
    }
    reborn.commit();
    assert!(reborn.answer(ticket).unwrap().is_ok());
    assert_eq!(known(&mut reborn), [false, false, false, false, true, true]);
}

#[test]
fn a_volatile_message_is_judged_by_the_newest_version_that_came_while_somebody_is_there() {
    let mut rig = Rig::new();
    let hint = |version| state().version(version).durability(Durability::Volatile).build().unwrap();
    rig.attach(1, "alice", "phone");
    let refused = |rig: &mut Rig, version: u64| {
        let ticket = rig.send(&hint(version));
        match rig.answer(ticket).unwrap() {
            Ok(_) => None,
            Err(Refusal::Outdated { newest }) => Some(*newest),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&mut rig, 5), None);
    assert_eq!(rig.offers.len(), 1, "it is on its way, and waits no more");
    assert_eq!((refused(&mut rig, 4), refused(&mut rig, 5), refused(&mut rig, 6)), (Some(5), None, None));
    rig.accept(&version(9));
    assert_eq!(refused(&mut rig, 8), Some(9), "a durable one counts as well");
    rig.accept(&version(9));
    rig.input(Input::Detach(LinkId(1)));
    rig.attach(2, "alice", "phone");
    rig.commit();
    assert_eq!(refused(&mut rig, 9), None);
    let durable = rig.send(&version(8));
    assert!(matches!(rig.answer(durable), Some(Err(Refusal::Outdated { newest: 9 }))));
}

/// Each was compared with all before it. With that, this takes minutes.
#[test]
fn a_replay_of_very_many_moves_of_somebody_whose_row_is_unknown_follows_each_of_them() {
    const MOVES: u64 = 100_000;
    let old = Seq::first_of(Epoch(1));
    let settled = old.plus(MOVES);
    let birth = Birth { epoch: Epoch(2), store_empty: false, settled, ..birth(Config::default()) };
    let mut rig = Rig::born(birth);
    let [kept, other] = [state(), to("alice").collapse_key("other")].map(|message| message.build().unwrap());
    let mut at = settled;
    for n in 0..MOVES {
        let message = if n == 7 { kept.clone() } else { other.clone() };
        let accept = crate::record::Accept::new(message, rig.now);
        let accept = crate::record::Accept { admission: Admission::Moved, ..accept };
        rig.machine.replay(at, &Record::Accept(std::sync::Arc::new(accept)), true);
        let end = crate::record::End {
            user: alice(),
            lane: LaneId::Scheduled,
            seq: old.plus(n),
            id: None,
            reason: EndReason::Moved,
            upgrades: None,
            possibly_delivered: false,
            attempts: 0,
            cost: other.cost(),
            at: rig.now,
        };
        rig.machine.replay(at.plus(1), &Record::End(end), true);
        at = at.plus(2);
    }
    let key = rig.machine.digester.collapse(&alice(), kept.collapse_key().unwrap());
    let newest = crate::record::NewestRow {
        key,
        lane: LaneId::Scheduled,
        seq: old.plus(7),
        id: kept.id(),
        cost: kept.cost(),
        version: 0,
    };
    let row = UserRow { newest: vec![newest], ..UserRow::default() };
    rig.next = at;
    let ticket = rig.send(&state().build().unwrap());
    while let Some((load, query)) = rig.loads.pop() {
        let found = match query {
            Query::User(_) => {
                let held = Some(held(u32::try_from(MOVES).unwrap(), MOVES * other.cost()));
                Found::User { row: Some(Box::new(row.clone())), held, reflects: settled }
            }
            _ => Found::Sender(Vec::new()),
        };
        rig.input(Input::Loaded { load, found: Box::new(found) });
    }
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
    let gone = rig.log.iter().filter_map(|(_, record)| match record {
        Record::End(end) => Some(end.seq),
        _ => None,
    });
    assert_eq!(gone.collect::<Vec<_>>(), [settled.plus(14)], "it gives way where it is now");
}

#[test]
fn one_that_is_on_offer_gives_way_and_may_have_arrived_and_one_that_has_ended_does_not() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let first = rig.accept(&state().build().unwrap());
    let second = rig.accept(&state().build().unwrap());
    assert_eq!(rig.offered(), [first, second]);
    let change = rig.changes.iter().find(|change| change.status.is_terminal()).unwrap();
    assert_eq!((change.entry, change.status), (first, Status::Ended(EndReason::Replaced)));
    assert!(change.possibly_delivered);
    rig.say(1, second, Verdict::Delivered);
    rig.accept(&state().build().unwrap());
    assert_eq!((ended(&rig, EndReason::Replaced), ended(&rig, EndReason::Delivered)), (1, 1));
}

#[test]
fn an_outdated_version_is_refused_also_after_the_newest_was_delivered_and_after_a_replay() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&version(7));
    let refused = |rig: &mut Rig, old: u64| {
        let ticket = rig.send(&version(old));
        rig.commit();
        rig.answer(ticket).unwrap().clone()
    };
    assert_eq!(refused(&mut rig, 6), Err(Refusal::Outdated { newest: 7 }));
    assert!(refused(&mut rig, 7).is_ok(), "the same is not older");
    rig.say(1, entry, Verdict::Delivered);
    rig.offers.iter().map(|(_, d)| d.entry).collect::<Vec<_>>().into_iter().for_each(|entry| {
        rig.say(1, entry, Verdict::Delivered);
    });
    assert_eq!(rig.machine.stats().counters.live(), 0);
    assert_eq!(refused(&mut rig, 6), Err(Refusal::Outdated { newest: 7 }));
    let mut reborn = Rig { machine: rig.replayed(), next: Seq::first_of(Epoch(2)), ..Rig::new() };
    assert_eq!(refused(&mut reborn, 6), Err(Refusal::Outdated { newest: 7 }));
    assert!(refused(&mut reborn, 8).is_ok());
}

#[test]
fn a_full_outbox_takes_one_that_takes_a_place_and_is_no_larger() {
    let max = core::num::NonZeroU32::new(1).unwrap();
    let mut rig = Rig::with(Config { max_user_messages: max, ..Config::default() });
    rig.accept(&state().build().unwrap());
    let ticket = rig.send(&state().build().unwrap());
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
    let other = rig.send(&message("alice"));
    assert!(matches!(rig.answer(other), Some(Err(Refusal::OutboxFull { .. }))));
}

/// The end that is joined to it cannot be undone: an operation may wait for it, or a confirmation have come.
#[test]
fn one_that_takes_a_place_is_done_when_the_disk_heals_and_what_waits_behind_it_too() {
    let mut rig = Rig::new();
    let old = rig.accept(&state().build().unwrap());
    let tickets = [rig.send(&state().build().unwrap()), rig.send(&state().build().unwrap())];
    let cancel = rig.operate(Operation::Purge(alice()));
    let (commit, records) = rig.open.pop_front().unwrap();
    rig.input(Input::PersistFailed { commit, unknown: true });
    assert_eq!(rig.open.front().unwrap().1, records);
    assert!(tickets.iter().all(|ticket| rig.answer(*ticket).is_none()));
    rig.commit();
    assert!(tickets.iter().all(|ticket| rig.answer(*ticket).unwrap().is_ok()));
    assert!(rig.done(cancel).is_some());
    assert_eq!(rig.machine.stats().counters.live(), 1, "{old:?}");
}

#[test]
fn the_first_of_a_key_fails_with_its_commit_and_those_behind_it_do_not_overtake() {
    let mut rig = Rig::new();
    let tickets = [rig.send(&state().build().unwrap()), rig.send(&state().build().unwrap())];
    let (commit, _) = rig.open.pop_front().unwrap();
    rig.input(Input::PersistFailed { commit, unknown: true });
    rig.commit();
    assert!(tickets.iter().all(|ticket| rig.answer(*ticket) == Some(&Err(Refusal::OutcomeUnknown))));
    assert_eq!((rig.machine.stats().counters.accepted, rig.machine.stats().pending), (0, 0));
}

#[test]
fn the_row_names_the_newest_also_of_what_has_settled_and_moved() {
    let mut rig = Rig::new();
    let old = state().build().unwrap();
    rig.accept(&old);
    let before = rig.next;
    rig.input(Input::Settle { before });
    let row = rig.survivors.iter().flat_map(|part| part.rows.clone()).next().unwrap().1;
    rig.input(Input::Settled { before });
    assert_eq!(row.newest.len(), 1);
    assert!(rig.machine.snapshot(&alice()).is_none());
    let up = rig.operate(Operation::Reprioritise(target(old.id()), Priority::High));
    let store = [(row.newest[0].seq, std::sync::Arc::new(crate::record::Accept::new(old.clone(), rig.now)))];
    rig.load_from(&store, before);
    rig.commit();
    let moved = rig.done(up).unwrap().unwrap().accepted.unwrap().entry;
    // A replay of the move, before the row that names the old place is known.
    let moves: Vec<_> = rig.log[1..].to_vec();
    let birth = Birth { epoch: Epoch(2), store_empty: false, settled: before, ..birth(Config::default()) };
    let mut reborn = Rig::born(birth);
    moves.iter().for_each(|(seq, record)| reborn.machine.replay(*seq, record, true));
    let ticket = reborn.send(&state().build().unwrap());
    while let Some((load, query)) = reborn.loads.pop() {
        let found = match query {
            Query::User(_) => {
                let held = Some(held(1, old.cost()));
                Found::User { row: Some(Box::new(row.clone())), held, reflects: before }
            }
            _ => Found::Sender(Vec::new()),
        };
        reborn.input(Input::Loaded { load, found: Box::new(found) });
    }
    reborn.commit();
    assert!(reborn.answer(ticket).unwrap().is_ok());
    let end =
        reborn.changes.iter().find(|change| change.status.is_terminal()).expect("the old one gives way");
    assert_eq!(end.entry, moved);
    assert_eq!(reborn.machine.stats().counters.ended[EndReason::Replaced.index()], 1);
    // Found by the simulator: it had ended where it had moved to, and was ended once more.
    let cancel = rig.operate(Operation::Cancel(target(old.id())));
    rig.commit();
    assert!(rig.done(cancel).unwrap().is_ok());
    let mut reborn = Rig::born(Birth {
        epoch: Epoch(2),
        store_empty: false,
        settled: before,
        ..self::birth(Config::default())
    });
    rig.log[1..].iter().for_each(|(seq, record)| reborn.machine.replay(*seq, record, true));
    let ticket = reborn.send(&state().build().unwrap());
    while let Some((load, query)) = reborn.loads.pop() {
        let found = match query {
            Query::User(_) => Found::User {
                row: Some(Box::new(row.clone())),
                held: Some(held(1, old.cost())),
                reflects: before,
            },
            _ => Found::Sender(Vec::new()),
        };
        reborn.input(Input::Loaded { load, found: Box::new(found) });
    }
    reborn.commit();
    assert!(reborn.answer(ticket).unwrap().is_ok());
    assert_eq!(reborn.machine.stats().counters.ended[EndReason::Replaced.index()], 0);
}

#[test]
fn beyond_the_bound_the_key_of_the_oldest_is_forgotten_and_its_message_waits() {
    let max = core::num::NonZeroUsize::new(2).unwrap();
    let mut rig = Rig::with(Config { max_collapse_keys: max, ..Config::default() });
    let key = |key: &str| to("alice").collapse_key(key).build().unwrap();
    for name in ["a", "b", "c"] {
        rig.accept(&key(name));
    }
    rig.accept(&key("b"));
    assert_eq!(ended(&rig, EndReason::Replaced), 1);
    rig.accept(&key("a"));
    assert_eq!((ended(&rig, EndReason::Replaced), rig.machine.stats().counters.live()), (1, 4));
}

#[test]
fn neither_batches_nor_replacements_take_a_collapse_key_and_a_version_needs_one() {
    let mut rig = Rig::new();
    let old = message("alice");
    rig.accept(&old);
    rig.input(Input::SendBatch(vec![(Ticket(50), message("alice")), (Ticket(51), state().build().unwrap())]));
    assert_eq!(rig.answer(Ticket(50)), Some(&Err(Refusal::OtherRefused)));
    assert_eq!(rig.answer(Ticket(51)), Some(&Err(Refusal::CollapseInBatch)));
    let replace = rig.operate(Operation::Replace(target(old.id()), state().build().unwrap()));
    assert_eq!(rig.done(replace), Some(Err(OperationError::Unfit)));
    let flaw = to("alice").version(1).build().unwrap_err();
    assert!(matches!(flaw.flaw(), crate::MessageFlaw::VersionOfNothing));
}

#[test]
fn volatile_hints_of_a_key_come_to_the_newest_where_the_first_of_them_was() {
    let in_flight = core::num::NonZeroU32::MIN;
    let two = core::num::NonZeroUsize::new(2).unwrap();
    let config =
        Config { max_in_flight: in_flight, max_volatile: two, critical_reserve: 0, ..Config::default() };
    let mut rig = Rig::with(config);
    rig.attach(1, "alice", "phone");
    let held = rig.accept(&message("alice"));
    let hint = |text: &'static str| {
        let hint = Message::to("alice", "chat.typing", text).collapse_key("typing");
        hint.durability(Durability::Volatile).build().unwrap()
    };
    let other = to("alice").durability(Durability::Volatile).build().unwrap();
    let tickets = [rig.send(&hint("b")), rig.send(&other), rig.send(&hint("bo")), rig.send(&hint("bob"))];
    assert!(
        tickets.iter().all(|ticket| rig.answer(*ticket).unwrap().is_ok()),
        "they take no more room than one"
    );
    rig.say(1, held, Verdict::Delivered);
    let (_, first) = rig.offers[1].clone();
    assert_eq!(first.message.payload().as_ref(), b"bob");
    rig.say(1, first.entry, Verdict::Delivered);
    assert_eq!(rig.offers[2].1.message.id(), other.id());
    let (store, _) = settled_with(&mut rig);
    assert!(store.is_empty());
}

fn hint(key: &str) -> MessageBuilder {
    Message::to("alice", "cursor.moved", "3:14").ordering_key(key)
}

fn coalescing() -> Rig {
    let coalesce = vec![EventName::new("cursor").unwrap()];
    Rig::with(Config { coalesce, ..Config::default() })
}

#[test]
fn of_an_event_that_is_coalesced_the_newest_of_each_ordering_key_waits() {
    let mut rig = coalescing();
    let long = "k".repeat(255);
    let keys = ["a", "a", "b", &long, &long, "b"];
    let places: Vec<_> = keys.iter().map(|key| rig.accept(&hint(key).build().unwrap())).collect();
    let alone = [(); 2].map(|()| rig.accept(&message("alice")));
    rig.attach(1, "alice", "phone");
    assert_eq!(rig.offered(), [places[1], places[4], places[5], alone[0], alone[1]]);
    assert_eq!(ended(&rig, EndReason::Replaced), 3);
}

#[test]
fn a_message_keeps_its_own_collapse_key_and_a_repeat_is_one_also_when_its_event_is_coalesced_later() {
    let mut rig = Rig::new();
    let first = hint("a").build().unwrap();
    let place = rig.accept(&first);
    rig.machine.config.coalesce = vec![EventName::new("cursor.moved").unwrap()];
    let ticket = rig.send(&first);
    assert_eq!(rig.answer(ticket).unwrap().clone().unwrap(), Accepted::at(place).again());
    let own = rig.accept(&hint("a").collapse_key("own").build().unwrap());
    let new = rig.accept(&hint("a").build().unwrap());
    rig.attach(1, "alice", "phone");
    assert_eq!(rig.offered(), [place, own, new].map(|entry| entry).to_vec());
}

#[test]
fn volatile_messages_of_an_event_are_coalesced_too() {
    let mut rig = coalescing();
    rig.machine.config.max_in_flight = NonZeroU32::MIN;
    rig.machine.config.critical_reserve = 0;
    rig.attach(1, "alice", "phone");
    let blocking = rig.accept(&message("alice"));
    let hints = ["1", "2"].map(|text| {
        let hint = Message::to("alice", "cursor.moved", text.to_owned()).durability(Durability::Volatile);
        rig.send(&hint.build().unwrap())
    });
    let places = hints.map(|ticket| rig.answer(ticket).unwrap().clone().unwrap().entry);
    rig.say(1, blocking, Verdict::Delivered);
    assert_eq!(rig.offered(), [blocking, places[1]]);
}
