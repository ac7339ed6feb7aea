//! Dead letters: what is kept of messages that could not be delivered, and what can be done with it.

use core::num::NonZeroU32;

use super::operate::{alice, settled_with, target};
use super::*;
use crate::config::OnFailure;

fn config() -> Config {
    Config { max_attempts: NonZeroU32::new(2).unwrap(), ..Config::default() }
}

fn all() -> DeadLetters {
    DeadLetters::of(alice())
}

impl Rig {
    /// Offers a message to a sink of alice's and lets all of its attempts fail.
    fn kill(&mut self, message: &Message) -> EntryRef {
        let entry = self.accept(message);
        self.fail_all(entry);
        entry
    }

    fn fail_all(&mut self, entry: EntryRef) {
        for _ in 0..2 {
            self.say(1, entry, Verdict::Nack(Some(Duration::from_millis(20))));
            self.pass(Duration::from_millis(50));
        }
    }

    fn letters(&mut self, letters: DeadLetters) -> Vec<DeadLetter> {
        let ticket = self.operate(Operation::Inspect(letters, Seq::ZERO, 100));
        self.done(ticket).unwrap().unwrap().letters
    }

    fn ids(&mut self) -> Vec<MessageId> {
        self.letters(all()).iter().map(|letter| letter.message.id()).collect()
    }

    fn do_with(&mut self, operation: Operation) -> Result<Outcome, OperationError> {
        let ticket = self.operate(operation);
        self.commit();
        self.done(ticket).unwrap()
    }
}

fn attached(config: Config) -> Rig {
    let mut rig = Rig::with(config);
    rig.attach(1, "alice", "phone");
    rig
}

#[test]
fn a_message_whose_attempts_are_spent_is_kept_and_can_be_sent_again() {
    let mut rig = attached(config());
    let message = message("alice");
    let entry = rig.kill(&message);
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.live(), counters.dead_letters()), (0, 1));
    assert_eq!(counters.ended[EndReason::Dead.index()], 1);
    let letters = rig.letters(all());
    assert_eq!((letters.len(), &letters[0].message), (1, &message));
    let burial = letters[0].burial;
    assert_eq!((burial.reason, burial.attempts, burial.possibly_delivered), (EndReason::Dead, 2, true));

    let done = rig.do_with(Operation::Requeue(all())).unwrap();
    let again = done.accepted.unwrap().entry;
    assert_eq!((done.messages, again.lane), (1, LaneId::Normal));
    assert!(again.seq > entry.seq && rig.offered().last() == Some(&again));
    rig.say(1, again, Verdict::Delivered);
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.accepted, counters.live(), counters.dead_letters()), (2, 0, 0));
    assert!(rig.ids().is_empty());
}

#[test]
fn a_refused_message_is_kept_with_its_reason_and_can_be_thrown_away() {
    let mut rig = attached(config());
    let (refused, failed) = (message("alice"), message("alice"));
    let entry = rig.accept(&refused);
    rig.say(1, entry, Verdict::Rejected);
    rig.kill(&failed);
    let rejected = DeadLetters { reason: Some(EndReason::Rejected), ..all() };
    assert_eq!(rig.letters(rejected.clone())[0].message, refused);
    assert_eq!(rig.ids(), [refused.id(), failed.id()], "in the order in which they ended");
    assert_eq!(rig.do_with(Operation::Discard(rejected)).unwrap().messages, 1);
    assert_eq!(rig.ids(), [failed.id()]);
    let before = DeadLetters { before: Some(rig.now), ..all() };
    assert_eq!(rig.letters(before).len(), 1);
    let other = DeadLetters { id: Some(refused.id()), ..all() };
    assert_eq!(rig.do_with(Operation::Discard(other)).unwrap().messages, 0);
    assert_eq!(rig.machine.stats().counters.ended[EndReason::Cancelled.index()], 0, "it had ended before");
}

