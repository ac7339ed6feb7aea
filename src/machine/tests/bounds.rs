//! Bounds that no other test holds at one below, at it, and one above.

use core::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

use super::operate::alice;
use super::*;

const SPAN: Duration = Duration::from_secs(100);
const MILLI: Duration = Duration::from_millis(1);

fn ended(rig: &Rig, reason: EndReason) -> u64 {
    rig.machine.stats().counters.ended[reason.index()]
}

#[test]
fn a_ttl_holds_to_the_millisecond() {
    for (passed, in_time) in [(SPAN - MILLI, true), (SPAN, false), (SPAN + MILLI, false)] {
        let mut rig = Rig::new();
        let entry = rig.accept(&to("alice").ttl(SPAN).build().unwrap());
        rig.pass(passed);
        rig.attach(1, "alice", "phone");
        assert_eq!(rig.offered(), if in_time { vec![entry] } else { vec![] }, "after {passed:?}");
        assert_eq!(ended(&rig, EndReason::Expired), u64::from(!in_time), "after {passed:?}");
        // In flight as well, long before anybody has to answer.
        let mut rig = Rig::with(Config { ack_deadline: SPAN * 10, ..Config::default() });
        rig.attach(1, "alice", "phone");
        rig.accept(&to("alice").ttl(SPAN).build().unwrap());
        rig.now = rig.now.after(passed);
        rig.input(Input::Tick);
        rig.commit();
        assert_eq!(ended(&rig, EndReason::Expired), u64::from(!in_time), "in flight, after {passed:?}");
    }
}

#[test]
fn a_time_holds_to_the_millisecond_when_a_message_is_accepted_and_when_it_comes() {
    let now = Rig::new().now;
    let at = [(now.after(MILLI), LaneId::Scheduled), (now, LaneId::Normal)];
    let before = Timestamp::from_millis(now.as_millis() - 1);
    for (at, lane) in at.into_iter().chain([(before, LaneId::Normal)]) {
        let mut rig = Rig::new();
        assert_eq!(rig.accept(&to("alice").not_before(at).build().unwrap()).lane, lane, "{at:?}");
    }
    for (passed, has_come) in [(SPAN - MILLI, false), (SPAN, true), (SPAN + MILLI, true)] {
        let mut rig = Rig::new();
        rig.attach(1, "alice", "phone");
        rig.accept(&to("alice").not_before(rig.now.after(SPAN)).build().unwrap());
        rig.pass(passed);
        assert_eq!(rig.offers.len(), usize::from(has_come), "after {passed:?}");
    }
}

#[test]
fn the_newest_of_as_many_collapse_keys_is_known_as_the_bound_says() {
    for (keys, is_known) in [(2, true), (3, true), (4, false)] {
        let max_collapse_keys = NonZeroUsize::new(3).unwrap();
        let mut rig = Rig::with(Config { max_collapse_keys, ..Config::default() });
        let key = |n: usize| to("alice").collapse_key(format!("k{n}")).build().unwrap();
        for n in 0..keys {
            rig.accept(&key(n));
        }
        rig.accept(&key(0));
        assert_eq!(ended(&rig, EndReason::Replaced), u64::from(is_known), "{keys} keys");
    }
}

#[test]
fn an_id_is_remembered_up_to_so_many_and_up_to_its_age_and_no_longer() {
    let repeated = |rig: &mut Rig, message: &Message| {
        let ticket = rig.send(message);
        rig.commit();
        rig.answer(ticket).unwrap().as_ref().unwrap().duplicate
    };
    for (later, is_known) in [(2, true), (3, false), (4, false)] {
        let dedup_ids = NonZeroUsize::new(3).unwrap();
        let mut rig = Rig::with(Config { dedup_ids, ..Config::default() });
        let first = message("alice");
        rig.accept(&first);
        for _ in 0..later {
            rig.accept(&message("bob"));
        }
        assert_eq!(repeated(&mut rig, &first), is_known, "{later} ids later");
    }
    for (passed, is_known) in [(SPAN - MILLI, true), (SPAN, true), (SPAN + MILLI, false)] {
        let mut rig = Rig::with(Config { dedup_age: SPAN, ..Config::default() });
        let first = message("alice");
        rig.accept(&first);
        rig.pass(passed);
        assert_eq!(repeated(&mut rig, &first), is_known, "after {passed:?}");
    }
}

