//! Batches: all or nothing.

use super::*;

impl Rig {
    fn send_batch(&mut self, messages: &[Message]) -> Vec<Ticket> {
        let tickets: Vec<_> = (1..=messages.len() as u64).map(|n| Ticket(self.tickets + n)).collect();
        self.tickets += messages.len() as u64;
        self.input(Input::SendBatch(tickets.iter().copied().zip(messages.iter().cloned()).collect()));
        tickets
    }

    fn answers(&self, tickets: &[Ticket]) -> Vec<Option<Result<Accepted, Refusal>>> {
        tickets.iter().map(|ticket| self.answer(*ticket).cloned()).collect()
    }

    fn live(&self) -> u64 {
        self.machine.stats().counters.live()
    }
}

fn people(n: usize) -> Vec<Message> {
    (0..n).map(|n| message(&format!("user-{n}"))).collect()
}

#[test]
fn a_batch_is_one_commit_however_much_waits_before_and_behind_it() {
    let config = Config { max_commit_bytes: NonZeroU64::new(8_000).unwrap(), ..Config::default() };
    let mut rig = Rig::with(config);
    rig.machine.handle(rig.now, Input::Send { ticket: Ticket(100), message: message("zoe") });
    let batch: Vec<_> = (201..).map(Ticket).zip(people(7)).collect();
    rig.machine.handle(rig.now, Input::SendBatch(batch));
    rig.machine.handle(rig.now, Input::Send { ticket: Ticket(101), message: message("zoe") });
    rig.drain();
    let sizes: Vec<_> = rig.open.iter().map(|(_, records)| records.len()).collect();
    assert_eq!(sizes, [1, 7, 1]);
    rig.commit();
    assert_eq!(rig.live(), 9);
}

#[test]
fn a_batch_fits_up_to_its_bounds_in_messages_and_bytes() {
    let config = Config { max_commit_bytes: NonZeroU64::new(1 << 24).unwrap(), ..Config::default() };
    for (n, fits) in [(1023, true), (MAX_BATCH_MESSAGES, true), (1025, false)] {
        let mut rig = Rig::with(config.clone());
        let tickets = rig.send_batch(&people(n));
        rig.commit();
        let refused = |answer: &Option<_>| matches!(answer, Some(Err(Refusal::BatchTooLarge { .. })));
        assert!(rig.answers(&tickets).iter().all(|answer| refused(answer) != fits));
        assert_eq!(rig.live(), if fits { n as u64 } else { 0 });
    }
    let bytes: u64 = people(3).iter().map(|message| message.cost() + 1024).sum();
    for (max, fits) in [(bytes - 1, false), (bytes, true), (bytes + 1, true)] {
        let config = Config { max_commit_bytes: NonZeroU64::new(max).unwrap(), ..Config::default() };
        let mut rig = Rig::with(config);
        rig.send_batch(&people(3));
        rig.commit();
        assert_eq!(rig.live(), if fits { 3 } else { 0 });
    }
}

/// Found by review: it was told for ever to come back.
#[test]
fn a_batch_that_could_never_wait_as_a_whole_is_too_large() {
    for (n, fits) in [(2, true), (3, true), (4, false)] {
        let mut rig = Rig::with(Config { max_pending: NonZeroUsize::new(3).unwrap(), ..Config::default() });
        let tickets = rig.send_batch(&people(n));
        rig.commit();
        let refused =
            |answer: &Option<_>| matches!(answer, Some(Err(Refusal::BatchTooLarge { max_messages: 3, .. })));
        assert!(rig.answers(&tickets).iter().all(|answer| refused(answer) != fits), "{n}");
    }
}