#[test]
fn a_lane_that_skips_keeps_nothing_and_one_that_blocks_goes_on_trying() {
    let on_failure = [OnFailure::Skip, OnFailure::Park, OnFailure::Block, OnFailure::Park];
    let mut rig = attached(Config { on_failure, ..config() });
    let skipped = to("alice").priority(Priority::Critical).build().unwrap();
    rig.kill(&skipped);
    assert_eq!(rig.machine.stats().counters.ended[EndReason::Dead.index()], 1);
    assert!(rig.ids().is_empty());
    let entry = rig.accept(&message("alice"));
    for n in 1..10 {
        rig.say(1, entry, Verdict::Nack(Some(Duration::from_millis(20))));
        rig.pass(Duration::from_millis(50));
        let (_, again) = rig.offers.last().unwrap();
        assert_eq!((again.entry, again.attempts), (entry, n));
    }
    assert_eq!(rig.machine.stats().counters.live(), 1);
}

#[test]
fn dead_letters_are_bounded_by_number_and_by_bytes_and_what_is_over_is_counted() {
    let cost = message("alice").cost();
    for (max, max_bytes) in [(2, u64::MAX), (100, 2 * cost)] {
        let mut rig = attached(Config { max_dead_letters: max, max_dead_bytes: max_bytes, ..config() });
        for n in 1..=3 {
            rig.kill(&message("alice"));
            assert_eq!(rig.ids().len(), n.min(2), "{max} letters of {max_bytes} bytes");
        }
        assert_eq!(rig.machine.stats().dead_letters_dropped, 1);
        assert_eq!(rig.machine.stats().counters.ended[EndReason::Dead.index()], 3);
        rig.do_with(Operation::Discard(all())).unwrap();
        rig.kill(&message("alice"));
        assert_eq!(rig.ids().len(), 1, "there is room again");
    }
}

/// Both ends are handed out before the first of them is durable.
#[test]
fn letters_on_their_way_to_the_disk_count_against_the_bound() {
    let mut rig = attached(Config { max_dead_letters: 1, ..config() });
    let key = |key: &str| to("alice").ordering_key(key).build().unwrap();
    let entries = [rig.accept(&key("a")), rig.accept(&key("b"))];
    let verdicts = entries.map(|entry| (entry, Verdict::Rejected)).to_vec();
    rig.input(Input::Verdicts { link: LinkId(1), verdicts });
    rig.commit();
    assert_eq!((rig.ids().len(), rig.machine.stats().dead_letters_dropped), (1, 1));
}

#[test]
fn dead_letters_take_no_room_from_the_living_and_are_not_sent_again_into_a_full_outbox() {
    let mut rig = attached(Config { max_user_messages: NonZeroU32::new(1).unwrap(), ..config() });
    rig.kill(&message("alice"));
    let ticket = rig.send(&message("alice"));
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
    let refused = rig.do_with(Operation::Requeue(all()));
    assert!(
        matches!(refused, Err(OperationError::Refused(Refusal::OutboxFull { messages: 1, .. }))),
        "{refused:?}"
    );
    assert_eq!(rig.ids().len(), 1);
}

#[test]
fn a_dead_letter_has_ended_and_can_be_neither_withdrawn_nor_moved_but_a_purge_takes_it() {
    let mut rig = attached(config());
    let message = message("alice");
    rig.kill(&message);
    let cancel = Operation::Cancel(target(message.id()));
    assert_eq!(rig.do_with(cancel), Err(OperationError::NotWaiting));
    let up = Operation::Reprioritise(target(message.id()), Priority::High);
    assert_eq!(rig.do_with(up), Err(OperationError::NotWaiting));
    assert_eq!(rig.do_with(Operation::Purge(alice())).unwrap().messages, 1);
    assert!(rig.ids().is_empty());
    assert_eq!(rig.machine.stats().counters.dead_letters(), 0);
}

#[test]
fn a_late_confirmation_drops_the_dead_letter() {
    let mut rig = attached(config());
    let entry = rig.kill(&message("alice"));
    rig.say(1, entry, Verdict::Delivered);
    assert!(rig.ids().is_empty());
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.ended[EndReason::Delivered.index()], counters.upgraded), (1, 1));
}