/// All that a sender has said is old at once when they come back: with a hundred thousand ids, whoever sent in that moment
/// waited for all of them to be forgotten.
#[test]
fn of_ids_that_have_aged_some_are_let_go_of_with_each_that_comes_and_none_is_known() {
    let duplicate = |rig: &mut Rig, message: &Message| {
        let ticket = rig.send(message);
        rig.commit();
        rig.answer(ticket).unwrap().as_ref().unwrap().duplicate
    };
    let mut rig = Rig::with(Config { dedup_age: SPAN, ..Config::default() });
    let old: Vec<_> = (0..100).map(|n| message(&format!("user-{n}"))).collect();
    for message in &old {
        rig.accept(message);
    }
    assert_eq!(rig.machine.dedup.ids(), 100);
    rig.pass(SPAN + MILLI);
    rig.accept(&message("bob"));
    let left = rig.machine.dedup.ids() - 1;
    assert!((100 - 16..100).contains(&left), "{left} are left");
    // Whether they are there or not.
    for again in [&old[99], &old[0]] {
        assert!(!duplicate(&mut rig, again));
        assert!(duplicate(&mut rig, again));
    }
    for _ in 0..10 {
        rig.accept(&message("bob"));
    }
    assert_eq!(rig.machine.dedup.ids(), 13, "only what is new");
}

#[test]
fn a_message_is_given_up_with_the_last_of_its_attempts_and_not_before() {
    for budget in 1..=3 {
        let max_attempts = NonZeroU32::new(budget).unwrap();
        let mut rig = Rig::with(Config { max_attempts, ..Config::default() });
        rig.attach(1, "alice", "phone");
        let entry = rig.accept(&message("alice"));
        for attempt in 1..=budget {
            assert_eq!(ended(&rig, EndReason::Dead), 0, "before attempt {attempt} of {budget}");
            rig.say(1, entry, Verdict::Nack(Some(MILLI)));
            rig.pass(Duration::from_secs(1));
        }
        assert_eq!(ended(&rig, EndReason::Dead), 1);
        assert_eq!(rig.offers.len(), budget as usize);
    }
}

#[test]
fn dead_letters_are_shown_up_to_the_number_and_the_bytes_that_were_asked_for() {
    let cost = message("alice").cost();
    for (max_load_bytes, max, shown) in [
        (1 << 20, 2, 2),
        (1 << 20, 3, 3),
        (1 << 20, 4, 3),
        (2 * cost - 1, 9, 2),
        (2 * cost, 9, 2),
        (2 * cost + 1, 9, 3),
        (1, 9, 1),
    ] {
        let max_load_bytes = NonZeroU64::new(max_load_bytes).unwrap();
        let mut rig = Rig::with(Config { max_load_bytes, ..Config::default() });
        rig.attach(1, "alice", "phone");
        for _ in 0..3 {
            let entry = rig.accept(&message("alice"));
            rig.say(1, entry, Verdict::Rejected);
        }
        let ticket = rig.operate(Operation::Inspect(DeadLetters::of(alice()), Seq::ZERO, max));
        let letters = rig.done(ticket).unwrap().unwrap().letters;
        assert_eq!(letters.len(), shown, "at most {max} and {max_load_bytes} bytes");
    }
}

/// The slice is what a commit waits for behind an operation: about 256 messages, whatever there is to do.
#[test]
fn an_operation_takes_a_slice_at_once_and_everything_in_the_end() {
    const SLICE: usize = 256;
    for waiting in [SLICE - 1, SLICE, SLICE + 1, 2 * SLICE, 2 * SLICE + 1] {
        let mut rig = Rig::new();
        for _ in 0..waiting {
            rig.accept(&message("alice"));
        }
        rig.tickets += 1;
        let ticket = Ticket(rig.tickets);
        let operation = Operation::Purge(alice());
        rig.machine.handle(rig.now, Input::Operate { ticket, operation });
        let mut at_once = Vec::new();
        // As a driver does: drained once, then told that time has passed.
        for _ in 0..10 {
            let mut ends = 0;
            while let Some(action) = rig.machine.poll_action() {
                if let Action::Persist { records, .. } = &action {
                    ends += records.iter().filter(|record| matches!(record, Record::End(_))).count();
                }
                rig.act(action);
            }
            at_once.push(ends);
            rig.machine.handle(rig.now, Input::Tick);
        }
        assert!(at_once.iter().all(|ends| *ends <= SLICE), "{at_once:?}");
        assert_eq!(at_once.iter().sum::<usize>(), waiting);
        rig.commit();
        assert_eq!(rig.done(ticket).unwrap().unwrap().messages as usize, waiting);
    }
}