#[test]
fn one_refused_message_refuses_all_and_nothing_is_held() {
    let mut rig = Rig::with(Config {
        max_user_messages: core::num::NonZeroU32::new(2).unwrap(),
        max_payload_bytes: NonZeroUsize::new(8).unwrap(),
        ..Config::default()
    });
    let known = message("alice");
    rig.accept(&known);
    let clash = to("alice").id(known.id()).priority(Priority::Low).build().unwrap();
    let large = Message::to("bob", "chat.message", vec![0; 9]).build().unwrap();
    let volatile = to("bob").durability(Durability::Volatile).build().unwrap();
    let (one, two) = (message("alice"), message("alice"));
    for (messages, which, why) in [
        (vec![message("bob"), clash], 1, Refusal::Conflict),
        (vec![message("bob"), large], 1, Refusal::PayloadTooLarge { bytes: 9, max: 8 }),
        (vec![volatile, message("bob")], 0, Refusal::VolatileInBatch),
        (
            vec![message("bob"), one.clone(), two],
            2,
            Refusal::OutboxFull { messages: 2, bytes: 2 * known.cost() },
        ),
    ] {
        let tickets = rig.send_batch(&messages);
        for (i, answer) in rig.answers(&tickets).into_iter().enumerate() {
            let expected = if i == which { why.clone() } else { Refusal::OtherRefused };
            assert_eq!(answer, Some(Err(expected)), "{why:?} {i}");
        }
        rig.commit();
        assert_eq!((rig.live(), rig.machine.stats().pending), (1, 0));
    }
    // What was claimed for a refused batch is free again, and its ids are new.
    let tickets = rig.send_batch(&[one]);
    rig.commit();
    assert!(matches!(rig.answers(&tickets)[..], [Some(Ok(Accepted { duplicate: false, .. }))]));
}

#[test]
fn a_batch_that_is_sent_again_is_recognised_as_a_whole_and_in_part() {
    let mut rig = Rig::new();
    let mut messages = people(3);
    rig.accept(&messages[1]);
    messages.push(messages[0].clone());
    for duplicates in [[false, true, false, true], [true; 4]] {
        let tickets = rig.send_batch(&messages);
        rig.commit();
        let answers = rig.answers(&tickets);
        let duplicate =
            |answer: &Option<Result<Accepted, _>>| answer.as_ref().unwrap().as_ref().unwrap().duplicate;
        assert_eq!(answers.iter().map(duplicate).collect::<Vec<_>>(), duplicates);
    }
    assert_eq!(rig.machine.stats().counters.accepted, 3);
}

#[test]
fn a_failed_commit_refuses_the_whole_batch_buffered_messages_too() {
    let mut rig = Rig::new();
    let buffered = to("bob").durability(Durability::Buffered).build().unwrap();
    let tickets = rig.send_batch(&[message("alice"), buffered]);
    let (commit, _) = rig.open.pop_front().unwrap();
    rig.input(Input::Written(commit));
    assert_eq!(rig.answers(&tickets), [None, None]);
    rig.input(Input::PersistFailed { commit, unknown: true });
    assert!(rig.answers(&tickets).iter().all(|answer| *answer == Some(Err(Refusal::OutcomeUnknown))));
    rig.commit();
    assert_eq!(rig.live(), 0);
}

#[test]
fn a_batch_for_people_who_must_be_read_first_waits_for_all_of_them() {
    for fails in [false, true] {
        let mut rig = Rig::born(Birth { store_empty: false, ..birth(Config::default()) });
        let tickets = rig.send_batch(&people(5));
        assert!(rig.open.is_empty());
        assert_eq!(rig.machine.stats().pending, 5);
        let mut reads = 0;
        while let Some((load, query)) = (!rig.loads.is_empty()).then(|| rig.loads.remove(0)) {
            reads += 1;
            match query {
                Query::Sender { .. } => {
                    rig.input(Input::Loaded { load, found: Box::new(Found::Sender(Vec::new())) });
                }
                _ if fails => rig.input(Input::LoadFailed(load)),
                _ => {
                    let found = Found::User { row: None, held: Some(held(0, 0)), reflects: Seq::ZERO };
                    rig.input(Input::Loaded { load, found: Box::new(found) });
                }
            }
        }
        assert_eq!(reads, 6);
        rig.commit();
        let refused = rig.answers(&tickets).iter().all(|a| *a == Some(Err(Refusal::StoreUnreadable)));
        assert_eq!((refused, rig.live(), rig.machine.stats().pending), (fails, if fails { 0 } else { 5 }, 0));
    }
}