#[test]
fn a_replay_keeps_dead_letters_and_takes_none_for_something_that_was_sent() {
    let mut rig = attached(config());
    let repeated = to("alice").sender("bob").build().unwrap();
    let entry = rig.kill(&repeated);
    rig.do_with(Operation::Requeue(all())).unwrap();
    let other = rig.accept(&message("alice"));
    rig.say(1, other, Verdict::Rejected);
    let mut reborn = Rig { machine: rig.replayed(), next: Seq::first_of(Epoch(2)), ..Rig::new() };
    assert_eq!(reborn.machine.stats().counters, rig.machine.stats().counters);
    assert_eq!(
        reborn.machine.snapshot(&alice()).unwrap().totals,
        rig.machine.snapshot(&alice()).unwrap().totals
    );
    let ticket = reborn.send(&repeated);
    let repeat = reborn.answer(ticket).unwrap().clone().unwrap();
    assert_eq!((repeat.duplicate, repeat.entry.seq), (true, entry.seq));
}

#[test]
fn a_letter_and_the_end_it_comes_from_are_one_commit_also_after_a_failed_one() {
    let mut rig = attached(config());
    let entry = rig.accept(&message("alice"));
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(entry, Verdict::Rejected)] });
    let (commit, records) = rig.open.pop_front().unwrap();
    assert_eq!(records.len(), 2);
    rig.input(Input::PersistFailed { commit, unknown: true });
    let again = rig.open.front().unwrap().1.clone();
    assert_eq!(again, records);
    rig.commit();
    assert_eq!(rig.ids().len(), 1);
    assert_eq!(rig.machine.stats().counters.live(), 0);
}

#[test]
fn settled_letters_are_read_page_by_page_in_their_order_and_are_sent_again_from_there() {
    let mut rig = attached(config());
    let messages: Vec<_> = (0..3).map(|_| message("alice")).collect();
    for message in &messages {
        rig.kill(message);
    }
    rig.input(Input::Detach(LinkId(1)));
    let (store, reflects) = settled_with(&mut rig);
    assert_eq!(store.len(), 3);
    assert!(rig.machine.snapshot(&alice()).is_none(), "nothing of it stays in memory");
    let ask = |rig: &mut Rig, behind, max| {
        let ticket = rig.operate(Operation::Inspect(all(), behind, max));
        rig.load_from(&store, reflects);
        rig.done(ticket).unwrap().unwrap().letters
    };
    let two = ask(&mut rig, Seq::ZERO, 2);
    let rest = ask(&mut rig, two[1].place, 2);
    let found: Vec<_> = two.iter().chain(&rest).map(|letter| letter.message.id()).collect();
    assert_eq!(found, messages.iter().map(Message::id).collect::<Vec<_>>());
    let ticket = rig.operate(Operation::Requeue(DeadLetters { id: Some(messages[1].id()), ..all() }));
    rig.load_from(&store, reflects);
    rig.commit();
    assert_eq!(rig.done(ticket).unwrap().unwrap().messages, 1);
    assert_eq!(ask(&mut rig, Seq::ZERO, 9).len(), 2);
}

#[test]
fn dead_letters_of_all_users_together_are_bounded_at_minus_one_zero_and_plus_one() {
    let cost = message("alice").cost();
    for (letters, bytes) in
        [(2, u64::MAX), (u64::MAX, 2 * cost), (u64::MAX, 2 * cost + 1), (u64::MAX, 3 * cost - 1)]
    {
        let config = Config { max_total_dead_letters: letters, max_total_dead_bytes: bytes, ..config() };
        let mut rig = attached(config);
        // One by one, and two of which the first is on its way to the disk.
        rig.kill(&message("alice"));
        let entries = [0; 2].map(|_| {
            let ordering = MessageId::random().to_string();
            rig.accept(&to("alice").ordering_key(ordering).build().unwrap())
        });
        rig.input(Input::Verdicts {
            link: LinkId(1),
            verdicts: entries.map(|entry| (entry, Verdict::Rejected)).into(),
        });
        rig.commit();
        let stats = rig.machine.stats();
        assert_eq!((stats.counters.dead_letters(), stats.dead_letters_dropped), (2, 1));
        assert_eq!(stats.counters.dead_bytes(), 2 * cost);
        assert_eq!(rig.replayed().stats().counters, stats.counters);
        // What goes makes room.
        rig.do_with(Operation::Discard(DeadLetters { reason: Some(EndReason::Dead), ..all() })).unwrap();
        assert_eq!(rig.machine.stats().counters.dead_bytes(), cost);
        rig.kill(&message("alice"));
        let counters = rig.machine.stats().counters;
        assert_eq!((counters.dead_letters(), counters.dead_bytes()), (2, 2 * cost));
        rig.kill(&message("alice"));
        assert_eq!((rig.ids().len(), rig.machine.stats().dead_letters_dropped), (2, 2));
    }
    let mut rig = attached(Config { max_total_dead_letters: 0, ..config() });
    rig.kill(&message("alice"));
    assert_eq!(rig.machine.stats().counters.dead_letters(), 0);
}

