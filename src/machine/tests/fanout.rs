//! One message to many: a verdict for each, and one body for all.

use super::*;

impl Rig {
    fn fan_out(&mut self, message: &Message, people: &[&str]) -> Vec<Ticket> {
        let first = Ticket(self.tickets + 1);
        self.tickets += people.len() as u64;
        let recipients = people.iter().map(|name| UserId::new(name).unwrap()).collect();
        self.input(Input::FanOut { first, message: message.clone(), recipients });
        (0..people.len() as u64).map(|n| Ticket(first.0 + n)).collect()
    }

    fn verdicts(&self, tickets: &[Ticket]) -> Vec<Result<bool, Refusal>> {
        let verdict = |ticket: &Ticket| self.answer(*ticket).expect("no verdict").clone();
        tickets.iter().map(verdict).map(|answer| answer.map(|accepted| accepted.duplicate)).collect()
    }
}

const PEOPLE: [&str; 4] = ["ann", "bob", "cid", "dan"];

fn news(bytes: usize) -> Message {
    Message::to("nobody", "news.published", vec![b'.'; bytes]).sender("editor").build().unwrap()
}

#[test]
fn everybody_gets_the_message_and_a_verdict_of_their_own() {
    let mut rig = Rig::new();
    let message = news(300);
    let tickets = rig.fan_out(&message, &PEOPLE);
    assert!(tickets.iter().all(|ticket| rig.answer(*ticket).is_none()), "answered before it was durable");
    rig.commit();
    assert_eq!(rig.verdicts(&tickets), vec![Ok(false); 4]);
    for name in PEOPLE {
        rig.attach(name.len() as u64 + u64::from(name.as_bytes()[0]), name, "phone");
    }
    let got: Vec<_> = rig.offers.iter().map(|(_, delivery)| delivery.message.clone()).collect();
    let names: Vec<_> = got.iter().map(|message| message.recipient().to_string()).collect();
    assert_eq!(names, PEOPLE);
    assert!(got.iter().all(|other| other.payload().as_ptr() == message.payload().as_ptr()));
    assert!(got.iter().all(|other| (other.id(), other.sender()) == (message.id(), message.sender())));
}

#[test]
fn a_full_outbox_refuses_only_its_owner() {
    let mut rig =
        Rig::with(Config { max_user_messages: core::num::NonZeroU32::new(1).unwrap(), ..Config::default() });
    rig.accept(&message("bob"));
    let tickets = rig.fan_out(&news(10), &PEOPLE);
    rig.commit();
    let full = Err(Refusal::OutboxFull { messages: 1, bytes: message("bob").cost() });
    assert_eq!(rig.verdicts(&tickets), [Ok(false), full, Ok(false), Ok(false)]);
    assert_eq!(rig.machine.stats().counters.live(), 4);
}

#[test]
fn whoever_has_it_already_is_a_repeat_and_other_contents_are_a_conflict() {
    let mut rig = Rig::new();
    let message = news(300);
    // Twice in one fan-out, before anything is durable.
    let first = rig.fan_out(&message, &["ann", "bob", "ann"]);
    rig.commit();
    assert_eq!(rig.verdicts(&first), [Ok(false), Ok(false), Ok(true)]);
    let again = rig.fan_out(&message, &PEOPLE);
    rig.commit();
    assert_eq!(rig.verdicts(&again), [Ok(true), Ok(true), Ok(false), Ok(false)]);
    let other =
        Message::to("x", "news.published", "other").sender("editor").id(message.id()).build().unwrap();
    let clash = rig.fan_out(&other, &["ann", "eve"]);
    rig.commit();
    assert_eq!(rig.verdicts(&clash), [Err(Refusal::Conflict), Ok(false)]);
    // What was digested for many is not taken for what comes by itself.
    let mut repeat = rig.send(&other.for_recipient(UserId::new("ann").unwrap()));
    assert_eq!(rig.verdicts(&[repeat]), [Err(Refusal::Conflict)]);
    repeat = rig.send(&message.for_recipient(UserId::new("ann").unwrap()));
    assert_eq!(rig.verdicts(&[repeat]), [Ok(true)]);
    assert_eq!(rig.machine.stats().counters.accepted, 5);
}

#[test]
fn a_failed_commit_refuses_whom_it_was_for_and_they_may_be_sent_to_again() {
    let mut rig = Rig::new();
    let message = news(300);
    let tickets = rig.fan_out(&message, &PEOPLE);
    let (commit, _) = rig.open.pop_front().unwrap();
    rig.input(Input::PersistFailed { commit, unknown: true });
    assert_eq!(rig.verdicts(&tickets), vec![Err(Refusal::OutcomeUnknown); 4]);
    let tickets = rig.fan_out(&message, &PEOPLE);
    rig.commit();
    assert_eq!(rig.verdicts(&tickets), vec![Ok(false); 4]);
}

#[test]
fn a_commit_has_room_for_as_many_as_its_bytes_allow_when_the_body_counts_once() {
    let people: Vec<String> = (0..100).map(|n| format!("user-{n}")).collect();
    let names: Vec<&str> = people.iter().map(String::as_str).collect();
    let message = news(10_000);
    let one = message.for_recipient(UserId::new("user-0").unwrap()).cost() + 1024;
    for (room, commits) in
        [(one + 99 * 296 - 1, vec![99, 1]), (one + 99 * 296, vec![100]), (one, vec![1; 100])]
    {
        let mut rig =
            Rig::with(Config { max_commit_bytes: NonZeroU64::new(room).unwrap(), ..Config::default() });
        let tickets = rig.fan_out(&message, &names);
        let sizes: Vec<_> = rig.open.iter().map(|(_, records)| records.len()).collect();
        assert_eq!(sizes, commits);
        rig.commit();
        assert_eq!(rig.verdicts(&tickets), vec![Ok(false); 100]);
    }
}

#[test]
fn what_one_waits_for_holds_up_nobody_else() {
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(Config::default()) });
    let tickets = rig.fan_out(&news(300), &PEOPLE);
    while let Some((load, query)) = (!rig.loads.is_empty()).then(|| rig.loads.remove(0)) {
        match query {
            Query::Sender { .. } => {
                rig.input(Input::Loaded { load, found: Box::new(Found::Sender(Vec::new())) });
            }
            Query::User(user) if user.as_bytes() == b"bob" => rig.input(Input::LoadFailed(load)),
            _ => {
                let found = Found::User { row: None, held: Some(held(0, 0)), reflects: Seq::ZERO };
                rig.input(Input::Loaded { load, found: Box::new(found) });
            }
        }
    }
    rig.commit();
    assert_eq!(rig.verdicts(&tickets), [Ok(false), Err(Refusal::StoreUnreadable), Ok(false), Ok(false)]);
}
