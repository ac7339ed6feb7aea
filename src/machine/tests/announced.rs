//! What is announced of a message says what it is asked to say, of whom, and nothing else.

use super::operate::{alice, settled, target};
use super::*;
use crate::config::KeepEnds;

fn from_bob() -> MessageBuilder {
    to("alice").sender("bob")
}

impl Rig {
    fn last(&self) -> &Change {
        self.changes.last().unwrap()
    }

    /// What was announced last, and what is answered to whoever asks.
    fn stands(&mut self, message: &Message) -> (Status, Status) {
        let announced = self.last().status;
        let ticket = self.operate(Operation::Locate(target(message.id())));
        let located = self.done(ticket).unwrap().unwrap().located.unwrap();
        (announced, located.status)
    }

    /// Refused once, durably, and on offer again.
    fn offered_again(&mut self, message: &Message) -> EntryRef {
        self.attach(1, "alice", "phone");
        let entry = self.accept(message);
        self.say(1, entry, Verdict::Nack(None));
        self.pass(Duration::from_secs(300));
        assert_eq!(self.offers.len(), 2);
        entry
    }
}

/// Found by an audit: it was said to be accepted, as if nothing had failed, while whoever asked heard of its attempts.
#[test]
fn what_a_sink_gives_back_after_a_failed_attempt_is_announced_as_retrying() {
    let message = message("alice");
    let mut rig = Rig::new();
    rig.offered_again(&message);
    rig.input(Input::Detach(LinkId(1)));
    assert_eq!(rig.stands(&message), (Status::Retrying, Status::Retrying));

    let mut rig = Rig::new();
    let entry = rig.offered_again(&message);
    rig.say(1, entry, Verdict::Busy(Duration::from_secs(9)));
    assert_eq!(rig.stands(&message), (Status::Retrying, Status::Retrying));
    assert_eq!(rig.last().attempts, 1);

    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    rig.accept(&message);
    rig.input(Input::Detach(LinkId(1)));
    assert_eq!(rig.stands(&message), (Status::Accepted, Status::Accepted), "no attempt was burnt");
}

#[test]
fn what_is_given_back_while_its_failure_is_being_recorded_is_retrying_once_that_is_durable() {
    for gives_back in [Input::Detach(LinkId(1)), Input::Detach(LinkId(2))] {
        let message = message("alice");
        let mut rig = Rig::new();
        rig.attach(1, "alice", "phone");
        rig.attach(2, "alice", "laptop");
        let entry = rig.accept(&message);
        let first = rig.offers[0].0;
        rig.input(Input::Verdicts { link: first, verdicts: vec![(entry, Verdict::Nack(None))] });
        // The other one has it at once, and goes before the failure is durable.
        rig.now = rig.now.after(Duration::from_millis(10));
        rig.input(Input::Tick);
        assert_eq!((rig.offers.len(), rig.last().status), (2, Status::Sent));
        let before = rig.changes.len();
        rig.input(gives_back);
        rig.commit();
        let said: Vec<_> = rig.changes[before..].iter().map(|change| change.status).collect();
        assert!(!said.contains(&Status::Accepted), "{said:?}");
        let (announced, located) = rig.stands(&message);
        assert_eq!(announced, located, "{said:?}");
    }
}

/// Found by an audit: whoever waited for the first offer waited for the next one, through the whole backoff.
#[test]
fn what_has_been_on_offer_was_sent_whatever_it_waits_for_now() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    rig.say(1, entry, Verdict::Nack(None));
    assert_eq!(rig.machine.standing(&alice(), entry), Standing::Live(Status::Retrying));
    assert!(rig.machine.was_sent(&alice(), entry));

    let mut rig = Rig::new();
    let other = rig.accept(&message("alice"));
    assert!(!rig.machine.was_sent(&alice(), other));
    rig.attach(1, "alice", "phone");
    rig.input(Input::Detach(LinkId(1)));
    assert_eq!(rig.machine.standing(&alice(), other), Standing::Live(Status::Accepted));
    assert!(rig.machine.was_sent(&alice(), other));
}

/// Found by an audit: senders who follow what they have sent heard nothing of what ended while its recipient was away.
#[test]
fn an_end_on_disk_says_whose_message_it_was_and_so_does_its_late_confirmation() {
    let message = from_bob().ttl(Duration::from_secs(100)).build().unwrap();
    let whose = |change: &Change| (change.id, change.sender.clone(), change.event.clone());
    let expected = (Some(message.id()), message.sender().cloned(), Some(message.event().clone()));

    let (mut rig, store, reflects) = settled(std::slice::from_ref(&message));
    rig.pass(Duration::from_secs(101));
    rig.load_from(&store, reflects);
    rig.commit();
    assert_eq!(rig.last().status, Status::Ended(EndReason::Expired));
    assert_eq!(whose(rig.last()), expected);

    let (mut rig, store, reflects) = settled(std::slice::from_ref(&message));
    let ticket = rig.operate(Operation::Purge(alice()));
    rig.load_from(&store, reflects);
    rig.commit();
    assert!(rig.done(ticket).is_some());
    assert_eq!(
        (rig.last().status, whose(rig.last())),
        (Status::Ended(EndReason::Cancelled), expected.clone())
    );

    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message);
    rig.pass(Duration::from_secs(101));
    rig.say(1, entry, Verdict::Delivered);
    assert_eq!((rig.last().status, whose(rig.last())), (Status::Ended(EndReason::Delivered), expected));
}

/// Found by an audit: the feed of all ends could not say which message was delivered.
#[test]
fn deliveries_are_recorded_with_their_ids_where_all_ends_are_kept_and_late_ones_everywhere() {
    for keep_ends in [KeepEnds::All, KeepEnds::Undelivered] {
        let mut rig = Rig::with(Config { keep_ends, ..Config::default() });
        rig.attach(1, "alice", "phone");
        let ended = |rig: &Rig| match &rig.log.last().unwrap().1 {
            Record::End(end) => (end.reason, end.id),
            record => panic!("{record:?}"),
        };
        let delivered = message("alice");
        let entry = rig.accept(&delivered);
        rig.say(1, entry, Verdict::Delivered);
        let id = (keep_ends == KeepEnds::All).then_some(delivered.id());
        assert_eq!(ended(&rig), (EndReason::Delivered, id));

        let late = to("alice").ttl(Duration::from_secs(1)).build().unwrap();
        let entry = rig.accept(&late);
        rig.pass(Duration::from_secs(2));
        rig.say(1, entry, Verdict::Delivered);
        assert_eq!(ended(&rig), (EndReason::Delivered, Some(late.id())));
    }
}