fn holders(machine: &Machine, behind: Option<&str>, max: usize) -> Vec<UserId> {
    machine.letter_holders(behind.map(|name| UserId::new(name).unwrap()).as_ref(), max)
}

#[test]
fn whoever_has_letters_is_named_in_the_order_of_keys_until_the_store_names_them() {
    let mut rig = attached(config());
    let names = ["alice", "bo", "carol"];
    for (link, name) in (1..).zip(names) {
        rig.attach(link, name, "phone");
        let entry = rig.accept(&message(name));
        rig.say(link, entry, Verdict::Rejected);
    }
    rig.accept(&message("somebody-else"));
    let by_key = ["bo", "alice", "carol"].map(|name| UserId::new(name).unwrap());
    assert_eq!(holders(&rig.machine, None, 9), by_key);
    assert_eq!(holders(&rig.replayed(), None, 9), by_key);
    for (behind, at) in [(None, 0), (Some("bo"), 1), (Some("alice"), 2), (Some("carol"), 3)] {
        for max in 0..4 {
            let expected: Vec<_> = by_key.iter().skip(at).take(max).cloned().collect();
            assert_eq!(holders(&rig.machine, behind, max), expected, "{max} behind {behind:?}");
        }
    }
    settle(&mut rig);
    // Whoever is still there may get another one.
    assert_eq!(holders(&rig.machine, None, 9), by_key);
    (1..4).for_each(|link| rig.input(Input::Detach(LinkId(link))));
    assert_eq!(holders(&rig.machine, None, 9), []);
}

#[test]
fn letters_are_counted_and_settling_says_who_has_none_left() {
    let mut rig = attached(config());
    let count = |rig: &mut Rig| rig.do_with(Operation::Letters(alice())).unwrap().dead_letters;
    assert_eq!(count(&mut rig), (0, 0));
    let cost = message("alice").cost();
    rig.kill(&message("alice"));
    rig.kill(&message("alice"));
    assert_eq!(count(&mut rig), (2, 2 * cost));
    assert_eq!(rig.do_with(Operation::Letters(UserId::new("bob").unwrap())).unwrap().dead_letters, (0, 0));
    let said = |parts: Vec<Survivors>| -> Vec<UserId> {
        parts.into_iter().flat_map(|part| part.without_letters).collect()
    };
    rig.do_with(Operation::Requeue(all())).unwrap();
    assert_eq!(count(&mut rig), (0, 0));
    assert_eq!(said(settle(&mut rig)), [alice()]);
    let mut rig = attached(config());
    rig.kill(&message("alice"));
    assert_eq!(said(settle(&mut rig)), []);
}

fn state() -> MessageBuilder {
    to("alice").collapse_key("order/7")
}

#[test]
fn a_letter_stays_while_a_newer_message_of_its_collapse_key_waits_and_goes_when_none_does() {
    let mut rig = attached(config());
    let (old, plain) = (state().build().unwrap(), message("alice"));
    rig.kill(&old);
    rig.kill(&plain);
    rig.input(Input::Detach(LinkId(1)));
    let newer = rig.accept(&state().build().unwrap());
    let done = rig.do_with(Operation::Requeue(all())).unwrap();
    assert_eq!((done.messages, done.superseded), (1, 1), "the other one goes");
    assert_eq!(rig.ids(), [old.id()]);
    assert_eq!(rig.do_with(Operation::Requeue(all())), Err(OperationError::Superseded));
    assert_eq!(rig.ids(), [old.id()], "nothing was changed");
    rig.attach(2, "alice", "phone");
    rig.say(2, newer, Verdict::Delivered);
    let done = rig.do_with(Operation::Requeue(all())).unwrap();
    assert_eq!((done.messages, done.superseded), (1, 0));
}

#[test]
fn a_letter_of_an_older_version_than_was_accepted_stays_also_when_that_was_delivered() {
    let mut rig = attached(config());
    let version = |version| state().version(version).build().unwrap();
    rig.kill(&version(3));
    let newer = rig.accept(&version(4));
    rig.say(1, newer, Verdict::Delivered);
    assert_eq!(rig.do_with(Operation::Requeue(all())), Err(OperationError::Superseded));
    rig.do_with(Operation::Discard(all())).unwrap();
    let same = version(4);
    rig.kill(&same);
    let done = rig.do_with(Operation::Requeue(all())).unwrap();
    assert_eq!(done.messages, 1, "nothing newer than itself is known");

    // Found by a review: one without a version had it forgotten which was the newest.
    let mut rig = attached(config());
    rig.kill(&state().build().unwrap());
    let newer = rig.accept(&version(7));
    rig.say(1, newer, Verdict::Delivered);
    assert_eq!(rig.do_with(Operation::Requeue(all())), Err(OperationError::Superseded));
    let late = rig.send(&version(5));
    assert_eq!(rig.answer(late), Some(&Err(Refusal::Outdated { newest: 7 })));
}

#[test]
fn of_several_letters_of_one_collapse_key_the_newest_goes_and_gives_way_to_what_is_sent_then() {
    let mut rig = attached(config());
    let [first, second] = [(); 2].map(|()| state().build().unwrap());
    rig.kill(&first);
    rig.kill(&second);
    rig.input(Input::Detach(LinkId(1)));
    let ticket = rig.operate(Operation::Requeue(all()));
    let newer = rig.send(&state().build().unwrap());
    assert_eq!(rig.open.len(), 1, "what is sent meanwhile waits until the letter has a place");
    rig.commit();
    let done = rig.done(ticket).unwrap().unwrap();
    assert_eq!((done.messages, done.superseded), (1, 1));
    let again = done.accepted.unwrap().entry;
    assert!(rig.answer(newer).unwrap().is_ok());
    let replaced = rig.changes.iter().find(|change| change.status == Status::Ended(EndReason::Replaced));
    assert_eq!(replaced.unwrap().entry, again);
    assert_eq!(rig.machine.stats().counters.live(), 1);
    assert_eq!(rig.ids(), [first.id()]);
    assert_eq!(rig.do_with(Operation::Requeue(all())), Err(OperationError::Superseded));
    let mut replayed = Rig { machine: rig.replayed(), ..Rig::new() };
    replayed.next = Seq::first_of(Epoch(2));
    let ticket = replayed.send(&state().build().unwrap());
    replayed.commit();
    assert!(replayed.answer(ticket).unwrap().is_ok());
    assert_eq!(replayed.machine.stats().counters.live(), 1, "a replay knows which one is the newest");
}

#[test]
fn a_letter_is_not_sent_again_past_one_of_its_key_that_is_being_committed() {
    let mut rig = attached(config());
    rig.kill(&state().build().unwrap());
    let newer = rig.send(&state().build().unwrap());
    let ticket = rig.operate(Operation::Requeue(all()));
    assert_eq!(rig.done(ticket), Some(Err(OperationError::Superseded)));
    rig.commit();
    assert!(rig.answer(newer).unwrap().is_ok());
}

/// Found by an audit: with `Block`, the strictest of them, a message that was refused for good was gone.
#[test]
fn what_is_refused_for_good_is_kept_unless_it_is_to_be_skipped_and_only_blocking_goes_on_trying() {
    for (policy, refused, spent) in
        [(OnFailure::Park, 1, (1, 0)), (OnFailure::Skip, 0, (0, 0)), (OnFailure::Block, 1, (0, 1))]
    {
        let config = || Config { on_failure: [policy; 4], ..config() };
        let mut rig = attached(config());
        let entry = rig.accept(&message("alice"));
        rig.say(1, entry, Verdict::Rejected);
        assert_eq!((rig.ids().len(), rig.machine.stats().counters.live()), (refused, 0), "{policy:?}");
        let mut rig = attached(config());
        rig.kill(&message("alice"));
        let counters = rig.machine.stats().counters;
        assert_eq!((counters.dead_letters(), counters.live()), spent, "{policy:?}");
    }
}
